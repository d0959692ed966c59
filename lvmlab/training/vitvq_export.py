"""A training of `training.vitvq` as a pretrained tokenizer: weights, configuration, log, and a card that
says what it has seen.
"""

from pathlib import Path

import torch

from lvmlab.data.truths import TruthPool
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.training.checkpoints import CHECKPOINT, TrainingError, load_checkpoint, read_log
from lvmlab.training.vitvq import STAGES, evaluate, load_stage
from lvmlab.utils.files import write_file


def export_vitvq(
    folder: str | Path,
    out: str | Path,
    val: TruthPool | None = None,
    *,
    stage: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Tokenizer:
    """A checkpoint of `train_stages` as a pretrained tokenizer: weights, configuration, log, card.

    Args:
        folder: of the training.
        out: gets the tokenizer.
        val: a pool on which the weights, as rounded on disk, are scored.
        stage: "codes" or "decoder"; None: the last that has a checkpoint.
        dtype: of the weights on disk; the codebook stays fp32.

    Raises:
        TrainingError: there is no checkpoint that has codes.
    """
    folder = Path(folder)
    stage = stage or next((s for s in STAGES[:0:-1] if (folder / s / CHECKPOINT).is_file()), "codes")
    if stage not in STAGES[1:]:
        raise TrainingError(f"stage={stage!r} has no codes: choose from {', '.join(STAGES[1:])}")
    model, done = load_stage(folder, stage), STAGES[: STAGES.index(stage) + 1]
    checkpoint = load_checkpoint(folder / stage)
    steps = {s: load_checkpoint(folder / s)["step"] for s in done}
    logs = {s: read_log(folder / s) for s in done}
    log = [{"stage": s, **record} for s in done for record in logs[s]]
    training = {
        **checkpoint["identity"],
        "steps": steps,
        "hours": sum(r[-1]["seconds"] for r in logs.values()) / 3600,
    }
    Tokenizer(model.export(), device="cpu", training=training).save_pretrained(out, log=log, dtype=dtype)
    tokenizer = Tokenizer.from_pretrained(out, device="cpu")
    if val is not None:
        model.net.load_state_dict(tokenizer.net.state_dict())
        model.quantizer.codebook = tokenizer.net.quantize.embedding.weight.detach()
        training["val"] = evaluate(model, val)
        Tokenizer(model.net, device="cpu", training=training).save_pretrained(out, log=log, dtype=dtype)
        tokenizer = Tokenizer.from_pretrained(out, device="cpu")
    write_file(Path(out) / "README.md", vitvq_card(tokenizer, log, dtype))
    return tokenizer


def vitvq_card(tokenizer: Tokenizer, log: list[dict], dtype: torch.dtype) -> str:
    """What a user of the weights has to know, in Markdown."""
    training = tokenizer.training
    more, recipe = training["more"], training["more"]["recipe"]
    scores = training.get("val") or next((r["val"] for r in reversed(log) if "val" in r), {})
    names = {
        "objects": "masks of all objects",
        "classes": "class maps",
        "joints": "joints",
        "bones": "bones",
        "clean": "clean pictures under rain",
    }
    read = [name for term, name in names.items() if recipe[term]]
    return (
        (Path(__file__).parent / "cards" / "vitvq.md")
        .read_text(encoding="utf-8")
        .format(
            c=tokenizer.config,
            t=training,
            pool=more["pool"],
            millions=sum(p.numel() for p in tokenizer.net.parameters()) / 1e6,
            tokens=tokenizer.tokens_per_image,
            fingerprint=tokenizer.fingerprint,
            stages=", ".join(
                f"{n} steps of {recipe['batch']} pictures ({s})" for s, n in training["steps"].items()
            ),
            hours=training["hours"],
            tasks=", ".join(task for task, _ in more["pool"]["shares"]),
            truths=", ".join(read) if read else "nothing",
            dtype=str(dtype).removeprefix("torch."),
            rows="\n".join(f"| {name} | {value} |" for name, value in scores.items()),
        )
    )
