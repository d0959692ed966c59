import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from torch import nn

from lvmlab.training.checkpoints import TrainingError, digest, load_checkpoint, read_log
from lvmlab.training.loop import TrainConfig, train
from lvmlab.utils.locks import FolderInUse

CONFIG = TrainConfig(
    steps=24, lr=1e-2, warmup=4, precision="fp32", save_every=5, log_every=1, accumulation=2, seed=3
)


class Tiny(nn.Module):
    """With dropout, so that the random state counts."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.3), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x):
        return self.layers(x)

    def hidden_matrices(self):
        return [self.layers[0].weight]


def model():
    torch.manual_seed(0)
    return Tiny()


def batches(step, part=0, parts=1):
    number = step * parts + part
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
    return x, x.sum(1, keepdim=True)


def loss(net, batch):
    x, y = batch
    value = (net(x) - y).square().mean()
    return value, {"items": len(x), "spread": y.std().item()}


def run(folder, config=CONFIG, net=None, feed=batches, aim=loss, **options):
    return train(net or model(), feed, aim, config, folder, progress=False, **options)


def losses(log):
    return {r["step"]: r["loss"] for r in log}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The log and weights of a training that nothing interrupts."""
    folder, net = tmp_path_factory.mktemp("whole"), model()
    return losses(run(folder, net=net)), net.state_dict(), folder


CHILD = textwrap.dedent("""
    import sys, time
    sys.path.insert(0, sys.argv[2])
    import test_train as t
    def slow(*place):
        time.sleep(0.05)
        return t.batches(*place)
    t.run(sys.argv[1], feed=slow)
""")


def killed(folder, after):
    """A training in a process of its own, killed once so many steps are logged."""
    here = os.path.dirname(__file__)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), here], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        deadline = time.monotonic() + 60
        while (
            len((folder / "log.jsonl").read_text().splitlines() if (folder / "log.jsonl").exists() else [])
            < after
        ):
            assert child.poll() is None and time.monotonic() < deadline, (
                "the training ended before it could be killed"
            )
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    finally:
        child.kill()


@pytest.mark.slow
@pytest.mark.parametrize("after", random.sample(range(6, 22), 3))
def test_killed_at_a_random_step_and_started_again_it_goes_on_to_the_same_losses(tmp_path, whole, after):
    expected, weights, _ = whole
    killed(tmp_path, after)
    first = load_checkpoint(tmp_path)["step"]
    assert 5 <= first < 24 and [r["step"] for r in read_log(tmp_path)] == list(range(first))
    net = model()
    log = run(tmp_path, net=net)
    assert losses(log) == pytest.approx(expected, abs=2e-6) and list(losses(log)) == list(range(24))
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, weights[name], atol=1e-6, rtol=1e-5)
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == list(
        range(24)
    )
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_it_learns_and_a_finished_training_is_only_read(whole):
    expected, weights, folder = whole
    assert expected[23] < 0.7 * expected[0]
    net = model()

    def never(*place):
        raise AssertionError("work was started")

    assert losses(run(folder, net=net, feed=never)) == expected
    assert all(torch.equal(v, weights[k]) for k, v in net.state_dict().items())


@pytest.mark.slow
def test_a_budget_stops_with_a_checkpoint_and_the_rest_follows(tmp_path, whole):
    run(tmp_path, budget_s=0)
    assert load_checkpoint(tmp_path)["step"] == 1
    assert losses(run(tmp_path)) == pytest.approx(whole[0], abs=2e-6)


@pytest.mark.slow
def test_muon_takes_the_matrices_it_is_given_and_resumes(tmp_path, whole):
    config = dataclasses.replace(CONFIG, optimizer="muon")
    net, through = model(), losses(run(tmp_path / "through", config))
    run(tmp_path / "two", config, budget_s=0)
    assert losses(run(tmp_path / "two", config, net=net)) == pytest.approx(through, abs=2e-6)
    assert through[0] == whole[0][0] and through[23] != pytest.approx(whole[0][23])
    kept = load_checkpoint(tmp_path / "two")["optimizer"]["state"]
    assert "momentum" in kept["layers.0.weight"] and "exp_avg" in kept["layers.3.weight"]
    # one orthogonalised step moves all singular directions alike, AdamW's moves all entries alike
    before, once = (
        model().layers[0].weight.detach(),
        dataclasses.replace(config, steps=1, warmup=0, weight_decay=0.0),
    )
    run(tmp_path / "once", once, net=(moved := model()))
    values = torch.linalg.svdvals(moved.layers[0].weight.detach() - before)
    assert values[-1] > 0.4 * values[0]


