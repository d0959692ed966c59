"""Building a token store: every member of the data sets read, tokenised and written in parts.

A build resumes after an interruption, makes again what was made from other files, and seals the store last.
"""

import itertools
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from tqdm.auto import tqdm

from lvmlab.data.parts import (
    INDEX,
    altered,
    list_parts,
    metadata,
    part_path,
    read_index,
    read_table,
    seal,
    write_part,
    write_table,
)
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.utils import digests, paths
from lvmlab.utils.files import write_file
from lvmlab.world.sentences import Row

SHARD = 32  # members read, encoded and kept at a time: what a kill can lose


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
    """Reads and tokenises every member of the readers; resumes, each rank with its own parts.

    A part is made again where its members' files are others than those it was made from. Parts of members
    that are gone go.

    Args:
        folder: of the store.
        tokenizer: of its tokens.
        readers: each of a task of its own.
        copies: augmented copies beside each row, of all tasks or by task.
        tolerate: the share of a data set's members that may be broken.
        rank: of this process.
        ranks: how many processes build this store.
        progress: show a bar.

    Raises:
        ValueError: the folder holds tokens of another tokenizer, or of another origin under a task's name.
        Broken: more members than tolerated cannot be read.
    """
    folder, readers = Path(folder).expanduser(), list(readers)
    copies = copies if isinstance(copies, dict) else {reader.task: copies for reader in readers}
    origins = {r.task: _origin(r) | {"copies": copies.get(r.task, 0)} for r in readers}
    moved = {r.task for r in readers if _was_moved(r, folder)}
    check_store(folder, tokenizer, origins, moved, write=rank == 0)
    expected = []
    for reader in readers:
        every = [
            range(first, min(first + SHARD, len(reader.members)))
            for first in range(0, len(reader.members), SHARD)
        ]
        expected += [part_path(folder, reader.task, part) for part in every]
        if rank == 0:
            _remove_left_over(folder, reader, every)
        _build_task(
            folder, tokenizer, reader, every[rank::ranks], copies.get(reader.task, 0), tolerate, progress
        )
        _check_whole(folder, reader, tolerate)
    if all(path.is_file() for path in expected):
        seal(folder)


def _build_task(
    folder: Path,
    tokenizer: Tokenizer,
    reader: Readable,
    parts: list[range],
    copies: int,
    tolerate: float,
    progress: bool,
) -> None:
    """Makes those parts of a task that are not there as they should be."""
    todo = [part for part in parts if not _complete(part_path(folder, reader.task, part), reader, part)]
    bar = tqdm(
        total=len(parts),
        initial=len(parts) - len(todo),
        desc=f"tokenise {reader.task}",
        disable=not progress,
    )

    def read(part: range) -> tuple[list[tuple[int, Row]], dict[str, str]]:
        made_from = _made_from(reader, part)
        return list(reader.rows(tokenizer.size, copies=copies, tolerate=tolerate, part=part)), made_from

    with ThreadPoolExecutor(1) as ahead:  # pictures are read while others are encoded
        coming = [ahead.submit(read, part) for part in todo[:1]]
        for part, after in itertools.zip_longest(todo, todo[1:]):
            rows, made_from = coming.pop().result()
            coming += [ahead.submit(read, after)] if after else []
            path = part_path(folder, reader.task, part)
            made_from |= _excluded(reader, part)
            write_part(path, tokenizer, reader.task, reader.split, rows, len(part), made_from)
            bar.update()
    bar.close()


def _origin(reader: Readable) -> dict:
    """What decides the rows of a reader."""
    origin = dict(getattr(reader, "origin", {}))
    if getattr(reader, "root", None) is not None:
        origin |= {"split": reader.split, "root": str(reader.root.resolve())}
    return origin


def _was_moved(reader: Readable, folder: Path) -> bool:
    """Whether a task's parts were made from the same files at another place."""
    if getattr(reader, "root", None) is None or not (folder / INDEX).is_file():
        return False
    stored = read_index(folder)["tasks"].get(reader.task, {}).get("root")
    parts = list_parts(folder, reader.task)
    if not parts or stored in (None, str(reader.root.resolve())):
        return False
    return all(_same_content(part, reader) for part in parts)


