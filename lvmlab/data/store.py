"""The token store: rows of tokens, tokenised once and memory-mapped, and the sentences drawn from them.

A store is a folder: ``store.json`` and parts ``TASK.NNNNNN.arrow`` (`lvmlab.data.parts`), so that ten million
rows open at once and take no memory. `lvmlab.data.building` makes one. `export_parquet` writes the same rows
as Parquet, which `datasets` streams from a disk or an object store.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from lvmlab.data.parts import TEXTS, check_parts, list_parts, read_index, read_table, task_of
from lvmlab.utils import digests
from lvmlab.utils.files import atomic

Origin = list[tuple[str, np.ndarray]]  # the rows of a sentence, by task


class Rows:
    """The rows of one task in memory-mapped parts. ``pictures`` in a row: 1 an image, 2 a pair, more a clip.

    Only where groups or copies are told apart is anything held in memory: 8 bytes a row.
    """

    def __init__(self, paths: list[Path]):
        tables = [read_table(path) for path in paths]
        self.tables = [table for table in tables if len(table)] or tables[:1]
        self.pictures = int(self.tables[0].schema.metadata[b"pictures"])
        self.length = width = self.tables[0].schema.field("tokens").type.list_size  # tokens a row
        self.parts = [
            chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, width)
            for t in self.tables
            for chunk in t["tokens"].chunks
        ]
        self.starts = np.cumsum([0, *map(len, self.parts)])
        self.width = width // self.pictures  # tokens a picture

    def text(self, key: str) -> set[str]:
        return {table.schema.metadata[key.encode()].decode() for table in self.tables}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Tokens of these rows, uint16 (len(rows), pictures, N)."""
        rows = np.asarray(rows)
        which = np.searchsorted(self.starts, rows, "right") - 1
        found = np.stack([self.parts[p][row - self.starts[p]] for p, row in zip(which, rows, strict=True)])
        return found.reshape(len(rows), self.pictures, self.width)

    def column(self, name: str) -> list[str]:
        """A text of every row: for looking at; it is held in memory."""
        return [value for table in self.tables for value in table[name].to_pylist()]

    def codes(self, name: str) -> tuple[np.ndarray, list[str]]:
        """A text of every row as numbers (rows,) int32, and what they mean."""
        known: dict[str, int] = {}
        found = []
        for chunk in (chunk for table in self.tables for chunk in table[name].chunks):
            values = np.array(
                [known.setdefault(v, len(known)) for v in chunk.dictionary.to_pylist()], np.int32
            )
            found.append(values[chunk.indices.to_numpy()])
        return np.concatenate(found) if found else np.zeros(0, np.int32), list(known)


