"""What `mini-teacher` was to reach on the test split and what its shipped run says it reached, as in the
README: `python assets/targets.py`.
"""

from lvmlab.lab import runs
from lvmlab.lab.plots.scores import choose
from lvmlab.lab.studies import common
from lvmlab.tokenizer.tokenizer import Tokenizer

SKILLS = {"segmentation": 0.6, "pose": 0.4, "derain": 0.4, "motion": 0.3}


def targets(rows: list[dict], training: dict) -> list[tuple[str, float, float, bool]]:
    """(what, at least, reached, whether) of one model's rows of an evaluation; ``training`` is its
    tokenizer's record.

    "skill, new encoding over seen" is that of the task that transfers worst, among those with a seen skill
    above 0.
    """
    seen = {r["task"]: r for r in choose(rows, setting="seen", condition="right", examples=3)}
    found = [
        ("tokenizer: ceiling of segmentation, IoU", 0.90, seen["segmentation"]["ceiling"]),
        ("tokenizer: ceiling of pose, PCK@0.1", 0.85, seen["pose"]["ceiling"]),
        ("tokenizer: codes in use (val pictures)", 0.80, training.get("val", {}).get("code use", 0.0)),
    ]
    found += [(f"skill: {task}", least, _or_zero(seen[task]["skill"])) for task, least in SKILLS.items()]
    found += [("skill: selection, lower 95 % bound", 0.0, _or_zero(seen["selection"]["skill_low"]))]
    both = choose(rows, metric="both right")
    found += [(f"{r['task']} right under both conflicting prompts", 0.5, r["score"]) for r in both]
    new = {r["task"]: r for r in choose(rows, setting="new encoding", condition="right", examples=3)}
    found += [
        (
            f"{task}: skill in a new encoding over seen",
            0.8,
            _or_zero(new[task]["skill"]) / seen[task]["skill"],
        )
        for task in new
        if _or_zero(seen[task]["skill"]) > 0
    ]
    return [
        (what, least, value, value > least if least == 0 else value >= least) for what, least, value in found
    ]


def markdown(rows: list[dict], training: dict) -> str:
    """`targets` as a Markdown table."""
    lines = [
        (what, f"{least:.2f}" if least else "above 0", f"{value:.2f}", "met" if good else "**missed**")
        for what, least, value, good in targets(rows, training)
    ]
    return common.markdown(("what", "at least", "reached", ""), *lines)


def _or_zero(value: float | None) -> float:
    return value or 0.0


if __name__ == "__main__":
    print(
        markdown(
            runs.find("evaluate", model="mini-teacher", split="test")["result"],
            Tokenizer.from_pretrained("mini", device="cpu").training,
        )
    )
