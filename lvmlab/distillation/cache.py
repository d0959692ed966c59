"""Frozen sentences, and a teacher's predictions on every token of them, kept on disk.

A sweep over students, weights and temperatures then runs the teacher once. A list is a folder: ``list.json``
(how it was drawn, and its hash), ``tokens.npy``, ``inputs.npy``, ``weights.npy``. A cache is a folder in it,
``teacher-FINGERPRINT``: all codes in 8 bits, or, of more than ALL_CODES, the likeliest TOP in 16 bits and the
probability of all others.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from lvmlab.distillation.teacher import Predictions, QuantizedPredictions, TopPredictions, teacher_outputs
from lvmlab.model.lvm import LVM
from lvmlab.utils.files import write_file
from lvmlab.utils.locks import hold

ALL_CODES, TOP = 1024, 256
KINDS = {"tokens": np.uint16, "inputs": np.uint16, "weights": np.float32}


def freeze_sentences(
    folder: str | Path, batches: Callable[[int, int, int], dict], count: int, identity: dict
) -> Path:
    """Writes the first ``count`` sentences that ``batches`` gives as a frozen list; an existing list stays.

    Args:
        folder: Of the list.
        batches: (step, part, parts) to a batch, as `lvmlab.training.sampler.SentenceSampler`.
        count: How many sentences.
        identity: All that decides them, as plain JSON.

    Returns:
        The folder.

    Raises:
        ValueError: The folder holds a list of another identity or count.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    identity = json.loads(json.dumps(identity))
    if (folder / "list.json").exists():
        stored = _read(folder / "list.json")
        if (stored["identity"], stored["count"]) != (identity, count):
            raise ValueError(
                f"{folder} holds another list of {stored['count']} sentences: choose another folder"
            )
        return folder
    columns: dict[str, list] = {name: [] for name in (*KINDS, "tasks")}
    step = 0
    while len(columns["tasks"]) < count:
        batch = batches(step, 0, 1)
        for name, values in columns.items():
            values += list(batch[name])
        step += 1
    sha = hashlib.sha256()
    for name, kind in KINDS.items():
        array = np.stack([np.asarray(row) for row in columns[name][:count]]).astype(kind)
        sha.update(array)
        write_file(folder / f"{name}.npy", array)
    meta = {"identity": identity, "count": count, "hash": sha.hexdigest()[:16]}
    meta["tokens_per_image"] = getattr(batches, "tokens_per_image", None)
    write_file(folder / "list.json", json.dumps(meta | {"tasks": columns["tasks"][:count]}))
    return folder


