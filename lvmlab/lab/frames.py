"""Stored results as data frames: evaluations, the trainings of a study, and their curves.

Filter, plot and export them with pandas: ``evaluation("mini-teacher").query("primary and examples == 3")``.
"""

import math

import pandas as pd

from lvmlab.lab import runs
from lvmlab.world import tasks

CONDITIONS = {  # a column of `settings_table`: (setting, condition)
    "seen": ("seen", "right"),
    "shifted": ("shifted", "right"),
    "new encoding": ("new encoding", "right"),
    "trained objects": ("trained objects", "right"),
    "new task": ("new task", "right"),
    "swapped colours": ("seen", "conflicting"),
    "shuffled labels": ("seen", "shuffled_labels"),
    "another task's pairs": ("seen", "wrong_task"),
}
STANDARD = "primary and setting == 'seen' and condition == 'right' and examples == 3"


def scores(rows: list[dict]) -> pd.DataFrame:
    """Rows of `lvmlab.evaluation.scoring.evaluate` as a frame.

    Args:
        rows: One dictionary for each model, job and metric.

    Returns:
        A row for each of them; beside their fields ``floor``, the score of the best floor, and ``primary``,
        whether the metric is the task's own.
    """
    frame = pd.DataFrame(rows)
    frame["floor"] = [row["floors"][row["best_floor"]] for row in rows]
    frame["primary"] = [row["metric"] == tasks.get(row["task"]).metric for row in rows]
    frame["skill"] = frame["skill"].astype(float)  # None where the ceiling is below the floor
    return frame


def evaluation(*models: str, split: str = "test") -> pd.DataFrame:
    """The stored evaluation of these models, as `scores` has it.

    Raises:
        FileNotFoundError: A model has no stored evaluation on this split.
    """
    records = [runs.find("evaluate", model=model, split=split) for model in models]
    return scores([row for record in records for row in record["result"]])


def trainings(records: dict[str, dict]) -> pd.DataFrame:
    """The last scores of a study's trainings.

    Args:
        records: Runs by the name of their arm.

    Returns:
        A row for each arm, training and task: ``arm``, ``seed``, ``task``; ``loss`` (cross entropy of the
        answers, nats a token), ``accuracy``, both perplexities; ``metric``, ``score``, ``ceiling``,
        ``floor``, ``skill``; and what else the study notes of a training (``tokens``, ``parameters``, ``lr``,
        ``seconds``).
    """
    rows = []
    for arm, record in records.items():
        for training in record["result"]:
            plain = {k: v for k, v in training.items() if not isinstance(v, dict | list)}
            graded = {row["task"]: row for row in training.get("scores", ())}
            for task, losses in training["losses"].items():
                row = {"arm": arm} | plain | {"task": task, "loss": losses["cross entropy"]}
                row |= {k: v for k, v in losses.items() if k != "cross entropy"}
                rows.append(row | _graded(graded.get(task, {})))
    return pd.DataFrame(rows)


def _graded(row: dict) -> dict:
    columns = {name: row[name] for name in ("metric", "score", "ceiling", "skill") if name in row}
    return columns | ({"floor": row["floors"][row["best_floor"]]} if "floors" in row else {})


def curves(records: dict[str, dict]) -> pd.DataFrame:
    """The curves of a study's trainings on val.

    Args:
        records: Runs by the name of their arm.

    Returns:
        ``arm``, ``seed``, ``step``, ``task``, ``loss`` (nats a token), and ``share``: the task's share of the
        sentences since the point before, where the study notes it.
    """
    rows = []
    for arm, record in records.items():
        for training in record["result"]:
            for point in training["curve"]:
                shares = point.get("shares")
                row = {"arm": arm, "seed": training["seed"], "step": point["step"]}
                for task in tasks.TASKS.keys() & point.keys():
                    share = shares.get(task, 0.0) if shares else math.nan
                    rows.append(row | {"task": task, "loss": point[task], "share": share})
    return pd.DataFrame(rows)


def best_points(rows: pd.DataFrame) -> pd.DataFrame:
    """The lowest point of each curve beside its end.

    The prompts that choose the point are those that it is scored on, so ``best`` is slightly optimistic.

    Args:
        rows: Of `curves`.

    Returns:
        ``arm``, ``seed``, ``task``; ``best`` and ``end``, nats a token; ``step`` of the best point.
    """
    training = ["arm", "seed", "task"]
    lowest = rows.loc[rows.groupby(training, sort=False).loss.idxmin()].set_index(training)
    ends = rows.groupby(training, sort=False).loss.last()
    return lowest[["step", "loss"]].rename(columns={"loss": "best"}).assign(end=ends).reset_index()


def markdown(frame: pd.DataFrame) -> str:
    """A frame of texts as a Markdown table, without its index."""
    head, *rows = (f"| {' | '.join(line)} |" for line in [frame.columns, *frame.fillna("").to_numpy()])
    return "\n".join([head, "|---" * len(frame.columns) + "|", *rows])


def interval(mean: float, low: float, high: float, digits: int = 2) -> str:
    """ "0.46 (0.42 to 0.50)"; "–" where there is no mean."""
    if pd.isna(mean):
        return "–"
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def scores_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Each task's own score after three examples, with ceiling, best floor, landmark and skill.

    Rows of mini-world-v1's stored evaluations have no landmarks: theirs are among the floors.
    """
    lines = []
    for row in rows.query(STANDARD).itertuples():
        digits = 1 if row.metric == "PSNR" else 3
        line = {"model": row.model, "task": f"{row.task}, {row.metric}"}
        line["score (95 %)"] = interval(row.score, row.low, row.high, digits)
        line["ceiling"] = f"{row.ceiling:.{digits}f}"
        line["best floor"] = f"{row.floor:.{digits}f} ({row.best_floor})"
        if "landmarks" in rows:
            marks = [f"{score:.{digits}f} ({name})" for name, score in row.landmarks.items()]
            line["landmark"] = ", ".join(marks) or "–"
        line["skill (95 %)"] = interval(row.skill, row.skill_low, row.skill_high)
        lines.append(line)
    return pd.DataFrame(lines)


def settings_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Skill after three examples: a line a task, a column a setting or condition; "–" where there is no
    skill.
    """
    names = {place: name for name, place in CONDITIONS.items()}
    rows = rows.query("primary and examples == 3").copy()
    rows["column"] = [names.get(place) for place in zip(rows.setting, rows.condition, strict=True)]
    rows["skill"] = ["–" if pd.isna(skill) else f"{skill:.2f}" for skill in rows.skill]
    table = rows.pivot(index="task", columns="column", values="skill")
    return table.reindex(index=rows.task.unique(), columns=CONDITIONS).rename_axis("task").reset_index()


def skills_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Models by tasks: skill with its interval. The README shows this table."""
    rows = rows.query(STANDARD)
    cells = [interval(row.skill, row.skill_low, row.skill_high) for row in rows.itertuples()]
    table = rows.assign(cell=cells).pivot(index="model", columns="task", values="cell")
    return table.loc[rows.model.unique(), rows.task.unique()].rename_axis("model").reset_index()
