"""The study of balancing: its arms, its long tail, one arm for real, and that a cut-short one goes on."""

import json

import numpy as np
import pytest

from lvmlab.data.mini_world import World
from lvmlab.data.store import Store
from lvmlab.lab import frames, runs
from lvmlab.lab.studies import balancing as study
from lvmlab.lab.studies import common

TINY = study.Setting(steps=6, tokens=1024, seeds=2, shrink=40, prompts=2, curve=2)


def test_arms_differ_in_mixture_or_data_alone():
    assert len(study.ARMS) <= 12 and len(
        {json.dumps(study.config(name, TINY)) for name in study.ARMS}
    ) == len(study.ARMS)
    whole = study.config("natural", TINY)
    assert all(
        study.config(name, TINY) | {k: whole[k] for k in ("arm", "mixture", "full")} == whole
        for name in study.ARMS
    )
    sizes = {task: np.prod(study.Setting().pairs(task, False)) for task in study.TASKS}
    assert sizes == study.PAIRS and {np.prod(study.Setting().pairs(task, True)) for task in study.TASKS} <= {
        1995,
        2000,
    }


def test_the_tail_has_few_sources():
    rows = [
        row for _, row in World("pose", 6, pairs=15, limit_sources=study.LIMITS["pose"], workers=1).rows(64)
    ]
    assert len(rows) == 90 and 2 <= len({row.source for row in rows}) <= 10
    assert len({row.source for _, row in World("pose", 6, pairs=15, workers=1).rows(64)}) > 10


@pytest.mark.slow
def test_an_arm_is_trained_scored_and_goes_on_where_it_was_stopped(cache):
    record = study.arm("balanced, 10 copies", TINY)
    assert [row["seed"] for row in record["result"]] == [0, 1]
    row = record["result"][0]
    assert [point["step"] for point in row["curve"]] == [0, 3, 5] and set(study.TASKS) <= set(row["curve"][0])
    assert row["curve"][0]["pose"] > row["curve"][-1]["pose"], "it learns"
    assert {s["task"] for s in row["scores"]} == set(study.TASKS)
    assert common.by_seed(frames.trainings({"arm": record}), "pose", "skill").shape == (2, 1)
    loss = row["losses"]["pose"]
    assert (
        loss["perplexity (DeLVM)"] == pytest.approx(np.exp(loss["cross entropy"]))
        and loss["perplexity (LVM)"] >= loss["perplexity (DeLVM)"]
    )
    tail = Store(study.store(TINY, False))
    assert (
        tail.counts()["pose"] == 15 * 31 and Store(study.store(TINY, False), copies=0).counts()["pose"] == 15
    )
    folder = cache / "studies" / record["name"]
    (folder / "seed-1" / "val.json").unlink()  # as if it had been stopped before the last score
    again = study.arm("balanced, 10 copies", TINY, again=True)
    assert [{**r, "seconds": 0} for r in again["result"]] == [{**r, "seconds": 0} for r in record["result"]]
    assert runs.load(record["name"])["config"]["arm"] == "balanced, 10 copies"