@pytest.mark.slow
def test_muon_without_matrices_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Linear names no hidden_matrices"):
        run(tmp_path, dataclasses.replace(CONFIG, optimizer="muon"), net=nn.Linear(4, 1))


@pytest.mark.slow
def test_bf16_and_fp32_in_one_process(tmp_path, whole):
    def aim(net, batch):
        value, metrics = loss(net, batch)
        return value, metrics | {"bf16": float(net(batch[0]).dtype == torch.bfloat16)}

    logs = [
        run(tmp_path / p, dataclasses.replace(CONFIG, precision=p, steps=3), net=model(), aim=aim)
        for p in ("bf16", "fp32")
    ]
    assert [log[0]["bf16"] for log in logs] == [1, 0]
    assert logs[0][0]["loss"] == pytest.approx(whole[0][0], rel=0.02)


@pytest.mark.slow
def test_saving_and_logging_less_often_changes_nothing(tmp_path, whole):
    log = run(tmp_path, dataclasses.replace(CONFIG, save_every=100, log_every=6))
    assert losses(log) == {k: whole[0][k] for k in (0, 6, 12, 18, 23)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, options, message",
    [
        ({"lr": 2e-2}, {}, r"lr: 0.01 there, 0.02 here"),
        ({"precision": "bf16"}, {}, "precision: 'fp32' there, 'bf16' here"),
        ({"seed": 4}, {}, "seed: 3 there"),
        ({}, {"identity": {"data": "v2"}}, "more: {} there, {'data': 'v2'} here"),
        ({}, {"net": nn.Linear(4, 1)}, "parameters: 97 there, 5 here"),
    ],
)
def test_another_configuration_is_refused_and_the_checkpoint_left_alone(whole, change, options, message):
    folder = whole[2]
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    with pytest.raises(TrainingError, match=message):
        run(folder, dataclasses.replace(CONFIG, **change), **options)
    assert before == {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_it_with_a_remedy(tmp_path, bad):
    def breaks(net, batch):
        value, metrics = loss(net, batch)
        return value * (bad if breaks.calls >= 14 else 1), metrics | {
            "calls": (setattr(breaks, "calls", breaks.calls + 1), 0)[1]
        }

    breaks.calls = 0
    with pytest.raises(TrainingError, match="at step 7: lower lr"):
        run(tmp_path, aim=breaks)
    state = load_checkpoint(tmp_path)
    assert state["step"] == 5 and all(v.isfinite().all() for v in state["model"].values())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["truncated", "empty", "other"])
def test_a_damaged_checkpoint_is_refused_and_left_alone(tmp_path, how):
    run(tmp_path, dataclasses.replace(CONFIG, steps=2))
    path = tmp_path / "checkpoint.pt"
    if how == "other":
        torch.save({"model": {}}, path)
    else:
        path.write_bytes(path.read_bytes()[: 0 if how == "empty" else -200])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    with pytest.raises(TrainingError, match="damaged.*move it away"):
        run(tmp_path, dataclasses.replace(CONFIG, steps=2))
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}


