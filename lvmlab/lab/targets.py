"""What was aimed at against what the stored runs reached: a bar and its figure a row.

A bar's figure is read from the shipped runs alone. A run that is missing leaves no figure, and the bar is not
met.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from lvmlab.lab import frames, runs
from lvmlab.tokenizer.tokenizer import Tokenizer

V1, V2 = "mini-world-v1", "mini-world-v2"
TEACHER, STUDENT_KD, TOKENIZER = "mini-teacher", "mini-student-kd", "mini-v2"
NEW_TASKS = ("deblur", "colourise", "inpaint", "edges")


@dataclass(frozen=True)
class Bar:
    """One figure to reach.

    Attributes:
        issue: The issue that sets it; None for the first models', which were set before.
        what: What is measured.
        bar: The value to reach.
        figure: Reads it from shipped runs; raises LookupError where one is missing.
        of: The arguments of ``figure``.
        sense: Whether the bar is a least or a most.
    """

    issue: int | None
    what: str
    bar: float
    figure: Callable[..., float]
    of: tuple = ()
    sense: Literal[">=", "<="] = ">="

    def row(self) -> dict:
        """``issue, what, bar, sense, figure, met``; figure None where it cannot be had."""
        try:
            figure = float(self.figure(*self.of))
        except LookupError:
            figure = math.nan
        met = figure >= self.bar if self.sense == ">=" else figure <= self.bar
        row = {"issue": self.issue, "what": self.what, "bar": self.bar, "sense": self.sense}
        return row | {"figure": None if math.isnan(figure) else round(figure, 5), "met": met}


def rows() -> list[dict]:
    """Every bar's row, by issue."""
    return [bar.row() for bar in (*FIRST_MODELS, *TOKENS_THAT_SEE, *STUDIES)]


def table() -> pd.DataFrame:
    """`rows` as a frame of texts to print."""
    lines = pd.DataFrame(rows())
    return pd.DataFrame(
        {
            "issue": ["first models" if math.isnan(n) else f"{n:.0f}" for n in lines.issue.astype(float)],
            "what": lines.what,
            "bar": [f"{sense} {bar:.2f}" for sense, bar in zip(lines.sense, lines.bar, strict=True)],
            "reached": ["no run" if math.isnan(x) else f"{x:.2f}" for x in lines.figure.astype(float)],
            "": ["met" if met else "**missed**" for met in lines.met],
        }
    )


# How a figure is read


def result(study: str, **config) -> list | dict:
    """The result of the newest shipped run of a study with these fields of its configuration."""
    if not (records := runs.matching(study, **config)):
        raise LookupError(f"no run of {study} with {config} is shipped")
    return records[-1]["result"]


def evaluation(world: str, model: str = TEACHER, split: str = "test", **config) -> pd.DataFrame:
    """The shipped evaluation of a model on a world's version, as `frames.scores`."""
    return frames.scores(result("evaluate", world=world, model=model, split=split, **config))


def seen(world: str, task: str, column: str = "skill", model: str = TEACHER, **where) -> float:
    """A column of a task's own metric after three right examples, in the encodings of training."""
    chosen = {"task": task, "setting": "seen", "condition": "right", "examples": 3, "primary": True} | where
    return only(evaluation(world, model), chosen)[column]


def only(frame: pd.DataFrame, chosen: dict) -> pd.Series:
    """The one row with these values. Raises LookupError where there is none."""
    for column, value in chosen.items():
        frame = frame[frame[column] == value]
    if len(frame) != 1:
        raise LookupError(f"{len(frame)} rows with {chosen}")
    return frame.iloc[0]


def transfer(world: str, task: str, least: float = 0.0) -> float:
    """Skill in encodings never seen in training over skill in seen ones; none where that is not above
    ``least``.
    """
    skill = seen(world, task)
    if not skill > least:
        raise LookupError(f"{task}: a skill of {skill} does not count")
    return seen(world, task, setting="new encoding") / skill


def both_right(world: str, task: str) -> float:
    """The share of queries answered rightly under both of two conflicting prompts."""
    return only(evaluation(world), {"task": task, "metric": "both right"})["score"]


