from dataclasses import replace

import numpy as np
import pytest
import torch

from lvmlab.evaluation.perception import perception_ceiling, perception_rows
from lvmlab.lab import perception as study
from lvmlab.lab.perception import Scale, draw, enough, perception, perception_of_pairs
from lvmlab.lab.plots.perception import chart, table
from lvmlab.lab.specialists import GOALS, CodeReader, UNet
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.world import V2, tasks
from lvmlab.world.tasks.base import paint

LAWS = replace(V2, size=32)
ASKED = ("semantic", "selection", "pose", "motion")  # every kind of goal, condition and frames
SCALE = Scale(examples=8, val=4, steps=2, round=1, batch=4)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_preset("tiny-v2", device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def rows(tokenizer, cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "of_size", lambda size: replace(V2, size=size))
        return perception(tokenizer, ASKED, SCALE, name="tiny-v2", workers=0, progress=False)


@pytest.mark.slow
def test_each_task_has_a_row_an_input_with_as_many_steps(rows):
    assert [(r["task"], r["reads"]) for r in rows] == [(t, i) for t in ASKED for i in study.INPUTS]
    for row in rows:
        assert row["metric"] == tasks.get(row["task"]).metric and row["steps"] == 2 == len(row["curve"])
        assert np.isfinite(row["score"]) and row["low"] <= row["score"] <= row["high"]


@pytest.mark.slow
def test_stored_rows_are_read_by_the_evaluation(rows, tokenizer):
    assert {(r["task"], r["reads"], r["score"]) for r in perception_rows(tokenizer.fingerprint)} == {
        (r["task"], r["reads"], r["score"]) for r in rows
    }
    scores = {r["reads"]: r["score"] for r in rows if r["task"] == "pose"}
    assert perception_ceiling(tokenizer.fingerprint, "pose") == scores["codes"]
    assert perception_ceiling(tokenizer.fingerprint, "pose", "pixels") == scores["pixels"]
    assert perception_ceiling("0" * 16, "pose") is None


@pytest.mark.slow
def test_table_and_chart(rows):
    frame = table(rows)
    assert list(frame["task"]) == list(ASKED) and {"pixels", "round trip", "codes"} <= set(frame)
    assert len(chart(rows).patches) == len(rows)


@pytest.mark.slow
def test_pairs_of_ones_own(tokenizer, cache):
    rng = np.random.default_rng(0)
    own = [rng.integers(256, size=(2, 32, 32, 3), dtype=np.uint8) for _ in range(6)]
    found = perception_of_pairs(tokenizer, own, own[:2], SCALE, progress=False)
    assert [r["reads"] for r in found] == list(study.INPUTS) and {r["metric"] for r in found} == {"PSNR"}


def test_an_unknown_task_is_refused(tokenizer):
    with pytest.raises(ValueError, match="no specialist for edges"):
        perception(tokenizer, ["edges"], SCALE)


@pytest.mark.parametrize("task", ["segmentation", "semantic", "selection", "pose"])
def test_the_true_maps_score_best(task):
    examples, goal = draw(task, "val", 4, LAWS, workers=0), GOALS[task]
    targets = torch.from_numpy(examples.targets)
    if goal.kind == "mask":
        maps = 20 * targets.float()[:, None] - 10
    elif goal.kind == "classes":
        maps = 20 * torch.nn.functional.one_hot(targets.long(), goal.channels).movedim(-1, 1).float()
    else:
        from lvmlab.training import auxiliary

        maps = auxiliary.heatmaps(targets[:, auxiliary.JOINTS], 32).clamp(min=1e-9).log()
    right = goal.scores(maps, examples.pairs, examples.encodings, tasks.get(task))
    wrong = goal.scores(maps.flip(-2), examples.pairs, examples.encodings, tasks.get(task))
    assert right.mean() > 0.85 and right.mean() > wrong.mean()
    assert goal.loss(maps, targets) < goal.loss(maps.flip(-2), targets)


def test_selections_condition_is_the_marked_class():
    examples = draw("selection", "val", 4, LAWS, workers=0)
    for pair, target, given in zip(examples.pairs, examples.targets, examples.conditions, strict=True):
        assert given.sum() == 1 and pair.truth["class"] == study.default().classes[given.argmax()]
        assert (target == (pair.truth["mask"] > 0.5)).mean() > 0.97


def test_a_clips_next_frame_is_answered_from_three():
    examples = draw("motion", "val", 2, LAWS, workers=0)
    assert examples.pictures.shape == (2, 3, 32, 32, 3)
    assert np.array_equal(examples.targets[0], examples.pairs[0].label)
    assert np.array_equal(examples.pictures[0, 2], examples.pairs[0].image)


@pytest.mark.parametrize("name", GOALS)
def test_both_networks_give_maps_of_one_shape_and_use_all_they_are_given(name):
    goal, size, grid = GOALS[name], 64, 8
    condition = torch.rand(2, 25, requires_grad=True)
    nets = UNet(goal, size, 3, 25), CodeReader(goal, size, grid, 16, 3, 25, width=24)
    read = torch.rand(2, 9, size, size), torch.randint(16, (2, 3 * grid**2))
    for net, given in zip(nets, read, strict=True):
        for p in net.parameters():
            p.data.add_(0.01 * torch.randn_like(p))
        maps = net(given, condition)
        assert maps.shape == (2, goal.channels, goal.side(size), goal.side(size))
        maps.square().sum().backward()
        assert not [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
        assert condition.grad.any()


def test_training_ends_where_val_gains_no_more():
    rising = [{"step": i, "val": 0.1 * i} for i in range(1, 9)]
    flat = rising + [{"step": i, "val": 0.8} for i in range(9, 13)]
    assert not enough(rising[:4], 0.01) and not enough(rising, 0.01) and enough(flat, 0.01)


def test_regions_are_painted_in_the_sentences_order():
    examples = draw("semantic", "val", 2, LAWS, workers=0)
    pair, encoding = examples.pairs[0], examples.encodings[0]
    painted = paint(pair.truth["masks"] / np.float32(255), encoding)
    assert np.allclose(painted.astype(int), pair.label, atol=2)  # the masks were rounded to bytes


@pytest.mark.slow
def test_a_specialist_that_was_stopped_scores_the_same_when_it_is_asked_again(tokenizer, tmp_path):
    scale = Scale(examples=4, val=2, steps=40, round=1, batch=2, gain=1e9)
    data = {s: draw("segmentation", s, n, LAWS, workers=0) for s, n in (("train", 4), ("val", 2))}
    given = (GOALS["segmentation"], tasks.get("segmentation"), data, tokenizer, scale, tmp_path)
    first, curve = study.fit("pixels", *given, progress=False)
    again, same = study.fit("pixels", *given, progress=False)
    assert len(curve) == 8 and curve == same and np.array_equal(first, again)
