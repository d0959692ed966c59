"""What a training leaves: its model, the stages that made it, an export that plain `transformers` loads, and its card."""

import json
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM

from lvmlab.model.embedding import fold
from lvmlab.model.lora import merge
from lvmlab.model.lvm import LVM
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.training.checkpoints import load_checkpoint, read_log


def stages(folder: str | Path) -> list[dict]:
    """What made a model, in order: {steps, tokens, hours, device, loss} of each stage. folder: of a training."""
    checkpoint, log = load_checkpoint(folder), read_log(folder)
    more, last = checkpoint["identity"]["more"], log[-1]
    device = next((record["device"] for record in log if "device" in record), "unknown")
    own = {
        "steps": checkpoint["step"],
        "tokens": checkpoint["step"] * more["recipe"]["tokens"],
        "hours": round(last["seconds"] / 3600, 3),
        "device": device,
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
    """The latest checkpoint of a training folder as a pretrained model in ``out``: weights, configuration,
    log, card.
    """
    checkpoint, log = load_checkpoint(folder), read_log(folder)
    identity = checkpoint["identity"]
    more = identity["more"]
    model = load_lvm(folder)
    model.config.training = (
        {k: v for k, v in identity.items() if k != "more"} | more | {"stages": stages(folder)}
    )
    thinned = log[:: max(1, len(log) // 200)] + log[-1:]
    model.save_pretrained(
        out, tokenizer_fingerprint=more["store"]["tokenizer"], log=thinned, card=card(model, Path(out).name)
    )
    return LVM.from_pretrained(out)


def push_lvm(model: LVM, repo: str, **options) -> str:
    """Uploads a model that `export_lvm` wrote, and its card, to the hub through `transformers`; returns the
    address. options: private, token, ...
    """
    from huggingface_hub import ModelCard

    where = model.llama.push_to_hub(repo, **options)
    ModelCard(card(model, repo)).push_to_hub(repo, token=options.get("token"))
    return str(where)


def card(model: LVM, name: str) -> str:
    """The model card: what it is, what it was trained on, from which teacher, and for how long. name: that it
    is loaded by.
    """
    training = model.config.training
    made, spoken = training["stages"], training["store"]["tokenizer"]
    mixture = training["recipe"].get("mixture", {})
    shares = training["recipe"].get("shares") or mixture.get("weights") or mixture["scheme"]
    devices = ", ".join(dict.fromkeys(stage["device"] for stage in made))
    tokens, hours = (sum(stage[k] for stage in made) for k in ("tokens", "hours"))
    staged = f", in {len(made)} stages (log.json is the last one's)" if len(made) > 1 else ""
    ours = (
        spoken == Tokenizer.from_pretrained("mini", device="cpu").fingerprint
    )  # no model from elsewhere speaks its tokens
    how = (
        "Fine-tuned" + (f" through adapters of rank {training['lora']}" if "lora" in training else "")
        if "start" in training and len(made) == 1
        else "Trained"
    )
    how += (
        f", from a teacher ({training['teacher']}) by `{(training.get('distillation') or training['objective'])['divergence' if 'distillation' in training else 'name']}`,"
        if training.get("teacher")
        else ""
    )
    origins = training["store"].get("tasks", {"": training["store"]})
    named = dict.fromkeys(
        f"{o['world']}'s training sources alone" if "world" in o else task for task, o in origins.items()
    )
    known = "It knows scenes of mini-world and little else. " * all("world" in o for o in origins.values())
    terms = known + (
        "Licence Apache-2.0; the pictures' credits are in `assets/CREDITS.md`."
        if ours and known
        else "Its licence is that of the model it was tuned from."
        if "start" in training
        else "Its licence is yours to choose."
    )
    return (
        (Path(__file__).parent / "cards" / "lvm.md")
        .read_text()
        .format(
            licence="apache-2.0" if ours and known else "other",
            name=name,
            how=how,
            terms=terms,
            hours=hours,
            tokenizer="mini" if ours else "FOLDER",
            fingerprint=spoken,
            millions=model.num_parameters / 1e6,
            context=model.max_seq_len,
            origin=" and ".join(named),
            tokens=tokens / 1e6,
            devices=devices,
            staged=staged,
            loss=made[-1]["loss"],
            shares=json.dumps(shares),
        )
    )
