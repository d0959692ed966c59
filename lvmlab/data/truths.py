"""Pools of pictures with their truths, for a tokenizer that learns what pictures show: masks, classes and
joints.

Train sources, trained tasks and training encodings only: what is held out is held out from the tokenizer too.
"""

import functools
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lvmlab.utils.files import write_file
from lvmlab.world import V2, Laws, scenes
from lvmlab.world.sentences import sentence

# what a picture is; a batch is drawn by shares of these
KINDS = ("objects", "rain", "body", "two-colour", "many-colour", "skeleton")
IMAGES = KINDS[:3]
IMAGE_KINDS = {"pose": "body", "derain": "rain"}  # of the other tasks: objects
LABEL_KINDS = {
    "segmentation": "two-colour",
    "selection": "two-colour",
    "semantic": "many-colour",
    "pose": "skeleton",
}
UNKNOWN = 255  # in a class map
MANIFEST = "pool.json"


@dataclass(frozen=True)
class Plan:
    """What a pool holds.

    Args:
        split: whose sources are drawn.
        pictures: how many, about.
        laws: the version of mini-world.
        pairs: of a sentence, under one encoding.
        seed: of the sentences.
        shares: of each task in the pictures.
    """

    split: str = "train"
    pictures: int = 60_000
    laws: Laws = V2
    pairs: int = 2
    seed: int = 77
    shares: tuple[tuple[str, float], ...] = (
        ("segmentation", 0.22),
        ("semantic", 0.14),
        ("selection", 0.10),
        ("category", 0.06),
        ("pose", 0.32),
        ("derain", 0.10),
        ("motion", 0.06),
    )

    def jobs(self) -> list[tuple[str, int]]:
        """(task, index) of each sentence, shuffled."""
        found = [
            (t, i) for t, share in self.shares for i in range(round(share * self.pictures / (2 * self.pairs)))
        ]
        return [found[i] for i in np.random.default_rng(self.seed).permutation(len(found))]


def render_truths(folder: str | Path, plan: Plan, workers: int = 2, progress: bool = True) -> "TruthPool":
    """Renders the pool of a plan into `folder`, or reads it where the same plan has been rendered.

    Args:
        folder: gets pictures.npy uint8 (N, S, S, 3), kinds.npy uint8 (N), classes.npy uint8 (N, S/2, S/2),
            points.npy float32 (N, 17, 2) in pixels, clean.npy int64 (N), and at last pool.json.
        plan: what to draw.
        workers: processes that draw; 0: this one.
        progress: whether to show a bar.

    Raises:
        ValueError: another plan's pool is there.
    """
    folder, wanted = Path(folder), json.loads(json.dumps(asdict(plan)))
    if (folder / MANIFEST).is_file():
        there = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if there != wanted:
            raise ValueError(
                f"{folder} holds a pool of another plan ({there}): remove it or choose another folder"
            )
        return TruthPool(folder)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = plan.jobs()
    count, half = 2 * plan.pairs * len(jobs), plan.laws.size // 2
    pictures = np.lib.format.open_memmap(
        folder / "pictures.npy", "w+", np.uint8, (count, plan.laws.size, plan.laws.size, 3)
    )
    classes = np.lib.format.open_memmap(folder / "classes.npy", "w+", np.uint8, (count, half, half))
    kinds, points = np.zeros(count, np.uint8), np.full((count, 17, 2), np.nan, np.float32)
    clean = np.arange(count)
    drawn = _drawn(plan, jobs, workers)
    for j, rows in enumerate(tqdm(drawn, total=len(jobs), desc=f"draw {plan.split}", disable=not progress)):
        for i, row in enumerate(rows, start=j * 2 * plan.pairs):
            pictures[i], classes[i], points[i] = row.picture, row.classes, row.points
            kinds[i] = KINDS.index(row.kind)
            clean[i] = i + (row.kind == "rain")  # a label follows its image
    pictures.flush()
    classes.flush()
    for name, values in (("kinds", kinds), ("points", points), ("clean", clean)):
        write_file(folder / f"{name}.npy", values)
    write_file(folder / MANIFEST, json.dumps(wanted) + "\n")
    return TruthPool(folder)


def open_pool(folder: str | Path, plan: Plan) -> "TruthPool":
    """The pool that a training began with, else one of this plan: a training resumes on the pictures it
    has seen.

    A pool's own plan is part of its training's identity.
    """
    return TruthPool(folder) if (Path(folder) / MANIFEST).is_file() else render_truths(folder, plan)


@dataclass(frozen=True)
class _Row:
    picture: np.ndarray
    kind: str
    classes: np.ndarray | int = UNKNOWN
    points: np.ndarray | float = np.nan


def _drawn(plan: Plan, jobs: list[tuple[str, int]], workers: int) -> Iterator[list[_Row]]:
    draw = functools.partial(_draw, plan)
    if not workers:
        yield from map(draw, jobs)
        return
    # spawned, not forked: a forked child of a process with OpenMP threads can hang
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(draw, jobs, chunksize=16)


