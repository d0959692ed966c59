"""Every objective against its formula by hand in float64; chunks, masks, caches, and a training with a
teacher.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from stores import write_store
from torch import nn

from lvmlab.data.mixture import Mixture
from lvmlab.distillation import objectives as distill
from lvmlab.distillation import teacher
from lvmlab.distillation.objectives import Objective, Online
from lvmlab.distillation.teacher import Frozen, freeze, write_cache
from lvmlab.model.config import LVM_PRESETS
from lvmlab.model.loss import cross_entropy
from lvmlab.model.lvm import LVM
from lvmlab.training.loop import TrainConfig
from lvmlab.training.lvm import LVMRecipe, SentenceSampler, load_lvm, train_lvm

M, CODES, WIDTH = 12, 40, 8
SMALL = replace(LVM_PRESETS["tiny"], vocab_size=64, attention_bias=True)
RECIPE = LVMRecipe(tokens=512, phases=((1.0, 2),), mixture=Mixture("natural"))
CONFIG = TrainConfig(steps=4, lr=1e-2, warmup=1, log_every=1, precision="fp32")


@pytest.fixture
def given():
    """hidden, head, targets, weights, and a teacher's word of another width."""
    rng = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(M, WIDTH, generator=rng), torch.randn(CODES, WIDTH, generator=rng)
    targets, weights = torch.randint(CODES, (M,), generator=rng), torch.rand(M, generator=rng)
    word = Online(torch.randn(M, 6, generator=rng), torch.randn(CODES, 6, generator=rng))
    return hidden, head, targets, weights / weights.sum(), word


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def by_hand(objective, hidden, head, targets, weights, word):
    """The module's table, written again in float64 with numpy."""
    logits = hidden.double().numpy() @ head.double().numpy().T
    teacher_logits = word.hidden.double().numpy() @ word.head.double().numpy().T
    t, a, w = objective.temperature, objective.amount, weights.double().numpy()
    p, q, q1 = softmax(teacher_logits / t), softmax(logits / t), softmax(logits)
    ce = -np.log(q1[np.arange(M), targets])
    kl = lambda x, y: (x * np.log(x / y)).sum(-1)  # noqa: E731
    if objective.name == "smoothing":
        ce = (1 - a) * ce + a * -np.log(q1).mean(-1)
        return objective.ce * (w * ce).sum()
    mixed = a * p + (1 - a) * q if a else None
    found = {
        "forward": lambda: kl(p, q),
        "reverse": lambda: kl(q, p),
        "skew": lambda: kl(p, mixed),
        "js": lambda: a * kl(p, mixed) + (1 - a) * kl(q, mixed),
        "own": lambda: kl(p, q) * (softmax(teacher_logits).max(-1) >= objective.sure),
    }[objective.name]()
    return objective.ce * (w * ce).sum() + objective.kd * t * t * (w * found).sum()


@pytest.mark.parametrize(
    "objective",
    [
        Objective(),
        Objective(ce=0.5, kd=2.0, temperature=3.0),
        Objective("reverse", temperature=2.0),
        Objective("js"),
        Objective("js", amount=0.2, temperature=2.0),
        Objective("skew"),
        Objective("skew", amount=0.3, temperature=4.0),
        Objective("own", sure=0.4),
        Objective("smoothing"),
        Objective("smoothing", amount=0.3),
    ],
    ids=lambda o: f"{o.name}-{o.temperature}-{o.amount}",
)
def test_an_objective_is_its_formula(given, objective, monkeypatch):
    hidden, head, targets, weights, word = given
    expected = by_hand(objective, *given)
    whole = distill.criterion(objective, word)(hidden, head, targets, weights)
    assert whole.item() == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr("lvmlab.model.loss.CHUNK", 5 * CODES)  # three chunks
    trained = hidden.clone().requires_grad_()
    parted = distill.criterion(objective, word)(trained, head, targets, weights)
    assert parted.item() == pytest.approx(expected, rel=1e-5)
    parted.backward()
    monkeypatch.undo()
    again = hidden.clone().requires_grad_()
    distill.criterion(objective, word)(again, head, targets, weights).backward()
    torch.testing.assert_close(trained.grad, again.grad)


