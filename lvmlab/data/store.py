"""The token store: pictures tokenised once, on disk, and the sentences drawn from them.

A store is a folder: ``store.json`` and parts ``TASK.NNNNNN.arrow``, Arrow files that are memory-mapped, so
    that ten million rows
open at once and take no memory. A row is a pair, an image or a clip: its ``tokens`` (fixed-size list of
uint16), ``task``,
``source``, ``split``, ``group`` (rows that may share a sentence: one encoding, one class) and
``augmentation`` ("" or "copy 3"),
the texts dictionary-encoded. The tokenizer's fingerprint stands in ``store.json`` and in every part's
metadata. `export_parquet`
writes the same rows as Parquet, which `datasets` streams from a disk or an object store.
"""

import itertools
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.utils.files import atomic, write_file
from lvmlab.utils.images import from_uint8
from lvmlab.world.sentences import Row

SHARD = 32  # members read, encoded and kept at a time: what a kill can lose
_TEXT = pa.dictionary(pa.int32(), pa.string())
TEXTS = ("task", "source", "split", "group", "augmentation")


Origin = list[tuple[str, np.ndarray]]  # the rows of a sentence, by task


class Readable(Protocol):
    """What `build` tokenises: `lvmlab.data.readers.Reader`, or `lvmlab.data.mini_world.World`."""

    task: str
    split: str
    members: object

    def rows(self, size: int, *, copies: int, tolerate: float, part: range) -> Iterable[tuple[int, Row]]: ...


def build(
    folder: str | Path,
    tokenizer: Tokenizer,
    readers: Iterable[Readable],
    *,
    copies: int | dict[str, int] = 0,
    tolerate: float = 0.01,
    rank: int = 0,
    ranks: int = 1,
    progress: bool = True,
) -> None:
    """Reads and tokenises every member of the readers; goes on where it stopped, each rank with its own
    parts.

    copies: augmented copies beside each row, of all or by task. tolerate: the share of a part's members that
        may be broken.
    Raises ValueError where the folder holds the tokens of another tokenizer or another origin of the same
    task.
    """
    folder, readers = Path(folder), list(readers)
    copies = copies if isinstance(copies, dict) else {reader.task: copies for reader in readers}
    check_store(
        folder,
        tokenizer,
        {r.task: {**getattr(r, "origin", {}), "copies": copies.get(r.task, 0)} for r in readers},
        write=rank == 0,
    )
    with ThreadPoolExecutor(1) as ahead:  # pictures are read while others are encoded
        for reader in readers:
            parts = [
                range(first, min(first + SHARD, len(reader.members)))
                for first in range(0, len(reader.members), SHARD)
            ][rank::ranks]
            todo = [part for part in parts if not _complete(_path(folder, reader.task, part), len(part))]
            bar = tqdm(
                total=len(parts),
                initial=len(parts) - len(todo),
                desc=f"tokenise {reader.task}",
                disable=not progress,
            )

            def read(part: range, reader=reader) -> list[tuple[int, Row]]:
                return list(
                    reader.rows(
                        tokenizer.size, copies=copies.get(reader.task, 0), tolerate=tolerate, part=part
                    )
                )

            coming = [ahead.submit(read, part) for part in todo[:1]]
            for part, after in itertools.zip_longest(todo, todo[1:]):
                rows = coming.pop().result()
                coming += [ahead.submit(read, after)] if after else []
                write_part(
                    _path(folder, reader.task, part), tokenizer, reader.task, reader.split, rows, len(part)
                )
                bar.update()
            bar.close()


def _path(folder: Path, task: str, part: range) -> Path:
    return folder / f"{task}.{part.start:06d}.arrow"


def _complete(path: Path, members: int) -> bool:
    return (
        path.exists() and int(pa.ipc.open_file(path).schema.metadata[b"members"]) >= members
    )  # a part of a smaller store grows


