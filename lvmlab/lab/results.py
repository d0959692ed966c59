"""`assets/RESULTS.md`: every table of results, written from the shipped runs by ``lvmlab results``."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from lvmlab.lab import frames, runs, targets
from lvmlab.lab.frames import interval, markdown, scores_table, settings_table
from lvmlab.lab.studies import balancing, common, distillation, probing, scaling
from lvmlab.lab.studies import tokenizer as quantisers
from lvmlab.utils import paths
from lvmlab.utils.files import write_file
from lvmlab.world import tasks

MODELS = ("mini-teacher", "mini-student", "mini-student-kd")
HEAD = """# Results

Every table is written by `lvmlab results` from the runs in `assets/runs` and the records in `assets/models`.
Intervals are 95 %; each section says of what."""


def write(path: str | Path | None = None) -> Path:
    """Writes every table to ``path``, `assets/RESULTS.md` by default; returns the path."""
    path = Path(path or paths.assets() / "RESULTS.md")
    write_file(path, document())
    return path


def document() -> str:
    """The whole text: a section for each function of `SECTIONS`."""
    return "\n\n".join([HEAD, *(part for section in SECTIONS for part in section())]) + "\n"


# Evaluations


def evaluated(split: str = "test") -> list[dict]:
    """The shipped evaluations, the teacher's first."""
    records = runs.matching("evaluate", split=split)
    return sorted(records, key=lambda record: MODELS.index(record["config"]["model"]))


def evaluations() -> Iterator[str]:
    yield "## What the models reach"
    yield (
        "Test prompts of each task, three examples each; an answer is the mean picture of four that the "
        "model samples. The *ceiling* is the true label after the tokenizer's round trip, a *floor* an "
        "answer that needs no model. *Skill* = (score - best floor) / (ceiling - best floor). Intervals are "
        "bootstraps over sources."
    )
    for record in evaluated():
        yield f"`{record['name']}`: {record['config']['prompts']} prompts, {caption(record)}"
        yield markdown(scores_table(frames.scores(record["result"])))
    yield "### Skill in other settings and under other conditions"
    yield "Swapped colours are two conflicting prompts; the last two columns use a quarter of the prompts."
    for record in evaluated():
        yield f"`{record['config']['model']}`:"
        yield markdown(settings_table(frames.scores(record["result"])))


def caption(record: dict) -> str:
    """Where a run comes from."""
    return f"{record['world']}, commit {record['commit']}, torch {record['versions']['torch']}."


# Targets and trainings


def aims() -> Iterator[str]:
    yield "## What was aimed at"
    yield "`lvmlab targets --json` prints these rows; those without an issue are of the first models."
    yield markdown(targets.table())


def trainings_table() -> pd.DataFrame:
    """What each shipped model was trained on, of its own record."""
    return pd.DataFrame(map(training_row, ("mini", *MODELS)))


def training_row(name: str) -> dict[str, str]:
    """One shipped model: parameters, what it was trained on, how long."""
    folder = paths.assets() / "models" / name
    training = json.loads((folder / "config.json").read_text(encoding="utf-8"))["training"]
    row = {"model": f"`{name}`", "parameters": f"{training['parameters'] / 1e6:.2f}M"}

    # a tokenizer's record names no device; its time is in its log
    if "stages" not in training:
        hours = json.loads((folder / "log.json").read_text(encoding="utf-8"))[-1]["seconds"] / 3600
        what = f"{training['step']} steps of {training['more']['batch']} pictures"
        return row | {"trained on": what, "time": f"{hours:.1f} h"}

    stages = training["stages"]
    tokens, hours = (sum(stage[field] for stage in stages) for field in ("tokens", "hours"))
    what = f"{tokens / 1e6:.1f}M tokens"
    if training.get("teacher"):
        what += f", {stages[-1]['tokens'] / 1e6:.1f}M of them with the teacher's predictions"
    devices = ", ".join(sorted({stage["device"] for stage in stages}))
    return row | {"trained on": what, "time": f"{hours:.1f} h on {devices}"}


def trained() -> Iterator[str]:
    yield "## What each model was trained on"
    yield markdown(trainings_table())
    yield (
        "The distilled student read more tokens than the student alone: their difference is not the "
        "teacher's alone. The study of distillation compares equal tokens."
    )


# Studies


def shipped(study: str, setting, names, field: str = "arm", **config) -> dict[str, dict]:
    """The shipped runs of a study at one scale, by arm, in the order of ``names``."""
    plain = json.loads(json.dumps(asdict(setting)))
    records = {
        r["config"][field]: r
        for r in runs.matching(study, setting=plain, **config)
        if "part" not in r["config"]
    }
    return {name: records[name] for name in names if name in records}


