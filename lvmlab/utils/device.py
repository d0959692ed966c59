"""Which device to compute on, and whether bf16 pays there."""

import functools
import time

import torch

PRECISIONS = ("auto", "fp32", "bf16")


def default_device() -> torch.device:
    """CUDA, then MPS, then CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def describe(device: torch.device) -> str:
    """What a log calls it: the GPU's name, or how many CPU cores compute."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "Apple MPS" if device.type == "mps" else f"{torch.get_num_threads()} CPU cores"


def precision(name: str = "auto", device: torch.device | str | None = None) -> str:
    """ "fp32" or "bf16"; "auto" measures once a process and device whether bf16 is the faster. Raises
    ValueError.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision={name!r} is not known: choose from {', '.join(PRECISIONS)}")
    if name != "auto":
        return name
    return "bf16" if _bf16_is_fast(torch.device(device or default_device()).type) else "fp32"


@functools.cache
def _bf16_is_fast(device: str) -> bool:
    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(512, 512, dtype=dtype, device=device)
        best = float("inf")
        for _ in range(4):
            start = time.perf_counter()
            (a @ a)[0, 0].item()  # .item() waits for the device
            best = min(best, time.perf_counter() - start)
        return best

    try:
        return seconds(torch.bfloat16) < 0.8 * seconds(torch.float32) or device == "cuda"
    except (RuntimeError, TypeError):
        return False
