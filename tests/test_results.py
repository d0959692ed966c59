"""RESULTS.md and the README show the figures of the shipped runs, and nothing else."""

import re
from pathlib import Path

import pytest

from lvmlab import LVM, Tokenizer
from lvmlab.lab import frames, results, runs
from lvmlab.lab.frames import markdown
from lvmlab.utils import paths

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
EVALUATED = runs.matching("evaluate")


@pytest.fixture(scope="module")
def document():
    return results.document()


def test_the_results_are_those_of_the_shipped_runs(document):
    assert (paths.assets() / "RESULTS.md").read_text() == document, "write it again: lvmlab results"


def test_the_readmes_table_is_that_of_the_shipped_runs():
    assert markdown(frames.skills_table(frames.evaluation(*results.MODELS))) in README


def test_every_shipped_model_is_in_the_table_of_trainings():
    folders = {path.parent.name for path in (paths.assets() / "models").glob("*/config.json")}
    assert {name.strip("`") for name in results.trainings_table()["model"]} == folders


def test_every_table_has_rows(document):
    sections = document.split("\n## ")
    assert len(sections) == 10
    assert not [
        section.split("\n")[0] for section in sections[1:] if not re.search(r"\|---\|\n\| \S", section)
    ]


@pytest.mark.parametrize("record", EVALUATED, ids=[record["config"]["model"] for record in EVALUATED])
def test_every_shipped_model_that_was_scored_is_the_one_that_ships(record):
    config = record["config"]
    assert config["split"] == "test" and config["prompts"] == 200
    assert LVM.from_pretrained(config["model"], device="cpu").fingerprint() == config["weights"]
    assert Tokenizer.from_pretrained("mini", device="cpu").fingerprint == config["tokenizer"]


def test_the_files_that_the_readme_names_exist():
    named = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"src=\"([^\":]+)\"", README)
    assert not [name for name in named if not (ROOT / name).exists()]
    assert (paths.assets() / "CREDITS.md").is_file()


def test_every_notebook_is_in_the_readmes_table():
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"notebooks/{notebook.name}" in README


BASE = {
    "condition": "right",
    "examples": 3,
    "low": 0.0,
    "high": 1.0,
    "score": 0.7,
    "ceiling": 0.9,
    "floors": {"query": 0.1},
    "best_floor": "query",
    "split": "test",
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
    bounds = {"skill_low": skill and skill - 0.1, "skill_high": skill and skill + 0.1}
    named = {"model": "m", "task": task, "setting": setting, "metric": METRICS[task], "skill": skill}
    return BASE | named | bounds | more


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


def test_scores():
    table = markdown(frames.scores_table(frames.scores(ROWS)))
    line = "| m | segmentation, IoU | 0.700 (0.000 to 1.000) | 0.900 | 0.100 (query) | 0.60 (0.50 to 0.70) |"
    assert line in table
    assert "| m | derain, PSNR | 0.7 (0.0 to 1.0) | 0.9 | 0.1 (query) | – |" in table
    assert table.count("\n") == 6


def test_skills_by_model_and_task():
    lines = markdown(frames.skills_table(frames.scores(ROWS))).splitlines()
    assert lines[0] == "| model | segmentation | selection | pose | derain | motion |"
    assert lines[2] == (
        "| m | 0.60 (0.50 to 0.70) | 0.05 (-0.05 to 0.15) | 0.39 (0.29 to 0.49) | – | 0.50 (0.40 to 0.60) |"
    )


def test_settings_and_conditions_side_by_side():
    rows = [
        *ROWS,
        row("segmentation", 0.1, condition="wrong_task"),
        row("edges", 0.2, "new task"),
        row("segmentation", 0.7, examples=5),
    ]
    lines = markdown(frames.settings_table(frames.scores(rows))).splitlines()
    assert lines[0].startswith("| task | seen | shifted | new encoding |")
    assert len({line.count("|") for line in lines}) == 1
    assert "| segmentation | 0.60 |  | 0.30 |  |  |  |  | 0.10 |" in lines
    assert "| derain | – |  |  |  |  |  |  |  |" in lines
    assert "| edges |  |  |  |  | 0.20 |  |  |  |" in lines
