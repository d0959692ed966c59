"""The study of what features know: its arms, two of them for real, and its figures of made-up records."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_plots_arms import crossing

from lvmlab.data import labelled
from lvmlab.lab.plots import probing as draw
from lvmlab.lab.plots.arms import differences_chart
from lvmlab.lab.studies import probing as study
from lvmlab.model.aim import PatchLM
from lvmlab.model.lvm import LVM
from lvmlab.training.aim import load_patchlm
from lvmlab.utils import paths

TINY = replace(study.SCALES["smoke"], max_per_class=1, steps=2, epochs=1)


@pytest.fixture(scope="module")
def records():
    rng, made = np.random.default_rng(0), {}
    objects = study.pictures("test", TINY).labels
    for name, arm in study.ARMS.items():
        count = (
            5
            if arm.tokens and "student" in arm.tokens
            else 9
            if arm.tokens
            else arm.patches.n_layers
            if arm.patches
            else 1
        )
        level = 0.12 if name in draw.FLOORS else 0.3

        def probed(kind, count=count, level=level):
            truth, classes = (np.repeat(range(10), 4), 10) if kind == "fashion" else (objects, 25)
            scores = level + 0.15 * np.sin(np.linspace(0, 2.5, count)) + rng.normal(0, 0.01, count)
            right = np.where(rng.random(len(truth)) < 3 * level, truth, rng.integers(0, classes, len(truth)))
            return {
                "blocks": [{"val": s, "score": s, "low": s - 0.05, "high": s + 0.05} for s in scores],
                "best": int(scores.argmax()),
                "predicted": right.tolist(),
            }

        made[name] = {
            "config": {"setting": vars(TINY) | {"fashion_per_class": 4}},
            "result": [
                {
                    "seed": seed,
                    "objective": 0.5 + rng.random() / 5,
                    **{kind: probed(kind) for kind in arm.probes},
                }
                for seed in range(3)
            ],
        }
    return made


def test_arms_differ_in_what_they_say_alone():
    names = [n for n in study.ARMS if study.ARMS[n].tokens is None]
    whole = study.config("aim-mini", TINY)
    assert len({json.dumps(study.config(name, TINY)) for name in names}) == len(names)
    assert all(
        study.config(name, TINY) | {k: whole[k] for k in ("arm", "patches", "tenth", "trained", "probes")}
        == whole
        for name in names
    )
    assert len(study.GRID) == 4
    assert (
        study.config("mini-student", TINY)["model"]
        == LVM.from_pretrained("mini-student", device="cpu").fingerprint()
    )


@pytest.mark.slow
def test_arms_train_and_are_probed_and_what_is_stored_is_found_again(cache, monkeypatch):
    found = {name: study.arm(name, TINY) for name in ("small", "pixels by patches")}
    test, row = study.pictures("test", TINY), found["small"]["result"][1]
    assert (
        row["seed"] == 1
        and row["seconds"] > 0
        and 0.5 < row["objective"] < 2
        and len(row["linear"]["blocks"]) == study.SMALL.n_layers
    )
    for kind in study.kinds(found["small"]):
        best = row[kind]["blocks"][row[kind]["best"]]
        assert best["val"] == max(block["val"] for block in row[kind]["blocks"]) and len(
            row[kind]["predicted"]
        ) == len(test)
        assert best["score"] == pytest.approx(
            study.probe.score(np.array(row[kind]["predicted"]), test)["score"]
        )
    counts = study.table(found).groupby("probe").arm.count()
    assert counts.to_dict() == {"linear": 1, "attentive": 2}, "no Fashion-MNIST at this scale"
    assert study.gained(found, "small", "small") == (0, 0, 0)
    assert not list((cache / "features").iterdir()), "gigabytes are not left behind"
    monkeypatch.setattr(study, "compute", lambda wanted: pytest.fail("worked out again"))
    assert study.arm("small", TINY) == found["small"]


@pytest.mark.skipif(not labelled.DEBIAN.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_fashion_is_scored_without_its_files(cache, monkeypatch):
    asked = replace(TINY, fashion_per_class=2)
    found = {"pixels": study.arm("pixels", asked)}
    test = study.pictures("test", asked, "fashion")
    predicted = np.array(found["pixels"]["result"][1]["fashion"]["predicted"])
    assert (
        len(test) == len(predicted) == 20
        and found["pixels"]["result"][0]["fashion"] == found["pixels"]["result"][1]["fashion"]
    )
    monkeypatch.setattr(labelled, "DEBIAN", cache / "gone")
    table = study.table(found).set_index(["probe", "arm"])
    score, low, high = table.loc[("fashion", "pixels")]
    assert (
        low < score < high and score == pytest.approx((predicted == test.labels).mean()) and score > 0.3
    )  # chance: 0.1


def test_intervals_go_over_objects_and_seeds(records):
    data = study.pictures("test", TINY)
    of, same = study.predictions(records["aim-mini"], "linear")
    assert same.sources.tolist() == data.sources.tolist()
    wide, narrow = (study.probe.score(found, data) for found in (of, of[:1]))
    assert (
        wide["low"] < wide["score"] < wide["high"]
        and narrow["score"] == study.probe.score(of[0], data)["score"]
    )
    assert wide["score"] == pytest.approx(np.mean([study.probe.score(one, data)["score"] for one in of]))
    same = np.stack([of[0]] * 3)  # trainings that agree add nothing
    assert study.probe.score(same, data) == pytest.approx(narrow)
    mean, low, high = study.gained(records, "aim-mini", "pixels")
    assert low < mean < high and mean > 0.3


def test_a_trained_model_can_be_shipped_and_is_found_by_its_name(tmp_path, cache, monkeypatch):
    record = study.arm("small", TINY)
    monkeypatch.setattr(paths, "assets", lambda: tmp_path)
    load_patchlm(cache / "studies" / record["name"] / "seed-1").save_pretrained(tmp_path / "models" / "small")
    model = PatchLM.from_pretrained("small", device="cpu")
    assert model.shape == study.SMALL
    assert study.objective(model, study.pictures("val", TINY)) == pytest.approx(
        record["result"][1]["objective"], abs=0.02
    )


def test_figures(records):
    figure = draw.layers_chart(records)
    assert [len(axis.lines) for axis in figure.axes] == [len(records) - 1] * 3 and not crossing(figure)
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert len(labels) == len(set(labels)) == len(records) - 1
    figure = draw.objective_chart(records)
    assert [len(axis.lines) for axis in figure.axes] == [8, 8, 8] and not crossing(figure)
    found = study.table(records)
    linear, attentive, fashion = (set(found[found.probe == probe].arm) for probe in study.PROBES)
    assert linear == attentive == fashion
    assert len(study.printed(found)) == len(records) - 1, "pixels are one arm"
    assert not crossing(differences_chart(found, "balanced accuracy", groups="probe"))
    looks = torch.zeros(3, 4, 64)
    looks[:, :, 9] = 1
    figure = draw.attention_chart(torch.full((3, 3, 64, 64), 0.5), looks, list("abc"))
    lit = figure.axes[3].images[0].get_array()  # the second row's first: 8 x 8 places of 8 px
    assert lit[8:16, 8:16, 0].min() > 0.99 and lit[:8, :8, 0].max() < 0.4
