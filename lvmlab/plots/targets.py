"""What the released models were to reach on the test split, and what they reached: the README's table."""

from lvmlab import tasks
from lvmlab.plots.scores import choose

SKILLS = {"segmentation": 0.6, "pose": 0.4, "derain": 0.4, "motion": 0.3}


def targets(rows: list[dict], training: dict) -> list[tuple[str, float, float, bool]]:
    """(what, at least, reached, whether) of one model's rows of an evaluation; ``training`` is its tokenizer's record.

    "skill, new encoding over seen" is that of the task that transfers worst, among those with a seen skill above 0.
    """
    seen = {r["task"]: r for r in choose(rows, setting="seen", condition="right", examples=3)}
    found = [("tokenizer: ceiling of segmentation, IoU", 0.90, seen["segmentation"]["ceiling"]),
             ("tokenizer: ceiling of pose, PCK@0.1", 0.85, seen["pose"]["ceiling"]),
             ("tokenizer: codes in use (val pictures)", 0.80, training.get("val", {}).get("code use", 0.0))]
    found += [(f"skill: {task}", least, _or_zero(seen[task]["skill"])) for task, least in SKILLS.items()]
    found += [("skill: selection, lower 95 % bound", 0.0, _or_zero(seen["selection"]["skill_low"]))]
    both = choose(rows, metric="both right")
    found += [(f"{r['task']} right under both conflicting prompts", 0.5, r["score"]) for r in both]
    new = {r["task"]: r for r in choose(rows, setting="new encoding", condition="right", examples=3)}
    found += [(f"{task}: skill in a new encoding over seen", 0.8, _or_zero(new[task]["skill"]) / seen[task]["skill"])
              for task in new if _or_zero(seen[task]["skill"]) > 0]
    return [(what, least, value, value > least if least == 0 else value >= least) for what, least, value in found]


def markdown(rows: list[dict], training: dict) -> str:
    """`targets` as a Markdown table."""
    lines = ["| what | at least | reached | |", "|---|---|---|---|"]
    for what, least, value, good in targets(rows, training):
        lines.append(f"| {what} | {f'{least:.2f}' if least else 'above 0'} | {value:.2f} | {'met' if good else '**missed**'} |")
    return "\n".join(lines)


def scores_markdown(rows: list[dict]) -> str:
    """Each trained task's own score on seen prompts of three examples, with ceiling, best floor and skill, in Markdown."""
    lines = ["| model | task | score (95 %) | ceiling | best floor | skill (95 %) |", "|---|---|---|---|---|---|"]
    for r in choose(rows, setting="seen", condition="right", examples=3):
        skill = "–" if r["skill"] is None else f"{r['skill']:.2f} ({r['skill_low']:.2f} to {r['skill_high']:.2f})"
        digits = 1 if tasks.get(r["task"]).metric == "PSNR" else 3
        score, low, high, ceiling, floor = (f"{v:.{digits}f}" for v in (r["score"], r["low"], r["high"], r["ceiling"], r["floors"][r["best_floor"]]))
        lines.append(f"| {r['model']} | {r['task']}, {r['metric']} | {score} ({low} to {high}) | {ceiling} | {floor} ({r['best_floor']}) | {skill} |")
    return "\n".join(lines)


COLUMNS = {  # of `settings_markdown`: setting and condition
           "seen": ("seen", "right"), "shifted": ("shifted", "right"), "new encoding": ("new encoding", "right"),
           "trained objects": ("trained objects", "right"), "new task": ("new task", "right"), "swapped colours": ("seen", "conflicting"),
           "shuffled labels": ("seen", "shuffled_labels"), "another task's pairs": ("seen", "wrong_task")}


def settings_markdown(rows: list[dict]) -> str:
    """One model's skill after three examples: a line a task, a column a setting or condition, in Markdown."""
    lines = ["| task | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    three = choose(rows, examples=3)
    for task in dict.fromkeys(r["task"] for r in three):
        cells = []
        for setting, condition in COLUMNS.values():
            found = [r["skill"] for r in three if (r["task"], r["setting"], r["condition"]) == (task, setting, condition)]
            cells.append("" if not found else "–" if found[0] is None else f"{found[0]:.2f}")
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _or_zero(value: float | None) -> float:
    return value or 0.0
