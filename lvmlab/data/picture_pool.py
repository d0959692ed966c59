"""Pools of pictures for tokenizers: what mini-world's training shows, images and labels, with their truth.

A pool is NAME.npy, uint8 (N, S, S, 3), with files beside it, one entry a picture:

- NAME-kinds.npy (N,) uint8: 0 natural, 1 flat colours, 2 skeleton, 3 other;
- NAME-classes.npy (N, S, S) uint8: 0 where no object is, 1 + its class where one is (a body's class comes last),
  `UNKNOWN` all over a picture that is no photograph;
- NAME-keypoints.npy (N, 17, 2) float32 in pixels: NaN where no body is shown;
- NAME-clean.npy (N,) int32: which picture of the pool shows the same without rain, itself where there is none.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from lvmlab.utils.files import atomic, write_file
from lvmlab.world import DEFAULT, V1, V2, Laws, tasks
from lvmlab.world.sentences import Sentence, sentence
from lvmlab.world.tasks import Pair

SHARES = {
    V1.version: {
        "segmentation": 0.24,
        "selection": 0.10,
        "pose": 0.28,
        "derain": 0.16,
        "motion": 0.08,
        "deblur": 0.02,
        "colourise": 0.03,
        "inpaint": 0.02,
        "edges": 0.07,
    },
    # trained tasks and training encodings alone: what is held out of the models is held out of their tokenizer
    V2.version: {
        "segmentation": 0.20,
        "semantic": 0.18,
        "selection": 0.10,
        "category": 0.08,
        "pose": 0.26,
        "derain": 0.10,
        "motion": 0.08,
    },
}
SEED, PAIRS = 77, 4
UNKNOWN = 255  # in a map of classes
FILES = ("kinds", "classes", "keypoints", "clean")


def render_pool(
    path: str | Path,
    split: str,
    count: int,
    workers: int = 2,
    progress: bool = True,
    laws: Laws = DEFAULT,
    shares: dict[str, float] | None = None,
) -> Path:
    """A pool of pictures of one split, rendered where it is not there.

    Args:
        path: of NAME.npy; the truth's files are written beside it.
        split: whose sources are shown.
        count: of pictures, about.
        workers: processes that render.
        progress: whether a bar is shown.
        laws: the version of mini-world.
        shares: of the pictures, by task; None: `SHARES` of this version.
    """
    path = Path(path)
    beside = {name: path.with_name(f"{path.stem}-{name}.npy") for name in FILES}
    if path.exists() and all(file.exists() for file in beside.values()):
        return path
    shares = shares or SHARES[laws.version]
    jobs = [
        (split, task, i, laws)
        for task, share in shares.items()
        for i in range(max(1, round(share * count / (2 * PAIRS))))
    ]
    jobs = [jobs[i] for i in np.random.default_rng(0).permutation(len(jobs))]
    total, truths = 2 * PAIRS * len(jobs), {name: [] for name in FILES}
    with (
        ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool,
        atomic(path) as temporary,
    ):
        shape = (total, laws.size, laws.size, 3)
        pictures = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
        found = pool.map(_render, jobs, chunksize=16)
        bar = tqdm(found, total=len(jobs), desc=f"render {split} pictures", disable=not progress)
        for i, (drawn, truth) in enumerate(bar):
            first = i * 2 * PAIRS
            pictures[first : first + 2 * PAIRS] = drawn
            truth["clean"] += first
            for name, values in truth.items():
                truths[name].append(values)
        pictures.flush()
        for name, file in beside.items():
            write_file(file, np.concatenate(truths[name]))
    return path


def _render(job: tuple[str, str, int, Laws]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    split, task, index, laws = job
    # mini-world-v1's tokenizer saw held-out encodings, in each fifth sentence
    held_out = not laws.free_encodings and task in ("segmentation", "selection", "pose") and index % 5 == 0
    found = sentence(task, split, index, laws=laws, seed=SEED, pairs=PAIRS, held_out=held_out)
    return found.pictures(), truth(found)


def truth(found: Sentence) -> dict[str, np.ndarray]:
    """A pool's truth of a sentence's pictures, by the names in `FILES`."""
    kind = tasks.get(found.task).kind
    rain = found.task == "derain"
    parts = [side for pair in found.pairs for side in _sides(pair, kind)]
    return {
        "kinds": np.array([0, kind] * len(found.pairs), np.uint8),
        "classes": np.stack([classes for classes, _ in parts]),
        "keypoints": np.stack([keypoints for _, keypoints in parts]),
        "clean": np.array([i + (rain and i % 2 == 0) for i in range(len(parts))], np.int32),
    }


def _sides(pair: Pair, kind: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(map of classes, keypoints) of a pair's image and of its label."""
    masks, classes, size = pair.truth["masks"], pair.truth["classes"], pair.image.shape[:2]
    none = np.full((17, 2), np.nan, np.float32)
    keypoints = np.asarray(pair.truth.get("keypoints", none), np.float32)
    if kind:
        label = np.full(size, UNKNOWN, np.uint8)
    else:
        label = class_map(pair.truth.get("label masks", masks), classes)
    return [(class_map(masks, classes), keypoints), (label, none)]


def class_map(masks: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Masks uint8 (n, S, S) of objects of ``classes`` (n,) as one map (S, S): 0, or 1 + the class."""
    found = np.zeros(masks.shape[1:], np.uint8)
    for mask, place in zip(masks, classes, strict=True):
        found[mask > 127] = 1 + place
    return found
