"""What the studies share: scores of one training, rows stored as they are finished, intervals over seeds."""

import argparse
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats

from lvmlab.evaluation.perplexity import answer_loss, perplexities
from lvmlab.evaluation.prompts import Job
from lvmlab.evaluation.scoring import Scorer, mean_pictures
from lvmlab.lab import frames, runs
from lvmlab.model.config import LVMConfig
from lvmlab.model.lvm import LVM
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.utils.files import write_file

MICRO = LVMConfig(128, 4, 2, 344, attention_bias=True)  # 1.05M parameters: what most studies train
Scorers = dict[str, Scorer]


def parser(doc: str, scales: Iterable[str], what: str) -> argparse.ArgumentParser:
    """The command line of a study: --scale, --compiled, and which of its parts, all by default."""
    command = argparse.ArgumentParser(description=doc.splitlines()[0])
    command.add_argument("--scale", choices=tuple(scales), default="study")
    command.add_argument("--compiled", action="store_true", help="layers under torch.compile")
    command.add_argument(what, nargs="*", help=f"names of {what}; all by default")
    return command


def main(
    doc: str,
    scales: dict,
    what: str,
    names: Iterable[str],
    compute: Callable[..., dict],
    report: Callable[[dict], str],
) -> None:
    """The command line of a study: computes what is not stored, part by part, ships it and prints the report.

    Args:
        doc: The study's docstring.
        scales: Its settings by name.
        what: What it calls its parts: arms, sizes.
        names: Of all parts.
        compute: The run of a part, from its name, a setting and whether layers are compiled.
        report: A text from all runs by name.
    """
    args = parser(doc, scales, what).parse_args()
    parts, setting = getattr(args, what) or names, scales[args.scale]
    print(report(shipped(parts, lambda name: compute(name, setting, compiled=args.compiled))))


def shipped(names: Iterable[str], compute: Callable[[str], dict]) -> dict[str, dict]:
    """The run of each name: computed where it is not stored, and shipped as soon as it is done."""
    records = {}
    for name in names:
        records[name] = compute(name)
        print(runs.promote(records[name]["name"]))
    return records


def across_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % t interval, which one value leaves infinite."""
    mean = float(np.mean(values)) if len(values) else math.nan
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def resumed(path: Path, compute: Callable[[], dict]) -> dict:
    """A training's row from ``path``, or a new one that is stored there: so an interrupted study resumes."""
    if not path.exists():
        row = compute()
        write_file(path, json.dumps(row))
    return json.loads(path.read_text(encoding="utf-8"))


def scorers(tasks: Iterable[str], prompts: int, split: str, tokenizer: Tokenizer) -> Scorers:
    """The first prompts of each task, after three examples."""
    return {task: Scorer(Job(task, prompts=prompts, split=split), tokenizer) for task in tasks}


def losses(lvm: LVM, scorers: Scorers, first: int | None = None) -> dict[str, float]:
    """Cross entropy of the answers to the ``first`` prompts (None: all), nats a token: a point of a curve."""
    means = {}
    for task, scorer in scorers.items():
        nats, _ = answer_loss(lvm, scorer.tokens[:first], scorer.tokenizer.tokens_per_image)
        means[task] = float(nats.mean())
    return means


def scored(lvm: LVM, scorers: Scorers, *, name: str = "", answers: int = 0) -> dict:
    """The last scores of a training.

    Args:
        lvm: The trained model.
        scorers: Of the tasks.
        name: Of the arm.
        answers: So many of the first prompts' answers are stored.

    Returns:
        ``scores``: rows of the evaluation; ``losses``: of each task cross entropy, accuracy and perplexities;
        ``answers``: of each task the tokens.
    """
    scores, final, tokens_of = [], {}, {}
    columns = ("task", "metric", "score", "ceiling", "floors", "best_floor", "skill")
    for task, scorer in scorers.items():
        tokenizer = scorer.tokenizer
        tokens = scorer.answer(lvm)
        tokens_of[task] = tokens[:answers].tolist()
        row = scorer.rows(scorer.scores(mean_pictures(tokenizer, tokens)), name, 0.0)[0]
        scores.append({column: row[column] for column in columns})
        nats, correct = answer_loss(lvm, scorer.tokens, tokenizer.tokens_per_image)
        final[task] = perplexities(nats) | {"accuracy": float(correct.mean())}
    return {"scores": scores, "losses": final, "answers": tokens_of}


def by_seed(rows: pd.DataFrame, task: str, measure: str = "loss") -> pd.DataFrame:
    """A measure of one task, a line a seed and a column an arm, of the rows of `lvmlab.lab.frames.trainings`.

    Arms of a seed start with the same weights: differences are taken line by line.
    """
    return rows[rows.task == task].pivot(index="seed", columns="arm", values=measure)


def spread(values: Sequence[float]) -> dict[str, float]:
    """`across_seeds` by name: mean, low, high."""
    return dict(zip(("mean", "low", "high"), across_seeds(values), strict=True))


def p_value(values: Sequence[float]) -> float:
    """Of the two-sided t-test that the mean is 0."""
    return float(stats.ttest_1samp(values, 0.0).pvalue)


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's correction: p-values of a family of tests, each valid whichever others are true."""
    p = np.asarray(p, float)
    order = np.argsort(p)
    adjusted = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    return np.minimum(adjusted, 1.0)[np.argsort(order)]


def table(rows: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """A line an arm to print: each task's cross entropy with its interval over seeds, and its mean skill.

    Args:
        rows: Of `lvmlab.lab.frames.trainings`.
        tasks: In the order of the columns; an arm without a task leaves its cells empty.
    """
    lines = []
    for arm, own in rows.groupby("arm", sort=False):
        lines.append([arm])
        for task in tasks:
            values = own[own.task == task]
            nats, skill = frames.interval(*across_seeds(values.loss)), f"{values.skill.mean():.2f}"
            lines[-1] += ["", ""] if values.empty else [nats, skill]
    return pd.DataFrame(
        lines, columns=["arm", *(name for task in tasks for name in (f"{task}: nats (95 %)", "skill"))]
    )


def answers(record: dict, task: str) -> torch.Tensor:
    """The first seed's answers to the first prompts: tokens (shown, answers, N), as
    `lvmlab.evaluation.scoring.mean_pictures` draws them.
    """
    return torch.tensor(record["result"][0]["answers"][task])


def provenance(records: dict[str, dict]) -> str:
    """What a caption says of stored runs: how many, seeds, sizes, precision, hours, commits."""
    rows = [row for record in records.values() for row in record["result"]]
    first, commits = next(iter(records.values())), sorted({record["commit"] for record in records.values()})
    setting = first["config"]["setting"]

    # trainings of sentences count tokens, those of patches pictures
    counts = {row["tokens"] for row in rows if "tokens" in row}
    counts = sorted(counts or {setting["steps"] * setting.get("tokens", setting.get("batch"))})
    read = " to ".join(f"{count:,}" for count in counts[:: max(1, len(counts) - 1)])
    unit = "tokens" if "tokens" in setting else "pictures"

    precisions = ", ".join(sorted({row.get("precision", "fp32") for row in rows}))
    hours = sum(row["seconds"] for row in rows) / 3600
    size = f"{read} {unit} a training in {precisions}, {hours:.2f} h in all"
    return (
        f"{len(records)} runs of {first['study']}, {setting['seeds']} seeds each, {size}; "
        f"commit {', '.join(commits)}, torch {first['versions']['torch']}"
    )