def over_landmark(task: str, landmark: str) -> float:
    """Score minus that of an answer without a model that looks at the truth."""
    row = only(
        evaluation(V2),
        {"task": task, "setting": "seen", "condition": "right", "examples": 3, "primary": True},
    )
    return row["score"] - row["landmarks"][landmark]


def behind_teacher() -> float:
    """The most skill that the distilled student lacks against its teacher, over the scored tasks."""
    return max(seen(V2, task) - seen(V2, task, model=STUDENT_KD) for task in SKILLS)


def greedy_gain() -> float:
    """Mean skill of the greedy answer minus that of the mean of four, on val."""
    greedy, mean = (evaluation(V2, split="val", answers=answers) for answers in (1, 4))
    chosen = "primary and setting == 'seen' and condition == 'right' and examples == 3"
    return greedy.query(chosen).skill.mean() - mean.query(chosen).skill.mean()


def best_new_task() -> float:
    """The highest lower bound of skill among tasks never trained, at 95 % after Bonferroni's correction."""
    rows = evaluation(V2).query("primary and setting == 'new task' and examples == 3")
    bounds = rows[rows.task.isin(NEW_TASKS)].skill_low_corrected
    return bounds.max()


def perception(task: str) -> float:
    """What a specialist reads from the codes alone over what one reads from the pixels."""
    records = runs.matching("perception", name=TOKENIZER)  # one a task
    rows = pd.DataFrame([row for record in records for row in record["result"]])
    codes, pixels = (only(rows, {"task": task, "reads": reads})["score"] for reads in ("codes", "pixels"))
    return codes / pixels


def tokenizer(name: str, measure: str) -> float:
    """A score on val that a shipped tokenizer's own record holds."""
    try:
        return Tokenizer.from_pretrained(name, device="cpu").training["val"][measure]
    except (ValueError, OSError) as error:
        raise LookupError(f"{name} is not shipped") from error


def bench(name: str, precision: str | None = None) -> float:
    """The ratio of a row of the stored benchmarks, on a machine of one faster precision where it is named."""
    rows = result("bench", **{"precision": precision} if precision else {})
    return only(pd.DataFrame(rows), {"name": name})["ratio"]


def effect(study: str) -> float:
    """A study's primary effect over the half-width of its 95 % interval."""
    mean, low, high = result("contrast", of=study)
    return abs(mean) / ((high - low) / 2)


def decided() -> float:
    """How many studies' primary effect is larger than its half-width."""
    effects = [Bar(24, study, 1.0, effect, (study,)).row() for study in QUESTIONS]
    if all(row["figure"] is None for row in effects):
        raise LookupError("no contrast is stored")
    return sum(row["met"] for row in effects)


def stored(study: str, measure: str) -> float:
    """A measure of a study's shipped result."""
    return result(study)[measure]


def natural_loss() -> float:
    """PSNR of natural val pictures after `mini-v2`'s round trip, reduced to 64 px, minus `mini`'s there, in
    dB.
    """
    return tokenizer(TOKENIZER, "psnr natural 64") - tokenizer("mini", "psnr natural")


# The bars

FIRST_SKILLS = {"segmentation": 0.6, "pose": 0.4, "derain": 0.4, "motion": 0.3}
FIRST_MODELS = (
    Bar(None, "mini: label ceiling of segmentation, IoU", 0.90, seen, (V1, "segmentation", "ceiling")),
    Bar(None, "mini: label ceiling of pose, PCK@0.1", 0.85, seen, (V1, "pose", "ceiling")),
    Bar(None, "mini: codes in use on val", 0.80, tokenizer, ("mini", "code use")),
    *(Bar(None, f"v1, skill: {task}", bar, seen, (V1, task)) for task, bar in FIRST_SKILLS.items()),
    Bar(None, "v1, skill: selection, lower 95 % bound", 0.0, seen, (V1, "selection", "skill_low")),
    Bar(None, "v1, segmentation: right under both prompts", 0.5, both_right, (V1, "segmentation")),
    Bar(None, "v1, selection: right under both prompts", 0.5, both_right, (V1, "selection")),
    Bar(None, "v1, segmentation: skill in a new encoding over seen", 0.8, transfer, (V1, "segmentation")),
)

