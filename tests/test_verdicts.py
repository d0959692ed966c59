"""What studies' verdicts rest on: floors of losses, best points, declared outcomes, correlations within
groups.
"""

import numpy as np
import pandas as pd
import pytest

from lvmlab.lab import frames
from lvmlab.lab.studies import balancing, common, probing, scaling


def curve(*points):
    """(step, the task trained since the point before, losses of segmentation, derain and pose)."""
    return [
        {"step": step, "shares": {trained: 1.0}, "segmentation": a, "derain": b, "pose": c}
        for step, trained, a, b, c in points
    ]


@pytest.fixture
def curves():
    training = curve(
        (0, "segmentation", 7.0, 7.0, 7.0),
        (50, "segmentation", 4.0, 6.0, 3.2),
        (100, "derain", 5.0, 4.5, 3.1),
        (150, "pose", 9.0, 8.0, 2.5),
        (199, "pose", 9.5, 8.5, 4.0),
    )
    records = {"sequential": {"result": [{"seed": seed, "curve": training} for seed in range(2)]}}
    return frames.curves(records)


def test_a_task_that_was_never_trained_has_a_loss(curves):
    losses = balancing.never_trained(curves).set_index("task")["mean"]
    assert losses["derain"] == 6.0 and losses["pose"] == 3.1
    assert np.isnan(losses["segmentation"]), "it is trained from the start"


def test_the_best_point_stands_beside_the_end(curves):
    points = frames.best_points(curves)
    pose = points[(points.task == "pose") & (points.seed == 0)].iloc[0]
    assert (pose.best, pose.step, pose.end) == (2.5, 150, 4.0)
    assert len(points) == 6


def test_holm_by_hand():
    assert common.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert common.holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])


def test_the_mean_over_tasks_is_the_primary_outcome():
    rng = np.random.default_rng(0)
    shift = dict(zip(list(balancing.ARMS)[:4], (0.0, -0.5, 0.2, -0.5), strict=True))
    rows = pd.DataFrame(
        {"arm": arm, "seed": seed, "task": task, "loss": 4 + change + 0.01 * rng.random()}
        for arm, change in shift.items()
        for task in balancing.TASKS
        for seed in range(4)
    )
    primary, tasks = balancing.primary_effects(rows), balancing.effects(rows)
    assert list(primary.effect) == ["sampling", "augmentation", "interaction"]
    assert primary["mean"].to_numpy() == pytest.approx([0.1, -0.6, -0.2], abs=0.02)
    assert len(tasks) == 9 and (tasks.p <= 1).all()
    raw = [common.p_value(np.random.default_rng(1).normal(size=5)) for _ in range(3)]
    assert (common.holm(raw) >= raw).all()
    of_tasks = tasks.groupby("effect", sort=False)["mean"].mean()
    assert of_tasks.to_numpy() == pytest.approx(primary["mean"].to_numpy())


def test_the_laws_floor_has_a_profile():
    n, d = (x.ravel() for x in np.meshgrid([0.3e6, 0.6e6, 1e6, 2.6e6], [1.2e6, 2.4e6, 4.9e6]))
    truth = {"E": 1.0, "A": 0.5, "a": 0.6, "B": 1.5, "b": 0.5}
    points = pd.DataFrame({"parameters": n, "tokens": d, "loss": scaling.predicted(truth, n, d)})
    lines = scaling.profile(points, (0.0, 1.0, 1.4)).set_index("E")
    assert lines.rms.idxmin() == 1.0 and lines.rms[1.0] < 1e-4 < lines.rms[0.0]
    assert (lines.rms <= lines.largest).all()


def test_correlations_within_groups():
    points = pd.DataFrame(
        {
            "arm": ["a"] * 3 + ["b"] * 3,
            "tokens": [1e6, 2e6, 4e6] * 2,
            "loss": [4.0, 3.9, 3.8, 2.0, 1.9, 1.8],
            "skill": [0.0, 0.1, 0.2, 0.7, 0.6, 0.5],
        }
    )
    within = scaling.correlations(points).set_index("within").correlation
    assert within["size a"] == pytest.approx(-1) and within["size b"] == pytest.approx(1)
    assert within["all"] < 0
    assert within["2.0M tokens"] == pytest.approx(-1)


def test_a_correlation_over_two_sizes_may_be_none_within_them(monkeypatch):
    def row(objective, score):
        return {"seed": 0, "objective": objective, "linear": {"blocks": [{"score": score}], "best": 0}}

    monkeypatch.setattr(probing, "GRID", ("small", "aim-mini"))
    records = {
        "small": {"result": [row(0.6, 0.1), row(0.7, 0.2), row(0.65, 0.15)]},
        "aim-mini": {"result": [row(0.1, 0.8), row(0.2, 0.9), row(0.15, 0.85)]},
    }
    within = probing.correlations(records).set_index("within").correlation
    assert within["all"] < -0.9
    assert within["small"] == pytest.approx(1) and within["aim-mini"] == pytest.approx(1)