def _draw(plan: Plan, job: tuple[str, int]) -> list[_Row]:
    """One sentence as rows: image, label, image, label, ..."""
    task, index = job
    rows = []
    for pair in sentence(task, plan.split, index, laws=plan.laws, seed=plan.seed, pairs=plan.pairs).pairs:
        truth = pair.truth
        shown = class_map(truth["masks"], truth["classes"])
        rows.append(_Row(pair.image, IMAGE_KINDS.get(task, "objects"), shown, truth.get("keypoints", np.nan)))
        if task in LABEL_KINDS:
            rows.append(_Row(pair.label, LABEL_KINDS[task]))
        else:  # a natural picture: the next frame, another of the class, or the clean copy of what rain hides
            moved = class_map(truth["label masks"], truth["classes"]) if "label masks" in truth else shown
            rows.append(_Row(pair.label, "objects", moved))
    return rows


def class_map(masks: np.ndarray, classes: np.ndarray, step: int = 2) -> np.ndarray:
    """What is seen at every ``step``-th pixel: masks uint8 (n, S, S) and their classes (n,) to uint8 (S /
    step, S / step), 0 for the ground, else 1 + class.
    """
    seen = masks[:, ::step, ::step] > 127
    return (seen * (1 + classes.astype(np.uint8))[:, None, None]).max(0)


class TruthPool:
    """A rendered pool, memory-mapped."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).is_file():
            raise FileNotFoundError(f"{self.folder / MANIFEST} is missing: draw the pool with render_truths")
        self.plan = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        names = ("pictures", "classes", "points", "kinds", "clean")
        read = {name: np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in names}
        self.pictures, self.classes, self.points = (read[n] for n in names[:3])
        self.kinds, self.clean = np.array(read["kinds"]), np.array(read["clean"])
        self.of_kind = [np.flatnonzero(self.kinds == k) for k in range(len(KINDS))]

    def __len__(self) -> int:
        return len(self.kinds)

    def batch(
        self, step: int, size: int, seed: int, shares: tuple[float, ...], jitter: float = 0.0
    ) -> dict[str, Tensor]:
        """`size` pictures drawn with a share a kind, a function of (seed, step) alone; half are mirrored.

        jitter: how far brightness and colour of images (not of labels) may go, alike in an image and its
            clean copy.
        """
        rng = np.random.default_rng((seed, step))
        given = np.array([s if len(of) else 0.0 for s, of in zip(shares, self.of_kind, strict=True)])
        drawn = rng.choice(len(KINDS), size, p=given / given.sum())
        index = np.array([rng.choice(self.of_kind[k]) for k in drawn])
        batch = self.take(index, rng.random(size) < 0.5)
        if jitter:
            image = torch.from_numpy(drawn < len(IMAGES)).view(-1, 1, 1, 1)
            scale = rng.uniform(1 - jitter, 1 + jitter, (size, 1, 1, 1)) * rng.uniform(
                1 - jitter / 2, 1 + jitter / 2, (size, 3, 1, 1)
            )
            shift = torch.from_numpy(rng.uniform(-jitter / 2, jitter / 2, (size, 1, 1, 1))).float()
            scale = torch.from_numpy(scale).float()
            for name in ("pictures", "clean"):
                changed = ((batch[name] - 0.5) * scale + 0.5 + shift).clamp(0, 1)
                batch[name] = torch.where(image, changed, batch[name])
        return batch

    def take(self, index: np.ndarray, mirrored: np.ndarray | None = None) -> dict[str, Tensor]:
        """Pictures and truths by index.

        Args:
            index: (B,) integers.
            mirrored: (B,) bool, which of them to mirror; None: none.

        Returns:
            "pictures" and "clean" float (B, 3, S, S) in [0, 1], "classes" int64 (B, S/2, S/2), "points" float
            (B, 17, 2) in units of the side, "kinds" int64 (B).
        """
        size = self.pictures.shape[1]
        own = torch.from_numpy(self.pictures[index])
        other = (
            own if (self.clean[index] == index).all() else torch.from_numpy(self.pictures[self.clean[index]])
        )
        classes = torch.from_numpy(self.classes[index]).long()
        points = torch.from_numpy(self.points[index]) / size
        pictures, clean = (p.permute(0, 3, 1, 2).float().div_(255) for p in (own, other))
        if mirrored is not None and mirrored.any():
            flip = torch.from_numpy(mirrored)
            for values in (pictures, clean, classes):
                values[flip] = values[flip].flip(-1)
            turned = points[flip][:, scenes.MIRROR]
            turned[..., 0] = 1 - turned[..., 0]
            points[flip] = turned
        return {
            "pictures": pictures,
            "clean": clean,
            "classes": classes,
            "points": points,
            "kinds": torch.from_numpy(self.kinds[index]).long(),
        }