def studies() -> Iterator[str]:
    setting = balancing.SCALES["study"]
    records = shipped("balancing", setting, balancing.ARMS, split="val")
    yield "## Balancing: does augmentation balance a long tail?"
    pairs = ", ".join(f"{count} pairs of {task}" for task, count in balancing.PAIRS.items())
    yield (
        f"{pairs}; scored on {setting.prompts} val prompts a task after three examples; intervals over "
        f"seeds. {common.provenance(records)}."
    )
    yield markdown(common.table(frames.trainings(records), balancing.TASKS))
    yield "`balanced, 10 copies` and `balanced, augmented` draw derain from the same ten copies."
    yield from balancing_verdicts(records)

    records = shipped("distillation", distillation.SCALES["study"], distillation.ARMS)
    yield "## Distillation: what does a small student learn from a large teacher?"
    yield f"The same frozen sentences for every arm; intervals over seeds. {common.provenance(records)}."
    yield markdown(common.table(frames.trainings(records), tasks.TRAINED))

    records = shipped("scaling", scaling.SCALES["study"], scaling.SIZES, "size")
    yield "## Scaling: what do more parameters and tokens buy?"
    yield f"Intervals over seeds. {common.provenance(records)}."
    yield scaling.table(records)
    points = scaling.points(records)
    yield "How well the law fits when its floor E is held; errors of the loss are relative:"
    yield markdown(texts(scaling.profile(points), "{:.1f}", "{:.1%}", "{:.1%}"))
    yield "Rank correlation of mean loss and mean skill, both of the same answers:"
    yield markdown(texts(scaling.correlations(points), "{}", "{}", "{:.2f}"))

    records = shipped("probing", probing.SCALES["study"], probing.ARMS)
    yield "## Representations: what do the features know?"
    yield (
        "Balanced accuracy of probes on frozen features, on the block that val chooses: 25 classes of "
        "mini-world's objects (chance 0.04), ten of Fashion-MNIST (chance 0.1); intervals over objects and "
        f"seeds. {common.provenance(records)}."
    )
    yield markdown(probing.printed(probing.table(records)))
    yield "Correlation of the loss of pre-training and accuracy, two sizes by two amounts of data:"
    yield markdown(texts(probing.correlations(records), "{}", "{}", "{}", "{:+.2f}"))

    record = runs.find(quantisers.STUDY)
    yield "## Tokenizers: a learned codebook (VQ) beside a fixed grid (FSQ)"
    config = record["config"]
    yield f"{config['seeds']} seeds each, {config['steps']} steps; intervals over seeds; {caption(record)}"
    yield markdown(quantisers.table(record))


def balancing_verdicts(records: dict[str, dict]) -> Iterator[str]:
    """What the losses are to be read against, the best val point beside the end, and effects with their
    tests.
    """
    curves = frames.curves(records)
    points = frames.best_points(curves)
    untrained = balancing.never_trained(curves[curves.arm.str.startswith("sequential")])
    yield "A model that was never trained on the task has these losses; guessing costs 6.93 nats a token:"
    cells = [interval(row.mean, row.low, row.high) for row in untrained.itertuples(index=False)]
    yield markdown(pd.DataFrame({"task": untrained.task, "nats (95 %)": cells}))

    yield (
        "The lowest point of each curve beside its end, on 32 val prompts, which also choose the point. "
        "Arms that learn scarce pairs by heart end above their best point, some above a model never trained "
        "on the "
        "task."
    )
    means = points.groupby(["arm", "task"], sort=False)[["best", "end"]].mean()
    pairs = [f"{row.best:.2f} / {row.end:.2f}" for row in means.itertuples()]
    lines = means.assign(cell=pairs).reset_index().pivot(index="arm", columns="task", values="cell")
    lines = lines.loc[points.arm.unique(), list(balancing.TASKS)]
    yield markdown(lines.rename(columns=lambda task: f"{task}: best / end").rename_axis("arm").reset_index())

    yield (
        "Effects of sampling and augmentation. The mean over tasks is the primary outcome. Tasks are "
        "secondary: their p-values are corrected by Holm."
    )
    rows = frames.trainings(records)
    measures = {
        "loss at the end": (rows, "loss"),
        "loss at the best point": (points, "best"),
        "skill": (rows, "skill"),
    }
    for name, (frame, measure) in measures.items():
        parts = [balancing.primary_effects(frame, measure), balancing.effects(frame, measure)]
        lines = pd.concat(parts)
        cells = [interval(row.mean, row.low, row.high) for row in lines.itertuples(index=False)]
        yield f"Outcome: {name}."
        yield markdown(
            pd.DataFrame(
                {
                    "task": lines.task,
                    "effect": lines.effect,
                    "change (95 %)": cells,
                    "p": lines.p.map("{:.3f}".format),
                }
            )
        )


def texts(frame: pd.DataFrame, *formats: str) -> pd.DataFrame:
    """A frame's columns as texts, each by its format."""
    return pd.DataFrame(
        {name: frame[name].map(form.format) for name, form in zip(frame.columns, formats, strict=True)}
    )


# Speed


def speed_table(rows: list[dict]) -> pd.DataFrame:
    """Rows of the benchmarks as they were measured."""
    verdicts = {True: "met", False: "**missed**", None: ""}
    return pd.DataFrame(
        {
            "entry": row["name"],
            "ours": f"{row['ours']:.4g}",
            "theirs": f"{row['theirs']:.4g}",
            "unit": row["unit"],
            "ratio": f"{row['ratio']:.3g}",
            "limit": row["bound"],
            "": verdicts[row["ok"]],
        }
        for row in rows
    )


def speed() -> Iterator[str]:
    yield "## Speed"
    yield "`lvmlab bench` measures ours against the named alternative, in turn, and says what each row is."
    for record in runs.matching("bench"):
        yield f"On {record['config']['where']}, commit {record['commit']}:"
        yield markdown(speed_table(record["result"]))


SECTIONS = (evaluations, aims, trained, studies, speed)
