"""Pairs of tokens on disk, grouped by the encoding they share, and the sentences drawn from them.

A store is a folder: parts ``TASK.NNNNNN.npy`` of each task, uint16 (groups, pairs, 2, N), and ``store.json`` with the tokenizer's
fingerprint, the world's version and the seed. Rendering and encoding cost as much as a third of a training, and label
colours are drawn a sentence: so a group of pairs under one encoding is tokenised once, and every sentence drawn from it
takes some of its pairs in a new order. Clips (tasks that are sequences) keep theirs.
"""

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lvmlab import tasks
from lvmlab.files import atomic
from lvmlab.images import from_uint8
from lvmlab.sentences import PAIRS, sentence
from lvmlab.tokenizer import Tokenizer
from lvmlab.world import VERSION

SHARD = 32  # groups rendered, encoded and kept at a time: what a kill can lose


def _pictures(job: tuple[str, str, int, int, int, int]) -> np.ndarray:
    task, split, index, seed, pairs, size = job
    return sentence(task, split, index, seed=seed, pairs=pairs, size=size).pictures()


def build(
    folder: str | Path, tokenizer: Tokenizer, groups: dict[str, int], *, split: str = "train", pairs: int = 16, seed: int = 1000,
    workers: int = 2, progress: bool = True,
) -> None:  # fmt: skip
    """Renders and tokenises ``groups[task]`` groups of ``pairs`` pairs (clips: sentences of 8). Goes on where it stopped.

    Raises ValueError where the folder holds the tokens of another tokenizer, world, split, seed or group size.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    meta = {"tokenizer": tokenizer.fingerprint, "world": VERSION, "split": split, "seed": seed, "pairs": pairs}
    _agree(folder / "store.json", meta)
    # spawned, not forked: a forked child of a process with OpenMP threads can hang
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for task, wanted in groups.items():
            length = PAIRS if tasks.get(task).sequence else pairs
            for first in tqdm(range(0, wanted, SHARD), desc=f"tokenise {task}", disable=not progress):
                part, last = folder / f"{task}.{first:06d}.npy", min(wanted, first + SHARD)
                if part.exists() and len(np.load(part, mmap_mode="r")) >= last - first:  # a part of a smaller store grows
                    continue
                jobs = [(task, split, i, seed, length, tokenizer.size) for i in range(first, last)]
                pictures = np.concatenate(list(pool.map(_pictures, jobs, chunksize=4)))
                tokens = tokenizer.encode(from_uint8(pictures))
                with atomic(part) as temporary, open(temporary, "wb") as file:
                    np.save(file, tokens.view(len(jobs), length, 2, -1).numpy().astype(np.uint16))


def _agree(path: Path, meta: dict) -> None:
    if path.exists():
        theirs = json.loads(path.read_text())
        if theirs != meta:
            differ = [f"{k}: {theirs.get(k)!r} there, {meta[k]!r} here" for k in meta if theirs.get(k) != meta[k]]
            raise ValueError(f"{path.parent} holds other tokens ({'; '.join(differ)}): choose another folder")
        return
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(meta) + "\n")


class Store:
    """Sentences of tokens by (seed, step). ``tasks`` maps each stored task to its tokens, uint16 (groups, pairs, 2, N)."""

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        if not (folder / "store.json").is_file():
            raise FileNotFoundError(f"{folder / 'store.json'} is missing: build a store there first")
        self.meta = json.loads((folder / "store.json").read_text())
        self.tasks: dict[str, np.ndarray] = {}
        for name in tasks.TASKS:
            parts = [np.load(path) for path in sorted(folder.glob(f"{name}.[0-9]*.npy"))]
            if parts:
                self.tasks[name] = np.concatenate(parts)
        if not self.tasks:
            raise ValueError(f"{folder} holds no tokens yet: build the store first")

    def batch(self, step: int, size: int, pairs: int, shares: dict[str, float], seed: int) -> tuple[Tensor, list[str]]:
        """``size`` sentences of ``pairs`` pairs, (size, pairs * 2 * N) int64, and the task of each: a function of (seed, step)."""
        rng = np.random.default_rng((seed, step))
        names = [name for name in shares if name in self.tasks]
        if not names:
            raise ValueError(f"none of {', '.join(shares)} is in the store (stored: {', '.join(self.tasks)}): build it with the tasks you train")
        short = [f"{name} has {self.tasks[name].shape[1]}" for name in names if self.tasks[name].shape[1] < pairs]
        if short:
            raise ValueError(f"sentences of {pairs} pairs do not fit the stored groups ({', '.join(short)}): ask for fewer or build larger groups")
        weights = np.array([shares[name] for name in names])
        drawn = [str(name) for name in rng.choice(names, size, p=weights / weights.sum())]
        rows = []
        for name in drawn:
            group = self.tasks[name][rng.integers(len(self.tasks[name]))]
            if tasks.get(name).sequence:
                first = rng.integers(len(group) - pairs + 1)
                group = group[first : first + pairs]
            else:
                group = group[rng.permutation(len(group))[:pairs]]
            rows.append(group.reshape(-1))
        return torch.from_numpy(np.stack(rows).astype(np.int64)), drawn
