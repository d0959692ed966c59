"""Where files live: what ships with the package, and what this user's machine keeps."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def assets() -> Path:
    """The folder of shipped data, models and runs: inside an installed wheel, beside the package in a
    checkout.
    """
    packaged = _PACKAGE / "assets"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "assets"


def cache() -> Path:
    """The user's cache folder (XDG_CACHE_HOME or ~/.cache), where long trainings keep their checkpoints."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lvmlab"


def check_component(name: str, what: str) -> str:
    """Returns a name that is one path component, and so stays below the folder it is joined to.

    Raises:
        ValueError: it holds a separator, is "." or "..", empty, hidden or over 200 bytes.
    """
    bad = not isinstance(name, str) or not name or name.startswith(".") or len(name.encode()) > 200
    if bad or any(sign in name for sign in ("/", "\\", ":", "\0", "\n")):
        raise ValueError(f"{what} {name!r} is no plain name: give one without / \\ : or a leading dot")
    return name


def below(root: str | Path, name: str) -> Path:
    """The path of a file that another file names, below ``root``.

    Raises:
        ValueError: the name is absolute or leads outside.
    """
    parts = str(name).replace("\\", "/").split("/")
    if not name or Path(name).is_absolute() or Path(name).drive or ".." in parts or "\0" in str(name):
        raise ValueError(f"the file name {str(name)!r} leads outside {root}: give one below it")
    return Path(root) / name
