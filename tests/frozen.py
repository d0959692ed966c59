"""mini-world, frozen: its parameters and the hashes of its sources and of its fixed val, test and shifted
prompts.

`assets/world/mini-world-v1.json` was written before any model was trained; `python tests/frozen.py`
recomputes it and
names what differs, `--write` writes it (only ever for a new version of the world).
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
from lvmlab.world import SIZE, VERSION, scenes, tasks, weather
from lvmlab.world.sentences import PAIRS, sentence
from lvmlab.world.tasks import base

PROMPTS = 200  # of each set, as the evaluation asks them


def sets() -> list[tuple[str, str, bool]]:
    """(split, task, held-out encoding) of every fixed set of prompts."""
    plain = [(split, task, False) for split in ("val", "test", "shifted") for task in tasks.TASKS]
    return plain + [
        (split, task, True) for split in ("val", "test") for task in ("segmentation", "selection", "pose")
    ]


def parameters() -> dict:
    """The world's law in numbers; what single tasks add (speeds, holes, palettes) is held by the hashes of
    their sets.
    """
    numbers = {
        f"{module.__name__.rsplit('.', 1)[-1]}.{name}": value
        for module in (scenes, weather, base)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, (int, float, str, tuple, dict))
    }
    return json.loads(json.dumps({"size": SIZE, "pairs": PAIRS, "prompts": PROMPTS, **numbers}))


def digest(split: str, task: str, held_out: bool, prompts: int = PROMPTS) -> str:
    """SHA-256 of a set's pictures, encodings and what its scores need, in their fixed order."""
    total = hashlib.sha256()
    for index in range(prompts):
        found = sentence(task, split, index, pairs=PAIRS, held_out=held_out)
        total.update(json.dumps(asdict(found.encoding), default=str).encode())
        total.update(found.pictures().tobytes())
        for pair in found.pairs:
            total.update(pair.source.encode())
            for name, value in sorted(pair.truth.items()):
                # keypoints and boxes to a thousandth of a pixel: their last bits are the machine's
                total.update(
                    name.encode() + np.round(np.asarray(value, np.float64), 3).tobytes()
                    if not isinstance(value, str)
                    else value.encode()
                )
    return total.hexdigest()


def manifest(workers: int = 2) -> dict:
    """All of it: parameters, hashes of the source files, hashes of the fixed sets."""
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        hashes = list(pool.map(digest, *zip(*sets(), strict=True)))
    names = ["/".join((split, task, *(("new encoding",) if held else ()))) for split, task, held in sets()]
    files = sorted((paths.assets() / "world").glob("*.parquet"))
    return {
        "version": VERSION,
        "parameters": parameters(),
        "files": {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files},
        "sets": dict(zip(names, hashes, strict=True)),
    }


def path() -> Path:
    return paths.assets() / "world" / f"{VERSION}.json"


def differences(found: dict) -> list[str]:
    """What of `found` is not as it was frozen, by name; empty where all is."""
    frozen = json.loads(path().read_text())
    differ = (
        [f"version {found['version']!r}, frozen {frozen['version']!r}"]
        if found["version"] != frozen["version"]
        else []
    )
    for part in ("parameters", "files", "sets"):
        ours, theirs = found[part], frozen[part]
        differ += [f"{part}: {name}" for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name)]
    return differ


def main() -> None:
    parser = argparse.ArgumentParser(description="Recompute the frozen world's hashes and name what differs.")
    parser.add_argument(
        "--write", action="store_true", help="write them instead: only for a new version of the world"
    )
    arguments = parser.parse_args()
    found = manifest()
    if arguments.write:
        with atomic(path()) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n")
        print(f"wrote {path()}")
        return
    differ = differences(found)
    if differ:
        raise SystemExit(f"{VERSION} is not as it was frozen: {'; '.join(differ)}")
    print(f"{VERSION} is as it was frozen: {len(found['sets'])} sets of {PROMPTS} prompts")


if __name__ == "__main__":
    main()
