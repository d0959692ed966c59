"""What a tokenizer's training leaves: its module, an export, and the card of the weights."""

from pathlib import Path

import torch

from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.tokenizer.vqgan import VQGANConfig
from lvmlab.training.checkpoints import TrainingError, load_checkpoint, read_log
from lvmlab.training.tokenizer import Pool, TokenizerRecipe, TrainingVQGAN, evaluate
from lvmlab.utils.files import write_file


def load_training(folder: str | Path) -> TrainingVQGAN:
    """The module of a training's latest checkpoint. Raises TrainingError where there is none."""
    checkpoint = load_checkpoint(folder)
    more = checkpoint["identity"]["more"]
    model = TrainingVQGAN(
        VQGANConfig(**more["network"]), TokenizerRecipe(**more["recipe"]), more.get("quantiser", "vq")
    )
    model.load_state_dict(checkpoint["model"])
    return model.eval()


def export_tokenizer(
    folder: str | Path,
    out: str | Path,
    val_pool: str | Path | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Tokenizer:
    """Writes the latest checkpoint of a training as a pretrained tokenizer: weights, configuration, log,
    card.

    Args:
        folder: Of the training.
        out: The folder to write.
        val_pool: Pictures on which the exported weights, as rounded on disk, are scored again.
        dtype: Of the weights on disk.

    Returns:
        The tokenizer as it loads from ``out``.

    Raises:
        TrainingError: There is no checkpoint, or its codebook has not begun.
    """
    checkpoint, log, model = load_checkpoint(folder), read_log(folder), load_training(folder)
    if model.seen <= model.recipe.free_batches:
        raise TrainingError(
            f"{folder} is at batch {int(model.seen)} and its codebook begins after "
            f"{model.recipe.free_batches}: train on first"
        )
    # the weights as they are on disk
    training = {**checkpoint["identity"], "step": checkpoint["step"]}
    Tokenizer(model.export(), device="cpu", training=training).save_pretrained(out, log=log, dtype=dtype)
    tokenizer = Tokenizer.from_pretrained(out, device="cpu")
    # scores of the rounded weights
    if val_pool:
        model.net.load_state_dict(tokenizer.net.state_dict())
        model.quantizer.codebook = tokenizer.net.quantize.embedding.weight.detach()
        training["val"] = evaluate(model, Pool(val_pool))
        Tokenizer(model.net, device="cpu", training=training).save_pretrained(out, log=log, dtype=dtype)
        tokenizer = Tokenizer.from_pretrained(out, device="cpu")
    write_file(Path(out) / "README.md", model_card(tokenizer, log))
    return tokenizer


def model_card(tokenizer: Tokenizer, log: list[dict]) -> str:
    """What a user of the weights has to know, in Markdown."""
    c, t = tokenizer.config, tokenizer.training
    scores = t.get("val") or next((r["val"] for r in reversed(log) if "val" in r), {})
    return (
        (Path(__file__).parent / "cards" / "tokenizer.md")
        .read_text(encoding="utf-8")
        .format(
            c=c,
            t=t,
            millions=sum(p.numel() for p in tokenizer.net.parameters()) / 1e6,
            look_up="cosine" if c.cosine else "Euclidean",
            tokens=c.grid**2,
            fingerprint=tokenizer.fingerprint,
            minutes=log[-1]["seconds"] / 60 if log else 0,
            rows="\n".join(f"| {name} | {value} |" for name, value in scores.items()),
        )
    )