def test_a_flipped_byte_is_refused_or_changes_nothing(tmp_path):
    net = model()
    run(tmp_path, dataclasses.replace(CONFIG, steps=2), net=net)
    path = tmp_path / "checkpoint.pt"
    sound, expected = path.read_bytes(), digest(load_checkpoint(tmp_path))
    weights = sound.find(net.layers[0].weight.detach().numpy().tobytes())
    assert weights > 0
    places = [weights, weights + 100, *random.Random(0).sample(range(len(sound)), 60)]
    refused = 0
    for i, place in enumerate(places):
        damaged = bytearray(sound)
        damaged[place] ^= 1 << (i % 8)
        path.write_bytes(damaged)
        try:
            assert digest(load_checkpoint(tmp_path)) == expected
        except TrainingError as error:
            refused += 1
            assert str(path) in str(error) and "move it away" in str(error)
        assert i > 1 or refused == i + 1, "a weight that changed is refused"
    assert refused > 15


def tampered(path, **changed):
    """A checkpoint with other values under a digest that fits them."""
    state = torch.load(path, weights_only=True) | changed
    state["digest"] = digest({k: v for k, v in state.items() if k != "digest"})
    torch.save(state, path)


def test_absurd_steps_and_weights_are_refused_by_name(tmp_path):
    run(tmp_path, dataclasses.replace(CONFIG, steps=2))
    path = tmp_path / "checkpoint.pt"
    tampered(path, step=10**9)
    with pytest.raises(TrainingError, match="holds step 1000000000 of 2: it is damaged"):
        run(tmp_path, dataclasses.replace(CONFIG, steps=2))
    weights = load_weights(path)
    weights["layers.0.weight"][0, 0] = float("nan")
    tampered(path, step=1, model=weights)
    with pytest.raises(TrainingError, match=r"weights that are not finite \(layers.0.weight\)"):
        load_checkpoint(tmp_path)


def load_weights(path):
    return torch.load(path, weights_only=True)["model"]


def test_a_second_launch_is_refused_and_learns_who_runs_since_when(tmp_path):
    def feed(step, part, parts):
        if step == 2 and part == 0:
            with pytest.raises(FolderInUse, match=rf"process {os.getpid()} on \S+ since \d{{4}}-\d\d-\d\d"):
                run(tmp_path)
            feed.tried = True
        return batches(step, part, parts)

    run(tmp_path, feed=feed)
    assert feed.tried and not (tmp_path / "launch.json").exists()


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_with_a_checkpoint(tmp_path, whole, number, code):
    def aim(net, batch):
        aim.calls += 1
        if aim.calls == 7:  # in the fourth step
            os.kill(os.getpid(), number)
        return loss(net, batch)

    aim.calls = 0
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt if code == 130 else SystemExit) as ended:
        run(tmp_path, aim=aim)
    assert code == 130 or ended.value.code == code
    assert load_checkpoint(tmp_path)["step"] == 4 and signal.getsignal(number) is before
    assert losses(run(tmp_path)) == pytest.approx(whole[0], abs=2e-6)


def test_checkpoints_are_written_by_time_too(tmp_path):
    seen = []

    def note(record):
        path = tmp_path / "checkpoint.pt"
        seen.append(path.exists() and load_checkpoint(tmp_path)["step"])

    run(tmp_path, dataclasses.replace(CONFIG, steps=3, save_every=100, save_seconds=1e-6), on_log=note)
    assert seen == [False, 1, 2]


