"""Every objective against its formula by hand in float64; chunks, masks, caches, and a training with a
teacher.
"""

import json
import os
import resource
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from stores import TOKENIZER, fit_lvm, write_store

from lvmlab.data.mixture import Mixture
from lvmlab.distillation import cache, teacher
from lvmlab.distillation import objectives as distill
from lvmlab.distillation.cache import FrozenSentences, freeze_sentences, write_cache
from lvmlab.distillation.objectives import Distillation
from lvmlab.model.config import LVM_PRESETS
from lvmlab.model.loss import cross_entropy
from lvmlab.model.lvm import LVM
from lvmlab.training.export import load_lvm
from lvmlab.training.loop import TrainConfig
from lvmlab.training.lvm import check_tokenizers
from lvmlab.training.recipe import LVMRecipe
from lvmlab.training.sampler import SentenceSampler
from lvmlab.utils.locks import FolderInUse, hold

M, CODES, WIDTH = 12, 40, 8
SMALL = replace(LVM_PRESETS["tiny"], vocab_size=64, attention_bias=True)
RECIPE = LVMRecipe(tokens=512, phases=((1.0, 2),), mixture=Mixture("natural"))
CONFIG = TrainConfig(steps=4, lr=1e-2, warmup=1, log_every=1, precision="fp32")


@pytest.fixture
def given():
    """hidden, head, targets, weights, and a teacher's predictions of another width."""
    rng = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(M, WIDTH, generator=rng), torch.randn(CODES, WIDTH, generator=rng)
    targets, weights = torch.randint(CODES, (M,), generator=rng), torch.rand(M, generator=rng)
    predictions = teacher.TeacherOutputs(
        torch.randn(M, 6, generator=rng), torch.randn(CODES, 6, generator=rng)
    )
    return hidden, head, targets, weights / weights.sum(), predictions


def loss_of(distillation, predictions, hidden, head, targets, weights, **options):
    return distill.distillation_loss(
        hidden, head, targets, weights, distillation=distillation, predictions=predictions, **options
    )


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def by_hand(objective, hidden, head, targets, weights, predictions):
    """The module's table, written again in float64 with numpy."""
    logits = hidden.double().numpy() @ head.double().numpy().T
    teacher_logits = predictions.hidden.double().numpy() @ predictions.head.double().numpy().T
    t, a, w = objective.temperature, objective.alpha, weights.double().numpy()
    p, q, q1 = softmax(teacher_logits / t), softmax(logits / t), softmax(logits)
    ce = -np.log(q1[np.arange(M), targets])
    kl = lambda x, y: (x * np.log(x / y)).sum(-1)  # noqa: E731
    if s := objective.label_smoothing:
        ce = (1 - s) * ce + s * -np.log(q1).mean(-1)
        return objective.ce * (w * ce).sum()
    mixed = a * p + (1 - a) * q if a else None
    found = {
        "forward": lambda: kl(p, q),
        "reverse": lambda: kl(q, p),
        "skew": lambda: kl(p, mixed),
        "js": lambda: a * kl(p, mixed) + (1 - a) * kl(q, mixed),
    }[objective.divergence]() * (softmax(teacher_logits).max(-1) >= objective.min_confidence)
    return objective.ce * (w * ce).sum() + objective.kd * t * t * (w * found).sum()


@pytest.mark.parametrize(
    "objective",
    [
        Distillation(),
        Distillation(ce=0.5, kd=2.0, temperature=3.0),
        Distillation("reverse", temperature=2.0),
        Distillation("js"),
        Distillation("js", alpha=0.2, temperature=2.0),
        Distillation("skew"),
        Distillation("skew", alpha=0.3, temperature=4.0),
        Distillation(min_confidence=0.4),
        Distillation(None, label_smoothing=0.1),
        Distillation(None, label_smoothing=0.3),
    ],
    ids=lambda o: f"{o.divergence}-{o.temperature}-{o.alpha}",
)
def test_an_objective_is_its_formula(given, objective, monkeypatch):
    hidden, head, targets, weights, predictions = given
    expected = by_hand(objective, *given)
    whole = loss_of(objective, predictions, hidden, head, targets, weights)
    assert whole.item() == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr("lvmlab.model.loss.CHUNK", 5 * CODES)  # three chunks
    trained = hidden.clone().requires_grad_()
    parted = loss_of(objective, predictions, trained, head, targets, weights)
    assert parted.item() == pytest.approx(expected, rel=1e-5)
    parted.backward()
    monkeypatch.undo()
    again = hidden.clone().requires_grad_()
    loss_of(objective, predictions, again, head, targets, weights).backward()
    torch.testing.assert_close(trained.grad, again.grad)


