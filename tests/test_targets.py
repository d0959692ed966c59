"""What was aimed at: every bar's row from its own place in the stored runs."""

import json
import math

import pytest
from test_results import ROWS

from lvmlab.lab import runs, targets
from lvmlab.lab.commands.results import targets as command
from lvmlab.lab.frames import markdown
from lvmlab.utils import paths


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Ships a result as the run of a study."""
    monkeypatch.setattr(paths, "assets", lambda: tmp_path / "assets")
    monkeypatch.setattr(paths, "cache", lambda: tmp_path / "cache")

    def ship(study, config, result):
        runs.promote(runs.save(study, config, result, 1.0)["name"])

    return ship


@pytest.fixture
def evaluated(store):
    store("evaluate", {"model": "mini-teacher", "split": "test"}, ROWS)


def test_figures_of_an_evaluation(evaluated):
    world = runs.DEFAULT.version
    assert targets.seen(world, "segmentation") == 0.6
    assert targets.seen(world, "pose") == 0.39
    assert targets.seen(world, "motion") == 0.5
    assert targets.seen(world, "selection", "skill_low") == pytest.approx(-0.05)
    assert targets.seen(world, "pose", "ceiling") == 0.9
    assert targets.both_right(world, "segmentation") == 0.55
    assert targets.transfer(world, "segmentation") == pytest.approx(0.5)
    assert targets.transfer(world, "pose") == pytest.approx(0.974, abs=0.001)


def test_rows_and_verdicts(evaluated):
    def met(bar, task, sense=">="):
        return targets.Bar(1, "skill", bar, targets.seen, (runs.DEFAULT.version, task), sense).row()

    assert met(0.6, "segmentation") == {
        "issue": 1,
        "what": "skill",
        "bar": 0.6,
        "sense": ">=",
        "figure": 0.6,
        "met": True,
    }
    assert met(0.4, "pose")["met"] is False
    assert met(0.3, "motion")["met"] is True
    assert met(0.3, "motion", "<=")["met"] is False
    assert met(-1.0, "derain") == met(-1.0, "derain") | {"figure": None, "met": False}, "no skill to speak of"
    assert met(0.0, "edges") == met(0.0, "edges") | {"figure": None, "met": False}, "not evaluated"


def test_skill_in_a_new_encoding_counts_where_the_seen_skill_is_high_enough(evaluated):
    with pytest.raises(LookupError, match="does not count"):
        targets.transfer(runs.DEFAULT.version, "segmentation", 0.75)


def test_a_missing_run_gives_no_figure_and_is_not_met(store):
    rows = targets.rows()
    missing = [row for row in rows if not row["what"].startswith("mini:")]
    assert missing and all(row["figure"] is None and row["met"] is False for row in missing)
    assert "| no run | **missed** |" in markdown(targets.table())


def test_perception_contrasts_and_benchmarks(store):
    rows = [
        {"task": "pose", "reads": reads, "score": score} for reads, score in (("codes", 0.2), ("pixels", 0.4))
    ]
    store("perception", {"name": "mini-v2"}, rows)
    store("contrast", {"of": "balancing"}, [-0.3, -0.4, -0.2])
    store("bench", {"precision": "fp32"}, [{"name": "tokenize.mini-v2", "ratio": 0.9}])
    found = {(row["issue"], row["what"]): row for row in targets.rows()}
    assert found[21, "perception, codes over pixels: pose"]["figure"] == 0.5
    assert found[21, "bench: tokenize.mini-v2"]["met"] is True
    effect = found[24, "balancing: primary effect over its 95 % half-width"]
    assert effect["met"] is True and effect["figure"] == pytest.approx(3.0)
    assert found[24, "studies whose primary effect exceeds its half-width, of eight"]["figure"] == 1


def test_the_command_prints_every_bar(capsys):
    command(as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert {tuple(row) for row in rows} == {("issue", "what", "bar", "sense", "figure", "met")}
    assert {row["issue"] for row in rows} == {None, 21, 24}
    assert len({(row["issue"], row["what"]) for row in rows}) == len(rows)
    for row in rows:
        reached = math.nan if row["figure"] is None else row["figure"]
        assert row["met"] is (reached >= row["bar"] if row["sense"] == ">=" else reached <= row["bar"])
