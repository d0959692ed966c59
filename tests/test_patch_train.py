"""Pre-training on patches and fine-tuning: what is learned, by which rates, and that a stopped one goes on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_probe import squares

from lvmlab.data import labelled
from lvmlab.lab.commands.train import train_aim
from lvmlab.model.aim import AIM_PRESETS, PatchConfig, PatchLM
from lvmlab.training.aim import (
    AIMRecipe,
    Classifier,
    answers,
    finetune,
    load_classifier,
    load_patchlm,
    pretrain,
)
from lvmlab.training.checkpoints import load_checkpoint
from lvmlab.training.cost import cost, parameters
from lvmlab.training.loop import TrainConfig
from lvmlab.utils import paths

TINY = PatchConfig(16, 3, 2, patch=4, size=16, head_blocks=1, head_width=16)
KINDS = {"aim": TINY, "llama": replace(TINY, block="llama", ffn_dim=24)}
CONFIG = TrainConfig(
    steps=60,
    lr=5e-3,
    warmup=5,
    weight_decay=0.05,
    precision="fp32",
    save_every=30,
    log_every=1,
    tracker="none",
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_alone_and_then_their_classes_are_learned(tmp_path, kind):
    data = squares("train", 400)
    log = pretrain(data, tmp_path / "pre", shape=KINDS[kind], config=CONFIG, batch=32, progress=False)
    assert np.mean([r["loss"] for r in log[-5:]]) < 0.9 * log[0]["loss"]
    model = load_patchlm(tmp_path / "pre")
    model.save_pretrained(tmp_path / "saved", dtype=torch.float32)
    again = load_patchlm(tmp_path / "saved")
    picture = torch.rand(1, 3, 16, 16)
    assert torch.equal(again.features(picture)[-1], model.features(picture)[-1])
    seen = []
    # mirrored and cropped, the class is which half is bright: told by top and bottom alone
    two = replace(data, labels=(data.labels == 2).astype(int), classes=["top", "bottom"])
    finetune(
        model,
        two,
        tmp_path / "tuned",
        config=replace(CONFIG, steps=150),
        batch=32,
        progress=False,
        on_log=lambda record, net: seen.append(net.training),
    )
    assert len(seen) == 150 and all(seen)
    test = squares("test", 60, seed=1)
    right = answers(
        load_classifier(tmp_path / "tuned"), replace(test, labels=(test.labels == 2).astype(int))
    ) == (test.labels == 2)
    assert right.mean() > 0.85


@pytest.mark.slow
def test_a_stopped_one_goes_on_to_the_same_losses(tmp_path):
    """Crops, mixup and stochastic depth are all drawn again as they were; nothing else that draws from numpy
    is moved.
    """
    data, config = squares("train", 100), replace(CONFIG, steps=8, save_every=4)

    def tuned(folder, on_log=None):
        return finetune(
            PatchLM.from_shape(TINY),
            data,
            tmp_path / folder,
            config=config,
            batch=8,
            progress=False,
            on_log=on_log,
        )

    def stop(record, net):
        if record["step"] == 5:
            raise KeyboardInterrupt

    whole = tuned("whole")
    assert np.random.random() == np.random.RandomState(config.seed).random(), "as the loop seeded it"
    with pytest.raises(KeyboardInterrupt):
        tuned("parts", stop)
    assert load_checkpoint(tmp_path / "parts")["step"] == 4
    assert [r["loss"] for r in tuned("parts")] == pytest.approx([r["loss"] for r in whole], abs=2e-6)


def test_layers_nearer_the_pictures_learn_slower_and_vectors_do_not_decay():
    model = Classifier(PatchLM.from_shape(TINY), 3, AIMRecipe(layer_decay=0.5))
    groups, names = model.param_groups(CONFIG), {id(p): n for n, p in model.named_parameters()}
    scales = {names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert scales.keys() == dict(model.named_parameters()).keys()
    assert scales["head.weight"] == (1.0, 0.05) and scales["model.trunk.post_trunk_norm.weight"] == (1.0, 0.0)
    assert [scales[f"model.trunk.blocks.{i}.mlp.fc1.weight"][0] for i in range(3)] == [0.125, 0.25, 0.5]
    assert scales["model.preprocessor.patchifier.proj.weight"][0] == 0.0625


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_stochastic_depth_passes_by_blocks_in_training_alone(kind):
    model, pictures = (
        Classifier(PatchLM.from_shape(KINDS[kind]), 3, AIMRecipe(drop_path_rate=0.9)),
        torch.rand(64, 3, 16, 16),
    )
    torch.manual_seed(0)
    first, second, third = model.train().model.features(pictures)
    same = (second == third).all(2).all(1)
    assert 0.7 < same.float().mean() < 1 and not (first == second).all(2).all(1).all()
    plain = PatchLM.from_shape(KINDS[kind]).eval().features(pictures)[-1]
    torch.testing.assert_close(model.eval().model.features(pictures)[-1], plain)


@pytest.mark.slow
def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="AIMRecipe.drop_path_rate=1.0"):
        AIMRecipe(drop_path_rate=1.0)
    with pytest.raises(ValueError, match="batch=7"):
        finetune(PatchLM.from_shape(TINY), squares("train", 40), tmp_path, config=CONFIG, batch=7)


def test_kept_pictures_are_the_same_and_are_drawn_once(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "cache", lambda: tmp_path)
    data = labelled.find("objects", "val").first(1)
    kept = data.kept()
    assert (kept.batch(range(3)) == data.batch(range(3))).all()
    again = replace(data, picture=lambda i: pytest.fail("drawn again")).kept()
    assert (again.batch(range(3)) == kept.batch(range(3))).all()


def test_the_cost_of_patches_counts_the_head():
    shape = AIM_PRESETS["llama-80m-patch"]
    assert [parameters(s) / 1e6 for s in (shape, replace(shape, head_blocks=0))] == pytest.approx(
        [189.5, 86.1], abs=0.1
    )
    found = cost("llama-80m-patch", 2e11, "A100", devices=8)
    assert found.flops == pytest.approx(1.68e20, rel=0.01) and found.hours == pytest.approx(46.6, rel=0.01)
    # half of the places are within a prefix on average, where the head reads nothing
    flops = [
        cost(s, 1e9, "A100").flops
        for s in (shape, replace(shape, prefix=False), replace(shape, head_blocks=0))
    ]
    assert flops[0] - flops[2] == pytest.approx((flops[1] - flops[2]) / 2, rel=0.01)
    with pytest.raises(ValueError, match="not timed here"):
        cost("llama-80m-patch", 1e9)


def test_one_command_pre_trains_and_tunes_on_any_folder(tmp_path, monkeypatch):
    from PIL import Image

    for klass in ("cat", "dog"):
        (tmp_path / "data" / "train" / klass).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((20, 24, 3), 60 * i, np.uint8)).save(
                tmp_path / "data" / "train" / klass / f"{i}.png"
            )
    monkeypatch.setitem(AIM_PRESETS, "tiny", TINY)
    train_aim(tmp_path / "pre", str(tmp_path / "data"), shape="tiny", steps=2, batch=4)
    train_aim(tmp_path / "tuned", str(tmp_path / "data"), start=tmp_path / "pre", steps=2, batch=4)
    for folder, more in (("pre", {"data"}), ("tuned", {"data", "classes", "tuning"})):
        found = load_checkpoint(tmp_path / folder)
        assert found["step"] == 2 and more <= found["identity"]["more"].keys()
    assert load_classifier(tmp_path / "tuned").head.weight.shape == (2, 16)
