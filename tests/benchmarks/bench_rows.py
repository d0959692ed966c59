"""What an entry of the benchmarks is: a function that yields rows, and the clock that it measures them with."""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from tqdm.auto import tqdm

from lvmlab.training.cpu_layers import has_compiler
from lvmlab.utils.device import default_device, describe, precision

ENTRIES: dict[str, Callable[[], Iterator["Row"]]] = {}
COMPILER = has_compiler()  # torch.compile wants one
JUDGED = {  # how a row is held to its limit
    "ratio, at least": (">= {:g}", lambda row: row.ratio >= row.limit),
    "ratio, at most": ("<= {:g}", lambda row: row.ratio <= row.limit),
    "share": ("{:g} to 1", lambda row: row.limit <= row.ratio <= 1),  # over 1 the measure is at fault
    "ours, at least": ("ours >= {:g}", lambda row: row.ours >= row.limit),
}


@dataclass(frozen=True)
class Row:
    """One comparison. ``limit`` None: only reported; ``judged`` says what the limit is held against."""

    name: str
    ours: float
    theirs: float
    ratio: float
    unit: str
    limit: float | None
    what: str
    judged: str = "ratio, at least"

    @property
    def ok(self) -> bool | None:
        """Whether the limit is reached; None where there is none."""
        return None if self.limit is None else bool(JUDGED[self.judged][1](self))

    @property
    def bound(self) -> str:
        """The limit as the table shows it."""
        return "-" if self.limit is None else JUDGED[self.judged][0].format(self.limit)

    def record(self) -> dict:
        """As plain JSON: numbers to five significant digits, None where there is none."""
        plain = {
            k: _plain(v) if isinstance(v, float) else v for k, v in asdict(self).items() if k != "judged"
        }
        return plain | {"ok": self.ok, "where": where()}


def _plain(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def entry(name: str):
    """Registers a function without arguments that yields the rows NAME, NAME/best-stock, ..."""

    def register(measure: Callable[[], Iterator[Row]]):
        if name in ENTRIES or "/" in name:
            raise ValueError(
                f"the name {name!r} is taken or holds a slash: rows of one entry are told apart by what "
                f"follows it"
            )
        ENTRIES[name] = measure
        return measure

    return register


def of_kind(*, bf16: float, fp32: float) -> float:
    """The limit of a machine where the one or the other precision is the faster."""
    return bf16 if precision() == "bf16" else fp32


def rates(
    name: str,
    ours: float,
    theirs: float,
    unit: str,
    limit: float | None,
    what: str,
    judged: str = "ratio, at least",
) -> Row:
    """A row of two rates, more being better."""
    return Row(name, ours, theirs, ours / theirs, unit, limit, what, judged)


def interleaved(
    desc: str, calls: dict[str, Callable[[], object]], repeats: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call, ``repeats`` of them: a, b, a, b, ..., so that what else the machine does strikes
    all alike.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for i in tqdm(range(warmup + repeats), desc=desc, leave=False):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            synchronise()
            if i >= warmup:
                taken[name].append(time.perf_counter() - started)
    return taken


def rendered_by(job: tuple) -> int:
    """Renders a job of lvmlab.data.store and returns the process that did: shows which workers of a pool are
    warm.
    """
    from lvmlab.data.mini_world import render as rendered

    rendered(job)
    return os.getpid()


def synchronise() -> None:
    """Waits for the device."""
    kind = default_device().type
    if kind != "cpu":
        getattr(torch, kind).synchronize()


def median(values: list[float]) -> float:
    return float(statistics.median(values))


def where() -> str:
    """What a figure hangs on: device, precision, torch, threads."""
    device = default_device()
    return f"{describe(device)}, {precision('auto', device)} by the probe, torch {torch.__version__}"
