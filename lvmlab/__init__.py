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
    "images": "lvmlab.utils.images",  # a module
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    if name in _HOMES:
        home = importlib.import_module(_HOMES[name])
        return home if home.__name__.endswith(f".{name}") else getattr(home, name)
    raise AttributeError(f"module 'lvmlab' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
