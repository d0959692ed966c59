"""Visual sentences of mini-world: an encoding and pairs of one task, found by (seed, split, task, index)."""

import zlib
from dataclasses import dataclass

import numpy as np

from lvmlab.world import DEFAULT, SPLITS, Laws, Sources, default, tasks
from lvmlab.world.tasks import Encoding, Pair

PAIRS = 8  # in a sentence of 16 pictures: LVM's context (arXiv 2312.00785)


@dataclass(frozen=True)
class Row:
    """Pictures uint8 (n, size, size, 3): an image and its label, one image, or a clip's frames.

    ``group``: what a sentence's rows share.
    """

    pictures: np.ndarray
    source: str
    group: str = ""


@dataclass(frozen=True)
class Sentence:
    """``pairs`` of one ``task`` under one ``encoding``; the last pair of a prompt is the query."""

    task: str
    encoding: Encoding
    pairs: list[Pair]

    def pictures(self) -> np.ndarray:
        """image, label, image, label, ...: uint8 (2 * pairs, S, S, 3)."""
        return np.stack([picture for pair in self.pairs for picture in (pair.image, pair.label)])


def generator(seed: int, split: str, task: str, index: int, held_out: bool = False) -> np.random.Generator:
    """The one source of chance of a sentence.

    The task enters by its name's CRC, so that adding tasks moves nothing.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    return np.random.default_rng([seed, SPLITS.index(split), zlib.crc32(task.encode()), index, int(held_out)])


def sentence(
    task: str,
    split: str,
    index: int,
    *,
    laws: Laws = DEFAULT,
    seed: int = 0,
    pairs: int = PAIRS,
    held_out: bool = False,
    sources: Sources | None = None,
) -> Sentence:
    """One sentence of mini-world.

    Args:
        task: its name.
        split: "train", "val", "test" or "shifted": no source is in two of them.
        index: which sentence of the task and split.
        laws: the version of mini-world, and the pictures' size.
        seed: another seed gives other sentences.
        pairs: how many; 8 is the length of all fixed prompts.
        held_out: draws the encoding from those that no training shows.
        sources: others than the shipped ones.

    Raises:
        ValueError: names an unknown task or split, and tasks of which no encoding is held out.
    """
    worker, rng = tasks.get(task), generator(seed, split, task, index, held_out)
    encoding = worker.encoding(rng, laws, held_out)
    drawn = worker.sentence(sources or default(), split, laws, encoding, pairs, rng)
    return Sentence(task, encoding, drawn)
