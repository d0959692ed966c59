"""Stored results and speeds: `lvmlab runs`, `results`, `targets`, `study` and `bench`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

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

    known = list(store.listing()["name"])
    if action in ("show", "recompute", "promote") and not any(run.startswith(name) for run in known):
        raise ValueError(f"no run {name!r} is stored; the nearest are {', '.join(nearest(name, known))}")
    if action == "list":
        columns = ["name", "where", "seconds", "bytes", "commit"]
        print(store.listing()[columns].to_string(index=False))
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


def results(out: Path | None = None) -> None:
    """Write every table of results from the shipped runs.

    Args:
        out: The file written. The default is assets/RESULTS.md.
    """
    from lvmlab.lab.results import write

    print(f"wrote {write(out)}")


def targets(*, as_json: Annotated[bool, tyro.conf.arg(name="json")] = False) -> None:
    """Print what was aimed at against what the shipped runs reached.

    Args:
        as_json: Rows of issue, what, bar, sense, figure and met. A missing run gives null and false.
    """
    from lvmlab.lab.frames import markdown
    from lvmlab.lab.targets import rows, table

    print(json.dumps(rows(), indent=1) if as_json else markdown(table()))


def study(
    name: tyro.conf.Positional[
        Literal["balancing", "distillation", "scaling", "probing", "tokenizer-vq-fsq", "tokenizer-designs"]
    ],
    arms: tyro.conf.Positional[tuple[str, ...]] = (),
    scale: Literal["smoke", "study"] = "study",
) -> None:
    """Compute the runs of a study that are not stored and print its table. Resumes after an interruption.

    Args:
        name: The study.
        arms: Its arms. The default is all.
        scale: smoke takes minutes, study takes hours.
    """
    from lvmlab.lab import studies

    sys.argv = [f"lvmlab study {name}", *arms, "--scale", scale]
    studies.of(name).main()


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
