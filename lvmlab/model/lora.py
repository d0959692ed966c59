"""Low-rank adapters (LoRA, arXiv 2106.09685) through PEFT, the extra `lora`; the merged model is a plain one.

A layer's frozen weight W is read as W + SCALE * B @ A. A (rank, in) starts at random and B (out, rank) at 0,
so the adapted model starts as the model itself.
"""

import torch
from torch import Tensor

from lvmlab.model.lvm import LVM

SCALE = 2.0  # alpha / rank, the same at every rank
_BASE, _A, _B = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


def adapt(lvm: LVM, rank: int, seed: int = 0) -> LVM:
    """Adds an adapter to every linear layer between embedding and head, and freezes all else.

    Args:
        lvm: Changed in place.
        rank: Of the adapters.
        seed: Of the matrices A.

    Returns:
        The model.

    Raises:
        ValueError: The rank is below 1.
        ModuleNotFoundError: PEFT is missing; the message has the remedy.
    """
    if rank < 1:
        raise ValueError(
            f"lora={rank!r}: give the rank of the adapters, at least 1, or 0 to train all weights"
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ModuleNotFoundError("LoRA needs the extra: pip install lvmlab[lora]") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules="all-linear"), lvm.llama
        )
    return lvm


def merge(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's state with its adapters merged, W + SCALE * B @ A, under the plain names; any other state as
    it is.

    It needs no PEFT.
    """
    plain = {k.replace(_BASE, "."): v for k, v in state.items() if ".lora_" not in k}
    for key in (k for k in state if k.endswith(_A)):
        name = key.removesuffix(_A)
        plain[f"{name}.weight"] = plain[f"{name}.weight"] + SCALE * state[name + _B] @ state[key]
    return plain
