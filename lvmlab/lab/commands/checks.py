"""What a command line names must exist: checked first, because importing torch takes many times as long."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from lvmlab.utils import paths

CHECKPOINT = "checkpoint.pt"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean A or B?" for the up to three known names most like ``name``, else what is known."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else f" (known: {', '.join(known) or 'none'})"


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names whose beginnings are most like ``name``."""

    def likeness(other: str) -> float:
        return difflib.SequenceMatcher(None, name, other[: len(name)]).ratio()

    return sorted(known, key=likeness, reverse=True)[:count]


def check_file(path: Path) -> None:
    """Raises FileNotFoundError unless this is a file."""
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1)
        raise FileNotFoundError(f"there is no file {path}" + (f"; did you mean {near[0]}?" if near else ""))


def check_folder(path: Path) -> None:
    """Raises FileNotFoundError unless this is a folder."""
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no folder")


def check_output(path: Path) -> None:
    """Raises ValueError if a picture cannot be written to this path."""
    if path.is_dir() or not path.suffix:
        raise ValueError(f"{path} is no name for a picture: end it in .png")


def shipped(prefix: str = "") -> list[str]:
    """The names of the folders in the shipped models."""
    return sorted(p.parent.name for p in (paths.assets() / "models").glob(f"{prefix}*/config.json"))


def check_model(name: str | Path) -> None:
    """Raises FileNotFoundError unless a model or tokenizer of this name can exist: a shipped one, a path or a
    hub id "owner/name".
    """
    name = str(name)
    if name in shipped() or Path(name).exists() or HUB_ID.fullmatch(name):
        return
    raise FileNotFoundError(
        f"{name!r} is neither a shipped model nor a folder{did_you_mean(name, shipped())}"
    )


def is_training(folder: str | Path) -> bool:
    """Whether a folder holds a training's checkpoint."""
    return (Path(folder) / CHECKPOINT).is_file()
