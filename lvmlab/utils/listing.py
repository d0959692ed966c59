"""One lister of files and one reading of their names, for every data set that is a folder."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from lvmlab.utils.opening import SUFFIXES

IGNORED = ("__MACOSX", "Thumbs.db")


def natural(path: Path) -> list[tuple[int, int | str]]:
    """A sort key under which frame 2 comes before frame 10."""
    pieces = []
    for part in path.parts:
        for text in re.split(r"(\d+)", part):
            pieces.append((0, int(text)) if text.isdecimal() else (1, text))
        pieces.append((0, -1))
    return pieces


def visible(names: Iterable[str]) -> bool:
    """Whether no component of a path is hidden (.ipynb_checkpoints, ._x.png) or left by an archiver."""
    return not any(name.startswith(".") or name in IGNORED for name in names)


def check_name(path: Path) -> Path:
    """Returns the path if its name is text; raises ValueError that shows the name otherwise."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise ValueError(
            f"{shown}: its name is not UTF-8; rename the file, for example with convmv"
        ) from error
    return path


def list_files(folder: str | Path, suffixes: tuple[str, ...], *, deep: bool = True) -> list[Path]:
    """The files of a folder with one of these suffixes, in natural order.

    Hidden files, files in hidden folders and what an archiver leaves are passed over.

    Args:
        folder: where to look.
        suffixes: lower case, with the dot; a file's suffix counts in any case.
        deep: also look in the folders inside.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a name is not UTF-8.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: check the path and the data set's layout")
    listed = folder.rglob("*") if deep else folder.iterdir()
    files = [
        check_name(path)
        for path in listed
        if path.suffix.lower() in suffixes and visible(path.relative_to(folder).parts) and not path.is_dir()
    ]
    return sorted(files, key=natural)


def by_stem(files: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    """Files by their path below ``root`` without the suffix."""
    found: dict[str, list[Path]] = {}
    for path in files:
        found.setdefault(path.relative_to(root).with_suffix("").as_posix(), []).append(path)
    return found


def list_classes(root: str | Path) -> list[str]:
    """The names of the folders of pictures in ``root``, sorted as torchvision's ImageFolder sorts them.

    Raises:
        FileNotFoundError: there is no such folder, or no class in it.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder: check the path and the data set's layout")
    names = sorted(check_name(p).name for p in root.iterdir() if visible([p.name]) and _holds_pictures(p))
    if not names:
        raise FileNotFoundError(f"{root} holds no class folders: give ROOT/CLASS/PICTURE")
    return names


def list_shared_classes(root: str | Path, split: str) -> list[str]:
    """The classes of all splits of a data set, so that a class has one number in each of them.

    Args:
        root: the folder of the splits.
        split: one of them; "" where ``root`` holds the classes themselves.
    """
    root = Path(root).expanduser()
    if not split:
        return list_classes(root)
    splits = [root / name for names in SPLITS for name in names if (root / name).is_dir()]
    return sorted({name for folder in {*splits, root / split} for name in list_classes(folder)})


def _holds_pictures(folder: Path) -> bool:
    return folder.is_dir() and any(
        path.suffix.lower() in SUFFIXES and visible(path.relative_to(folder).parts)
        for path in folder.rglob("*")
    )


SPLITS = (("train", "training"), ("val", "validation", "valid", "dev"), ("test", "testing"))


def split_name(split: str, available: Iterable[str]) -> str:
    """The name under which a split is stored: "val" is also found as "validation", and so on.

    Raises:
        ValueError: no split has this name; it lists those there are.
    """
    available = list(available)
    if split in available:
        return split
    names = next((names for names in SPLITS if split in names), ())
    same = [name for name in available if name in names]
    if not same:
        raise ValueError(f"there is no split {split!r}: choose from {', '.join(available) or 'none'}")
    return same[0]