class Store:
    """Sentences of tokens by (seed, step). ``tasks`` maps each stored task to its `Rows`.

    copies: so many augmented copies of a row are drawn from beside it; None: all that are stored.
    """

    def __init__(self, folder: str | Path, *, copies: int | None = None):
        folder = Path(folder).expanduser()
        meta = read_index(folder)
        check_parts(folder, meta)
        # what a training on the store is resumed by: every row
        self.meta = {key: value for key, value in meta.items() if key != "parts"}
        if "parts" in meta:
            self.meta["content"] = digests.value_digest(meta["parts"])
        parts: dict[str, list[Path]] = {}
        for path in list_parts(folder):
            parts.setdefault(task_of(path), []).append(path)
        self.tasks = {task: rows for task, files in parts.items() if len(rows := Rows(files))}
        if not self.tasks:
            raise ValueError(f"{folder} holds no tokens yet: build the store first")
        for task, rows in self.tasks.items():
            if rows.text("tokenizer") != {self.meta["tokenizer"]}:
                raise ValueError(
                    f"{task} in {folder} holds tokens of {', '.join(sorted(rows.text('tokenizer')))}, the "
                    f"store is of "
                    f"{self.meta['tokenizer']}: build it anew in another folder"
                )
        self._groups = {task: self._grouped(rows, copies) for task, rows in self.tasks.items()}

    @staticmethod
    def _grouped(rows: Rows, most: int | None) -> list[np.ndarray] | None:
        """The rows of each group; None where all are one group."""
        copies, names = rows.codes("augmentation")
        numbers = np.array([int(name.removeprefix("copy ") or 0) for name in names])
        kept = None if most is None or numbers.max() <= most else np.flatnonzero(numbers[copies] <= most)
        groups, names = rows.codes("group")
        if kept is None and len(names) == 1:
            return None
        kept = np.arange(len(rows)) if kept is None else kept
        order = kept[np.argsort(groups[kept], kind="stable")]
        return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)

    def counts(self) -> dict[str, int]:
        """How many rows of each task may be drawn."""
        return {
            task: len(rows) if (groups := self._groups[task]) is None else sum(map(len, groups))
            for task, rows in self.tasks.items()
        }

    def batch(
        self, step: int, size: int, pairs: int, shares: dict[str, float], seed: int, mixed: float = 0.0
    ) -> tuple[Tensor, list[str], list[Origin]]:
        """``size`` sentences of ``pairs`` pairs, (size, pairs * 2 * N) int64, the task of each and its rows:
        a function of (seed, step).

        mixed: the share of sentences whose every pair is of a task of its own, drawn alike; their task is
            called "mixed".
        """
        rng = np.random.default_rng((seed, step))
        names = [name for name in shares if name in self.tasks and shares[name] > 0]
        if not names:
            raise ValueError(
                f"none of {', '.join(shares)} is in the store (stored: {', '.join(self.tasks)}): build it "
                f"with the tasks you train"
            )
        weights = np.array([shares[name] for name in names])
        drawn = [str(name) for name in rng.choice(names, size, p=weights / weights.sum())]
        if mixed:
            drawn = ["mixed" if rng.random() < mixed else name for name in drawn]
        found = [
            self._mixed(names, weights, pairs, rng) if name == "mixed" else self._of(name, pairs, rng)
            for name in drawn
        ]
        return (
            torch.from_numpy(np.stack([tokens for tokens, _ in found]).astype(np.int64)),
            drawn,
            [origin for _, origin in found],
        )

    def _of(self, task: str, pairs: int, rng: np.random.Generator) -> tuple[np.ndarray, Origin]:
        tokens, rows = self.sentence(task, pairs, rng)
        return tokens, [(task, rows)]

    def _mixed(
        self, names: list[str], weights: np.ndarray, pairs: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, Origin]:
        """Pairs of a task each. Raises ValueError where no task that is drawn has pairs."""
        paired = np.array([self.tasks[name].pictures == 2 for name in names])
        if not paired.any():
            raise ValueError(
                f"a mixed sentence takes tasks of pairs, and {', '.join(names)} are of clips or single "
                f"images: leave mixed at 0"
            )
        chosen = rng.choice(np.array(names)[paired], pairs, p=weights[paired] / weights[paired].sum())
        found = [self.sentence(str(task), 1, rng) for task in chosen]
        return np.concatenate([tokens for tokens, _ in found]), [
            (str(task), rows) for task, (_, rows) in zip(chosen, found, strict=True)
        ]

    @property
    def tokens_per_image(self) -> int:
        return next(iter(self.tasks.values())).width

    def smallest_group(self, task: str) -> tuple[str, int]:
        """The name of a task's smallest group, a class or an encoding, and how many rows it has."""
        codes, names = self.tasks[task].codes("group")
        groups = self._groups[task]
        group = np.arange(len(codes)) if groups is None else min(groups, key=len)
        return names[codes[group[0]]], len(group)

    def max_pairs(self) -> int:
        """The longest sentence, in pairs, that every group of every task can give."""
        return min(self._max_pairs(task) for task in self.tasks)

    def _max_pairs(self, task: str) -> int:
        rows, groups = self.tasks[task], self._groups[task]
        if rows.pictures > 2:  # a clip is one row
            return rows.pictures // 2
        smallest = len(rows) if groups is None else min(map(len, groups))
        return smallest * rows.pictures // 2

    def sentence(self, task: str, pairs: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (pairs * 2 * N,) and their rows: pairs or images of one group in any order, or consecutive
        frames of a clip. Raises ValueError.
        """
        rows, groups = self.tasks[task], self._groups[task]
        clip = rows.pictures > 2
        members = None if groups is None else groups[rng.integers(len(groups))]
        if clip:
            there, needed, unit = rows.pictures, 2 * pairs, "frames"
        else:
            there, needed, unit = (
                len(rows) if members is None else len(members),
                2 * pairs // rows.pictures,
                "rows",
            )
        if there < needed:
            raise ValueError(
                f"sentences of {pairs} pairs do not fit {task}: a group of it has {there} of the {needed} "
                f"{unit} they take; "
                "ask for fewer pairs or build larger groups"
            )
        chosen = rng.choice(len(rows) if members is None else members, 1 if clip else needed, replace=False)
        tokens = rows[chosen]
        if clip:
            first = 2 * int(rng.integers((rows.pictures - 2 * pairs) // 2 + 1))
            tokens = tokens[:, first : first + 2 * pairs]
        return tokens.reshape(-1), chosen

    def sources(self, task: str, rows: np.ndarray) -> list[str]:
        """The source ids of rows of a task; for an error message: it reads the whole column."""
        codes, names = self.tasks[task].codes("source")
        return [names[code] for code in codes[rows]]


def export_parquet(store: str | Path, out: str | Path) -> list[Path]:
    """The store's parts as Parquet files, texts plain (Parquet encodes them itself):
    `datasets.load_dataset("parquet", ..., streaming=True)`.
    """
    store, out = Path(store).expanduser(), Path(out).expanduser()
    written = []
    for path in list_parts(store):
        table = read_table(path)
        plain = pa.schema(
            [pa.field(f.name, pa.string()) if f.name in TEXTS else f for f in table.schema],
            table.schema.metadata,
        )
        target = out / f"{path.stem}.parquet"
        with atomic(target) as temporary:
            pq.write_table(table.cast(plain), temporary, compression="zstd")
        written.append(target)
    # what an earlier, longer store left behind
    for path in set(out.glob("*.[0-9]*.parquet")) - set(written):
        path.unlink()
    return written
