"""Experiments, one file each, stored as runs by `lvmlab.lab.runs`.

A study has a name, STUDY, and compute(config). What studies share is in `common`.
"""

import importlib
import pkgutil
from types import ModuleType


def of(study: str) -> ModuleType:
    """The file of a study by its name. Raises ValueError that lists them."""
    known = {}
    for file in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{file.name}")
        known |= {module.STUDY: module} if hasattr(module, "STUDY") else {}
    if study not in known:
        raise ValueError(f"{study!r} is no study that can be computed here: choose from {', '.join(known)}")
    return known[study]
