"""What a task is: an encoding drawn once a sentence, pairs drawn from mini-world, a score read back from the
label image.

Everything here works on ``Pair``s of uint8 pictures; randomness comes only from the generator handed in, so
that
(seed, split, task, index) always gives the same sentence.
"""

import colorsys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np

from lvmlab.world.sources import Sources

# Named backgrounds of label images; the held-out ones are never drawn in the LVM's training.
BACKGROUNDS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "pink": (255, 182, 203),
    "navy": (16, 24, 110),
    "maroon": (110, 16, 24),
}
HELD_OUT_BACKGROUNDS = {"teal": (0, 110, 110), "sand": (225, 200, 140)}
HELD_OUT_HUES = (
    0.40,
    0.60,
)  # the sector of label hues (green-cyan to azure) never drawn in the LVM's training
MIN_DISTANCE = 0.5  # between a label's two colours, Euclidean in RGB with channels in [0, 1]


@dataclass(frozen=True)
class Pair:
    """``image`` and ``label`` uint8 (S, S, 3); ``truth`` what the score needs; ``source`` the unit that is
    bootstrapped.
    """

    image: np.ndarray
    label: np.ndarray
    truth: dict = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class Encoding:
    """How a sentence draws its labels: ``colours`` (foreground, background) in 0..255 where the task has
    them.
    """

    name: str = "natural"
    colours: tuple[tuple[int, int, int], tuple[int, int, int]] | None = None
    options: tuple[tuple[str, object], ...] = ()

    def option(self, key: str):
        return dict(self.options)[key]

    def swapped(self) -> "Encoding":
        """Foreground and background exchanged: the conflicting prompt."""
        return Encoding(f"{self.name} swapped", (self.colours[1], self.colours[0]), self.options)


class Task(ABC):
    """One way to make pairs and one way to judge answers.

    ``metric`` names the score (higher is better); ``trained`` says whether the shipped models learn it.
    """

    name: str
    metric: str
    trained: bool = False
    conflicting: bool = False  # whether the same query has two right answers under two encodings
    kind: int = (
        0  # of the label pictures, for the tokenizer's mix: 0 natural, 1 two-colour, 2 skeleton, 3 other
    )
    sequence: bool = False

    def encoding(self, rng: np.random.Generator, held_out: bool = False) -> Encoding:
        if held_out:
            raise ValueError(f"{self.name} has no label encoding, so none is held out")
        return Encoding()

    @abstractmethod
    def pair(
        self, sources: Sources, split: str, size: int, encoding: Encoding, rng: np.random.Generator
    ) -> Pair:
        """One example of this task."""

    def sentence(self, sources, split: str, size: int, encoding: Encoding, pairs: int, rng) -> list[Pair]:
        """``pairs`` examples under one encoding."""
        return [self.pair(sources, split, size, encoding, rng) for _ in range(pairs)]

    def score(self, answer: np.ndarray, pair: Pair, encoding: Encoding) -> dict[str, float]:
        """The scores of one answer, uint8 (S, S, 3), by name; ``metric`` is the one that skill is reckoned
        from.
        """
        raise NotImplementedError

    def scores(
        self, answers: np.ndarray, pairs: list[Pair], encodings: list[Encoding]
    ) -> dict[str, np.ndarray]:
        """The scores of many answers, uint8 (B, S, S, 3): arrays (B,) by name."""
        rows = [self.score(*item) for item in zip(answers, pairs, encodings, strict=True)]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def floors(self, examples: list[Pair], query: Pair, encoding: Encoding) -> dict[str, np.ndarray]:
        """Answers that need no model, by name. The query through the tokenizer is added by the evaluation."""
        return {"query": query.image, "last label": examples[-1].label}

    def relabel(self, pair: Pair, encoding: Encoding) -> Pair:
        """The same pair drawn in another encoding; only where ``conflicting``."""
        raise NotImplementedError(f"{self.name} has one encoding only")


def two_colours(rng: np.random.Generator, held_out: bool = False) -> Encoding:
    """A saturated hue on a named background, exchanged in three sentences of ten; both from the held-out
    lists or neither.
    """
    backgrounds = HELD_OUT_BACKGROUNDS if held_out else BACKGROUNDS
    low, high = HELD_OUT_HUES
    while True:
        hue = rng.uniform(low, high) if held_out else (high + rng.uniform(0, 1 - (high - low))) % 1
        rgb = colorsys.hsv_to_rgb(hue, rng.uniform(0.75, 1), rng.uniform(0.75, 1))
        name = str(rng.choice(sorted(backgrounds)))
        pair = (tuple(round(255 * c) for c in rgb), backgrounds[name])
        if np.linalg.norm(np.subtract(*pair)) / 255 >= MIN_DISTANCE:
            break
    if rng.random() < 0.3:
        return Encoding(f"{name} on hue {hue:.2f}", pair[::-1])
    return Encoding(f"hue {hue:.2f} on {name}", pair)


def paint(mask: np.ndarray, encoding: Encoding) -> np.ndarray:
    """A label image: alpha (S, S) in [0, 1] between the encoding's background and foreground, uint8 (S, S,
    3).
    """
    foreground, background = (np.asarray(c, np.float32) for c in encoding.colours)
    return np.rint(mask[..., None] * foreground + (1 - mask[..., None]) * background).astype(np.uint8)


def read_mask(answer: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Which pixels lie nearer to the foreground colour: bool (S, S)."""
    foreground, background = (np.asarray(c, np.float32) for c in encoding.colours)
    picture = answer.astype(np.float32)
    return ((picture - foreground) ** 2).sum(-1) < ((picture - background) ** 2).sum(-1)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two bool masks; 1 where both are empty."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def psnr(a: np.ndarray, b: np.ndarray, where: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB of uint8 pictures, capped at 60; ``where`` (S, S) bool limits the
    pixels.
    """
    error = (a.astype(np.float32) - b.astype(np.float32)) ** 2
    mse = (error if where is None else error[where]).mean()
    return float(min(60.0, 10 * np.log10(255**2 / max(mse, 1e-9))))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of uint8 pictures (Wang et al. 2004), by torchmetrics."""
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    x, y = (torch.from_numpy(p.astype(np.float32) / 255).movedim(-1, 0)[None] for p in (a, b))
    return float(structural_similarity_index_measure(x, y, data_range=1.0))


def to_uint8(picture: np.ndarray) -> np.ndarray:
    """(S, S, 3) in [0, 1] to uint8."""
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