class Mine:
    """Something whose unpickling would run code of ours."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_checkpoint_executes_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(
        {"model": Mine(), "optimizer": [], "step": 0, "random": {}, "identity": "{}"},
        tmp_path / "checkpoint.pt",
    )
    with pytest.raises(TrainingError):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_no_checkpoint(tmp_path):
    with pytest.raises(TrainingError, match="missing"):
        load_checkpoint(tmp_path)


@pytest.mark.slow
def test_accumulation_is_the_mean_over_micro_batches(tmp_path):
    one, two = (nn.Linear(4, 1) for _ in range(2))
    two.load_state_dict(one.state_dict())

    def joined(step, part, parts):
        return tuple(torch.cat(p) for p in zip(*(batches(step, i, 2) for i in range(2)), strict=True))

    a = run(tmp_path / "a", net=one)
    b = run(tmp_path / "b", dataclasses.replace(CONFIG, accumulation=1), net=two, feed=joined)
    assert losses(a) == pytest.approx(losses(b), abs=1e-5)
    torch.testing.assert_close(one.weight, two.weight, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_the_log_has_what_a_reader_needs(whole):
    record = read_log(whole[2])[-1]
    assert {
        "step",
        "loss",
        "mean_loss",
        "spread",
        "norm",
        "lr",
        "items_per_second",
        "seconds",
    } == record.keys()
    assert record["lr"] == pytest.approx(CONFIG.lr_at(23)) and record["items_per_second"] > 0


def test_schedule():
    config = TrainConfig(steps=100, lr=1.0, min_lr=0.1, warmup=10)
    assert config.lr_at(0) == pytest.approx(0.1) and config.lr_at(9) == config.lr_at(10) == 1.0
    assert config.lr_at(55) == pytest.approx(0.55) and config.lr_at(100) == config.lr_at(
        200
    ) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "field, value",
    [
        ("steps", 0),
        ("lr", 0),
        ("min_lr", 1),
        ("warmup", -1),
        ("betas", (0.9, 1.0)),
        ("weight_decay", -1),
        ("clip", -1),
        ("accumulation", 0),
        ("precision", "fp8"),
        ("save_every", 0),
        ("save_seconds", 0),
        ("log_every", 0),
    ],
)
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(ValueError, match=f"TrainConfig.{field}="):
        TrainConfig(**{"steps": 10, field: value})


FULL = textwrap.dedent("""
    import resource, sys
    sys.path.insert(0, sys.argv[2])
    import dataclasses
    import test_train as t
    t.run(sys.argv[1], dataclasses.replace(t.CONFIG, tracker="none"), budget_s=0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # as a full disk does, writing fails after so many bytes
    try:
        t.run(sys.argv[1], dataclasses.replace(t.CONFIG, tracker="none"))
    except t.TrainingError as error:
        print(error)
""")


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, whole):
    here = os.path.dirname(__file__)
    found = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), here], capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr
    assert (
        "the checkpoint of step 5 cannot be written" in found.stdout
        and "the one of before is sound" in found.stdout
    )
    assert load_checkpoint(tmp_path)["step"] == 1 and not list(tmp_path.glob(".*"))
    assert losses(run(tmp_path, dataclasses.replace(CONFIG, tracker="none"))) == pytest.approx(
        whole[0], abs=2e-6
    )


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    run(tmp_path, budget_s=0)
    kept = (tmp_path / "checkpoint.pt").read_bytes()

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("lvmlab.utils.files.os.replace", refused)
    monkeypatch.setattr("lvmlab.training.loop.start_log", lambda *_: None)
    with pytest.raises(
        TrainingError, match=r"cannot be written to .*Permission denied.*make it writable.*before is sound"
    ):
        run(tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_its_batch(tmp_path):
    with pytest.raises(TrainingError, match=r"at step 0 \(batch of photographs 7 and 9\): lower lr"):
        run(
            tmp_path,
            aim=lambda net, batch: (net(batch[0]).sum() * float("nan"), {}),
            batch_sources=lambda batch: "photographs 7 and 9",
        )


@pytest.mark.slow
def test_the_log_goes_to_the_tracker_too(tmp_path):
    run(tmp_path, dataclasses.replace(CONFIG, steps=3))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next(tmp_path.rglob("events.out*")).parent)).Reload()
    assert [e.step for e in events.Scalars("mean_loss")] == [0, 1, 2]


def test_what_decays():
    from lvmlab.training.loop import make_optimizers

    for decay, expected in (("matrices", {0.1: 2, 0.0: 2}), ("all", {0.1: 4})):
        groups = make_optimizers(model(), dataclasses.replace(CONFIG, decay=decay), fused=False, bf16=False)[
            0
        ].param_groups
        found = {
            w: sum(len(g["params"]) for g in groups if g["weight_decay"] == w)
            for w in {g["weight_decay"] for g in groups}
        }
        assert found == expected
    paper = TrainConfig.delvm()
    assert (paper.steps, paper.warmup, paper.decay, paper.lr_at(40_000)) == (
        40_000,
        224,
        "all",
        pytest.approx(1.5e-5),
    )
