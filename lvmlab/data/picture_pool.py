"""Pools of pictures for tokenizers: everything that mini-world shows, images and labels, rendered once."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from lvmlab.utils.files import write_file
from lvmlab.world import tasks
from lvmlab.world.sentences import sentence

SHARES = {
    "segmentation": 0.24,
    "selection": 0.10,
    "pose": 0.28,
    "derain": 0.16,
    "motion": 0.08,
    "deblur": 0.02,
    "colourise": 0.03,
    "inpaint": 0.02,
    "edges": 0.07,
}
SEED, PAIRS = 77, 4


def _render(job: tuple[str, str, int]) -> tuple[np.ndarray, list[int]]:
    split, task, index = job
    encoded = task in ("segmentation", "selection", "pose")
    # a tokenizer may see every colour: each fifth sentence wears a held-out encoding
    found = sentence(task, split, index, seed=SEED, pairs=PAIRS, held_out=encoded and index % 5 == 0)
    return found.pictures(), [0, tasks.get(task).kind] * PAIRS


def render_pool(path: str | Path, split: str, count: int, workers: int = 2, progress: bool = True) -> Path:
    """About ``count`` pictures of a split in ``path`` (.npy, uint8 (N, S, S, 3)) with their kinds beside it;
    kept if there.
    """
    path = Path(path)
    kinds_path = path.with_name(f"{path.stem}-kinds.npy")
    if path.exists() and kinds_path.exists():
        return path
    jobs = [
        (split, task, i)
        for task, share in SHARES.items()
        for i in range(max(1, round(share * count / (2 * PAIRS))))
    ]
    order = np.random.default_rng(0).permutation(len(jobs))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.map(_render, [jobs[i] for i in order], chunksize=16)
        pictures, kinds = zip(
            *tqdm(found, total=len(jobs), desc=f"render {split} pictures", disable=not progress), strict=True
        )
    for target, values in (
        (kinds_path, np.concatenate(kinds).astype(np.uint8)),
        (path, np.concatenate(pictures)),
    ):
        write_file(target, values)
    return path
