"""Token files of other systems, read into a store and written from one.

- ``delvm``: ``NAME.bin``, a JSON object a line, ``{"tokens": [...]}``, a pair or an image; ``NAME.bin.meta``,
  an npy array int64 (lines, 2) of each line's byte offset and number of tokens.
- ``lvm``: JSON lines, ``{"tokens": "..."}``, base64 of int32 numbers, little-endian.

Neither says which tokenizer wrote it, nor of which task, source or split a line is: who imports it does.
"""

import base64
import binascii
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lvmlab.data.building import check_store
from lvmlab.data.parts import list_parts, save_table, seal
from lvmlab.data.store import Store
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.utils.files import atomic, write_file

FORMATS = ("delvm", "lvm")
PART = 10_000  # rows in a part of the store
BATCH = 1000  # rows read from the store at a time


def read_lines(path: str | Path, form: str) -> Iterator[np.ndarray]:
    """The tokens of each line, int64 (n,). Raises ValueError that names the line."""
    _known(form)
    with open(Path(path).expanduser(), "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                tokens = json.loads(line)["tokens"]
                yield (
                    np.frombuffer(base64.b64decode(tokens, validate=True), "<i4").astype(np.int64)
                    if form == "lvm"
                    else _numbers(tokens)
                )
            except (ValueError, KeyError, TypeError, binascii.Error) as error:
                raise ValueError(
                    f"{path}, line {number} is no line of the {form} format ({error}): check the file and "
                    f"the format"
                ) from error


def _numbers(tokens: list[int]) -> np.ndarray:
    """A list of integers, int64 (n,). Raises TypeError for floats, booleans and texts."""
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise TypeError("tokens are no list of integers")
    return np.array(tokens, np.int64)


def import_tokens(
    path: str | Path, form: str, store: str | Path, tokenizer: Tokenizer, task: str, *, split: str = "train"
) -> int:
    """Lines of one length as rows of ``task``; returns how many. tokenizer: the one they were written with.

    Raises ValueError for lines of other lengths, parts of pictures, or tokens out of range. A store that an
    import broke off in is refused until it is imported again.
    """
    path, store = Path(path).expanduser(), Path(store).expanduser()
    rows, first, length = [], 0, None
    written = []
    check_store(store, tokenizer, {task: {"imported": Path(path).name, "format": form}})
    for number, tokens in enumerate(read_lines(path, form), 1):
        length = length or len(tokens)
        if len(tokens) != length or not length or length % tokenizer.tokens_per_image:
            raise ValueError(
                f"{path}, line {number} has {len(tokens)} tokens: every line takes "
                f"{length or tokenizer.tokens_per_image}, a multiple of the "
                f"{tokenizer.tokens_per_image} that a picture has"
            )
        if tokens.min() < 0 or tokens.max() >= tokenizer.codebook_size:
            raise ValueError(
                f"{path}, line {number} has the token {tokens.max() if tokens.min() >= 0 else tokens.min()}, "
                f"the tokenizer's go from 0 to {tokenizer.codebook_size - 1}: give the one that wrote it"
            )
        rows.append(tokens)
        if len(rows) == PART:
            written.append(_write(store, tokenizer, task, split, rows, first))
            first, rows = first + PART, []
    if rows:
        written.append(_write(store, tokenizer, task, split, rows, first))
    # what an earlier, longer import left behind
    for left_over in set(list_parts(store, task)) - set(written):
        left_over.unlink()
    seal(store)
    return first + len(rows)


def _write(
    store: Path, tokenizer: Tokenizer, task: str, split: str, rows: list[np.ndarray], first: int
) -> Path:
    tokens, path = np.stack(rows), store / f"{task}.{first:09d}.arrow"
    save_table(
        path,
        tokens,
        tokenizer=tokenizer.fingerprint,
        pictures=tokens.shape[1] // tokenizer.tokens_per_image,
        members=len(rows),
        task=task,
        split=split,
        source=[f"line {first + i + 1}" for i in range(len(rows))],
    )
    return path


def export_tokens(store: str | Path, form: str, path: str | Path, tasks: list[str] | None = None) -> int:
    """The rows of ``tasks`` (None: all) as lines of ``path`` in a format of others; returns how many. Texts
    are left behind.
    """
    _known(form)
    rows, found = Store(store), []
    with atomic(path) as temporary, open(temporary, "wb") as file:
        for task in tasks or rows.tasks:
            for first in range(0, len(rows.tasks[task]), BATCH):
                for tokens in rows.tasks[task][
                    np.arange(first, min(first + BATCH, len(rows.tasks[task])))
                ].reshape(-1, rows.tasks[task].length):
                    found.append((file.tell(), len(tokens)))
                    text = (
                        base64.b64encode(tokens.astype("<i4").tobytes()).decode()
                        if form == "lvm"
                        else tokens.tolist()
                    )
                    file.write(json.dumps({"tokens": text}).encode() + b"\n")
    if form == "delvm":
        write_file(Path(f"{path}.meta"), np.array(found, np.int64).reshape(-1, 2))
    return len(found)


def _known(form: str) -> None:
    if form not in FORMATS:
        raise ValueError(f"format {form!r} is not known: choose from {', '.join(FORMATS)}")
