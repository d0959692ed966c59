"""Which task the next sentence is of: the balancing schemes by name, as shares by step.

DeLVM (section 3.2) compares natural, re-sampled and augmented training of tasks of unequal size, and a
mixture of the last two; a
sequence of tasks, and one with replay, ask what order does. Counts are of the store's rows; a share is of the
sentences drawn.
"""

from dataclasses import dataclass

from lvmlab.utils.checks import check_fields

SCHEMES = {
    "natural": "each task as often as it has rows, without augmented copies",
    "balanced": "by `weights`, or by rows ** (1 / temperature); without copies",
    "augmented": "each task as often as it has rows, with its augmented copies",
    "mixture": "balanced, with the copies",
    "sequential": "one task after another, in `order`",
    "replay": "sequential, with a share of `replay` drawn evenly from the tasks before",
}


@dataclass(frozen=True)
class Mixture:
    """A balancing scheme.

    weights: {task: weight} of the tasks that are drawn at all. temperature: 1 natural, infinite even. copies:
        so many augmented
    copies of a row are drawn from, None all that are stored. replay: see SCHEMES.
    """

    scheme: str = "natural"
    weights: dict[str, float] | None = None
    temperature: float = 1.0
    copies: int | None = None
    order: tuple[str, ...] = ()
    replay: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "order", tuple(self.order))
        ordered, balanced = self.scheme in ("sequential", "replay"), self.scheme in ("balanced", "mixture")
        check_fields(
            self,
            scheme=(self.scheme in SCHEMES, f"one of {', '.join(SCHEMES)}"),
            weights=(
                self.weights is None
                or balanced
                and sum(self.weights.values()) > 0 <= min(self.weights.values()),
                "weights of 0 or more, one above, to balanced or mixture alone",
            ),
            temperature=(
                self.temperature == 1 or balanced and self.temperature > 0 and self.weights is None,
                "a number over 0, to balanced or mixture alone, instead of weights",
            ),
            copies=(
                self.copies is None or self.augmented and self.copies >= 1,
                "at least 1, or None for all, to augmented or mixture alone",
            ),
            order=(
                bool(self.order) == ordered and len(set(self.order)) == len(self.order),
                "each task once, to sequential or replay alone",
            ),
            replay=(
                0 < self.replay < 1 if self.scheme == "replay" else self.replay == 0,
                "a share between 0 and 1, to replay alone",
            ),
        )

    @property
    def augmented(self) -> bool:
        """Whether augmented copies are drawn from."""
        return self.scheme in ("augmented", "mixture")

    @property
    def most_copies(self) -> int | None:
        """What `lvmlab.data.store.Store` takes as its ``copies``."""
        return self.copies if self.augmented else 0

    def tasks(self, counts: dict[str, int]) -> list[str]:
        """The tasks that are drawn at some step. counts: rows of each stored task."""
        named = self.order or [task for task, weight in (self.weights or counts).items() if weight > 0]
        return [task for task in named if counts.get(task)]

    def shares(self, counts: dict[str, int], step: int = 0, steps: int = 1) -> dict[str, float]:
        """{task: share} of the sentences of ``step`` of ``steps``; they sum to 1. counts: rows that may be
        drawn of each task.

        Raises ValueError for a task that is named here and not stored.
        """
        missing = [task for task in (*(self.weights or ()), *self.order) if not counts.get(task)]
        if missing:
            raise ValueError(
                f"the mixture names {', '.join(missing)}, the store holds {', '.join(counts)}: tokenise "
                f"them, or leave them out"
            )
        if self.order:
            now = min(int(step * len(self.order) / steps), len(self.order) - 1)
            before = self.order[:now]
            kept = self.replay if before else 0.0
            return (
                {task: kept / len(before) for task in before} | {self.order[now]: 1 - kept}
                if kept
                else {self.order[now]: 1.0}
            )
        weights = self.weights or {task: count ** (1 / self.temperature) for task, count in counts.items()}
        whole = sum(weights.values())
        return {task: weight / whole for task, weight in weights.items()}
