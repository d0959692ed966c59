"""Evaluated rows as tables in Markdown."""

from lvmlab.lab.plots.scores import choose
from lvmlab.lab.studies.common import markdown
from lvmlab.world import tasks


def scores_markdown(rows: list[dict]) -> str:
    """Each trained task's own score on seen prompts of three examples, with ceiling, best floor and skill, in
    Markdown.
    """
    lines = [["model", "task", "score (95 %)", "ceiling", "best floor", "skill (95 %)"]]
    for r in choose(rows, setting="seen", condition="right", examples=3):
        skill = (
            "–" if r["skill"] is None else f"{r['skill']:.2f} ({r['skill_low']:.2f} to {r['skill_high']:.2f})"
        )
        digits = 1 if tasks.get(r["task"]).metric == "PSNR" else 3
        score, low, high, ceiling, floor = (
            f"{v:.{digits}f}"
            for v in (r["score"], r["low"], r["high"], r["ceiling"], r["floors"][r["best_floor"]])
        )
        lines.append(
            [
                r["model"],
                f"{r['task']}, {r['metric']}",
                f"{score} ({low} to {high})",
                ceiling,
                f"{floor} ({r['best_floor']})",
                skill,
            ]
        )
    return markdown(*lines)


COLUMNS = {  # of `settings_markdown`: setting and condition
    "seen": ("seen", "right"),
    "shifted": ("shifted", "right"),
    "new encoding": ("new encoding", "right"),
    "trained objects": ("trained objects", "right"),
    "new task": ("new task", "right"),
    "swapped colours": ("seen", "conflicting"),
    "shuffled labels": ("seen", "shuffled_labels"),
    "another task's pairs": ("seen", "wrong_task"),
}


def settings_markdown(rows: list[dict]) -> str:
    """One model's skill after three examples: a line a task, a column a setting or condition, in Markdown."""
    lines, three = [["task", *COLUMNS]], choose(rows, examples=3)
    for task in dict.fromkeys(r["task"] for r in three):
        lines.append([task])
        for setting, condition in COLUMNS.values():
            found = [
                r["skill"]
                for r in three
                if (r["task"], r["setting"], r["condition"]) == (task, setting, condition)
            ]
            lines[-1].append("" if not found else "–" if found[0] is None else f"{found[0]:.2f}")
    return markdown(*lines)
