"""The parts of a token store: Arrow files of rows, each with what it was made from.

A row is a pair, an image or a clip. Its ``tokens`` are a fixed-size list of uint16. Its texts are ``task``,
``source``, ``split``, ``group`` (rows that may share a sentence: one encoding, one class) and
``augmentation`` ("" or "copy 3"), dictionary-encoded.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.utils.digests import file_digest
from lvmlab.utils.files import atomic, write_file
from lvmlab.utils.images import from_uint8
from lvmlab.world.sentences import Row

INDEX = "store.json"
TEXTS = ("task", "source", "split", "group", "augmentation")
_TEXT = pa.dictionary(pa.int32(), pa.string())


def list_parts(folder: Path, task: str | None = None) -> list[Path]:
    """The parts of a store, or of one task in it."""
    parts = sorted(folder.glob("*.[0-9]*.arrow"))
    return [path for path in parts if task is None or task_of(path) == task]


def task_of(path: Path) -> str:
    """The task of a part."""
    return path.name.rsplit(".", 2)[0]


def part_path(folder: Path, task: str, part: range) -> Path:
    """The file of some members of a task."""
    return folder / f"{task}.{part.start:06d}.arrow"


def write_part(
    path: Path,
    tokenizer: Tokenizer,
    task: str,
    split: str,
    rows: list[tuple[int, Row]],
    members: int,
    made_from: dict[str, str] | None = None,
) -> None:
    """Encodes rows, all of as many pictures, and writes them as one part.

    Args:
        path: of the part.
        tokenizer: encodes the pictures.
        task: of the rows.
        split: of the rows.
        rows: (copy, row).
        members: how many members of the data set they are of.
        made_from: what else the part remembers, such as the digest of its sources.
    """
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
        made_from=made_from,
        task=task,
        split=split,
        source=[row.source for _, row in rows],
        group=[row.group for _, row in rows],
        augmentation=[f"copy {copy}" if copy else "" for copy, _ in rows],
    )


def save_table(
    path: Path,
    tokens: np.ndarray,
    *,
    tokenizer: str,
    pictures: int,
    members: int,
    made_from: dict[str, str] | None = None,
    **texts: str | list[str],
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
    metadata = {"tokenizer": tokenizer, "pictures": str(pictures), "members": str(members)}
    write_table(path, pa.table(columns).replace_schema_metadata(metadata | (made_from or {})))


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a part, complete or not at all."""
    with atomic(path) as temporary, pa.ipc.new_file(str(temporary), table.schema) as file:
        file.write_table(table)


def read_table(path: Path) -> pa.Table:
    """A part, memory-mapped. Raises ValueError that names it where it is damaged."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it and build the store again") from error


def metadata(path: Path) -> dict[str, str] | None:
    """What a part remembers of its making, or None where there is no such part or it cannot be read."""
    if not path.is_file():
        return None
    try:
        with pa.OSFile(str(path)) as file:
            entries = pa.ipc.open_file(file).schema.metadata or {}
    except (pa.ArrowInvalid, pa.ArrowException, OSError):
        return None
    return {key.decode(): value.decode() for key, value in entries.items()}


def seal(folder: Path) -> None:
    """Writes the manifest of a complete store: rows and digest of every part. It is written last."""
    meta = read_index(folder)
    meta.pop("building", None)
    meta["parts"] = {
        path.name: {"rows": len(read_table(path)), "digest": file_digest(path, 0)}
        for path in list_parts(folder)
    }
    write_file(folder / INDEX, json.dumps(meta) + "\n")


def read_index(folder: Path) -> dict:
    """``store.json``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: build a store there first")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        meta.setdefault("tasks", {})
        if not isinstance(meta["tokenizer"], str) or not isinstance(meta["tasks"], dict):
            raise ValueError("fields of a wrong type")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): build the store again in another folder") from error
    return meta


def altered(path: Path, meta: dict) -> bool:
    """Whether a part is not as the manifest has it."""
    known = meta.get("parts", {}).get(path.name)
    return known is not None and file_digest(path, 0) != known["digest"]


def check_parts(folder: Path, meta: dict) -> None:
    """Holds the parts of a store against its manifest; a store without one (an older one) has no digests.

    Raises:
        ValueError: the store is half built, or a part is missing, altered or not of the store; it is named.
    """
    if meta.get("building"):
        raise ValueError(f"{folder} is half built: run what builds it again, it resumes")
    if "parts" not in meta:
        return
    there = {path.name: path for path in list_parts(folder)}
    problems = [f"{name} is missing" for name in sorted(meta["parts"].keys() - there.keys())]
    problems += [f"{name} is not of this store" for name in sorted(there.keys() - meta["parts"].keys())]
    problems += [
        f"{name} was altered"
        for name in sorted(there.keys() & meta["parts"].keys())
        if altered(there[name], meta)
    ]
    if problems:
        raise ValueError(f"{folder} does not fit its manifest ({'; '.join(problems)}): build the store again")
