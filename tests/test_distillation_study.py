"""The studies of distillation and of scaling: their arms, one of each kind for real, and the law's fit."""

import json

import numpy as np
import pandas as pd
import pytest

from lvmlab.lab import frames
from lvmlab.lab.studies import common, scaling
from lvmlab.lab.studies import distillation as study
from lvmlab.model.lvm import LVM

TINY = study.Setting(
    steps=4, tokens=1024, seeds=2, groups=2, prompts=2, curve=2, tune=2, teacher_steps=2, precision="fp32"
)


@pytest.fixture(scope="module")
def cache(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "LRS", (1e-3, 2e-3))
        yield cache


def test_arms_differ_in_what_they_say_alone():
    whole = study.config("alone", TINY)
    assert len({json.dumps(study.config(name, TINY)) for name in study.ARMS}) == len(study.ARMS)
    named = ("arm", "distillation", "on_policy", "shape", "only", "times")
    assert all(study.config(name, TINY) | {k: whole[k] for k in named} == whole for name in study.ARMS)
    student, teacher = (LVM.from_shape(shape).num_parameters for shape in (study.MICRO, study.TEACHER))
    assert study.ARMS["alone, the teacher's compute too"].times == pytest.approx(
        1 + 2 * teacher / (6 * student), rel=0.05
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alone", "forward", "pose, forward"])
def test_an_arm_tunes_trains_and_scores(cache, name):
    record = study.arm(name, TINY)
    assert [row["seed"] for row in record["result"]] == [0, 1]
    row = record["result"][0]
    tuning = study.tuning(name, TINY)["result"]
    assert [one["lr"] for one in tuning] == [1e-3, 2e-3] and row["lr"] == min(
        tuning, key=lambda one: one["loss"]
    )["lr"]
    assert set(row["losses"]) == (
        {"pose"} if "pose" in name else {"segmentation", "selection", "pose", "derain", "motion"}
    )
    assert 0 <= row["losses"]["pose"]["accuracy"] <= 1 and row["flops"]["student"] > 0
    assert (row["flops"]["teacher"] > 0) == (name != "alone")
    changes = study.gains(frames.trainings({name: record}), [name], against=name)
    assert set(changes.task) == set(row["losses"]) and (changes[["mean", "low", "high"]] == 0).all(axis=None)
    assert "seeds each" in common.provenance({name: record})
    assert ("teacher" in row) == (name == "pose, forward") and all(
        loss > 0 for loss in row.get("teacher", {}).values()
    )


def test_the_share_of_the_gap_by_hand():
    def record(*losses):
        rows = [{"losses": {"pose": {"cross entropy": loss}}} for loss in losses]
        return {"result": [row | {"seed": seed} for seed, row in enumerate(rows)]}

    rows = frames.trainings({"alone": record(3.0, 3.2), "taught": record(2.5, 2.9)})
    ((task, teacher, student, share, low, high),) = study.closed(rows, "taught", {"pose": 2.0}).to_numpy()
    assert (task, teacher, student) == ("pose", 2.0, pytest.approx(3.1))
    assert share == pytest.approx((0.5 / 1.0 + 0.3 / 1.2) / 2) and low < share < high


def test_val_drops_objectives_early(cache, monkeypatch):
    ends = dict(zip(study.SCREENED, (3.0, 1.0, 2.0, 4.0), strict=True))
    monkeypatch.setattr(
        study,
        "tuning",
        lambda name, setting, **_: {"result": [{"lr": 1e-3, "loss": ends[name]}, {"lr": 2e-3, "loss": 9.0}]},
    )
    assert set(study.ARMS) - set(study.chosen(TINY)) == {"reverse", "on-policy"}


@pytest.mark.slow
def test_a_size_trains_along_a_trunk(cache):
    setting = scaling.Setting(
        budgets=(5, 10), tokens=1024, seeds=1, groups=2, prompts=2, tune=2, precision="fp32"
    )
    record = scaling.size("0.3M", setting)
    assert [(row["budget"], row["tokens"]) for row in record["result"]] == [(5, 6 * 1024), (10, 12 * 1024)]
    points = scaling.points({"0.3M": record})
    assert points[["parameters", "tokens", "loss", "skill"]].shape == (2, 4)


def test_the_law_is_found_again_where_it_holds():
    n, d = (x.ravel() for x in np.meshgrid([0.3e6, 0.6e6, 1e6, 2.6e6], [1.2e6, 2.4e6, 4.9e6]))
    truth = {"E": 2.0, "A": 0.5, "a": 0.6, "B": 1.5, "b": 0.5}
    found = pd.DataFrame({"parameters": n, "tokens": d, "loss": scaling.predicted(truth, n, d)})
    assert scaling.law(found) == pytest.approx(truth, rel=0.1)
    spread = scaling.left_out(found)
    assert list(spread.constant) == list(truth)
    assert (spread.low <= spread.value * 1.01).all() and (spread.value <= spread.high * 1.01).all()
