import json
from dataclasses import replace

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

from lvmlab.lab import runs
from lvmlab.lab.plots import tokenizer as draw
from lvmlab.lab.studies import tokenizer as study
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.tokenizer.vqgan import VQGANConfig
from lvmlab.training.checkpoints import TrainingError, digest, load_checkpoint
from lvmlab.training.loop import TrainConfig
from lvmlab.training.tokenizer import (
    FSQ_LEVELS,
    KINDS,
    Pool,
    TokenizerRecipe,
    TrainingVQGAN,
    evaluate,
    train_tokenizer,
)
from lvmlab.training.tokenizer_export import export_tokenizer, load_training
from lvmlab.utils import paths
from lvmlab.world.sentences import sentence

matplotlib.use("Agg")
TINY = VQGANConfig.preset("tiny")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_preset("tiny", device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """24 noisy pictures of 16 px, six of each kind."""
    path = tmp_path_factory.mktemp("pool") / "few.npy"
    rng = np.random.default_rng(0)
    np.save(path, rng.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8))
    np.save(path.with_name("few-kinds.npy"), np.arange(24, dtype=np.uint8) % len(KINDS))
    return path


@pytest.fixture(scope="module")
def record():
    """A made-up run: FSQ is higher in every score but IoU, where the seeds disagree."""
    values = {"vq": (20.0, 20.1, 20.2), "fsq": (21.0, 21.2, 21.1)}
    rows = [
        {
            "quantiser": q,
            "seed": s,
            "codes": 16,
            "seconds": 1.0,
            "curve": [[0, 1.0], [10, 0.5]],
            "scores": {m: (0.5 + s * (1 if q == "vq" else -1) if m == "iou" else v) for m in study.SCORES},
        }
        for q, of in values.items()
        for s, v in enumerate(of)
    ]
    return {
        "name": "x",
        "config": {"seeds": 3, "steps": 11, "batch": 2},
        "seconds": 60.0,
        "commit": "c",
        "versions": {"torch": "2"},
        "result": rows,
    }


def pictures(count=3, size=16):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_every_figure_stands_on_white(tokenizer, record):
    tokens = tokenizer.encode(pictures())
    use = study.code_use(tokens, tokenizer.codebook_size)
    rows = [
        study._row(kind, code, metric, np.array([0.5, 0.7]), ["a", "b"])
        for code in ("tokens", "mean colours")
        for kind, metric in (("masks", "IoU"), ("masks", "PSNR"), ("photographs", "PSNR"))
    ]
    figures = [
        draw.token_picture(tokenizer, pictures()[0]),
        draw.one_token(tokenizer, tokens[0], 5, 3),
        draw.reach_map(study.reach(tokenizer, pictures(1))[0]),
        draw.codebook_sheet(tokenizer, use, columns=4),
        draw.use_curves({"all": use, "natural": use}),
        draw.carries_chart(pd.DataFrame(rows)),
        draw.photograph_chart(tokenizer, ["gcompris-a-cow", "b", "c"], pictures()),
        draw.picture_rows({"a": pictures(), "b": pictures()}),
        draw.vq_fsq_chart(record),
        draw.curves_chart(record),
    ]
    for figure in figures:
        assert figure.get_facecolor() == (1, 1, 1, 1)
        figure.canvas.draw()
    matplotlib.pyplot.close("all")


def test_live_loss_collects_without_a_notebook(capsys):
    live = draw.LiveLoss(20, every=0)
    for step in (0, 10):
        live(
            {
                "step": step,
                "loss": 1.0 / (1 + step),
                "seconds": 1.0,
                "items_per_second": 9.0,
                "val": {"psnr natural": 10.0},
            }
        )
    assert [r["step"] for r in live.close()] == [0, 10] and not capsys.readouterr().out
    assert live.png().startswith(b"\x89PNG")


def test_live_loss_keeps_one_picture_up_to_date(monkeypatch):
    import IPython

    shown, updated = [], []

    class Handle:
        def update(self, picture):
            updated.append(picture)

    monkeypatch.setattr(IPython, "get_ipython", lambda: object())
    monkeypatch.setattr(
        "IPython.display.display", lambda picture, display_id: shown.append(picture) or Handle()
    )
    live = draw.LiveLoss(20, every=0)
    for step in (0, 10):
        live({"step": step, "loss": 1.0, "seconds": 1.0, "items_per_second": 9.0})
    live.close()
    assert len(shown) == 1 and len(updated) == 2


