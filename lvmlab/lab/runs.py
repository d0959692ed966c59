"""Experiments stored by what decides them: configuration, world, fingerprints and the study's version.

A run is one JSON file named ``STUDY-HASH.json``. ``run`` looks among the shipped ones, then in the user's
cache, else it computes. Each record carries its provenance: seed, versions, wall time, commit.
"""

import glob
import hashlib
import importlib.metadata
import json
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lvmlab.utils import paths
from lvmlab.utils.files import write_file
from lvmlab.world import DEFAULT

if TYPE_CHECKING:
    import pandas as pd

PACKAGES = ("torch", "transformers", "numpy", "pillow")
COLUMNS = ("name", "study", "where", "seconds", "bytes", "commit", "world", "config", "versions", "written")


def run(study: str, config: dict, compute: Callable[[dict], object], *, again: bool = False) -> dict:
    """The stored run of this study and configuration, or a new one.

    Args:
        study: The study's name.
        config: All that decides the outcome, every version and fingerprint among it; becomes plain JSON.
        compute: Takes the configuration as it will be read back and returns what JSON can hold.
        again: Computes even where a run is stored.

    Returns:
        The record, with what ``compute`` returned under "result". A new run goes to the cache; ``promote``
        ships it.
    """
    name, config = key(study, config), json.loads(json.dumps(config))
    if not again and any((folder / f"{name}.json").is_file() for folder in folders().values()):
        return load(name)
    started = time.perf_counter()
    result = compute(config)
    return save(study, config, result, time.perf_counter() - started)


def key(study: str, config: dict, world: str | None = None) -> str:
    """The name of a run: the study and a hash of all that decides its outcome.

    world: today's where it is None.
    """
    text = json.dumps({"study": study, "world": world or DEFAULT.version, "config": config}, sort_keys=True)
    return f"{study}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def folders() -> dict[str, Path]:
    """The folders of runs, in the order they are searched."""
    return {"shipped": paths.assets() / "runs", "cache": paths.cache() / "runs"}


def save(study: str, config: dict, result: object, seconds: float) -> dict:
    """Stores a result computed elsewhere as the run of this study and configuration, in the cache.

    Returns:
        Its record as a later call will read it.
    """
    name = key(study, config)
    record = {
        "name": name,
        "study": study,
        "config": config,
        "world": DEFAULT.version,
        "seconds": round(seconds, 1),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "commit": commit(),
        "result": result,
    }
    text = json.dumps(record)
    write_file(folders()["cache"] / f"{name}.json", text + "\n")
    return json.loads(text)


def recompute(name: str, compute: Callable[[dict], object]) -> dict:
    """Computes a stored run anew, from nothing that an earlier training left in the cache; the record is
    stored there.
    """
    record = load(name)
    shutil.rmtree(paths.cache() / "studies" / record["name"], ignore_errors=True)
    return run(record["study"], record["config"], compute, again=True)


def load(name: str) -> dict:
    """A stored run by its name or an unambiguous beginning of it.

    Raises:
        FileNotFoundError: No run or several runs have such a name; it lists them.
        ValueError: The name is a path, or the file is damaged or says another name.
    """
    pattern = f"{glob.escape(paths.check_component(name, 'the run'))}*"
    candidates = {path.stem: path for _, path in reversed([*_files(pattern)])}  # the shipped one of two last
    if len(candidates) > 1 and name not in candidates:
        raise FileNotFoundError(f"{name!r} names several runs: {', '.join(sorted(candidates))}")
    if not candidates:
        raise FileNotFoundError(f"no run {name!r} is stored (stored: {_names()})")
    return read(candidates.get(name, next(iter(candidates.values()))))


def read(path: Path) -> dict:
    """The record of a run's file.

    Raises:
        ValueError: The file is damaged, no run, or says another name than its own; it names the file.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        name, missing = record["name"], {"study", "config", "world"} - record.keys()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no run ({error!r}): remove it, or copy it again") from error
    if name != path.stem or missing:
        raise ValueError(f"{path} says that it is the run {name!r}: remove it, or copy it again")
    return record


def find(study: str, **config) -> dict:
    """The stored run of a study whose configuration holds these values: the shipped one, else the newest
    cached one.

    Raises:
        FileNotFoundError: There is none; it names what is stored.
    """
    for where in ("shipped", "cache"):
        if matches := matching(study, where, **config):
            return matches[-1]
    fields = ", ".join(f"{field}={value!r}" for field, value in config.items())
    raise FileNotFoundError(f"no run of {study} with {fields} is stored (stored: {_names()})")


def matching(study: str, where: str = "shipped", **config) -> list[dict]:
    """The shipped or the cached runs of a study whose configuration holds these values, the newest last."""
    matches = []
    for _, _, record in sorted(_records(f"{study}-*", where), key=lambda row: row[1].stat().st_mtime):
        fields = record["config"] | {"world": record["world"]}
        if record["study"] == study and all(fields.get(name) == value for name, value in config.items()):
            matches.append(record)
    return matches


def listing() -> "pd.DataFrame":
    """Every stored run without its result, a row each with `COLUMNS`: ``where`` it is, ``written`` when."""
    import pandas as pd

    rows = []
    for where, path, record in _records("*"):
        stat = path.stat()
        rows.append(record | {"where": where, "bytes": stat.st_size, "written": stat.st_mtime})
    return pd.DataFrame(rows, columns=COLUMNS)


def promote(name: str) -> Path:
    """Copies a cached run to the shipped ones, in a checkout; one computed again replaces the shipped one."""
    full = load(name)["name"]
    cached, path = (folders()[where] / f"{full}.json" for where in ("cache", "shipped"))
    if cached.is_file():
        write_file(path, cached.read_text(encoding="utf-8"))
    return path


def prune() -> list[str]:
    """Removes the cached runs of other worlds and those that are shipped as they are; returns their names."""
    removed = []
    for where, path, record in _records("*"):
        shipped = folders()["shipped"] / path.name
        same = shipped.is_file() and shipped.read_text(encoding="utf-8") == path.read_text(encoding="utf-8")
        if where == "cache" and (same or record["world"] != DEFAULT.version):
            path.unlink()
            removed.append(path.stem)
    return removed


def commit() -> str:
    """The checkout's commit, or "unknown" outside one."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        output = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return output.stdout.strip()


def _files(pattern: str) -> Iterator[tuple[str, Path]]:
    for where, folder in folders().items():
        for path in sorted(folder.glob(f"{pattern}.json")):
            yield where, path


def _records(pattern: str, *places: str) -> Iterator[tuple[str, Path, dict]]:
    """Where each run is stored, its file and its record.

    A damaged file is named in a warning and left out.
    """
    for where, path in _files(pattern):
        if places and where not in places:
            continue
        try:
            yield where, path, read(path)
        except ValueError as error:
            warnings.warn(f"{error}; it is left out here", stacklevel=3)


def _names() -> str:
    return ", ".join(path.stem for _, path in _files("*")) or "none"