def write_part(
    path: Path, tokenizer: Tokenizer, task: str, split: str, rows: list[tuple[int, Row]], members: int
) -> None:
    """Encodes rows, all of as many pictures, and writes them as one part."""
    shown = {len(row.pictures) for _, row in rows} or {1}
    if len(shown) > 1:
        raise ValueError(
            f"rows of {', '.join(map(str, sorted(shown)))} pictures in one part of {task}: give each kind a "
            f"task of its own"
        )
    count = shown.pop()
    tokens = (
        tokenizer.encode(from_uint8(np.concatenate([row.pictures for _, row in rows])))
        if rows
        else torch.zeros(0, tokenizer.tokens_per_image)
    )
    save_table(
        path,
        tokens.reshape(-1, count * tokenizer.tokens_per_image).numpy(),
        tokenizer=tokenizer.fingerprint,
        pictures=count,
        members=members,
        task=task,
        split=split,
        source=[row.source for _, row in rows],
        group=[row.group for _, row in rows],
        augmentation=[f"copy {copy}" if copy else "" for copy, _ in rows],
    )


def save_table(
    path: Path, tokens: np.ndarray, *, tokenizer: str, pictures: int, members: int, **texts: str | list[str]
) -> None:
    """Rows of tokens (rows, n) as one part; a text is one for all rows or a list, "" where none is given."""
    given = {name: texts.get(name, "") for name in TEXTS}
    columns = {
        name: pa.array([text] * len(tokens) if isinstance(text, str) else text, _TEXT)
        for name, text in given.items()
    }
    columns["tokens"] = pa.FixedSizeListArray.from_arrays(
        pa.array(tokens.astype(np.uint16).reshape(-1)), tokens.shape[1]
    )
    table = pa.table(columns).replace_schema_metadata(
        {"tokenizer": tokenizer, "pictures": str(pictures), "members": str(members)}
    )
    with atomic(path) as temporary, pa.ipc.new_file(str(temporary), table.schema) as file:
        file.write_table(table)


def check_store(folder: Path, tokenizer: Tokenizer, origins: dict[str, dict], write: bool = True) -> None:
    """Makes ``store.json``, or holds it against this tokenizer and the tasks' origins. Raises ValueError
    where they differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, mine = (
        folder / "store.json",
        {"tokenizer": tokenizer.fingerprint, "tokens": tokenizer.tokens_per_image},
    )
    theirs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {**mine, "tasks": {}}
    differ = [f"{k}: {theirs.get(k)!r} there, {mine[k]!r} here" for k in mine if theirs.get(k) != mine[k]]
    for task, origin in origins.items():
        there = theirs["tasks"].get(task, origin) if any(folder.glob(f"{task}.[0-9]*.arrow")) else origin
        differ += [
            f"{task}'s {k}: {there.get(k)!r} there, {origin.get(k)!r} here"
            for k in origin | there
            if there.get(k) != origin.get(k)
        ]
    if differ:
        raise ValueError(f"{folder} holds other tokens ({'; '.join(differ)}): choose another folder")
    meta = {**mine, "tasks": {**theirs["tasks"], **origins}}
    if write and not (path.exists() and meta == theirs):
        write_file(path, json.dumps(meta) + "\n")


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.[0-9]*.arrow"))


def _mapped(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


class Rows:
    """The rows of one task in memory-mapped parts. ``pictures`` in a row: 1 an image, 2 a pair, more a clip.

    Only where groups or copies are told apart is anything held in memory: 8 bytes a row.
    """

    def __init__(self, paths: list[Path]):
        tables = [_mapped(path) for path in paths]
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
        folder = Path(folder)
        if not (folder / "store.json").is_file():
            raise FileNotFoundError(f"{folder / 'store.json'} is missing: build a store there first")
        self.meta = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        parts: dict[str, list[Path]] = {}
        for path in _parts(folder):
            parts.setdefault(path.name.rsplit(".", 2)[0], []).append(path)
        self.tasks = {task: rows for task, paths in parts.items() if len(rows := Rows(paths))}
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
    written = []
    for path in _parts(Path(store)):
        table = _mapped(path)
        plain = pa.schema(
            [pa.field(f.name, pa.string()) if f.name in TEXTS else f for f in table.schema],
            table.schema.metadata,
        )
        target = Path(out) / f"{path.stem}.parquet"
        with atomic(target) as temporary:
            pq.write_table(table.cast(plain), temporary, compression="zstd")
        written.append(target)
    return written
