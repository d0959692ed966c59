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