def test_hidden_states_are_compared_through_a_projection(given):
    hidden, head, targets, weights, word = given
    projection = nn.Linear(WIDTH, 6, bias=False)
    found = distill.criterion(Objective("hidden", ce=0.0), word, projection=projection)(
        hidden, head, targets, weights
    )
    ours, theirs = (hidden @ projection.weight.T).detach().double(), word.hidden.double()
    unit = [x / x.square().mean(-1, keepdim=True).sqrt() for x in (ours, theirs)]
    assert found.item() == pytest.approx(
        (weights * (unit[0] - unit[1]).square().mean(-1)).sum().item(), rel=1e-5
    )


def test_tokens_of_weight_zero_are_left_out(given):
    hidden, head, targets, weights, word = given
    weights = weights.clone()
    weights[:6] = 0
    whole = distill.criterion(Objective(), word)(hidden, head, targets, weights)
    rest = distill.criterion(Objective(), word.part(slice(6, None)))(
        hidden[6:], head, targets[6:], weights[6:]
    )
    assert whole.item() == pytest.approx(rest.item(), rel=1e-6)
    plain = distill.criterion(Objective(kd=0.0), word)(hidden, head, targets, weights)
    assert plain.item() == pytest.approx(cross_entropy(hidden, head, targets, weights).item(), rel=1e-5)


def test_eight_bits_say_what_the_teacher_says(given):
    hidden, head, targets, weights, word = given
    log = word.log() * 3  # a surer teacher: its least likely codes are far away
    cached = teacher.Levels(
        *(x.to(torch.uint8) if i == 0 else x for i, x in enumerate(teacher._levels(log.log_softmax(-1))))
    )
    for objective in (
        Objective(),
        Objective("reverse"),
        Objective("js"),
        Objective("skew"),
        Objective(temperature=4.0),
    ):
        exact, found = (
            distill.divergence(objective, p, hidden @ head.T).mean()
            for p in (log.log_softmax(-1), cached.log())
        )
        assert found.item() == pytest.approx(exact.item(), rel=0.02)


def test_the_top_codes_and_their_tail_support_forward_kl_alone(given):
    hidden, head, targets, weights, word = given
    ids, values = teacher._top(word.log(), 10)
    top = teacher.Top(ids, values)
    p, q = word.log().exp().double(), (hidden @ head.T).softmax(-1).double()
    tail = [1 - x.gather(-1, ids).sum(-1) for x in (p, q)]
    expected = (p * (p / q).log()).gather(-1, ids).sum(-1) + tail[0] * (tail[0] / tail[1]).log()
    found = distill.criterion(Objective(ce=0.0), top)(hidden, head, targets, weights)
    assert found.item() == pytest.approx((weights * expected).sum().item(), rel=1e-4)
    for refused in (Objective("reverse"), Objective(temperature=2.0), Objective("js")):
        with pytest.raises(ValueError, match=refused.name):
            distill.criterion(refused, top)
    with pytest.raises(ValueError, match="'own' needs the teacher itself"):
        distill.criterion(Objective("own"), top)
    with pytest.raises(ValueError, match="needs a teacher"):
        distill.criterion(Objective())


@pytest.mark.parametrize(
    "field, value",
    [("name", "backward"), ("ce", -1), ("kd", -1), ("temperature", 0), ("sure", 2), ("share", 0)],
)
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(ValueError, match=f"Objective.{field}="):
        Objective(**{field: value})


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """A list of eight sentences with a teacher's word on it, and the teacher."""
    root = tmp_path_factory.mktemp("frozen")
    write_store(
        root / "store",
        {
            "segmentation": np.random.default_rng(0)
            .integers(0, SMALL.vocab_size, (6, 4, 2, 16))
            .astype(np.uint16)
        },
    )
    drawn = SentenceSampler(root / "store", RECIPE, steps=4, seed=0, tokens_per_image=16)
    folder, lvm = (
        freeze(root / "list", drawn, 8, drawn.identity),
        LVM.from_shape(replace(SMALL, dim=48), seed=1),
    )
    write_cache(folder, lvm, batch=3, progress=False)
    return root, lvm.eval()


