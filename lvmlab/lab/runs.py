"""Experiments kept by what decides them: configuration, world, fingerprints and the study's version.

A run is one JSON file named ``STUDY-HASH.json``. ``run`` looks among the shipped ones, then in the user's
cache, else it
computes. Nothing is shown without its provenance: seed, versions, wall time, commit.
"""

import hashlib
import importlib.metadata
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from lvmlab.utils import paths
from lvmlab.utils.files import write_file
from lvmlab.world import DEFAULT

PACKAGES = ("torch", "transformers", "numpy", "pillow")


def key(study: str, config: dict, world: str | None = None) -> str:
    """The name of a run: the study and a hash of all that decides its outcome. world: today's where it is None."""
    text = json.dumps({"study": study, "world": world or DEFAULT.version, "config": config}, sort_keys=True)
    return f"{study}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def folders() -> dict[str, Path]:
    """Where runs lie, in the order they are looked for."""
    return {"shipped": paths.assets() / "runs", "cache": paths.cache() / "runs"}


def run(study: str, config: dict, compute: Callable[[dict], object], *, again: bool = False) -> dict:
    """The stored run of this study and configuration, or a new one: its record, with ``compute(config)``
    under "result".

    ``config`` must become plain JSON and name every version and fingerprint that decides the outcome. A new
    run goes to the
    cache; ``promote`` ships it. ``again`` computes even where one is stored.
    """
    name, config = (
        key(study, config),
        json.loads(json.dumps(config)),
    )  # as it will be when the run is read back
    if not again:
        for folder in folders().values():
            if (folder / f"{name}.json").is_file():
                return load(name)
    started = time.perf_counter()
    result = compute(config)
    return keep(study, config, result, time.perf_counter() - started)


def keep(study: str, config: dict, result: object, seconds: float) -> dict:
    """Stores a result computed elsewhere as the run of this study and configuration, in the cache; returns
    its record.
    """
    name = key(study, config)
    text = json.dumps(
        {
            "name": name,
            "study": study,
            "config": config,
            "world": DEFAULT.version,
            "seconds": round(seconds, 1),
            "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
            "commit": commit(),
            "result": result,
        }
    )
    write_file(folders()["cache"] / f"{name}.json", text + "\n")
    return json.loads(text)  # what a later call will read: tuples are lists by then


def recompute(name: str, compute: Callable[[dict], object]) -> dict:
    """A stored run anew, from nothing that an earlier training left in the cache; the new record lies in the
    cache.
    """
    record = load(name)
    shutil.rmtree(paths.cache() / "studies" / record["name"], ignore_errors=True)
    return run(record["study"], record["config"], compute, again=True)


def load(name: str) -> dict:
    """A stored run by its name or an unambiguous beginning of it. Raises FileNotFoundError that lists the
    stored ones.
    """
    found = {
        path.stem: path for folder in reversed([*folders().values()]) for path in folder.glob(f"{name}*.json")
    }
    if len(found) > 1 and name not in found:
        raise FileNotFoundError(f"{name!r} names several runs: {', '.join(sorted(found))}")
    if found:
        return json.loads(found.get(name, next(iter(found.values()))).read_text())
    stored = ", ".join(r["name"] for r in listing()) or "none"
    raise FileNotFoundError(f"no run {name!r} is stored (stored: {stored})")


def find(study: str, **config) -> dict:
    """The stored run of a study whose configuration holds these values: the shipped one, else the newest in
    the cache.

    Raises FileNotFoundError that names what is stored.
    """
    rows = [
        r
        for r in listing()
        if r["study"] == study and all(r["config"].get(k) == v for k, v in config.items())
    ]
    if not rows:
        wanted = ", ".join(f"{k}={v!r}" for k, v in config.items())
        raise FileNotFoundError(
            f"no run of {study} with {wanted} is stored (stored: "
            f"{', '.join(r['name'] for r in listing()) or 'none'})"
        )
    return load(max(rows, key=lambda r: (r["where"] == "shipped", r["written"]))["name"])


def listing() -> list[dict]:
    """Every stored run without its result, with ``where`` it lies."""
    rows = []
    for where, folder in folders().items():
        for path in sorted(folder.glob("*.json")):
            record = json.loads(path.read_text())
            stat = path.stat()
            rows.append(
                {k: v for k, v in record.items() if k != "result"}
                | {"where": where, "bytes": stat.st_size, "written": stat.st_mtime}
            )
    return rows


def promote(name: str) -> Path:
    """Copies a cached run to the shipped ones, in a checkout."""
    full = load(name)["name"]
    cached, path = (folders()[where] / f"{full}.json" for where in ("cache", "shipped"))
    if cached.is_file():  # one computed again replaces the shipped one
        write_file(path, cached.read_text())
    return path


def prune() -> list[str]:
    """Removes the cached runs of other worlds and those that are shipped as they are; returns their names."""
    gone = []
    for row in listing():
        cached, shipped = (folders()[where] / f"{row['name']}.json" for where in ("cache", "shipped"))
        same = shipped.is_file() and cached.is_file() and shipped.read_text() == cached.read_text()
        if row["where"] == "cache" and (row["world"] != DEFAULT.version or same):
            cached.unlink()
            gone.append(row["name"])
    return gone


def commit() -> str:
    """The checkout's commit, or "unknown" outside one."""
    try:
        where = Path(__file__).parent
        return subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=where, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