SEMANTIC = "semantic"
PERCEIVED = {"segmentation": 0.90, SEMANTIC: 0.80, "pose": 0.80}
SKILLS = {
    "segmentation": 0.75,
    "selection": 0.40,
    "pose": 0.50,
    "derain": 0.60,
    "motion": 0.40,
    SEMANTIC: 0.40,
}
LANDMARKS = {"pose": "mean skeleton", "selection": "all objects"}
CONFLICTS = {"segmentation": 0.85, "selection": 0.50}
ENCODED = ("segmentation", "selection", "pose")

TOKENS_THAT_SEE = (
    *(
        Bar(21, f"perception, codes over pixels: {task}", bar, perception, (task,))
        for task, bar in PERCEIVED.items()
    ),
    Bar(21, "mini-v2: label ceiling of segmentation, IoU", 0.90, seen, (V2, "segmentation", "ceiling")),
    Bar(21, "mini-v2: label ceiling of pose, PCK@0.1", 0.85, seen, (V2, "pose", "ceiling")),
    Bar(21, "mini-v2 minus mini: PSNR of natural pictures at 64 px, dB", -1.0, natural_loss),
    Bar(21, "mini-v2: codes in use on val", 0.90, tokenizer, (TOKENIZER, "code use")),
    Bar(21, "bench: tokenize.mini-v2", 0.8, bench, ("tokenize.mini-v2",)),
    Bar(21, "bench: tokenizer.encode.mini-v2, fp32", 1.3, bench, ("tokenizer.encode.mini-v2", "fp32")),
    Bar(21, "bench: tokenizer.encode.mini-v2, bf16", 1.8, bench, ("tokenizer.encode.mini-v2", "bf16")),
    *(Bar(21, f"skill: {task}", bar, seen, (V2, task)) for task, bar in SKILLS.items()),
    *(
        Bar(21, f"{task}: score minus {mark}", 0.0, over_landmark, (task, mark))
        for task, mark in LANDMARKS.items()
    ),
    *(
        Bar(21, f"{task}: skill in a new encoding over seen", 0.8, transfer, (V2, task, SKILLS[task]))
        for task in ENCODED
    ),
    *(
        Bar(21, f"{task}: right under both prompts", bar, both_right, (V2, task))
        for task, bar in CONFLICTS.items()
    ),
    Bar(21, "mini-student-kd: most skill behind mini-teacher in any task", 0.05, behind_teacher, sense="<="),
    Bar(21, "greedy answer minus mean of four: mean skill of six tasks, val", 0.0, greedy_gain),
    Bar(21, "best of four new tasks: lower bound of skill, corrected for four", 0.0, best_new_task),
)

QUESTIONS = (
    "balancing",
    "forgetting",
    "distillation",
    "encodings",
    "prompts",
    "speedrun",
    "scaling",
    "representations",
)
STUDIES = (
    Bar(
        24,
        "speedrun: stock tokens over ours to the same val loss",
        5.0,
        stored,
        ("speedrun-summary", "tokens"),
    ),
    Bar(
        24,
        "speedrun: stock seconds over ours to the same val loss",
        4.0,
        stored,
        ("speedrun-summary", "seconds"),
    ),
    Bar(
        24,
        "encodings: never-seen over seen skill, most encodings",
        0.8,
        stored,
        ("encodings-summary", "transfer"),
    ),
    *(
        Bar(24, f"{study}: primary effect over its 95 % half-width", 1.0, effect, (study,))
        for study in QUESTIONS
    ),
    Bar(24, "studies whose primary effect exceeds its half-width, of eight", 5.0, decided),
    Bar(
        24,
        "runs drawn at random, recomputed to the printed digits, of three",
        3.0,
        stored,
        ("recompute", "equal"),
    ),
)
