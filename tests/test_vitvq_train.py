import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from lvmlab.data.truths import KINDS, UNKNOWN, Plan, TruthPool, class_map, open_pool, render_truths
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.tokenizer.vitvq import VITVQ_PRESETS
from lvmlab.training import auxiliary, vitvq
from lvmlab.training.checkpoints import TrainingError, load_checkpoint
from lvmlab.training.vitvq import Recipe, TrainingViTVQ, train_stages
from lvmlab.training.vitvq_export import export_vitvq
from lvmlab.world import V2, scenes

LAWS = replace(V2, size=32)
SHORT = Recipe(batch=4, continuous=2, codes=3, decoder=2, head=(8, 8))


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pools")
    plans = {s: Plan(split=s, pictures=80, laws=LAWS) for s in ("train", "val")}
    return {s: render_truths(folder / s, plan, workers=0, progress=False) for s, plan in plans.items()}


@pytest.fixture(scope="module")
def trained(pools, tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    options = {"eval_every": 2, "progress": False, "tracker": "none", "precision": "fp32", "log_every": 1}
    log = train_stages(folder, pools["train"], pools["val"], "tiny-v2", SHORT, **options)
    return folder, log


def test_a_pool_knows_what_its_pictures_show(pools):
    pool = pools["train"]
    assert {KINDS[k] for k in pool.kinds} == set(KINDS)
    for kind, of in zip(KINDS, pool.of_kind, strict=True):
        batch = pool.take(of)
        known = batch["classes"] != UNKNOWN
        assert known.all() if kind in ("objects", "rain", "body") else not known.any()
        assert torch.isfinite(batch["points"]).all() == (kind == "body")
        assert (batch["clean"] - batch["pictures"]).abs().amax((1, 2, 3)).gt(0).all() == (kind == "rain")
    objects = pool.take(pool.of_kind[0])["classes"]
    assert (objects > 0).float().mean((1, 2)).min() > 0.03


def test_a_pool_is_read_again_and_another_plan_is_refused(pools):
    pool = pools["val"]
    again = render_truths(pool.folder, Plan(split="val", pictures=80, laws=LAWS), workers=0)
    assert np.array_equal(again.pictures, pool.pictures)
    with pytest.raises(ValueError, match="another plan"):
        render_truths(pool.folder, Plan(split="val", pictures=40, laws=LAWS), workers=0)
    assert open_pool(pool.folder, Plan(split="val", pictures=40, laws=LAWS)).plan == pool.plan
    with pytest.raises(FileNotFoundError, match="render_truths"):
        TruthPool(pool.folder / "nowhere")


def test_a_pool_shows_no_held_out_encoding_and_no_untrained_task():
    assert {task for task, _ in Plan().shares} == set(V2.trained)


def test_batches_depend_on_seed_and_step_alone_and_mirror_truths_with_pictures(pools):
    pool, shares = pools["train"], (0.0, 0.0, 1.0, 0.0, 0.0, 0.0)
    one, same, other = (pool.batch(step, 6, 0, shares, 0.2) for step in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) or name == "points" for name in one)
    assert not torch.equal(one["pictures"], other["pictures"])
    index = pool.of_kind[2][:2]
    plain, turned = pool.take(index), pool.take(index, np.array([True, False]))
    assert torch.equal(turned["pictures"][0], plain["pictures"][0].flip(-1))
    assert torch.equal(turned["classes"][0], plain["classes"][0].flip(-1))
    assert torch.allclose(turned["points"][0, :, 0], 1 - plain["points"][0, scenes.MIRROR, 0])
    assert torch.equal(turned["pictures"][1], plain["pictures"][1])


def test_class_maps_say_what_is_seen_where():
    masks = np.zeros((2, 4, 4), np.uint8)
    masks[0, :2], masks[1, 2:, 2:] = 255, 200
    assert class_map(masks, np.array([4, 0])).tolist() == [[5, 5], [0, 1]]


def test_joints_and_bones_are_where_they_are_drawn():
    points = torch.full((1, 17, 2), 0.5)
    points[0, :, 1] = torch.linspace(0.1, 0.9, 17)
    heat = auxiliary.heatmaps(points[:, auxiliary.JOINTS], 32)
    assert torch.allclose(heat.sum((2, 3)), torch.ones(1, 13))
    found = auxiliary.places(heat.log())
    assert (found - points[:, auxiliary.JOINTS]).abs().max() <= 1 / 32
    assert auxiliary.pck(heat.log(), points).item() == 1
    bones = auxiliary.bone_map(points, 32)
    assert bones[0, :, 16].max() > 0 and bones[0, :, 0].max() == 0


