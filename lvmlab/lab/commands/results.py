"""Stored results and speeds: `lvmlab runs` and `bench`."""

import json
import sys
from pathlib import Path
from typing import Literal

import tyro

from lvmlab.lab.commands.checks import nearest


def runs(
    action: tyro.conf.Positional[Literal["list", "show", "recompute", "promote", "prune"]] = "list",
    name: tyro.conf.Positional[str] = "",
) -> None:
    """List, show, recompute, promote or prune stored runs.

    Args:
        action: list all; show one; recompute one; promote one to the shipped ones; prune the cache.
        name: The name of the run, or the beginning of it.
    """
    from lvmlab.lab import runs as store

    known = [row["name"] for row in store.listing()]
    if action in ("show", "recompute", "promote") and not any(run.startswith(name) for run in known):
        raise ValueError(f"no run {name!r} is stored; the nearest are {', '.join(nearest(name, known))}")
    if action == "list":
        for row in store.listing():
            print(
                f"{row['name']:40} {row['where']:8} {row['seconds']:>9.1f} s  {row['bytes'] / 1024:7.1f} KiB "
                f" commit {row['commit']}"
            )
    elif action == "show":
        print(json.dumps(store.load(name), indent=1))
    elif action == "recompute":
        from lvmlab.lab import studies

        run = store.recompute(name, studies.of(store.load(name)["study"]).compute)
        print(f"computed {run['name']} in {run['seconds']:.0f} s\nnext: lvmlab runs promote {run['name']}")
    elif action == "promote":
        print(f"wrote {store.promote(name)}")
    else:
        print(f"removed {len(store.prune())} runs from the cache")


def bench(names: tuple[str, ...] = ()) -> None:
    """Measure speeds against the named alternatives. Needs a checkout; writes runs/bench.json.

    Args:
        names: The entries to run. The default is all.
    """
    import lvmlab

    folder = Path(lvmlab.__file__).resolve().parent.parent / "tests" / "benchmarks"
    if not (folder / "bench.py").is_file():
        raise ValueError(
            "the benchmarks are in a checkout's tests/benchmarks, which an installed wheel does not hold: "
            "clone the repository"
        )
    sys.path.insert(0, str(folder))
    import bench as entries

    entries.run(names or None)
