"""lvmlab: a workbench for autoregressive large vision models.

    >>> import lvmlab
    >>> tokenizer = lvmlab.Tokenizer.from_pretrained("mini")

The names below are imported when first used, so that `import lvmlab` stays as light as its parts.
"""

import importlib

__version__ = "0.1.0"
_HOMES = {
    "Tokenizer": "lvmlab.tokenizer.tokenizer",
    "LVM": "lvmlab.model.lvm",
    "Prompt": "lvmlab.model.prompting",
    "complete": "lvmlab.model.prompting",
    "sentence": "lvmlab.world.sentences",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lvmlab' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
