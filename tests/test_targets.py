"""The table of what was to be reached: every row from its own place in the evaluation."""

from targets import markdown, targets

from lvmlab.lab.plots.tables import scores_markdown, settings_markdown

BASE = {
    "condition": "right",
    "examples": 3,
    "low": 0.0,
    "high": 1.0,
    "score": 0.7,
    "ceiling": 0.9,
    "floors": {"query": 0.1},
    "best_floor": "query",
}
METRICS = {
    "segmentation": "IoU",
    "selection": "IoU",
    "pose": "PCK@0.1",
    "derain": "PSNR",
    "motion": "PSNR",
    "edges": "F",
}


def row(task, skill, setting="seen", **more):
    return (
        BASE
        | {
            "model": "m",
            "task": task,
            "setting": setting,
            "metric": METRICS[task],
            "skill": skill,
            "skill_low": skill and skill - 0.1,
            "skill_high": skill and skill + 0.1,
        }
        | more
    )


ROWS = [
    row("segmentation", 0.6),
    row("selection", 0.05),
    row("pose", 0.39),
    row("derain", None),
    row("motion", 0.5),
    row("segmentation", 0.3, "new encoding"),
    row("pose", 0.38, "new encoding"),
    row("selection", 0.0, "shifted"),
    row("segmentation", 0.5, condition="conflicting", metric="both right", score=0.55),
]


def test_rows_and_verdicts():
    found = {
        what: (round(value, 3), good) for what, _, value, good in targets(ROWS, {"val": {"code use": 1.0}})
    }
    assert found == {
        "tokenizer: ceiling of segmentation, IoU": (0.9, True),
        "tokenizer: ceiling of pose, PCK@0.1": (0.9, True),
        "tokenizer: codes in use (val pictures)": (1.0, True),
        "skill: segmentation": (0.6, True),
        "skill: pose": (0.39, False),
        "skill: derain": (0.0, False),
        "skill: motion": (0.5, True),
        "skill: selection, lower 95 % bound": (-0.05, False),
        "segmentation right under both conflicting prompts": (0.55, True),
        "segmentation: skill in a new encoding over seen": (0.5, False),
        "pose: skill in a new encoding over seen": (0.974, True),
    }


def test_markdown():
    table = markdown(ROWS, {"val": {"code use": 1.0}})
    assert (
        "| skill: pose | 0.40 | 0.39 | **missed** |" in table
        and "| skill: selection, lower 95 % bound | above 0 | -0.05 | **missed** |" in table
    )
    scores = scores_markdown(ROWS)
    assert (
        "| m | segmentation, IoU | 0.700 (0.000 to 1.000) | 0.900 | 0.100 (query) | 0.60 (0.50 to 0.70) |"
        in scores
    )
    assert (
        "| m | derain, PSNR | 0.7 (0.0 to 1.0) | 0.9 | 0.1 (query) | – |" in scores
        and scores.count("\n") == 6
    )


def test_settings_and_conditions_side_by_side():
    rows = [
        *ROWS,
        row("segmentation", 0.1, condition="wrong_task"),
        row("edges", 0.2, "new task"),
        row("segmentation", 0.7, examples=5),
    ]
    lines = settings_markdown(rows).splitlines()
    assert (
        lines[0].startswith("| task | seen | shifted | new encoding |")
        and len({line.count("|") for line in lines}) == 1
    )
    assert (
        "| segmentation | 0.60 |  | 0.30 |  |  |  |  | 0.10 |" in lines
        and "| derain | – |  |  |  |  |  |  |  |" in lines
    )
    assert "| edges |  |  |  |  | 0.20 |  |  |  |" in lines