class FrozenSentences:
    """Training batches from a frozen list: each sentence once an epoch, in an order that the seed decides.

    Args:
        folder: Of the list.
        size: Sentences a step.
        seed: Of the order.
        teacher: The fingerprint of a cache; batches then hold its predictions.
        on_policy: As `lvmlab.training.recipe.LVMRecipe.on_policy`.
    """

    def __init__(
        self,
        folder: str | Path,
        size: int,
        seed: int,
        teacher: str | None = None,
        on_policy: float = 0.0,
    ):
        folder = Path(folder)
        self.meta = _read(folder / "list.json")
        self.arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in KINDS}
        self.size, self.seed, self.on_policy = size, seed, on_policy
        self.tasks, self.tokens_per_image = self.meta["tasks"], self.meta.get("tokens_per_image")
        self.longest = self.arrays["tokens"].shape[1]
        self.tokens_per_step = size * self.longest
        self.tokenizer = self.meta["identity"].get("store", {}).get("tokenizer")
        self.cache = TeacherCache(folder, teacher) if teacher else None

    @property
    def identity(self) -> dict:
        """All that decides the batches."""
        identity = {"list": self.meta["hash"], **self.meta["identity"]}
        identity |= {"on_policy": self.on_policy} if self.on_policy else {}
        return identity | ({"teacher": self.cache.teacher} if self.cache else {})

    def batch_sources(self, batch: dict) -> str:
        """Which sentences a batch holds."""
        return f"sentences {', '.join(map(str, batch['rows']))} of the list {self.meta['hash']}"

    def rows(self, step: int) -> np.ndarray:
        """Which sentences a step reads: (size,)."""
        places = step * self.size + np.arange(self.size)
        orders = {
            epoch: np.random.default_rng((self.seed, epoch)).permutation(len(self.tasks))
            for epoch in set(places // len(self.tasks))
        }
        return np.array([orders[place // len(self.tasks)][place % len(self.tasks)] for place in places])

    def __call__(self, step: int, part: int, parts: int) -> dict:
        """{tokens, inputs, weights (B, T), tasks, rows, predictions of the cache} of a part of a step."""
        rows = self.rows(step)[part::parts]
        batch = {
            name: torch.from_numpy(array[rows].astype(np.float32 if name == "weights" else np.int64))
            for name, array in self.arrays.items()
        }
        if self.cache:
            batch["predictions"] = self.cache.predictions(rows)
        return {**batch, "tasks": [self.tasks[row] for row in rows], "rows": rows}


class TeacherCache:
    """A teacher's predictions on a frozen list, written by `write_cache`.

    Raises:
        FileNotFoundError: It is missing or unfinished.
    """

    def __init__(self, folder: str | Path, teacher: str):
        self.teacher, where = teacher, Path(folder) / f"teacher-{teacher}"
        meta = _read(where / "cache.json") if (where / "cache.json").is_file() else {"done": 0}
        count = _read(Path(folder) / "list.json")["count"]
        if meta["done"] < count:
            raise FileNotFoundError(
                f"{where} holds a teacher's predictions on {meta['done']} of {count} sentences: write_cache "
                f"writes "
                "the rest"
            )
        self.top = meta["top"]
        self.arrays = [np.load(where / f"{name}.npy", mmap_mode="r") for name in ("first", "second")]

    def predictions(self, rows: np.ndarray) -> Predictions:
        """On the targets of these sentences, one after another: M = rows x (T - 1)."""
        first, second = (torch.from_numpy(array[rows]).flatten(0, 1) for array in self.arrays)
        return TopPredictions(first.long(), second) if self.top else QuantizedPredictions(first, second)


def write_cache(
    folder: str | Path, teacher: LVM, *, top: int | None = None, batch: int = 16, progress: bool = True
) -> str:
    """Writes a teacher's predictions on a frozen list; resumes after an interruption.

    Args:
        folder: Of the list.
        teacher: In evaluation mode.
        top: Keep so many codes. None: all, up to ALL_CODES, and TOP beyond.
        batch: Sentences at a time.
        progress: Show a bar.

    Returns:
        The teacher's fingerprint.

    Raises:
        ValueError: The cache was begun with another ``top``, or is damaged.
        OSError: The disk is full; what is complete stays.
        FolderInUse: Another process writes it.
    """
    folder, fingerprint = Path(folder), teacher.fingerprint()
    top = (None if teacher.vocab_size <= ALL_CODES else TOP) if top is None else top
    inputs, where = np.load(folder / "inputs.npy", mmap_mode="r"), folder / f"teacher-{fingerprint}"
    count, targets = len(inputs), inputs.shape[1] - 1
    shape = (count, targets)
    kinds = (
        [((*shape, top), np.uint16), ((*shape, top + 1), np.float16)]
        if top
        else [((*shape, teacher.vocab_size), np.uint8), ((*shape, 1), np.float32)]
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(hold(where))
        meta = _read(where / "cache.json") if (where / "cache.json").is_file() else {"done": 0, "top": top}
        if meta["top"] != top:
            raise ValueError(f"{where} was begun with top={meta['top']}: give that, or remove the folder")
        files = [
            stack.enter_context(contextlib.closing(_Rows(where / f"{name}.npy", *kind, meta["done"])))
            for name, kind in zip(("first", "second"), kinds, strict=True)
        ]
        bar = tqdm(range(meta["done"], count, batch), desc="teacher", disable=not progress)
        for number, start in enumerate(bar, 1):
            rows = torch.from_numpy(inputs[start : start + batch].astype(np.int64))
            log_probs = teacher_outputs(teacher, rows).log_probs(slice(None))
            packed = TopPredictions.of(log_probs, top) if top else QuantizedPredictions.of(log_probs)
            for file, values in zip(files, vars(packed).values(), strict=True):
                file.append(values.cpu().numpy())
            if number % 32 == 0 or start + batch >= count:
                done = min(start + batch, count)
                write_file(where / "cache.json", json.dumps({"done": done, "top": top}))
    return fingerprint


class _Rows:
    """A .npy file that is written row by row; what follows the first ``done`` rows is cut off."""

    def __init__(self, path: Path, shape: tuple[int, ...], kind: type, done: int):
        self.kind = np.dtype(kind)
        if not done:
            with open(path, "wb") as file:
                header = {"descr": self.kind.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
        # unbuffered: nothing of a failed write may reach the file later
        self.file = open(path, "r+b", buffering=0)  # noqa: SIM115
        np.lib.format.read_magic(self.file)
        np.lib.format.read_array_header_1_0(self.file)
        end = self.file.tell() + done * int(np.prod(shape[1:])) * self.kind.itemsize
        if path.stat().st_size < end:
            raise ValueError(
                f"{path} is shorter than the {done} sentences it should hold: remove {path.parent}"
            )
        self.file.seek(end)
        self.file.truncate()

    def append(self, rows: np.ndarray) -> None:
        data = memoryview(rows.astype(self.kind).tobytes())
        while data:
            data = data[self.file.write(data) :]

    def close(self) -> None:
        self.file.close()


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
