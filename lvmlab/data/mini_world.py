"""mini-world as a data set: groups of pairs under one encoding, rendered by processes that need no torch."""

import functools
import multiprocessing
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from lvmlab.world import DEFAULT, Laws, Sources, default, tasks
from lvmlab.world.sentences import PAIRS, Row, Sentence, sentence


@dataclass(frozen=True)
class World:
    """Sentences of mini-world as `lvmlab.data.building.build` reads them.

    Rendering and encoding cost as much as a third of a training: so a group is tokenised once, and every
    sentence drawn from it takes some of its pairs in a new order.

    Args:
        task: its name.
        groups: how many groups of pairs under one encoding; a clip is one row.
        split: whose sources are drawn.
        pairs: in a group.
        seed: of all groups.
        workers: processes that render.
        limit_sources: (kind, count) pairs: only so many sources of the split
            (`Sources.limit_sources`), a long tail.
        laws: the version of mini-world; the pictures' size is the tokenizer's.
    """

    task: str
    groups: int
    split: str = "train"
    pairs: int = 16
    seed: int = 1000
    workers: int = 2
    limit_sources: tuple[tuple[str, int], ...] = ()
    laws: Laws = DEFAULT

    @property
    def members(self) -> range:
        return range(self.groups)

    @property
    def origin(self) -> dict:
        return {
            "world": self.laws.version,
            "split": self.split,
            "seed": self.seed,
            "pairs": self.pairs,
            "limit_sources": [list(f) for f in self.limit_sources],
        }

    def rows(
        self, size: int, *, copies: int = 0, tolerate: float = 0.0, part: range | None = None
    ) -> Iterator[tuple[int, Row]]:
        """(copy, row) of the groups in ``part``; nothing here can be broken."""
        jobs = [
            (
                self.task,
                self.split,
                i,
                self.seed,
                self.pairs,
                replace(self.laws, size=size),
                copies,
                self.limit_sources,
            )
            for i in (self.members if part is None else part)
        ]
        for found in _pool(self.workers).map(render, jobs, chunksize=4):
            yield from found


@functools.cache
def _pool(workers: int) -> ProcessPoolExecutor:
    # spawned, not forked: a forked child of a process with OpenMP threads can hang
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


@functools.cache
def _limited(split: str, limit_sources: tuple[tuple[str, int], ...]) -> Sources:
    return default().limit_sources(split, **dict(limit_sources))


def render(job: tuple) -> list[tuple[int, Row]]:
    """(task, split, index, seed, pairs, laws, copies, limit_sources) to the rows of one group, each before
    its copies.
    """
    task, split, index, seed, pairs, laws, copies, limit_sources = job
    clip = tasks.get(task).sequence
    found = sentence(
        task,
        split,
        index,
        laws=laws,
        seed=seed,
        pairs=PAIRS if clip else pairs,
        sources=_limited(split, limit_sources) if limit_sources else None,
    )
    if clip:
        rows = [(found.pictures(), f"{found.pairs[0].source}@{index}")]
    else:
        rows = [(np.stack([pair.image, pair.label]), pair.source) for pair in found.pairs]
    group = "" if clip else f"{index:06d}"
    kept = [(0, Row(pictures, source, group)) for pictures, source in rows]
    for i, (pictures, source) in enumerate(rows):
        for copy in range(1, copies + 1):
            kept.append((copy, Row(_copied(found, i, pictures, copy), source, group)))
    return kept


def _copied(found: Sentence, i: int, pictures: np.ndarray, copy: int) -> np.ndarray:
    """A row cropped and flipped, as `augment.pictures` does: its label is a mask, a skeleton or a natural
    picture, as the task says.
    """
    from torchvision import tv_tensors

    from lvmlab.data import augmentation as augment
    from lvmlab.utils.images import from_uint8

    task, pair = tasks.get(found.task), found.pairs[i]
    parts = [tv_tensors.Image(p) for p in from_uint8(pictures)]
    if task.kind == 1:
        parts[1] = tv_tensors.Mask(parts[1])
    elif "keypoints" in pair.truth:
        points = np.column_stack([pair.truth["keypoints"], np.full(17, 2.0)])[None]
        parts[1] = augment.Skeletons(
            points,
            *parts[0].shape[-2:],
            lambda people, size: task.draw(people[0, :, :2], size, found.encoding),
        )
    return augment.pictures(
        tuple(parts), pictures.shape[1], f"{found.task} {pair.source} {zlib.crc32(pictures.tobytes())}", copy
    )
