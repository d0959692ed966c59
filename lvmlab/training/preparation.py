"""The model that a training starts from: fresh weights, or weights that exist already, and how it is trained.

Each function notes on the model what it did (`LVM.preparation`), because a checkpoint resumes only the same
training.
"""

from pathlib import Path

from torch import Tensor

from lvmlab.model.config import LVMConfig
from lvmlab.model.embedding import factor
from lvmlab.model.initialisation import init_from_codebook, init_from_grid
from lvmlab.model.lora import adapt
from lvmlab.model.lvm import LVM
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.training.checkpoints import CHECKPOINT
from lvmlab.training.export import load_lvm, stages


def new_lvm(
    shape: str | LVMConfig,
    tokenizer: Tokenizer,
    *,
    seed: int = 0,
    grid_start: bool = True,
    factored: bool = False,
) -> LVM:
    """Fresh weights for a tokenizer's codes.

    Args:
        shape: A name in `lvmlab.model.config.LVM_PRESETS` or a configuration; its vocabulary becomes the
            codebook.
        tokenizer: Embedding and head start from its codebook
            (`lvmlab.model.initialisation.init_from_codebook`).
        seed: Of the weights.
        grid_start: Heads start at the distances of the tokenizer's grid
            (`lvmlab.model.initialisation.init_from_grid`), where they have biases.
        factored: Embed by two factors, the codebook frozen (`lvmlab.model.embedding`; DeLVM's).

    Returns:
        An fp32 model on the CPU.
    """
    model = LVM.from_shape(shape, seed=seed, vocab_size=tokenizer.codebook_size)
    start_from_codebook(model, tokenizer.net.quantize.table().cpu(), seed=seed, factored=factored)
    if grid_start and model.config.attention_bias:
        start_from_grid(model, tokenizer.tokens_per_image)
    model.config.tokenizer_fingerprint = tokenizer.fingerprint
    return model


def start_from_codebook(model: LVM, codebook: Tensor, *, seed: int = 0, factored: bool = False) -> LVM:
    """Starts embedding and head from a codebook (K, D), and embeds by two factors where asked; returns the
    model.
    """
    init_from_codebook(model, codebook, seed=seed)
    model.preparation["codebook"] = True
    if factored:
        factor(model, codebook, seed=seed)
        model.preparation["factored"] = True
    return model


def start_from_grid(model: LVM, tokens_per_image: int) -> LVM:
    """Starts the heads at fixed distances of the pictures' grid; returns the model."""
    init_from_grid(model, tokens_per_image)
    model.preparation["grid"] = tokens_per_image
    return model


def load_start(start: str | Path | LVM) -> LVM:
    """Trained weights to start from, on the CPU.

    Args:
        start: The folder of a training, all that `LVM.from_pretrained` takes (DeLVM's models and LVM's among
            it), or a loaded model, which is trained in place.

    Returns:
        The model; it carries the stages that made it.
    """
    if isinstance(start, LVM):
        model = start
    elif (Path(start) / CHECKPOINT).is_file():
        model = load_lvm(start)
        model.config.training = {"stages": stages(start)}
    else:
        model = LVM.from_pretrained(start, device="cpu")
    model.preparation["start"] = model.fingerprint()
    return model


def earlier_stages(model: LVM) -> list[dict]:
    """The trainings that made a model so far; [] for fresh weights and models from elsewhere."""
    return (getattr(model.config, "training", None) or {}).get("stages", [])


def sentence_seed(model: LVM, seed: int) -> int:
    """The seed of a stage's sentences, so that no earlier stage of the model drew them in the same order."""
    return seed + 1000 * len(earlier_stages(model))


def add_adapters(model: LVM, rank: int, seed: int = 0) -> LVM:
    """Freezes the weights and adds low-rank adapters (`lvmlab.model.lora`); `load_lvm` merges them."""
    adapt(model, rank, seed=seed)
    model.preparation["lora"] = rank
    return model


def compile_layers(model: LVM) -> LVM:
    """Compiles each layer, which needs a C++ compiler and half a minute; returns the model."""
    for layer in model.llama.model.layers:
        layer.compile(dynamic=False)
    return model


def checkpoint_activations(model: LVM) -> LVM:
    """Recomputes activations in the backward pass: a third more time, a fraction of the memory. Returns the
    model.
    """
    model.llama.gradient_checkpointing_enable({"use_reentrant": False})
    return model