def test_the_right_maps_cost_less_than_wrong_ones(pools):
    batch = pools["train"].take(np.arange(len(pools["train"])))
    known = batch["classes"].clamp(max=26)
    sharp = 20 * torch.nn.functional.one_hot(known[:, ::2, ::2], 27).movedim(-1, 1).float()
    right = {
        "objects": 20 * (known > 0).float()[:, None] - 10,
        "classes": sharp,
        "clean": torch.nn.functional.avg_pool2d(batch["clean"], 2),
        "joints": auxiliary.heatmaps(batch["points"][:, auxiliary.JOINTS].nan_to_num(), 8)
        .clamp(min=1e-9)
        .log(),
        "bones": 20
        * torch.nn.functional.one_hot(auxiliary.bone_map(batch["points"].nan_to_num(), 8), 14).movedim(-1, 1),
    }
    right["bones"] = right["bones"].float()
    wrong = {name: maps.flip(-2) for name, maps in right.items()}
    low, high = auxiliary.terms(right, batch), auxiliary.terms(wrong, batch)
    assert set(low) == set(auxiliary.TERMS)
    assert all(low[name] < high[name] for name in low)


def test_the_stages_go_on_from_one_another(trained):
    folder, log = trained
    states = {s: load_checkpoint(folder / s) for s in vitvq.STAGES}
    assert [states[s]["step"] for s in vitvq.STAGES] == [2, 3, 2]
    codes, decoder = states["codes"]["model"], states["decoder"]["model"]
    frozen = [k for k in codes if k.startswith(("net.encoder.", "quantizer."))]
    assert frozen and all(torch.equal(codes[k], decoder[k]) for k in frozen)
    assert any(not torch.equal(codes[k], decoder[k]) for k in codes if k.startswith("net.decoder."))
    assert "psnr body halved" in log[-1]["val"] and log[-1]["val"]["code use"] > 0


def test_a_stopped_training_goes_on_to_the_same_weights(pools, trained, tmp_path):
    options = {"eval_every": 2, "progress": False, "tracker": "none", "precision": "fp32", "log_every": 1}
    for _ in range(8):  # a budget of nothing is one step a call
        train_stages(tmp_path, pools["train"], pools["val"], "tiny-v2", SHORT, budget_s=1e-6, **options)
    train_stages(tmp_path, pools["train"], pools["val"], "tiny-v2", SHORT, **options)
    for stage in vitvq.STAGES:
        here, there = (load_checkpoint(f / stage)["model"] for f in (tmp_path, trained[0]))
        assert all(torch.equal(here[k], there[k]) for k in here)


def test_an_exported_tokenizer_gives_the_tokens_of_the_training(pools, trained, tmp_path):
    folder, _ = trained
    tokenizer = export_vitvq(folder, tmp_path / "tok", pools["val"], dtype=torch.float32)
    again = Tokenizer.from_pretrained(tmp_path / "tok", device="cpu", precision="fp32")
    pictures = pools["val"].take(np.arange(4))["pictures"]
    with torch.no_grad():
        _, _, tokens, _ = vitvq.load_stage(folder, "decoder")(pictures)
    assert torch.equal(again.encode(pictures), tokens) and again.fingerprint == tokenizer.fingerprint
    assert again.training["val"]["psnr natural 16"] > 0 and again.training["steps"] == {
        "continuous": 2,
        "codes": 3,
        "decoder": 2,
    }
    card = (tmp_path / "tok" / "README.md").read_text()
    assert "clean pictures under rain" in card and "mini-world-v2" in card
    assert json.loads((tmp_path / "tok" / "log.json").read_text())[0]["stage"] == "continuous"
    with pytest.raises(TrainingError, match="no codes"):
        export_vitvq(folder, tmp_path / "tok", stage="continuous")


def test_without_the_labels_of_scarce_tasks():
    recipe = Recipe().without("pose", "derain")
    assert recipe.joints == recipe.bones == recipe.clean == 0
    assert recipe.shares[KINDS.index("skeleton")] == 0 and recipe.objects == Recipe().objects
    with pytest.raises(ValueError, match="choose from pose, derain"):
        Recipe().without("motion")


def test_no_gradient_reaches_what_the_last_stage_freezes(pools):
    model = TrainingViTVQ(replace(VITVQ_PRESETS["tiny-v2"], head=(8, 8)), SHORT, "decoder")
    loss, _ = model.loss(model, pools["train"].batch(0, 4, 0, SHORT.shares))
    loss.backward()
    trained = {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"decoder"}


@pytest.mark.parametrize(
    "changed, message", [({"objects": -1.0}, "objects=-1"), ({"shares": (1.0,)}, "one share")]
)
def test_bad_recipes_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**changed)
