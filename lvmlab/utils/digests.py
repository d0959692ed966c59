"""The one digest of what a stored result is made from: names below a root, and contents.

Modification times are a short cut: what has the size and time of before is not read again.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from lvmlab.utils import paths
from lvmlab.utils.files import write_file

# a file, a piece of one (path, offset, length), or a text that is itself a source
Place = Path | tuple[Path, int, int] | str
CHUNK = 2**20
LARGE = 2**26  # bytes from which on a file's digest is remembered


def value_digest(value: object) -> str:
    """16 hex digits of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def signature(root: Path, places: Iterable[Place]) -> str:
    """16 hex digits of the names, sizes and modification times of sources; a missing file is one too."""
    entries = []
    for place in places:
        if isinstance(place, str):
            entries.append(place)
            continue
        path, *piece = place if isinstance(place, tuple) else (place,)
        status = path.stat() if path.exists() else None
        entries.append([_name(path, root), piece, status and [status.st_size, status.st_mtime_ns]])
    return value_digest(entries)


def content(root: Path, places: Iterable[Place]) -> str:
    """16 hex digits of the names below ``root`` and the contents of sources, in their order."""
    return value_digest([_content(root, place) for place in places])


def remembered_content(root: Path, places: Iterable[Place]) -> str:
    """`content`, remembered in the cache folder as long as names, sizes and times stay."""
    places = list(places)
    note = paths.cache() / "digests" / value_digest([str(root.resolve()), signature(root, places)])
    if note.is_file():
        return note.read_text(encoding="utf-8")
    digest = content(root, places)
    write_file(note, digest)
    return digest


def _content(root: Path, place: Place) -> list | str:
    if isinstance(place, str):
        return place
    path, *piece = place if isinstance(place, tuple) else (place,)
    if not path.is_file():
        return [_name(path, root), piece, None]
    if piece:
        return [_name(path, root), piece, _hash(path, *piece)]
    return [_name(path, root), [], file_digest(path)]


def file_digest(path: Path, remember_from: int = LARGE) -> str:
    """32 hex digits of a file's content; of a large one remembered by its size and modification time.

    Args:
        path: of the file.
        remember_from: bytes from which on the digest is remembered in the cache folder.
    """
    status = path.stat()
    if status.st_size < remember_from:
        return _hash(path)
    mark = [str(path.resolve()), status.st_size, status.st_mtime_ns]
    note = paths.cache() / "digests" / value_digest(mark)
    if note.is_file():
        return note.read_text(encoding="utf-8")
    digest = _hash(path)
    write_file(note, digest)
    return digest


def _hash(path: Path, offset: int = 0, length: int | None = None) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        file.seek(offset)
        while length is None or length > 0:
            block = file.read(CHUNK if length is None else min(CHUNK, length))
            if not block:
                break
            digest.update(block)
            length = None if length is None else length - len(block)
    return digest.hexdigest()


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