def test_tokens_of_weight_zero_are_left_out(given):
    hidden, head, targets, weights, predictions = given
    weights = weights.clone()
    weights[:6] = 0
    whole = loss_of(Distillation(), predictions, hidden, head, targets, weights)
    later = teacher.TeacherOutputs(predictions.hidden[6:], predictions.head)
    rest = loss_of(Distillation(), later, hidden[6:], head, targets[6:], weights[6:])
    assert whole.item() == pytest.approx(rest.item(), rel=1e-6)
    plain = loss_of(Distillation(kd=0.0), predictions, hidden, head, targets, weights)
    assert plain.item() == pytest.approx(cross_entropy(hidden, head, targets, weights).item(), rel=1e-5)


def test_the_divergence_may_weigh_tokens_of_its_own(given):
    hidden, head, targets, weights, predictions = given
    kd_weights = torch.zeros(M)
    kd_weights[3] = 1
    both = loss_of(Distillation(), predictions, hidden, head, targets, weights, kd_weights=kd_weights)
    nats = distill.divergence((hidden @ head.T)[3:4], predictions.log_probs(slice(3, 4)))
    expected = cross_entropy(hidden, head, targets, weights) + nats[0]
    assert both.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_loss_of_ones_own_is_any_callable(given):
    hidden, head, targets, weights, predictions = given

    def squared(student_logits, teacher_log_probs):
        return (student_logits.log_softmax(-1) - teacher_log_probs).square().mean(-1)

    custom = Distillation(squared, ce=0.0)
    log_q, log_p = (hidden @ head.T).log_softmax(-1), predictions.log_probs(slice(None))
    expected = (weights * (log_q - log_p).square().mean(-1)).sum()
    loss = loss_of(custom, predictions, hidden, head, targets, weights)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert custom.identity["divergence"].endswith("squared") and json.dumps(custom.identity)


def test_eight_bits_say_what_the_teacher_says(given):
    hidden, head, targets, weights, predictions = given
    # a more confident teacher: its least likely codes are far away
    log_probs = (predictions.log_probs(slice(None)) * 3).log_softmax(-1)
    cached = teacher.QuantizedPredictions.of(log_probs)
    assert cached.levels.dtype == torch.uint8
    for objective in (
        Distillation(),
        Distillation("reverse"),
        Distillation("js"),
        Distillation("skew"),
        Distillation(temperature=4.0),
    ):
        exact, found = (
            objective(hidden @ head.T, p).mean() for p in (log_probs, cached.log_probs(slice(None)))
        )
        assert found.item() == pytest.approx(exact.item(), rel=0.02)


def test_the_top_codes_and_their_tail_support_forward_kl_alone(given):
    hidden, head, targets, weights, predictions = given
    top = teacher.TopPredictions.of(predictions.log_probs(slice(None)), 10)
    ids = top.ids
    p, q = predictions.log_probs(slice(None)).exp().double(), (hidden @ head.T).softmax(-1).double()
    tail = [1 - x.gather(-1, ids).sum(-1) for x in (p, q)]
    expected = (p * (p / q).log()).gather(-1, ids).sum(-1) + tail[0] * (tail[0] / tail[1]).log()
    found = loss_of(Distillation(ce=0.0), top, hidden, head, targets, weights)
    assert found.item() == pytest.approx((weights * expected).sum().item(), rel=1e-4)
    for refused in (Distillation("reverse"), Distillation(temperature=2.0), Distillation("js")):
        with pytest.raises(ValueError, match=refused.divergence):
            loss_of(refused, top, hidden, head, targets, weights)
    with pytest.raises(ValueError, match="needs a teacher"):
        loss_of(Distillation(), None, hidden, head, targets, weights)


