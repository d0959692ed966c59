"""Low-rank adapters (LoRA, arXiv 2106.09685) through PEFT, the extra `lora`: what is given to be trained
weighs little, what comes out is plain.

A layer's frozen weight W is read as W + SCALE * B @ A; A (rank, in) starts at random, B (out, rank) at 0, so
that the model starts as it was.
"""

import torch
from torch import Tensor

from lvmlab.model.lvm import LVM

SCALE = 2.0  # alpha / rank, kept alike at every rank
_BASE, _A, _B = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


def adapt(lvm: LVM, rank: int, seed: int = 0) -> LVM:
    """Gives every linear layer between embedding and head an adapter, freezes all else, and returns the
    model.

    Raises ValueError for a rank below 1, ModuleNotFoundError with the remedy where PEFT is missing.
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
    """A model's state with its adapters in its weights, W + SCALE * B @ A, under the plain names; any other
    state as it is. Needs no PEFT.
    """
    plain = {k.replace(_BASE, "."): v for k, v in state.items() if ".lora_" not in k}
    for key in (k for k in state if k.endswith(_A)):
        name = key.removesuffix(_A)
        plain[f"{name}.weight"] = plain[f"{name}.weight"] + SCALE * state[name + _B] @ state[key]
    return plain