def _same_content(path: Path, reader: Readable) -> bool:
    """Whether a part was made from the same files, wherever they are."""
    start = int(path.name.rsplit(".", 2)[1])
    known = metadata(path) or {}
    part = range(start, min(start + int(known.get("members", 0)), len(reader.members)))
    return bool(part) and known.get("content") == digests.content(reader.root, reader.sources(part))


def _made_from(reader: Readable, part: range) -> dict[str, str]:
    """The digests of the files that a part's members are read from."""
    if getattr(reader, "files", None) is None:
        return {}
    places = reader.sources(part)
    return {
        "signature": digests.signature(reader.root, places),
        "content": digests.content(reader.root, places),
    }


def _excluded(reader: Readable, part: range) -> dict[str, str]:
    """The broken and the skipped members of a part, as its metadata."""
    report = getattr(reader, "report", None)
    if report is None:
        return {}
    names = {reader.name(reader.members[index]) for index in part}
    return {
        field: json.dumps({name: why for name, why in getattr(report, field).items() if name in names})
        for field in ("broken", "skipped")
    }


def _complete(path: Path, reader: Readable, part: range) -> bool:
    """Whether a part is there as it would be made now; its broken members go to the report."""
    known = metadata(path)
    if known is None or altered(path, read_index(path.parent)):
        return False
    if getattr(reader, "files", None) is None:
        complete = int(known["members"]) >= len(part)  # a part of a smaller store grows
    else:
        complete = int(known["members"]) == len(part) and _same_files(path, known, reader, part)
    if complete and hasattr(reader, "report"):
        reader.report.stored += len(part)
        reader.report.broken.update(json.loads(known.get("broken", "{}")))
        reader.report.skipped.update(json.loads(known.get("skipped", "{}")))
    return complete


def _same_files(path: Path, known: dict[str, str], reader: Readable, part: range) -> bool:
    """Whether a part's files are those it was made from; times that differ alone are noted."""
    places = reader.sources(part)
    now = digests.signature(reader.root, places)
    if known.get("signature") == now:
        return True
    if known.get("content") != digests.content(reader.root, places):
        return False
    table = read_table(path)
    write_table(path, table.replace_schema_metadata(known | {"signature": now}))
    return True


def _remove_left_over(folder: Path, reader: Readable, parts: list[range]) -> None:
    """Removes parts of members that a data set of files has no longer."""
    if getattr(reader, "files", None) is None:
        return
    belong = {part_path(folder, reader.task, part) for part in parts}
    for path in list_parts(folder, reader.task):
        if path not in belong:
            path.unlink()


def _check_whole(folder: Path, reader: Readable, tolerate: float) -> None:
    """Counts the broken members of all parts that are there, those of other processes too. Raises Broken."""
    if not hasattr(reader, "report"):
        return
    for path in list_parts(folder, reader.task):
        reader.report.broken.update(json.loads((metadata(path) or {}).get("broken", "{}")))
    reader.check_broken(tolerate)


def check_store(
    folder: Path,
    tokenizer: Tokenizer,
    origins: dict[str, dict],
    moved: Iterable[str] = (),
    write: bool = True,
) -> None:
    """Makes ``store.json``, or holds it against this tokenizer and the tasks' origins.

    Args:
        folder: of the store.
        tokenizer: of its tokens.
        origins: what decides the rows of each task.
        moved: tasks whose data set is the same at another root.
        write: also note the origins.

    Raises:
        ValueError: they differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, mine = (
        folder / "store.json",
        {"tokenizer": tokenizer.fingerprint, "tokens": tokenizer.tokens_per_image},
    )
    theirs = read_index(folder) if path.exists() else {**mine, "tasks": {}}
    differ = [f"{k}: {theirs.get(k)!r} there, {mine[k]!r} here" for k in mine if theirs.get(k) != mine[k]]
    for task, origin in origins.items():
        paths.check_component(task, "the task")
        there = theirs["tasks"].get(task, origin) if list_parts(folder, task) else origin
        differ += [
            f"{task}'s {k}: {there.get(k)!r} there, {origin.get(k)!r} here"
            for k in origin | there
            if there.get(k) != origin.get(k) and not (k == "root" and task in moved)
        ]
    if differ:
        raise ValueError(
            f"{folder} holds other tokens ({'; '.join(differ)}): choose another folder, or another name for "
            f"the task (--task)"
        )
    if write:
        meta = {**theirs, **mine, "tasks": {**theirs["tasks"], **origins}, "building": True}
        write_file(path, json.dumps(meta) + "\n")