@pytest.mark.parametrize(
    "field, value",
    [
        ("divergence", "backward"),
        ("ce", -1),
        ("kd", -1),
        ("temperature", 0),
        ("alpha", 0.5),
        ("min_confidence", 2),
        ("label_smoothing", 1),
    ],
)
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(ValueError, match=f"Distillation.{field}="):
        Distillation(**{field: value})


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """A list of eight sentences with a teacher's predictions on it, and the teacher."""
    root = tmp_path_factory.mktemp("frozen")
    write_store(
        root / "store",
        {
            "segmentation": np.random.default_rng(0)
            .integers(0, SMALL.vocab_size, (6, 4, 2, 16))
            .astype(np.uint16)
        },
    )
    sampler = SentenceSampler(root / "store", RECIPE, steps=4, seed=0)
    folder = freeze_sentences(root / "list", sampler, 8, sampler.identity)
    lvm = LVM.from_shape(replace(SMALL, dim=48), seed=1)
    write_cache(folder, lvm, batch=3, progress=False)
    return root, lvm.eval()


def student(where, source, distillation=None, lvm=None, recipe=RECIPE):
    return fit_lvm(
        source,
        where,
        shape=SMALL,
        grid=16,
        config=CONFIG,
        recipe=recipe,
        teacher=lvm,
        distillation=distillation,
    )


def test_a_list_gives_every_sentence_once_an_epoch_in_the_seeds_order(frozen):
    root, lvm = frozen
    one, two = (FrozenSentences(root / "list", 4, seed) for seed in (0, 1))
    rows = [one.rows(step).tolist() for step in range(4)]
    assert sorted(rows[0] + rows[1]) == sorted(rows[2] + rows[3]) == list(range(8)) and rows[:2] != rows[2:]
    assert rows[0] != two.rows(0).tolist()
    halves = [one(1, part, 2) for part in (0, 1)]
    assert {tuple(t) for half in halves for t in half["tokens"].tolist()} == {
        tuple(t) for t in one(1, 0, 1)["tokens"].tolist()
    }
    with pytest.raises(ValueError, match="another list"):
        freeze_sentences(root / "list", None, 9, {})


def test_a_cache_says_what_the_teacher_says_and_goes_on_where_it_was_stopped(frozen):
    root, lvm = frozen
    source = FrozenSentences(root / "list", 4, 0, teacher=lvm.fingerprint())
    batch = source(0, 0, 1)
    exact = teacher.teacher_log_probs(lvm, batch["inputs"]).flatten(0, 1)
    assert batch["predictions"].log_probs(slice(None)).sub(exact).abs().max() < 0.05
    where = root / "list" / f"teacher-{lvm.fingerprint()}"
    kept = np.load(where / "first.npy")
    (where / "cache.json").write_text(json.dumps({"done": 6, "top": None}))
    with pytest.raises(FileNotFoundError, match="6 of 8"):
        FrozenSentences(root / "list", 4, 0, teacher=lvm.fingerprint())
    write_cache(root / "list", lvm, batch=3, progress=False)
    assert (np.load(where / "first.npy") == kept).all()


