"""A frozen list of sentences, and a teacher's word on every token of it, kept on disk.

A sweep over students, weights and temperatures then never runs the teacher again. A list is a folder:
``list.json`` (how it was drawn, and its
hash), ``tokens.npy``, ``read.npy``, ``weights.npy``. A cache is a folder in it, ``teacher-FINGERPRINT``: the
log-probabilities of all codes
in 8 bits, about 1 KB a token at 1024 codes; or, beyond 4096, those of the top codes in 16 bits and what is
left for all others.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lvmlab.distillation.objectives import Online
from lvmlab.model.lvm import LVM
from lvmlab.utils.device import precision
from lvmlab.utils.files import write_file

WHOLE, TOP = 4096, 256  # codes up to which all are kept; how many of more are
LEVELS = 255


@dataclass(frozen=True)
class Levels:
    """A cached word in 8 bits: levels uint8 (M, codes) from ``low`` (M, 1) to 0, the likeliest code's; see
    `lvmlab.distillation.objectives.Word`.
    """

    levels: Tensor
    low: Tensor

    def part(self, rows: slice) -> "Levels":
        return Levels(self.levels[rows], self.low[rows])

    def log(self) -> Tensor:
        return (self.levels.float() / LEVELS * -self.low + self.low).log_softmax(-1)


@dataclass(frozen=True)
class Top:
    """A cached word of the top codes: ids (M, k) and their log-probabilities (M, k)."""

    ids: Tensor
    values: Tensor

    def part(self, rows: slice) -> "Top":
        return Top(self.ids[rows], self.values[rows])

    def log(self) -> Tensor:
        top = self.values.float()
        return torch.cat([top, torch.log1p(-top.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))], -1)


def freeze(folder: str | Path, batches: Callable[[int, int, int], dict], count: int, identity: dict) -> Path:
    """Writes the first ``count`` sentences that ``batches`` (of `lvmlab.training.lvm.SentenceSampler`) gives as a
    frozen list; one that is there stays.

    Raises ValueError where the folder holds a list of another identity or count.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    identity = json.loads(json.dumps(identity))
    if (folder / "list.json").exists():
        theirs = json.loads((folder / "list.json").read_text(encoding="utf-8"))
        if (theirs["identity"], theirs["count"]) != (identity, count):
            raise ValueError(
                f"{folder} holds another list of {theirs['count']} sentences: choose another folder"
            )
        return folder
    found: dict[str, list] = {"tokens": [], "read": [], "weights": [], "tasks": []}
    step = 0
    while len(found["tasks"]) < count:
        for name, values in batches(step, 0, 1).items():
            if name in found:
                found[name] += list(values)
        step += 1
    kinds = {"tokens": np.uint16, "read": np.uint16, "weights": np.float32}
    arrays = {
        name: np.stack([np.asarray(v) for v in found[name][:count]]).astype(kind)
        for name, kind in kinds.items()
    }
    for name, array in arrays.items():
        write_file(folder / f"{name}.npy", array)
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays.values())).hexdigest()[:16]
    write_file(
        folder / "list.json",
        json.dumps({"identity": identity, "count": count, "hash": digest, "tasks": found["tasks"][:count]}),
    )
    return folder