def student(where, source, objective=None, lvm=None, **options):
    return train_lvm(
        source,
        where,
        shape=SMALL,
        config=CONFIG,
        recipe=RECIPE,
        tokens_per_image=16,
        teacher=lvm,
        objective=objective,
        progress=False,
        **options,
    )


def test_a_list_gives_every_sentence_once_an_epoch_in_the_seeds_order(frozen):
    root, lvm = frozen
    one, two = (Frozen(root / "list", 4, seed) for seed in (0, 1))
    rows = [one.rows(step).tolist() for step in range(4)]
    assert sorted(rows[0] + rows[1]) == sorted(rows[2] + rows[3]) == list(range(8)) and rows[:2] != rows[2:]
    assert rows[0] != two.rows(0).tolist()
    halves = [one(1, part, 2) for part in (0, 1)]
    assert {tuple(t) for half in halves for t in half["tokens"].tolist()} == {
        tuple(t) for t in one(1, 0, 1)["tokens"].tolist()
    }
    with pytest.raises(ValueError, match="another list"):
        freeze(root / "list", None, 9, {})


def test_a_cache_says_what_the_teacher_says_and_goes_on_where_it_was_stopped(frozen):
    root, lvm = frozen
    source = Frozen(root / "list", 4, 0, teacher=lvm.fingerprint())
    batch = source(0, 0, 1)
    exact = teacher.said(lvm, batch["read"]).log()
    assert batch["word"].log().sub(exact).abs().max() < 0.05
    where = root / "list" / f"teacher-{lvm.fingerprint()}"
    kept = np.load(where / "first.npy")
    (where / "cache.json").write_text(json.dumps({"done": 6, "top": None}))
    with pytest.raises(FileNotFoundError, match="6 of 8"):
        Frozen(root / "list", 4, 0, teacher=lvm.fingerprint())
    write_cache(root / "list", lvm, batch=3, progress=False)
    assert (np.load(where / "first.npy") == kept).all()


@pytest.mark.slow
def test_a_student_learns_from_a_cache_what_it_learns_from_the_teacher(frozen, tmp_path):
    root, lvm = frozen
    plain, cached = Frozen(root / "list", 4, 0), Frozen(root / "list", 4, 0, teacher=lvm.fingerprint())
    online = student(tmp_path / "online", plain, Objective(), lvm)
    kept = student(tmp_path / "cached", cached, Objective())
    assert [r["loss"] for r in kept] == pytest.approx([r["loss"] for r in online], rel=0.01)
    alone = student(tmp_path / "alone", plain)
    assert alone[-1]["loss"] < alone[0]["loss"] and online[0]["loss"] > alone[0]["loss"]
    with pytest.raises(ValueError, match="needs a teacher"):
        student(tmp_path / "none", plain, Objective("js"))
    with pytest.raises(ValueError, match="its cache does not do"):
        student(tmp_path / "hidden", cached, Objective("hidden"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hidden", "own", "smoothing"])
def test_objectives_that_need_more_or_less_than_logits(frozen, tmp_path, name):
    root, lvm = frozen
    given = None if name == "smoothing" else lvm
    whole = student(tmp_path / "whole", root / "store", Objective(name), given)
    assert all(np.isfinite(r["loss"]) for r in whole) and whole[-1]["loss"] < whole[0]["loss"]
    assert load_lvm(tmp_path / "whole").num_parameters == LVM.from_shape(SMALL).num_parameters
    again = student(tmp_path / "again", root / "store", Objective(name), given)
    assert [r["loss"] for r in again] == [r["loss"] for r in whole]