def test_a_full_disk_ends_the_cache_with_an_error_and_the_rest_follows(frozen, tmp_path):
    root, lvm = frozen
    shutil.copytree(root / "list", tmp_path / "list", ignore=shutil.ignore_patterns("teacher-*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, hard))  # writing fails after so many bytes
    try:
        with pytest.raises(OSError):
            write_cache(tmp_path / "list", lvm, batch=3, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    name = f"teacher-{lvm.fingerprint()}"
    with hold(tmp_path / "list" / name), pytest.raises(FolderInUse, match=rf"process {os.getpid()} on"):
        write_cache(tmp_path / "list", lvm, batch=3, progress=False)
    write_cache(tmp_path / "list", lvm, batch=3, progress=False)
    for part in ("first", "second"):
        arrays = [np.load(where / "list" / name / f"{part}.npy") for where in (root, tmp_path)]
        assert (arrays[0] == arrays[1]).all()


def test_large_codebooks_keep_the_likeliest_codes_and_the_mass_of_the_rest(frozen, tmp_path, monkeypatch):
    root, lvm = frozen
    monkeypatch.setattr(cache, "ALL_CODES", 32)
    monkeypatch.setattr(cache, "TOP", 10)
    shutil.copytree(root / "list", tmp_path / "list", ignore=shutil.ignore_patterns("teacher-*"))
    write_cache(tmp_path / "list", lvm, batch=3, progress=False)
    batch = FrozenSentences(tmp_path / "list", 4, 0, teacher=lvm.fingerprint())(0, 0, 1)
    p = teacher.teacher_log_probs(lvm, batch["inputs"]).flatten(0, 1).exp()
    kept = batch["predictions"]
    assert isinstance(kept, teacher.TopPredictions) and kept.ids.shape == (len(p), 10)
    values, ids = p.topk(10, -1)
    assert torch.equal(kept.ids, ids)
    found = kept.log_probs(slice(None)).exp()
    torch.testing.assert_close(found[:, :10], values, atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(found[:, 10], 1 - values.sum(-1), atol=1e-3, rtol=1e-2)


def test_a_student_learns_from_a_cache_what_it_learns_from_the_teacher(frozen, tmp_path):
    root, lvm = frozen
    plain = FrozenSentences(root / "list", 4, 0)
    cached = FrozenSentences(root / "list", 4, 0, teacher=lvm.fingerprint())
    online = student(tmp_path / "online", plain, Distillation(), lvm)
    kept = student(tmp_path / "cached", cached, Distillation())
    assert [r["loss"] for r in kept] == pytest.approx([r["loss"] for r in online], rel=0.01)
    alone = student(tmp_path / "alone", plain)
    assert alone[-1]["loss"] < alone[0]["loss"] and online[0]["loss"] > alone[0]["loss"]
    with pytest.raises(ValueError, match="needs a teacher"):
        student(tmp_path / "none", plain, Distillation("js"))
    with pytest.raises(ValueError, match="needs the teacher itself"):
        on_policy = FrozenSentences(root / "list", 4, 0, teacher=lvm.fingerprint(), on_policy=0.5)
        student(tmp_path / "own", on_policy, Distillation())


@pytest.mark.parametrize("name", ["on-policy", "smoothing"])
def test_objectives_that_need_more_or_less_than_logits(frozen, tmp_path, name):
    root, lvm = frozen
    recipe, distillation = RECIPE, Distillation(None, label_smoothing=0.1)
    if name == "on-policy":
        recipe, distillation = replace(RECIPE, on_policy=0.5), Distillation(min_confidence=0.5)
    given = None if name == "smoothing" else lvm
    whole = student(tmp_path / "whole", root / "store", distillation, given, recipe)
    assert all(np.isfinite(r["loss"]) for r in whole) and whole[-1]["loss"] < whole[0]["loss"]
    assert load_lvm(tmp_path / "whole").num_parameters == LVM.from_shape(SMALL).num_parameters
    again = student(tmp_path / "again", root / "store", distillation, given, recipe)
    assert [r["loss"] for r in again] == [r["loss"] for r in whole]


def test_a_teacher_of_another_tokenizer_is_refused_before_any_work(frozen, tmp_path):
    root, lvm = frozen
    other = LVM.from_shape(SMALL, seed=1)
    other.config.tokenizer_fingerprint = "f" * 16
    with pytest.raises(
        ValueError, match=f"the teacher was trained on the tokens of tokenizer {'f' * 16}, .*{TOKENIZER}"
    ):
        student(tmp_path / "teacher", root / "store", Distillation(), other)
    with pytest.raises(ValueError, match=f"the model was trained on the tokens of tokenizer {'f' * 16}"):
        fit_lvm(root / "store", tmp_path / "start", start=other, config=CONFIG, recipe=RECIPE)
    assert not list(tmp_path.iterdir())
    with pytest.warns(UserWarning, match=f"the teacher does not say .* the sentences are of {TOKENIZER}"):
        check_tokenizers(LVM.from_shape(SMALL), SimpleNamespace(tokenizer=TOKENIZER), lvm)
