"""Speeds against named alternatives: `make bench`, or `lvmlab bench --names ENTRY ...`.

Both sides of a row are measured in one process (where they are no processes themselves), in turn, on the same
inputs. A new
entry is a function under `@entry(NAME)` in one of the modules imported here.
"""

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import bench_generate  # noqa: F401  registers its entries
import bench_models  # noqa: F401
import bench_probe  # noqa: F401
import bench_steps  # noqa: F401
import bench_store  # noqa: F401
import bench_training  # noqa: F401
import numpy as np
from bench_rows import ENTRIES, JUDGED, Row, entry, interleaved, rates, rendered_by, where
from rich.console import Console
from rich.table import Table

from lvmlab.data.mini_world import render as rendered
from lvmlab.training.recipe import SHARES_OF
from lvmlab.utils.files import atomic
from lvmlab.world import V1, V2, Laws, tasks
from lvmlab.world.sentences import PAIRS

OUT = Path("runs/bench.json")
ORDER = (
    "world.render",
    "tokenizer.encode.mini",
    "tokenizer.encode.f16-8192",
    "train.mini-student",
    "train.mini-teacher",
    "train.80m",
    "train.300m",
    "train.layers",
    "train.loss",
    "train.muon",
    "train.resumed",
    "kd.cached",
    "complete.answers",
    "generate.mini-student",
    "generate.mini-teacher",
    "generate.300m",
    "generate.second-answer",
    "generate.batch",
    "generate.constrained",
    "store.rows",
    "store.memory",
    "tokenize.mini",
    "tokenize.f16-8192",
    "probe.extract",
    "probe.attentive",
    "import",
)
REPEATS = {"world.render": 3, "import": 7}
RENDERED, GROUP = 640, 16  # pairs a measurement, pairs a group as in lvmlab.data.building.build


@entry("world.render")
def render():
    """Pairs of the trained tasks of both versions of mini-world, in training's mix, on two processes and on
    one.
    """
    yield _render_row("world.render", V1, 300.0)
    yield _render_row("world.render/v2", V2, 250.0)


def _render_row(name: str, laws: Laws, least: float) -> Row:
    shares, jobs = SHARES_OF[laws.version], []
    for task, share in shares.items():
        length = PAIRS if tasks.get(task).sequence else GROUP
        jobs += [
            (task, "train", i, 1000, length, laws, 0, ())
            for i in range(max(1, round(share * RENDERED / length)))
        ]
    jobs = [jobs[i] for i in np.random.default_rng(0).permutation(len(jobs))]
    pairs = sum(job[4] for job in jobs)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        warm: set[int] = set()
        while len(warm) < 2:  # one worker may have done all before the other was up
            warm |= set(pool.map(rendered_by, jobs[:8]))
        two = lambda: list(pool.map(rendered, jobs, chunksize=4))  # noqa: E731
        one = lambda: [rendered(job) for job in jobs]  # noqa: E731
        taken = interleaved(name, {"two": two, "one": one}, REPEATS["world.render"])
    what = (
        f"{pairs} training pairs of {', '.join(shares)} in the shares of training: a warm pool of 2 spawned "
        f"processes, as lvmlab.data.store has "
        f"it, against this process alone, best of {REPEATS['world.render']}; the limit is on ours, in "
        f"pairs/s, not on the ratio"
    )
    return rates(
        name,
        pairs / min(taken["two"]),
        pairs / min(taken["one"]),
        "pairs/s",
        least,
        what,
        "ours, at least",
    )


@entry("import")
def imports():
    """What `import lvmlab` costs in a fresh interpreter."""
    # noqa: E731
    fresh = lambda code: lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    taken = interleaved(
        "import", {"ours": fresh("import lvmlab"), "theirs": fresh("import torch")}, REPEATS["import"]
    )
    ours, theirs = min(taken["ours"]), min(taken["theirs"])
    what = (
        f"`import lvmlab` against `import torch`, each in a fresh interpreter (its start included), best of "
        f"{REPEATS['import']}; the ratio is "
        "one of times and the limit an upper one. lvmlab imports its parts, torch among them, when they are "
        "first used"
    )
    yield Row("import", ours, theirs, ours / theirs, "s", 1.3, what, "ratio, at most")


def run(names: Sequence[str] | None = None) -> list[dict]:
    """Measures the named entries (None: all); prints one table, updates runs/bench.json and returns the
    measured rows.

    Rows of entries not measured now are kept there; each has ``where`` it was measured and, beside its limit,
    whether it is ``ok``.
    Raises ValueError for an unknown name, before anything is measured.
    """
    known = sorted(ENTRIES, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    unknown = [name for name in names or () if name not in ENTRIES]
    if unknown:
        raise ValueError(
            f"no benchmark is named {', '.join(map(repr, unknown))}: choose from {', '.join(known)}"
        )
    kept = _read(OUT)
    chosen = [name for name in known if names is None or name in names]
    print(f"{where()}; {len(chosen)} of {len(known)} entries", file=sys.stderr)
    measured: list[Row] = []
    for number, name in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {name} ...", file=sys.stderr, flush=True)
        rows = []
        for row in ENTRIES[name]():
            rows.append(row)
            print(
                f"[{number}/{len(chosen)}] {row.name}: {row.ours:.4g} against {row.theirs:.4g} {row.unit}, "
                f"ratio {row.ratio:.3g} "
                f"{_verdict(row)}",
                file=sys.stderr,
                flush=True,
            )
        measured += rows
        kept = [r for r in kept if _entry(r["name"]) != name] + [row.record() for row in rows]
        kept.sort(key=lambda r: known.index(_entry(r["name"])) if _entry(r["name"]) in known else len(known))
        with atomic(OUT) as temporary:
            temporary.write_text(json.dumps(kept, indent=1) + "\n")
    print(table(measured))
    print(f"wrote {OUT}")
    return [row.record() for row in measured]


def table(rows: list[Row]) -> str:
    """Rows as an aligned text table under the machine they were measured on."""
    grid = Table(
        title=where(), title_justify="left", show_edge=False, pad_edge=False, box=None, header_style="bold"
    )
    grid.add_column("name", no_wrap=True)
    for name in ("ours", "theirs"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("unit", no_wrap=True)
    for name in ("ratio", "limit"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("", no_wrap=True)
    grid.add_column("what")
    for row in rows:
        grid.add_row(
            row.name,
            f"{row.ours:.4g}",
            f"{row.theirs:.4g}",
            row.unit,
            f"{row.ratio:.3g}",
            row.bound,
            _verdict(row),
            row.what,
        )
    return text(grid)


def text(grid: Table) -> str:
    """A table as plain lines, without colours and trailing blanks."""
    console = Console(width=190, force_terminal=False, force_jupyter=False, no_color=True)
    with console.capture() as capture:
        console.print(grid, markup=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _verdict(row: Row) -> str:
    return {True: "ok", False: "missed", None: ""}[row.ok]


def _entry(row: str) -> str:
    return row.split("/")[0]


def _read(path: Path) -> list[dict]:
    """The rows of earlier calls."""
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text())
        if not all(isinstance(row["name"], str) for row in rows):
            raise ValueError("a row without a name")
        return rows
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} holds no rows of benchmarks ({error}): move it away to start afresh"
        ) from error


__all__ = ["ENTRIES", "JUDGED", "ORDER", "OUT", "Row", "run", "table"]
