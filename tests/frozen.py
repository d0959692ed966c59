"""mini-world, frozen: its laws and the hashes of its sources and of its fixed val, test and shifted prompts.

`assets/world/VERSION.json` is written before any model is trained on that version. `python tests/frozen.py`
recomputes it and names what differs; `--write` writes it (only ever for a new version of the world). The
tests
recompute the first prompts of each set.
"""

import argparse
import hashlib
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

from lvmlab.utils import paths
from lvmlab.utils.files import atomic
from lvmlab.world import V1, V2, Laws, encodings, weather
from lvmlab.world.sentences import PAIRS, sentence

PROMPTS = 200  # of each set, as the evaluation asks them
FIRST = 10  # of each set, hashed apart: what the tests recompute
LAWS = {laws.version: laws for laws in (V1, V2)}
V1_TRUTH = {"mask", "all", "class", "keypoints", "box", "hole", "edges"}  # what mini-world-v1's hashes hold
Set = tuple[str, str, bool]


def sets(laws: Laws) -> list[Set]:
    """(split, task, held-out encoding) of every fixed set of prompts."""
    known = [*laws.trained, *laws.new]
    plain = [(split, task, False) for split in ("val", "test", "shifted") for task in known]
    encoded = ("segmentation", "selection", "pose")
    return plain + [(split, task, True) for split in ("val", "test") for task in encoded]


def name_of(fixed: Set) -> str:
    split, task, held_out = fixed
    return "/".join((split, task, *(("new encoding",) if held_out else ())))


def parameters(laws: Laws) -> dict:
    """The laws in numbers; what single tasks add (speeds, holes, palettes) is held by the hashes of their
    sets.
    """
    numbers = {
        f"{module.__name__.rsplit('.', 1)[-1]}.{name}": value
        for module in (weather, encodings)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, (int, float, str, tuple, dict))
    }
    return json.loads(json.dumps({"pairs": PAIRS, "prompts": PROMPTS, **asdict(laws), **numbers}))


def digest(laws: Laws, fixed: Set, prompts: int = PROMPTS) -> tuple[str, str]:
    """SHA-256 of a set's pictures, encodings and what its scores need, in their fixed order; of its first, of
    all.
    """
    total, first = hashlib.sha256(), ""
    split, task, held_out = fixed
    for index in range(prompts):
        found = sentence(task, split, index, laws=laws, pairs=PAIRS, held_out=held_out)
        total.update(json.dumps(asdict(found.encoding), default=str).encode())
        total.update(found.pictures().tobytes())
        for pair in found.pairs:
            total.update(pair.source.encode())
            for name, value in sorted(pair.truth.items()):
                if laws.version == V1.version and name not in V1_TRUTH:
                    continue
                total.update(_bytes(name, value))
        if index < FIRST:
            first = total.hexdigest()
    return first, total.hexdigest()


def _bytes(name: str, value: object) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        return name.encode() + value.tobytes()
    # keypoints and boxes to a thousandth of a pixel: their last bits are the machine's
    return name.encode() + np.round(np.asarray(value, np.float64), 3).tobytes()


def manifest(laws: Laws, prompts: int = PROMPTS, workers: int = 2) -> dict:
    """All of it: parameters, hashes of the source files, hashes of the fixed sets."""
    found = sets(laws)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        hashes = pool.map(digest, [laws] * len(found), found, [prompts] * len(found))
        first, whole = zip(*hashes, strict=True)
    files = sorted((paths.assets() / "world").glob("*.parquet"))
    return {
        "version": laws.version,
        "parameters": parameters(laws),
        "files": {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files},
        "first": dict(zip(map(name_of, found), first, strict=True)),
        "sets": dict(zip(map(name_of, found), whole, strict=True)),
    }


def path(version: str) -> Path:
    return paths.assets() / "world" / f"{version}.json"


def differences(found: dict, version: str, parts=("parameters", "files", "first", "sets")) -> list[str]:
    """What of these ``parts`` of `found` is not as this version was frozen, by name; empty where all is."""
    frozen = json.loads(path(version).read_text())
    differ = []
    if found["version"] != frozen["version"]:
        differ.append(f"version {found['version']!r}, frozen {frozen['version']!r}")
    for part in parts:
        ours, theirs = found[part], frozen[part]
        differ += [f"{part}: {name}" for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name)]
    return differ


def main() -> None:
    parser = argparse.ArgumentParser(description="Recompute a frozen world's hashes and name what differs.")
    parser.add_argument("--version", choices=LAWS, default=V2.version)
    parser.add_argument(
        "--write", action="store_true", help="write them instead: only for a new version of the world"
    )
    arguments = parser.parse_args()
    found = manifest(LAWS[arguments.version])
    if arguments.write:
        with atomic(path(arguments.version)) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n")
        print(f"wrote {path(arguments.version)}")
        return
    differ = differences(found, arguments.version)
    if differ:
        raise SystemExit(f"{arguments.version} is not as it was frozen: {'; '.join(differ)}")
    print(f"{arguments.version} is as it was frozen: {len(found['sets'])} sets of {PROMPTS} prompts")


if __name__ == "__main__":
    main()
