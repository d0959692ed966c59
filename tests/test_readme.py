"""The README's figures are those of the shipped runs, and what it points at exists."""

import re
from pathlib import Path

import pytest
import trainings
from targets import markdown

from lvmlab.lab import runs
from lvmlab.lab.plots.tables import scores_markdown, settings_markdown
from lvmlab.lab.studies import balancing, common, distillation, probing, scaling
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.utils import paths
from lvmlab.world import tasks

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
EVALUATED = [
    row["name"] for row in runs.listing() if row["study"] == "evaluate" and row["where"] == "shipped"
]


@pytest.mark.parametrize("name", EVALUATED)
def test_its_tables_are_those_of_the_shipped_runs(name):
    run = runs.load(name)
    assert run["config"]["split"] == "test" and run["config"]["prompts"] == 200
    assert scores_markdown(run["result"]) in README
    if run["config"]["model"] == "mini-teacher":
        training = Tokenizer.from_pretrained("mini", device="cpu").training
        assert markdown(run["result"], training) in README and settings_markdown(run["result"]) in README


def test_its_tables_of_studies_are_those_of_the_stored_runs():
    for study, arms, names in (
        ("balancing", balancing.ARMS, balancing.TASKS),
        ("distillation", distillation.ARMS, tasks.TRAINED),
    ):
        shipped = {
            row["config"]["arm"]: runs.load(row["name"])
            for row in runs.listing()
            if row["study"] == study
            and row["where"] == "shipped"
            and row["config"]["setting"]["steps"] == 2000
            and row["config"].get("split", "val") == "val"
            and "part" not in row["config"]
        }
        assert common.table({name: shipped[name] for name in arms if name in shipped}, names) in README
    shipped = {
        row["config"]["size"]: runs.load(row["name"])
        for row in runs.listing()
        if row["study"] == "scaling"
        and row["where"] == "shipped"
        and len(row["config"]["setting"]["budgets"]) == 3
    }
    assert all(
        part in README
        for part in scaling.table({name: shipped[name] for name in scaling.SIZES}).split("\n\n")
    )
    shipped = {
        row["config"]["arm"]: runs.load(row["name"])
        for row in runs.listing()
        if row["study"] == "probing"
        and row["where"] == "shipped"
        and row["config"]["setting"]["steps"] == probing.SCALES["study"].steps
    }
    assert probing.markdown(probing.table({name: shipped[name] for name in probing.ARMS})) in README


def test_its_table_of_trainings_is_that_of_the_models_records():
    assert trainings.markdown() in README and set(trainings.ORDER) == {
        path.parent.name for path in (paths.assets() / "models").glob("*/config.json")
    }


def test_every_shipped_model_that_was_scored_is_the_one_that_ships():
    from lvmlab.model.lvm import LVM

    for name in EVALUATED:
        config = runs.load(name)["config"]
        assert LVM.from_pretrained(config["model"], device="cpu").fingerprint() == config["weights"]
        assert Tokenizer.from_pretrained("mini", device="cpu").fingerprint == config["tokenizer"]


def test_the_files_it_names_exist():
    named = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"src=\"([^\":]+)\"", README)
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing and (paths.assets() / "CREDITS.md").is_file()


def test_every_notebook_is_in_its_table():
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"notebooks/{notebook.name}" in README
