"""The benchmarks' register and file; no speed is asserted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.tokenizer.vqgan import VQGAN, VQGANConfig

NAMES = {
    "world.render",
    "tokenizer.encode.mini",
    "tokenizer.encode.f16-8192",
    "train.mini-student",
    "train.mini-teacher",
    "train.80m",
    "train.300m",
    "train.layers",
    "train.loss",
    "train.muon",
    "train.resumed",
    "kd.cached",
    "complete.answers",
    "generate.mini-student",
    "generate.mini-teacher",
    "generate.300m",
    "generate.second-answer",
    "generate.batch",
    "generate.constrained",
    "store.rows",
    "store.memory",
    "tokenize.mini",
    "tokenize.f16-8192",
    "probe.extract",
    "probe.attentive",
    "import",
}
KEYS = {"name", "ours", "theirs", "ratio", "unit", "limit", "what"}


@pytest.fixture
def bench(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "benchmarks"))
    import bench

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(bench.REPEATS, "import", 1)
    return bench


def test_the_promised_entries_are_registered(bench):
    assert set(bench.ENTRIES) == set(bench.ORDER) == NAMES


def test_a_row_is_written_and_rows_of_other_entries_are_kept(bench, capsys):
    other, stale = ({"name": name, "ours": 1.0} for name in ("world.render", "import/old"))
    Path("runs").mkdir()
    Path("runs/bench.json").write_text(json.dumps([stale, other]))
    (found,) = bench.run(["import"])
    assert KEYS <= set(found) and found["limit"] == 1.3 and found["unit"] == "s"
    assert found["ratio"] == pytest.approx(found["ours"] / found["theirs"], rel=1e-3)
    assert json.loads(Path("runs/bench.json").read_text()) == [other, found]
    assert [path.name for path in Path("runs").iterdir()] == ["bench.json"]
    printed = capsys.readouterr()
    assert "import" in printed.out and "by the probe" in printed.out and "[1/1] import" in printed.err


def test_limits_are_judged_as_each_row_says(bench):
    def ok(ours, theirs, limit, judged):
        return bench.Row("x", ours, theirs, ours / theirs, "u", limit, "w", judged).ok

    assert ok(2.0, 1.0, 1.8, "ratio, at least") is True and ok(1.5, 1.0, 1.8, "ratio, at least") is False
    assert (
        ok(1.0, 1.0, 1.3, "ratio, at most") is True and ok(1.0, float("nan"), 1.3, "ratio, at most") is False
    )
    assert (
        ok(299.0, 100.0, 300.0, "ours, at least") is False and ok(1.0, 2.0, None, "ratio, at least") is None
    )
    share = [ok(ours, 1.0, 0.5, "share") for ours in (0.4, 0.6, 1.01)]
    assert share == [False, True, False]
    missed = bench.Row("x", 1.0, 1.0, 1.0, "u", 1.8, "w")
    assert "missed" in bench.table([missed]) and ">= 1.8" in bench.table([missed])


def test_an_unknown_name_is_an_error_that_lists_the_known_ones(bench):
    with pytest.raises(ValueError, match="'nothing'") as error:
        bench.run(["import", "nothing"])
    assert all(name in str(error.value) for name in NAMES) and not Path("runs").exists()


def test_a_damaged_file_is_an_error_before_anything_is_measured(bench):
    Path("runs").mkdir()
    Path("runs/bench.json").write_text("{")
    with pytest.raises(ValueError, match="bench.json"):
        bench.run(["import"])


@pytest.mark.parametrize("cosine", [True, False])
def test_the_loops_encoding_is_measured_against_give_the_same_tokens(bench, cosine):
    import bench_models

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, images = VQGAN(replace(VQGANConfig.preset("tiny"), cosine=cosine)), torch.rand(6, 3, 16, 16)
    tokenizer = Tokenizer(net, precision="fp32")
    tokens, plain = tokenizer.encode(images), bench_models.plain_copy(tokenizer)
    assert bench_models.plain_encode(plain, images, 4).shape == tokens.shape
    assert (bench_models.plain_encode(plain, images, 4) == tokens).float().mean() > 0.95
    assert (bench_models.plain_encode(tokenizer.net, images, 4, tuned=True) == tokens).float().mean() > 0.9


@pytest.fixture
def toy(bench, monkeypatch):
    """The entries' own code on tiny shapes, few inputs and one repeat; nothing is compiled."""
    import bench_generate
    import bench_models
    import bench_probe
    import bench_steps
    import bench_store
    import bench_training

    from lvmlab.model.config import LVM_PRESETS
    from lvmlab.model.lvm import LVM
    from lvmlab.tokenizer import tokenizer

    for name in ("mini-student", "mini-teacher", "80m", "300m"):
        context = {"max_seq_len": 2048, "vocab_size": 1024, "attention_bias": True}
        monkeypatch.setitem(LVM_PRESETS, name, replace(LVM_PRESETS["tiny"], **context))
    monkeypatch.setitem(tokenizer.PRESETS, "f16-8192", VQGANConfig.preset("tiny"))
    sizes = {
        bench: {"RENDERED": 1, "GROUP": 2},
        bench_generate: {"N": 3, "REPEATS": 1, "PROMPTS": 2, "ROWS": 2, "READ": 2**20, "COMPILER": False},
        bench_models: {"PICTURES": 4, "PROMPTS": 2, "REPEATS": 1, "ANSWERED": 1, "TOKENS": 4},
        bench_probe: {"PICTURES": 2, "BATCH": 1, "MANY": 60, "EPOCHS": 1},
        bench_steps: {"STEPS": 1, "SENTENCES": 1, "PRODUCTS": (64, 128), "LOSSES": 8, "COMPILER": False},
        bench_store: {"ROWS": 100, "BATCH": 2, "BATCHES": 2, "MANY": 1000, "PART": 500, "FILES": (2, 2)},
        bench_training: {"SENTENCES": 8, "LENGTH": 64, "STEPS": 1, "KILLS": 1, "LARGE": ("tiny", "256")},
    }
    for module, values in sizes.items():
        for name, value in values.items():
            assert hasattr(module, name), f"{module.__name__}.{name}"
            monkeypatch.setattr(module, name, value)
    monkeypatch.setitem(bench.REPEATS, "world.render", 1)
    monkeypatch.setattr(bench_generate, "shipped", LVM.from_shape)
    return bench


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NAMES - {"import"}))
def test_each_entry_measures_at_toy_size(toy, name):
    rows = list(toy.ENTRIES[name]())
    assert rows and all(row.name.split("/")[0] == name for row in rows)
    assert all(row.ours > 0 and row.theirs > 0 for row in rows if row.unit != "skill")
    assert all(KEYS <= set(row.record()) and len(row.what) > 40 for row in rows)