class Frozen:
    """Training batches from a frozen list: each sentence once an epoch, in an order of the seed's; with a
    cache, the teacher's word on it.
    """

    def __init__(self, folder: str | Path, size: int, seed: int, teacher: str | None = None):
        folder = Path(folder)
        self.meta = json.loads((folder / "list.json").read_text(encoding="utf-8"))
        self.arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("tokens", "read", "weights")
        }
        self.size, self.seed, self.tasks = size, seed, self.meta["tasks"]
        self.cache = Cache(folder, teacher) if teacher else None

    @property
    def identity(self) -> dict:
        return {
            "list": self.meta["hash"],
            **self.meta["identity"],
            **({"teacher": self.cache.teacher} if self.cache else {}),
        }

    def batch_sources(self, batch: dict) -> str:
        """Which sentences a batch holds."""
        return f"sentences {', '.join(map(str, batch['rows']))} of the list {self.meta['hash']}"

    def rows(self, step: int) -> np.ndarray:
        """Which sentences a step reads: (size,)."""
        at = step * self.size + np.arange(self.size)
        epochs = {
            e: np.random.default_rng((self.seed, e)).permutation(len(self.tasks))
            for e in set(at // len(self.tasks))
        }
        return np.array([epochs[a // len(self.tasks)][a % len(self.tasks)] for a in at])

    def __call__(self, step: int, part: int, parts: int) -> dict:
        rows = self.rows(step)[part::parts]
        found = {
            name: torch.from_numpy(array[rows].astype(np.float32 if name == "weights" else np.int64))
            for name, array in self.arrays.items()
        }
        word = {"word": self.cache.word(rows)} if self.cache else {}
        return {**found, **word, "tasks": [self.tasks[row] for row in rows], "rows": rows}


class Cache:
    """A teacher's word on a frozen list, written once by `write`. Raises FileNotFoundError where it is
    missing or unfinished.
    """

    def __init__(self, folder: str | Path, teacher: str):
        self.teacher, where = teacher, Path(folder) / f"teacher-{teacher}"
        meta = (
            json.loads((where / "cache.json").read_text(encoding="utf-8"))
            if (where / "cache.json").is_file()
            else {"done": 0}
        )
        count = json.loads((Path(folder) / "list.json").read_text(encoding="utf-8"))["count"]
        if meta["done"] < count:
            raise FileNotFoundError(
                f"{where} holds a teacher's word on {meta['done']} of {count} sentences: write_cache goes on "
                f"where it stopped"
            )
        self.top = meta["top"]
        self.arrays = [np.load(where / f"{name}.npy", mmap_mode="r") for name in ("first", "second")]

    def word(self, rows: np.ndarray) -> Levels | Top:
        """On the targets of these sentences, one after another: M = rows x (T - 1)."""
        first, second = (torch.from_numpy(array[rows]).flatten(0, 1) for array in self.arrays)
        return Top(first.long(), second) if self.top else Levels(first, second)


def write_cache(
    folder: str | Path, lvm: LVM, *, top: int | None = None, batch: int = 16, progress: bool = True
) -> str:
    """Writes a teacher's word on a frozen list and returns its fingerprint; goes on where it was stopped.

    top: keep so many codes alone; None: all, up to WHOLE codes, and TOP beyond.
    """
    folder, teacher = Path(folder), lvm.fingerprint()
    top = (None if lvm.vocab_size <= WHOLE else TOP) if top is None else top
    where, read = folder / f"teacher-{teacher}", np.load(folder / "read.npy", mmap_mode="r")
    where.mkdir(exist_ok=True)
    count, targets = len(read), read.shape[1] - 1
    meta = (
        json.loads((where / "cache.json").read_text(encoding="utf-8"))
        if (where / "cache.json").is_file()
        else {"done": 0, "top": top}
    )
    if meta["top"] != top:
        raise ValueError(f"{where} was begun with top={meta['top']}: go on with that, or remove it")
    shapes = (
        [((count, targets, top), np.uint16), ((count, targets, top), np.float16)]
        if top
        else [((count, targets, lvm.vocab_size), np.uint8), ((count, targets, 1), np.float32)]
    )
    new = meta["done"] == 0
    arrays = [
        np.lib.format.open_memmap(where / f"{name}.npy", "w+" if new else "r+", kind, shape)
        for name, (shape, kind) in zip(("first", "second"), shapes, strict=True)
    ]
    for start in tqdm(range(meta["done"], count, batch), desc="teacher", disable=not progress):
        log = said(lvm, torch.from_numpy(read[start : start + batch].astype(np.int64))).log()
        packed = _top(log, top) if top else _levels(log)
        for array, values in zip(arrays, packed, strict=True):
            array[start : start + batch] = (
                values.cpu().numpy().astype(array.dtype).reshape(-1, *array.shape[1:])
            )
        if start // batch % 32 == 31 or start + batch >= count:
            for array in arrays:
                array.flush()
            write_file(where / "cache.json", json.dumps({"done": min(start + batch, count), "top": top}))
    return teacher


@torch.no_grad()
def said(lvm: LVM, read: Tensor) -> Online:
    """A teacher's word on the targets of sentences as they are read, (B, T) to M = B x (T - 1), in the
    fastest precision.
    """
    device = lvm.device
    with torch.autocast(device.type, torch.bfloat16, enabled=precision(device=device) == "bf16"):
        hidden = lvm.hidden(read.to(device))[:, :-1].flatten(0, 1)
    return Online(hidden, lvm.llama.lm_head.weight.detach())


def _levels(log: Tensor) -> tuple[Tensor, Tensor]:
    log = log - log.amax(-1, keepdim=True)
    low = log.amin(-1, keepdim=True).clamp(max=-1e-3)
    return ((1 - log / low) * LEVELS).round(), low


def _top(log: Tensor, top: int) -> tuple[Tensor, Tensor]:
    values, ids = log.topk(top, -1)
    return ids, values