def test_how_far_a_token_reaches(tokenizer):
    relative, near = study.reach(tokenizer, pictures())
    assert relative.shape == (7, 7) and relative.mean() == pytest.approx(1) and 0 < near <= 1
    assert np.array_equal(relative, study.reach(tokenizer, pictures())[0])


def test_a_token_that_paints_its_cell_reaches_no_farther():
    class Cells:
        grid, tokens_per_image, codebook_size = 4, 16, 9

        @staticmethod
        def encode(x):
            return (8 * x[:, 0, ::4, ::4]).round().long().flatten(1)

        @staticmethod
        def decode(tokens):
            return (
                (tokens / 8)
                .view(-1, 1, 4, 4)
                .expand(-1, 3, -1, -1)
                .repeat_interleave(4, 2)
                .repeat_interleave(4, 3)
            )

    relative, near = study.reach(Cells, pictures())
    assert near == pytest.approx(1) and relative[3, 3] > 0 and np.count_nonzero(relative) == 1


def test_use_of_codes():
    use = study.code_use(torch.tensor([[0, 1], [1, 0]]), 4)
    assert (
        use.counts.tolist() == [2, 2, 0, 0]
        and use.share == 0.5
        and use.dead == 2
        and use.perplexity == pytest.approx(2)
    )
    assert study.code_use(torch.tensor([3, 3]), 4).perplexity == pytest.approx(1)


def test_use_by_kind_adds_up(tokenizer, pool):
    uses = study.use_by_kind(tokenizer, Pool(pool), per_kind=4)
    assert list(uses) == ["all", "natural", "two-colour", "skeleton"]
    assert uses["all"].counts.sum() == 3 * 4 * tokenizer.tokens_per_image


def test_mean_colours_and_psnr():
    flat = torch.full((2, 3, 16, 16), 0.2)
    flat[1] = 0.6
    assert study.psnr(study.mean_colours(flat, 4), flat).tolist() == pytest.approx([60, 60])
    assert study.psnr(flat, flat + 0.1).tolist() == pytest.approx([20, 20])


def test_what_tokens_carry_of_perfect_codes():
    class Perfect:
        size, grid = 64, 8

        @staticmethod
        def round_trip(x):
            return x

    rows = study.carries(Perfect(), count=2)
    assert len(rows) == 10 and ((rows.low <= rows.score) & (rows.score <= rows.high)).all()
    scores = rows.set_index(["kind", "metric", "code"]).score
    assert scores["two-colour masks", "IoU", "tokens"] > 0.99
    assert scores["skeletons", "PCK@0.1", "tokens"] > 0.7
    assert list(scores[:, "PSNR", "tokens"]) == pytest.approx([60] * 3)
    assert scores["two-colour masks", "IoU", "mean colours"] < 0.99


def test_photographs_are_whole_splits():
    names, crops = study.photographs("val", 16)
    assert len(names) == len(set(names)) == len(crops) and crops.shape[1:] == (3, 16, 16)


@pytest.mark.parametrize("codes, levels", FSQ_LEVELS.items())
def test_fsq_has_about_as_many_codes(codes, levels):
    assert 0.9 * codes < np.prod(levels) < 1.1 * codes


@pytest.fixture(scope="module")
def trained(pool, tmp_path_factory):
    """Logs and folders of a short training with each quantiser."""
    found = {}
    for quantiser in ("vq", "fsq"):
        folder = tmp_path_factory.mktemp(quantiser)
        records = []
        log = train_tokenizer(
            pool,
            folder,
            preset=TINY,
            recipe=TokenizerRecipe(free_batches=1),
            batch=8,
            val_pool=pool,
            eval_every=2,
            progress=False,
            config=TrainConfig(steps=4, warmup=1, log_every=1, precision="fp32"),
            quantiser=quantiser,
            on_log=records.append,
        )
        assert records == log
        found[quantiser] = folder, log
    return found


@pytest.mark.slow
@pytest.mark.parametrize("quantiser", ["vq", "fsq"])
def test_both_quantisers_train_and_are_scored(quantiser, trained, pool):
    folder, log = trained[quantiser]
    model = load_training(folder)
    assert model.quantiser == quantiser and not model.training
    assert evaluate(model, Pool(pool)) == log[-1]["val"]
    picture, tokens = model.round_trip(pictures())
    assert picture.shape == (3, 3, 16, 16) and tokens.shape == (3, 16) and tokens.dtype == torch.int64
    assert 0 <= tokens.min() and tokens.max() < model.codebook_size


