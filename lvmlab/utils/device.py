"""Which device to compute on, and whether bf16 pays there."""

import functools
import time
from collections.abc import Callable, Hashable

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
    """Measured on small products first: without bf16 units the large one takes a second."""
    try:
        return (
            all(_bf16_share(size, device) < limit for size, limit in ((128, 8.0), (512, 0.8)))
            or device == "cuda"
        )
    except (RuntimeError, TypeError):
        return False


def _bf16_share(size: int, device: str) -> float:
    """Seconds of a square product in bf16, of those in fp32."""
    matrices = {
        dtype: torch.ones(size, size, dtype=dtype, device=device) for dtype in (torch.bfloat16, torch.float32)
    }
    calls = {dtype: functools.partial(lambda a: (a @ a)[0, 0].item(), a) for dtype, a in matrices.items()}
    best = least_seconds(calls)  # .item() waits for the device
    return best[torch.bfloat16] / best[torch.float32]


def least_seconds(calls: dict[Hashable, Callable[[], object]], repeats: int = 3) -> dict[Hashable, float]:
    """The least seconds of each call, taken in turn after one warm-up, which a call on a device waits for
    itself.
    """
    best = dict.fromkeys(calls, float("inf"))
    for trial in range(1 + repeats):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if trial:
                best[name] = min(best[name], time.perf_counter() - started)
    return best
