"""Re-keys stored runs whose configuration has renamed fields: `python assets/rekey.py [FOLDER ...]`.

A run's name is the hash of its configuration, so a field's new name changes it. The tables below hold every
change of a name, a room at a time. A run that already has the new names stays as it is. Without a folder the
script goes through the shipped runs and those in the user's cache.
"""

import json
import sys
from pathlib import Path

from lvmlab.lab import runs
from lvmlab.utils.files import write_file

ALL = "*"  # every study

# (study, part of the configuration with dots between, {former name: name}); "" is the configuration itself
RENAMED: list[tuple[str, str, dict[str, str]]] = [
    # model
    (
        ALL,
        "shape",
        {
            "width": "dim",
            "layers": "n_layers",
            "heads": "n_heads",
            "inner": "ffn_dim",
            "context": "max_seq_len",
            "vocab": "vocab_size",
            "bias": "attention_bias",
        },
    ),
    (
        "probing",
        "patches",
        {"width": "dim", "blocks": "n_layers", "heads": "n_heads", "inner": "ffn_dim"},
    ),
    # data
    ("balancing", "", {"few": "limit_sources"}),
    # distillation
    # training
    # studies
    ("probing", "", {"few": "tenth"}),
    (
        "probing",
        "setting",
        {
            "times": "placements",
            "few": "tenth_per_class",
            "seen": "probe_placements",
            "most": "max_per_class",
            "fashion": "fashion_per_class",
        },
    ),
]

# (study, field with dots before it, {former value: value}), in the new names of fields
REVALUED: list[tuple[str, str, dict]] = [
    # data
    ("balancing", "mixture.scheme", {"resampled": "balanced"}),
    # distillation
    # studies
]

# (study, part, names of fields that no longer exist)
REMOVED: list[tuple[str, str, tuple[str, ...]]] = []

# (study, part, {field: the value that was always meant before it existed})
ADDED: list[tuple[str, str, dict]] = []


def distillation(config: dict) -> dict:
    """A configuration of distillation, whose objective became a `Distillation` and `on_policy`."""
    if "objective" not in config:
        return config
    former = config.pop("objective")
    name = former and former["name"]
    config["on_policy"] = former["share"] if name == "own" else 0.0
    config["arm"] = "on-policy" if config["arm"] == "own" else config["arm"]
    config["distillation"] = former and {
        "divergence": {"own": "forward", "smoothing": None}.get(name, name),
        "ce": former["ce"],
        "kd": former["kd"],
        "temperature": former["temperature"],
        "alpha": None if name == "smoothing" else former["amount"],
        "min_confidence": former["sure"] if name == "own" else 0.0,
        "label_smoothing": former["amount"] if name == "smoothing" else 0.0,
    }
    return config


def part(config: dict, path: str) -> dict:
    """A part of a configuration, "network" or "arm.mixture"; an empty one where the run has none."""
    for name in filter(None, path.split(".")):
        config = config.get(name) or {}
    return config


def renew(study: str, config: dict) -> dict:
    """A configuration in today's names.

    Args:
        study: The name of its study.
        config: As it is stored; it stays as it is.

    Returns:
        A new configuration.
    """
    config = json.loads(json.dumps(config))

    def mine(table: list) -> list:
        return [row[1:] for row in table if row[0] in (ALL, study)]

    # names first: the tables below use the new ones
    for path, names in mine(RENAMED):
        fields = part(config, path)
        for former, name in names.items():
            if former in fields:
                fields[name] = fields.pop(former)

    for path, values in mine(REVALUED):
        folder, _, field = path.rpartition(".")
        fields = part(config, folder)
        if isinstance(fields.get(field), str):
            fields[field] = values.get(fields[field], fields[field])

    for path, names in mine(REMOVED):
        for name in names:
            part(config, path).pop(name, None)

    if study == "distillation":
        config = distillation(config)

    for path, values in mine(ADDED):
        fields = part(config, path)
        if fields:
            fields.update(values | fields)
    return config


def rekey(path: Path) -> Path:
    """Renews one stored run and the name of its file; returns the file's path."""
    record = json.loads(path.read_text())
    config = renew(record["study"], record["config"])
    name = runs.key(record["study"], config, record["world"])
    if (name, config) == (record["name"], record["config"]):
        return path
    renewed = path.with_name(f"{name}.json")
    write_file(renewed, json.dumps(record | {"name": name, "config": config}) + "\n")
    if renewed != path:
        path.unlink()
    return renewed


def main(folders: list[str]) -> None:
    for folder in map(Path, folders or runs.folders().values()):
        for path in sorted(folder.glob("*.json")):
            renewed = rekey(path)
            if renewed != path:
                print(f"{path.stem} -> {renewed.stem}")


if __name__ == "__main__":
    main(sys.argv[1:])
