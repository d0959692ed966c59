"""What the studies share: scores of one training on fixed prompts, rows kept as they are finished, intervals
over seeds, captions.
"""

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
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--scale", choices=tuple(scales), default="study")
    made.add_argument("--compiled", action="store_true", help="layers under torch.compile")
    made.add_argument(what, nargs="*", help=f"names of {what}; all by default")
    return made


def main(
    doc: str,
    scales: dict,
    what: str,
    names: Iterable[str],
    one: Callable[..., dict],
    say: Callable[[dict], object],
) -> None:
    """The command line of a study: computes what is not stored, part by part, ships it and prints what there
    is to ``say`` of all.
    """
    args = parser(doc, scales, what).parse_args()
    print(
        say(
            shipped(
                getattr(args, what) or names,
                lambda name: one(name, scales[args.scale], compiled=args.compiled),
            )
        )
    )


def shipped(names: Iterable[str], one: Callable[[str], dict]) -> dict[str, dict]:
    """{name: its run}: computed where it is not stored, shipped as soon as it is done, and named."""
    found = {}
    for name in names:
        found[name] = one(name)
        print(runs.promote(found[name]["name"]))
    return found


def across_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % t interval, which one value leaves infinite."""
    mean = float(np.mean(values)) if len(values) else math.nan
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def kept(path: Path, compute: Callable[[], dict]) -> dict:
    """A training's row: that which lies at ``path``, or a new one, which then lies there. A study that was
    stopped goes on so.
    """
    if not path.exists():
        row = compute()
        write_file(path, json.dumps(row))
    return json.loads(path.read_text(encoding="utf-8"))


def scorers(tasks: Iterable[str], prompts: int, split: str, tokenizer: Tokenizer) -> Scorers:
    """The first prompts of each task, after three examples."""
    return {task: Scorer(Job(task, prompts=prompts, split=split), tokenizer) for task in tasks}


def losses(lvm: LVM, asked: Scorers, first: int | None = None) -> dict[str, float]:
    """Cross entropy of the answers to the ``first`` prompts (None: all), nats a token: a point of a curve."""
    return {
        task: float(answer_loss(lvm, scorer.tokens[:first], scorer.tokenizer.tokens_per_image)[0].mean())
        for task, scorer in asked.items()
    }


def scored(lvm: LVM, asked: Scorers, *, name: str = "", shown: int = 0) -> dict:
    """{scores: rows of the evaluation, losses: {task: cross entropy, accuracy, perplexities}, answers: tokens
    to the ``shown`` first prompts}.
    """
    scores, final, answers = [], {}, {}
    for task, scorer in asked.items():
        tokenizer = scorer.tokenizer
        tokens = scorer.answer(lvm)
        answers[task] = tokens[:shown].tolist()
        row = scorer.rows(scorer.scores(mean_pictures(tokenizer, tokens)), name, 0.0)[0]
        scores.append(
            {k: row[k] for k in ("task", "metric", "score", "ceiling", "floors", "best_floor", "skill")}
        )
        cost, right = answer_loss(lvm, scorer.tokens, tokenizer.tokens_per_image)
        final[task] = perplexities(cost) | {"accuracy": float(right.mean())}
    return {"scores": scores, "losses": final, "answers": answers}


def by_seed(rows: pd.DataFrame, task: str, measure: str = "loss") -> pd.DataFrame:
    """A measure of one task, a line a seed and a column an arm, of the rows of `lvmlab.lab.frames.trainings`.

    Arms of a seed start with the same weights: differences are taken line by line.
    """
    return rows[rows.task == task].pivot(index="seed", columns="arm", values=measure)


def spread(values: Sequence[float]) -> dict[str, float]:
    """`across_seeds` by name: mean, low, high."""
    return dict(zip(("mean", "low", "high"), across_seeds(values), strict=True))


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
    """What a caption has to say of stored runs."""
    rows = [row for record in records.values() for row in record["result"]]
    first, commits = next(iter(records.values())), sorted({record["commit"] for record in records.values()})
    setting = first["config"]["setting"]
    precisions = ", ".join(sorted({row.get("precision", "fp32") for row in rows}))
    sizes = sorted(
        {row["tokens"] for row in rows if "tokens" in row}
        or {setting["steps"] * setting.get("tokens", setting.get("batch"))}
    )
    read = " to ".join(f"{n:,}" for n in sizes[:: max(1, len(sizes) - 1)]) + (
        " tokens" if "tokens" in setting else " pictures"
    )
    return (
        f"{len(records)} runs of {first['study']}, {setting['seeds']} seeds each, {read} a "
        f"training in {precisions}, {sum(row['seconds'] for row in rows) / 3600:.2f} h in all; commit "
        f"{', '.join(commits)}, "
        f"torch {first['versions']['torch']}"
    )
