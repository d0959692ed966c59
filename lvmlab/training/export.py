"""What a training leaves: its model, the stages that made it, an export that plain `transformers` loads, and
its card.
"""

import json
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM

from lvmlab.model.embedding import fold
from lvmlab.model.lora import merge
from lvmlab.model.lvm import LVM
from lvmlab.tokenizer.tokenizer import NETWORKS, Tokenizer
from lvmlab.training.checkpoints import load_checkpoint, read_log
from lvmlab.utils import paths


def stages(folder: str | Path) -> list[dict]:
    """The trainings that made a training folder's model, in order.

    Returns:
        {steps, tokens, hours, device, loss} of each, the folder's own last.
    """
    checkpoint, log = load_checkpoint(folder), read_log(folder)
    more, last = checkpoint["identity"]["more"], log[-1]
    own = {
        "steps": checkpoint["step"],
        "tokens": checkpoint["step"] * more["recipe"]["tokens"],
        "hours": round(last["seconds"] / 3600, 3),
        "device": next((record["device"] for record in log if "device" in record), "unknown"),
        "loss": round(last.get("mean_loss", last["loss"]), 4),
    }
    return [*more.get("stages", []), own]


def load_lvm(folder: str | Path) -> LVM:
    """The model of a training folder's latest checkpoint, on the CPU, adapters merged.

    Raises:
        TrainingError: There is no checkpoint, or it is damaged.
    """
    checkpoint = load_checkpoint(folder)
    more = checkpoint["identity"]["more"]
    if isinstance(more["shape"], str):
        model = LVM.from_shape(more["shape"])
    else:
        config = AutoConfig.for_model(**more["shape"])
        model = LVM(AutoModelForCausalLM.from_config(config))
    model.load_state_dict(merge(fold(checkpoint["model"])))
    model.config.tokenizer_fingerprint = more.get("store", {}).get("tokenizer")
    return model.eval()


def export_lvm(folder: str | Path, out: str | Path) -> LVM:
    """Writes the latest checkpoint of a training as a pretrained model: weights, configuration, log, card.

    Args:
        folder: Of the training.
        out: The folder to write; plain `transformers` loads it.

    Returns:
        The model as it loads from ``out``.

    Raises:
        TrainingError: There is no checkpoint, or it is damaged.
    """
    identity, log = load_checkpoint(folder)["identity"], read_log(folder)
    more, model = identity.pop("more"), load_lvm(folder)
    model.config.training = identity | more | {"stages": stages(folder)}
    model.save_pretrained(
        out,
        tokenizer_fingerprint=more["store"]["tokenizer"],
        log=log[:: max(1, len(log) // 200)] + log[-1:],
        card=card(model, Path(out).name),
    )
    return LVM.from_pretrained(out)


def push_lvm(model: LVM, repo: str, **options) -> str:
    """Uploads an exported model and its card to the hub, through `transformers`.

    Args:
        model: Exported by `export_lvm`.
        repo: "owner/name".
        options: Of `push_to_hub`: private, token, ...

    Returns:
        The address.
    """
    from huggingface_hub import ModelCard

    address = model.llama.push_to_hub(repo, **options)
    ModelCard(card(model, repo)).push_to_hub(repo, token=options.get("token"))
    return str(address)


def card(model: LVM, name: str) -> str:
    """The model card: what the model is, on what, from which teacher and for how long it was trained.

    Args:
        model: With its training in its configuration.
        name: By which it loads.

    Returns:
        Markdown.
    """
    training = model.config.training
    made, tokenizer = training["stages"], training["store"]["tokenizer"]
    mixture = training["recipe"].get("mixture", {})
    shares = training["recipe"].get("shares") or mixture.get("weights") or mixture["scheme"]
    shipped = shipped_tokenizer(tokenizer)

    # the data, and whether all of it is mini-world's
    origins = training["store"].get("tasks", {"": training["store"]})
    known = all("world" in origin for origin in origins.values())
    named = dict.fromkeys(
        f"{origin['world']}'s training sources alone" if "world" in origin else task
        for task, origin in origins.items()
    )

    return (
        (Path(__file__).parent / "cards" / "lvm.md")
        .read_text(encoding="utf-8")
        .format(
            licence="apache-2.0" if shipped and known else "other",
            name=name,
            how=_how(training),
            terms=_terms(training, shipped is not None, known),
            hours=sum(stage["hours"] for stage in made),
            tokenizer=shipped or "FOLDER",
            fingerprint=tokenizer,
            millions=model.num_parameters / 1e6,
            context=model.max_seq_len,
            origin=" and ".join(named),
            tokens=sum(stage["tokens"] for stage in made) / 1e6,
            devices=", ".join(dict.fromkeys(stage["device"] for stage in made)),
            staged=f", in {len(made)} stages (log.json is the last one's)" if len(made) > 1 else "",
            loss=made[-1]["loss"],
            shares=json.dumps(shares),
        )
    )


def shipped_tokenizer(fingerprint: str) -> str | None:
    """The name of the shipped tokenizer with this fingerprint; None for a tokenizer from elsewhere."""
    for path in sorted((paths.assets() / "models").glob("*/config.json")):
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
        if (
            kind in NETWORKS
            and Tokenizer.from_pretrained(path.parent, device="cpu").fingerprint == fingerprint
        ):
            return path.parent.name
    return None


def _how(training: dict) -> str:
    """The card's words for the kind of training."""
    how = "Trained"
    if "lora" in training:
        how = f"Fine-tuned through adapters of rank {training['lora']}"
    elif "start" in training and len(training["stages"]) == 1:
        how = "Fine-tuned"
    if training.get("teacher"):
        loss = training.get("distillation") or training["objective"]
        how += f", from a teacher ({training['teacher']}) by `{loss.get('divergence', loss.get('name'))}`,"
    return how


def _terms(training: dict, ours: bool, known: bool) -> str:
    """The card's words for what the model knows and its licence."""
    knows = "It knows scenes of mini-world and little else. " if known else ""
    if ours and known:
        return knows + "Licence Apache-2.0; the pictures' credits are in `assets/CREDITS.md`."
    if "start" in training:
        return knows + "Its licence is that of the model it was tuned from."
    return knows + "Its licence is yours to choose."
