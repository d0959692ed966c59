"""What a training's steps take, as the log records it, and what is due by the clock."""

import time

import torch

from lvmlab.utils.device import describe


class Meter:
    """Losses and items of the steps since the last record.

    Args:
        log: The records of earlier calls; their seconds count.
    """

    def __init__(self, log: list[dict]):
        self.before = log[-1]["seconds"] if log else 0.0
        self.start = self.saved = time.perf_counter()
        self.records = 0
        self.restart()

    def restart(self) -> None:
        """After a record."""
        self.mark, self.items, self.losses = time.perf_counter(), 0, []

    def add(self, loss: float, items: float) -> None:
        """A step's loss, and how many pictures or tokens it took."""
        self.losses.append(loss)
        self.items += int(items)

    def ends(self, budget_s: float | None, save_seconds: float, signal: int) -> dict[str, int]:
        """Whether the budget is spent and a checkpoint due, and the signal that asks to stop (0: none)."""
        now = time.perf_counter()
        return {
            "budget": int(budget_s is not None and now - self.start > budget_s),
            "saving": int(now - self.saved > save_seconds),
            "signal": signal,
        }

    def record(self, step: int, metrics: dict[str, float], lr: float, device: torch.device) -> dict:
        """The record of a step: its metrics, the mean loss since the last record, and the speed."""
        now = time.perf_counter()
        record = {
            "step": step,
            **{name: round(value, 6) for name, value in metrics.items()},
            "mean_loss": round(sum(self.losses) / len(self.losses), 6),  # one batch's loss is noisy
            "lr": lr,
            "items_per_second": round(self.items / max(now - self.mark, 1e-9), 1),
            "seconds": round(self.before + now - self.start, 1),
        }
        if not self.records:  # the first record of this call
            record["device"] = describe(device)
        self.records += 1
        return record