def test_every_fsq_parameter_learns():
    model = TrainingVQGAN(TINY, TokenizerRecipe(), "fsq").train()
    batch = {"pictures": pictures(), "kinds": torch.zeros(3, dtype=torch.long)}
    model.loss(model, batch)[0].backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.slow
def test_fsq_is_its_own_training_and_has_no_export(trained, pool, tmp_path):
    folder, _ = trained["fsq"]
    identity = json.loads(torch.load(folder / "checkpoint.pt", weights_only=True)["identity"])["more"]
    assert identity["quantiser"] == "fsq"
    plain = json.loads(torch.load(trained["vq"][0] / "checkpoint.pt", weights_only=True)["identity"])["more"]
    assert "quantiser" not in plain
    with pytest.raises(ValueError, match="cannot be exported"):
        export_tokenizer(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="choose from vq, fsq"):
        TrainingVQGAN(TINY, TokenizerRecipe(), "lfq")
    with pytest.raises(ValueError, match="FSQ has levels for"):
        TrainingVQGAN(replace(TINY, codebook_size=17), TokenizerRecipe(), "fsq")


def test_findings_pair_the_seeds(record):
    by = study.findings(record).set_index("metric").to_dict("index")
    assert by["psnr natural"]["higher"] == "FSQ" and by["iou"]["higher"] == "undecided"
    assert (
        by["psnr natural"]["difference"] == pytest.approx(1.0)
        and by["psnr natural"]["low"] < 1 < by["psnr natural"]["high"]
    )
    assert list(study.table(record)["score"]) == list(study.SCORES.values())


def test_one_seed_decides_nothing(record):
    single = record | {"result": [r for r in record["result"] if r["seed"] == 0]}
    assert set(study.findings(single).higher) == {"undecided"}
    draw.vq_fsq_chart(single).canvas.draw()
    matplotlib.pyplot.close("all")


def test_the_shipped_run_is_the_one_the_notebook_asks_for():
    shipped = sorted((paths.assets() / "runs").glob(f"{study.STUDY}-*.json"))
    if not shipped:
        pytest.skip("the comparison has not been computed yet")
    assert runs.key(study.STUDY, study.Setting().config()) in [p.stem for p in shipped]


@pytest.mark.slow
def test_a_comparison_is_computed_once(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "assets", lambda: tmp_path / "assets")
    monkeypatch.setattr(paths, "cache", lambda: tmp_path / "cache")

    def few(path, split, count, **options):
        found = [sentence(task, split, 0, pairs=2).pictures() for task in ("segmentation", "pose")]
        np.save(path, np.concatenate(found))
        np.save(path.with_name(f"{path.stem}-kinds.npy"), np.array([0, 1, 0, 1, 0, 2, 0, 2], np.uint8))
        return path

    monkeypatch.setattr(study, "render_pool", few)
    setting = study.Setting(steps=6, batch=2, pictures=8, val_pictures=8, seeds=1, channels=8, codes=256)
    record = study.compare(setting, progress=False)
    assert record == study.compare(setting, progress=False)
    assert {r["quantiser"] for r in record["result"]} == {"vq", "fsq"} and all(
        set(study.SCORES) <= set(r["scores"]) for r in record["result"]
    )
    with pytest.raises(ValueError, match=r"Setting\.seeds=0"):
        study.Setting(seeds=0)
    with pytest.raises(ValueError, match=r"Setting\.codes=17"):
        study.Setting(codes=17)


@pytest.mark.slow
def test_an_export_is_scored_as_it_lies_on_disk(trained, pool, tmp_path):
    folder, _ = trained["vq"]
    exported = export_tokenizer(folder, tmp_path / "out", pool)
    assert set(exported.training["val"]) > {"psnr natural", "iou", "code use"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert exported.fingerprint in card and str(exported.training["val"]["iou"]) in card
    early = load_checkpoint(folder)
    early["model"]["seen"].zero_()
    early["identity"] = json.dumps(early["identity"])
    early["digest"] = digest({key: value for key, value in early.items() if key != "digest"})
    torch.save(early, tmp_path / "checkpoint.pt")
    with pytest.raises(TrainingError, match="train on first"):
        export_tokenizer(tmp_path, tmp_path / "none")
