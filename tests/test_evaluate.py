"""Evaluation: rows are complete, deterministic, resumable and honest about what a model that knows nothing
scores.
"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lvmlab.evaluation import scoring
from lvmlab.evaluation.perplexity import answer_loss, entropy, perplexities, picture_losses
from lvmlab.evaluation.prompts import ANSWERS, CONDITIONS, SETTINGS, Job, encode_sentences, plan, sentences
from lvmlab.evaluation.scoring import Scorer, answer_tokens, evaluate, mean_pictures
from lvmlab.evaluation.statistics import resample
from lvmlab.lab import frames
from lvmlab.lab.plots.prompts import sheet, strip
from lvmlab.lab.plots.scores import skill_chart
from lvmlab.model.config import LVM_PRESETS
from lvmlab.model.lvm import LVM
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.utils.images import from_uint8
from lvmlab.world import V1, V2
from lvmlab.world.sentences import sentence

KEYS = {
    "model",
    "task",
    "setting",
    "condition",
    "examples",
    "metric",
    "score",
    "low",
    "high",
    "ceiling",
    "floors",
    "skill",
    "skill_low",
    "skill_high",
    "prompts",
    "sources",
    "seconds",
}


@pytest.fixture(scope="module")
def tokenizer():
    torch.set_num_threads(2)
    return Tokenizer.from_preset("mini", seed=0, device="cpu")


@pytest.fixture(scope="module")
def lvm():
    return LVM.from_shape(replace(LVM_PRESETS["tiny"], max_seq_len=1024, vocab_size=1024)).eval()


def test_rows_have_every_field_and_a_second_call_computes_nothing(tokenizer, lvm, tmp_path, monkeypatch):
    jobs = [
        Job("segmentation", prompts=3, split="val"),
        Job("motion", prompts=3, examples=1, split="val"),
    ]
    rows = evaluate({"x": lvm}, tokenizer, jobs, tmp_path, progress=False)
    assert {r["metric"] for r in rows} == {"IoU", "PSNR", "SSIM"}
    assert all(KEYS <= set(r) for r in rows)
    json.dumps(rows, allow_nan=False)
    monkeypatch.setattr(scoring, "answer_tokens", lambda *a: pytest.fail("answered again"))
    assert evaluate({"x": lvm}, tokenizer, jobs, tmp_path, progress=False) == rows


def test_both_right_takes_the_straight_answers_where_they_are_known(tokenizer, lvm, monkeypatch):
    right, swapped = (
        Job("segmentation", condition=c, prompts=3, split="val") for c in ("right", "conflicting")
    )
    alone = evaluate({"x": lvm}, tokenizer, [swapped], progress=False)
    calls, real = [], scoring.answer_tokens
    monkeypatch.setattr(scoring, "answer_tokens", lambda *a: calls.append(a) or real(*a))
    together = evaluate({"x": lvm}, tokenizer, [right, swapped], progress=False)
    assert len(calls) == 2, "answered again"
    assert alone[-1]["metric"] == "both right" and alone[-1] == together[-1]


def test_the_answers_loss_is_that_of_training_on_it_alone(tokenizer, lvm):
    asked = sentences(Job("pose", prompts=3, examples=2, split="val"))
    found, right = answer_loss(lvm, encode_sentences(tokenizer, asked), tokenizer.tokens_per_image, batch=2)
    for item, loss in zip(asked, found, strict=True):
        tokens = tokenizer.encode(from_uint8(item.pictures())).view(1, -1).clone()
        weights = torch.zeros(tokens.shape).index_fill(
            1, torch.arange(tokens.shape[1] - 64, tokens.shape[1]), 1.0
        )
        assert loss == pytest.approx(lvm(tokens, tokens, weights).item(), rel=1e-4)
    guessed = [
        (
            lvm(encode_sentences(tokenizer, [s])[:, :-1]).argmax(-1)[:, -64:]
            == encode_sentences(tokenizer, [s])[:, -64:]
        )
        .float()
        .mean()
        for s in asked
    ]
    assert right == pytest.approx([float(g) for g in guessed])
    every = picture_losses(lvm, encode_sentences(tokenizer, asked), 64, batch=2)
    assert every.shape == (3, 5, 64) and every[:, -1].mean(1) == pytest.approx(found, rel=1e-5)
    p = lvm(encode_sentences(tokenizer, asked)[:, :-1])[:, -64:].softmax(-1)
    assert entropy(lvm, encode_sentences(tokenizer, asked), 64, batch=2) == pytest.approx(
        -(p * p.log()).sum(-1).detach().numpy(), rel=1e-4
    )
    assert found.shape == (3,) and abs(found.mean() - math.log(1024)) < 0.5, "an untrained model guesses"
    both = perplexities(np.array([0.0, math.log(4)]))
    assert both == pytest.approx(
        {"cross entropy": math.log(2), "perplexity (DeLVM)": 2.0, "perplexity (LVM)": 2.5}
    )


@pytest.mark.slow
def test_every_planned_job_can_be_scored(tokenizer):
    for job in plan(4):
        scorer = Scorer(replace(job, prompts=1), tokenizer)
        assert scorer.floors and np.isfinite(scorer.ceiling[scorer.task.metric]).all(), job


def test_an_untrained_model_has_no_skill(tokenizer, lvm):
    row = evaluate({"x": lvm}, tokenizer, [Job("segmentation", prompts=6, split="val")], progress=False)[0]
    assert row["skill"] is None or row["skill"] < 0.3
    assert row["low"] <= row["score"] <= row["high"]


def test_truth_through_the_tokenizer_has_skill_one_and_the_best_floor_zero():
    scorer = object.__new__(Scorer)
    scorer.job, scorer.sources = Job("segmentation"), np.array(list("aabbcc"))
    scorer.ceiling = {"IoU": np.array([0.9, 0.8, 0.9, 0.8, 0.9, 0.8])}
    scorer.floors = {"query": {"IoU": np.full(6, 0.1)}, "constant": {"IoU": np.full(6, 0.3)}}
    scorer.landmarks = {"all objects": {"IoU": np.full(6, 0.7)}}
    best = scorer._row("IoU", scorer.ceiling["IoU"], "m", 0.0)
    assert best["skill"] == best["skill_low"] == best["skill_high"] == 1.0
    worst = scorer._row("IoU", np.full(6, 0.3), "m", 0.0)
    assert worst["best_floor"] == "constant" and worst["skill"] == 0.0
    assert worst["landmarks"] == {"all objects": pytest.approx(0.7)}, "beside the score, not in the skill"
    scorer.floors["query"]["IoU"] = np.full(6, 0.95)
    assert scorer._row("IoU", np.full(6, 0.3), "m", 0.0)["skill"] is None


def test_intervals_come_from_sources_not_prompts():
    values = np.array([0.0, 1.0] * 50)
    many = resample([values], np.arange(100).astype(str))[0]
    few = resample([values], np.array(["a", "b"] * 50))[0]
    assert math.isclose(many[0], 0.5) and many[1:].std() < 0.1 < few[1:].std()


def test_conditions_change_only_what_they_name():
    right = sentences(Job("segmentation", prompts=2, split="val"))
    shuffled = sentences(Job("segmentation", condition="shuffled_labels", prompts=2, split="val"))
    conflicting = sentences(Job("segmentation", condition="conflicting", prompts=2, split="val"))
    wrong = sentences(Job("segmentation", condition="wrong_task", prompts=2, split="val"))
    for a, s, c, w in zip(right, shuffled, conflicting, wrong, strict=True):
        for other in (s, c, w):
            assert np.array_equal(a.pairs[-1].image, other.pairs[-1].image)
        assert np.array_equal(s.pairs[0].label, a.pairs[1].label)
        assert c.encoding.colours == a.encoding.colours[::-1]
        assert np.abs(c.pairs[0].label.astype(int) - a.pairs[0].label).max() > 50
        assert not np.array_equal(w.pairs[0].image, a.pairs[0].image)


def test_the_query_is_the_same_after_any_number_of_examples():
    one, seven = (sentences(Job("pose", examples=k, prompts=1, split="val"))[0] for k in (1, 7))
    assert len(one.pairs) == 2 and len(seven.pairs) == 8
    assert np.array_equal(one.pairs[-1].image, seven.pairs[-1].image)


def test_trained_objects_are_those_of_the_training_split():
    from lvmlab.world import default

    known = {s.family for s in default().all("objects", "train")}
    found = sentences(Job("selection", "trained objects", prompts=3))
    assert all(pair.source in known for s in found for pair in s.pairs)


@pytest.mark.parametrize(
    "bad",
    [
        {"task": "sing"},
        {"setting": "dream"},
        {"condition": "odd"},
        {"examples": 0},
        {"examples": 8},
        {"task": "category"},
    ],
)
def test_a_job_names_what_is_wrong_with_it(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        Job(**{"task": "pose", **bad})


def test_a_model_of_other_codes_is_refused_before_any_work(tokenizer):
    other = LVM.from_shape("tiny", vocab_size=16)
    with pytest.raises(ValueError, match="codes"):
        evaluate({"x": other}, tokenizer, plan(2), progress=False)


def test_pictures_of_prompts_and_scores(tokenizer, lvm, tmp_path):
    job = Job("derain", prompts=2, split="val")
    asked = sentences(job)
    page = sheet([("derain", asked, [{"copy": s.pairs[-1].image} for s in asked])])
    assert page.width > 1000 and np.asarray(page).std() > 20
    many, _ = strip(asked[0], {name: asked[0].pairs[-1].image for name in "abcdefgh"})
    assert (np.asarray(many)[:, -64:] == asked[0].pairs[-1].label).all(), (
        "the truth is whole, however many answers stand before it"
    )
    rows = evaluate({"x": lvm}, tokenizer, [job], progress=False)
    scores = frames.scores(rows)
    assert "PSNR" in frames.scores_table(scores).to_string()
    assert list(frames.scores_table(scores).landmark) == ["–"]
    marked = frames.scores([rows[0] | {"landmarks": {"all objects": 0.4}}])
    assert list(frames.scores_table(marked).landmark) == ["0.4 (all objects)"]
    stored = frames.scores([{name: value for name, value in rows[0].items() if name != "landmarks"}])
    assert "landmark" not in frames.scores_table(stored)
    if rows[0]["skill"] is not None:
        assert skill_chart(scores[:1]).get_ylabel()


def test_the_plan_covers_every_setting_and_condition():
    jobs = plan()
    assert {j.setting for j in jobs} == set(SETTINGS) and {j.condition for j in jobs} == set(CONDITIONS)
    assert {j.task for j in jobs} == {*V1.trained, *V1.new} and {j.examples for j in jobs} == set(range(1, 8))
    assert len(jobs) == len(set(jobs))
    assert {j.task for j in plan(laws=V2)} == {*V2.trained, *V2.new} - {"category"}


def test_prompts_are_drawn_under_the_laws_and_at_the_size_of_the_tokenizer():
    larger = Tokenizer.from_preset("mini-v2", seed=0, device="cpu")
    for task in ("semantic", "selection"):
        scorer = Scorer(Job(task, prompts=2, split="val"), larger)
        expected = sentence(task, "val", 0, laws=V2).pairs
        assert np.array_equal(scorer.queries[0].image, expected[-1].image)
        assert len(scorer.landmarks) == 1 and not set(scorer.landmarks) & set(scorer.floors)
        row = scorer.rows(scorer.ceiling, "ceiling", 0.0)[0]
        assert row["landmarks"].keys() == scorer.landmarks.keys()


def test_the_gallery_shows_the_worst_answers_one_a_source(tokenizer, lvm, tmp_path):
    from lvmlab.lab.plots.gallery import gallery, worst

    assert worst(np.array([0.9, 0.1, 0.2, 0.0]), ["a", "b", "b", "c"], 3) == [3, 1, 0]
    jobs = [Job("segmentation", prompts=3, split="val")]
    with pytest.raises(FileNotFoundError, match="evaluate"):
        gallery(lvm, "x", tokenizer, jobs, tmp_path)
    evaluate({"x": lvm}, tokenizer, jobs, tmp_path, progress=False)
    assert gallery(lvm, "x", tokenizer, jobs, tmp_path, count=2).width > 300
    with pytest.raises(
        FileNotFoundError, match="segmentation"
    ):  # other weights' answers are not these weights'
        gallery(
            LVM.from_shape(replace(LVM_PRESETS["tiny"], max_seq_len=1024, vocab_size=1024), seed=1),
            "x",
            tokenizer,
            jobs,
            tmp_path,
        )


def test_the_answer_is_the_mean_of_sampled_ones_or_the_greedy_one(tokenizer, lvm):
    asked = encode_sentences(tokenizer, sentences(Job("segmentation", prompts=2, split="val")))
    tokens, again, greedy = (
        torch.cat([*answer_tokens(lvm, asked, 64)]),
        torch.cat([*answer_tokens(lvm, asked, 64)]),
        torch.cat([*answer_tokens(lvm, asked, 64, answers=1)]),
    )
    assert tokens.shape == (2, ANSWERS, 64) and torch.equal(tokens, again) and greedy.shape == (2, 1, 64)
    assert len(tokens[0].unique(dim=0)) > 1
    whole = tokenizer.decode(tokens[0]).mean(0).mul(255).round()
    assert np.abs(mean_pictures(tokenizer, tokens)[0] - whole.permute(1, 2, 0).numpy()).max() <= 1
    with pytest.raises(ValueError, match=r"Job.answers=0"):
        Job("pose", answers=0)
