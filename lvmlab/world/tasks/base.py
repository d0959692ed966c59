"""What a task is: an encoding drawn once a sentence, pairs drawn from mini-world, a score read from labels.

Everything here works on ``Pair``s of uint8 pictures. Randomness comes only from the generator handed in, so
that (seed, split, task, index) always gives the same sentence.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np

from lvmlab.world.encodings import Encoding
from lvmlab.world.laws import Laws
from lvmlab.world.sources import Sources


@dataclass(frozen=True)
class Pair:
    """``image`` and ``label`` uint8 (S, S, 3); ``source`` the unit that is bootstrapped.

    ``truth``: what the score needs, and what the image shows, by name:

    - ``masks`` uint8 (n, S, S): the visible alpha of every object, or of the body;
    - ``classes`` (n,): the class of each, a place in `Sources.classes`, or their number for a body;
    - ``label masks``: the same of a label that shows the classes at other places (motion, category);
    - ``keypoints`` (17, 2) in pixels, ``visible`` (17,) and ``box`` (x0, y0, x1, y1), where a body is.

    Under rain or blur the clean picture is the label.
    """

    image: np.ndarray
    label: np.ndarray
    truth: dict = field(default_factory=dict)
    source: str = ""


class Task(ABC):
    """One way to make pairs and one way to judge answers."""

    name: str
    metric: str | None = None  # the score that skill is computed from, higher is better; None: not scored
    conflicting: bool = False  # whether exchanging a label's two colours gives the query another right answer
    kind: int = (
        0  # of the label pictures, for the tokenizer's mix: 0 natural, 1 flat colours, 2 skeleton, 3 other
    )
    sequence: bool = False  # whether a sentence is one clip

    def encoding(self, rng: np.random.Generator, laws: Laws, held_out: bool = False) -> Encoding:
        """How the labels of one sentence are drawn; ``held_out``: in a way that no training shows."""
        if held_out:
            raise ValueError(f"{self.name} has no label encoding, so none is held out")
        return Encoding()

    @abstractmethod
    def pair(
        self, sources: Sources, split: str, laws: Laws, encoding: Encoding, rng: np.random.Generator
    ) -> Pair:
        """One example of this task."""

    def sentence(self, sources, split: str, laws: Laws, encoding: Encoding, pairs: int, rng) -> list[Pair]:
        """``pairs`` examples under one encoding."""
        return [self.pair(sources, split, laws, encoding, rng) for _ in range(pairs)]

    def score(self, answer: np.ndarray, pair: Pair, encoding: Encoding) -> dict[str, float]:
        """The scores of one answer, uint8 (S, S, 3), by name; skill is computed from ``metric``."""
        raise NotImplementedError(f"answers to {self.name} are not scored")

    def scores(
        self, answers: np.ndarray, pairs: list[Pair], encodings: list[Encoding]
    ) -> dict[str, np.ndarray]:
        """The scores of many answers, uint8 (B, S, S, 3): arrays (B,) by name."""
        rows = [self.score(*item) for item in zip(answers, pairs, encodings, strict=True)]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def floors(self, examples: list[Pair], query: Pair, encoding: Encoding) -> dict[str, np.ndarray]:
        """Answers that need neither a model nor the query's truth, by name.

        The query through the tokenizer is added by the evaluation.
        """
        return {"query": query.image, "last label": examples[-1].label}

    def landmarks(self, examples: list[Pair], query: Pair, encoding: Encoding) -> dict[str, np.ndarray]:
        """Answers without a model that look at the truth, by name: worth beating, never part of skill."""
        return {}

    def relabel(self, pair: Pair, encoding: Encoding) -> Pair:
        """The same pair drawn in another encoding; only where ``conflicting``."""
        raise NotImplementedError(f"{self.name} has one encoding only")


def paint(masks: np.ndarray, encoding: Encoding) -> np.ndarray:
    """A label image, uint8 (S, S, 3): alphas (n, S, S) or (S, S), each in its colour over the background."""
    *foregrounds, background = (np.asarray(c, np.float32) for c in encoding.colours)
    masks = masks.reshape(-1, *masks.shape[-2:], 1)
    picture = (1 - masks.sum(0)) * background
    for mask, foreground in zip(masks, foregrounds, strict=True):
        picture = picture + mask * foreground
    return np.rint(picture).astype(np.uint8)


def read_regions(answer: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Which of the encoding's colours is nearest at each pixel, (S, S); the last is the background."""
    colours = np.asarray(encoding.colours, np.float32)
    return ((answer.astype(np.float32)[:, :, None] - colours) ** 2).sum(-1).argmin(-1)


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
    """Peak signal-to-noise ratio in dB of uint8 pictures, at most 60; ``where`` bool (S, S)."""
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
