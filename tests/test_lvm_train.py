"""Training an LVM: which tokens weigh how much, how long sentences are, and what comes out."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from stores import TOKENIZER, fit_lvm, write_store

from lvmlab.data.mixture import Mixture
from lvmlab.data.parts import save_table
from lvmlab.model.config import LVM_PRESETS
from lvmlab.model.initialisation import init_from_grid
from lvmlab.model.lvm import LVM
from lvmlab.training.checkpoints import TrainingError
from lvmlab.training.export import export_lvm, load_lvm, push_lvm
from lvmlab.training.loop import TrainConfig
from lvmlab.training.recipe import LVMRecipe, token_weights
from lvmlab.training.sampler import corrupt_answers, permute_label_codes
from lvmlab.utils.device import default_device, describe

CONFIG = TrainConfig(steps=60, lr=1e-2, warmup=5, precision="fp32", save_every=100, log_every=1)
RECIPE = LVMRecipe(
    tokens=128,
    phases=((0.5, 2), (1.0, 4)),
    mixture=Mixture("balanced", weights={"segmentation": 0.8, "motion": 0.2}),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Pictures of 4 tokens out of 32; a label is its image's tokens plus a number that its group shares."""
    folder, rng = tmp_path_factory.mktemp("store"), np.random.default_rng(0)
    images = rng.integers(0, 16, (64, 8, 4))
    pairs = np.stack([images, images + rng.integers(1, 3, (64, 1, 1)) * 8], 2).astype(np.uint16)
    write_store(folder, {"segmentation": pairs, "motion": np.full((4, 8, 2, 4), 5, np.uint16)})
    return folder


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    log = fit_lvm(store, folder, shape="tiny", config=CONFIG, recipe=RECIPE)
    return folder, log


def test_answers_weigh_more_than_inputs_and_in_a_clip_all_frames_after_two_are_answers():
    found = token_weights(
        ["segmentation", "derain", "motion", "photos"],
        2,
        3,
        LVMRecipe(image_weight=0.25, answer_weights={"derain": 0.5, "motion": 0.75}),
        {"segmentation": 2, "derain": 2, "motion": 16, "photos": 1},
    )
    assert found.shape == (4, 2 * 2 * 3)
    expected = torch.tensor(
        [[0.25, 1, 0.25, 1], [0.25, 0.5, 0.25, 0.5], [0.25, 0.25, 0.75, 0.75], [1, 1, 1, 1]]
    )
    assert torch.equal(found, expected.repeat_interleave(3, 1))


def test_disturbed_answers_hold_tokens_of_the_sentences_own_answers_and_inputs_stay():
    tokens = torch.randperm(6 * 4 * 2 * 16, generator=torch.Generator().manual_seed(0)).view(6, -1)
    read = corrupt_answers(tokens, 4, 0.5, np.random.default_rng(0)).view(6, 4, 2, 16)
    true = tokens.view(6, 4, 2, 16)
    assert torch.equal(read[:, :, 0], true[:, :, 0])
    touched = (read[:, :, 1] != true[:, :, 1]).any(-1)
    assert 0.25 < touched.float().mean() < 0.75
    assert all(torch.isin(r, t).all() for r, t in zip(read[:, :, 1], true[:, :, 1], strict=True))
    assert torch.equal(corrupt_answers(tokens, 4, 0.0, np.random.default_rng(0)), tokens)


def test_what_is_read_is_disturbed_and_what_is_to_be_written_is_not():
    lvm = LVM.from_shape("tiny")
    tokens, read = (
        torch.randint(0, 1024, (2, 32), generator=torch.Generator().manual_seed(s)) for s in (0, 1)
    )
    logits = lvm(read)[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert lvm(read, tokens).item() == pytest.approx(expected.item(), abs=1e-4)
    with pytest.raises(ValueError, match=r"inputs \(2, 31\)"):
        lvm(read[:, 1:], tokens)


@pytest.mark.slow
def test_it_learns_and_each_step_has_as_many_tokens(trained):
    log = trained[1]
    assert np.mean([r["loss"] for r in log[-5:]]) < 0.75 * log[0]["loss"]
    assert [RECIPE.pairs(step, 60) for step in (0, 29, 30, 59)] == [2, 2, 4, 4]


@pytest.mark.slow
def test_an_export_names_its_tokenizer_and_goes_on(trained, store, tmp_path):
    folder, log = trained
    lvm = export_lvm(folder, tmp_path / "out")
    (stage,) = lvm.config.training["stages"]
    assert lvm.tokenizer_fingerprint == "0123456789abcdef" and (stage["steps"], stage["tokens"]) == (
        60,
        60 * 128,
    )
    assert stage["device"] == describe(default_device())
    assert len(json.loads((tmp_path / "out/log.json").read_text())) >= 60
    card = (tmp_path / "out/README.md").read_text()
    assert (
        'LVM.from_pretrained("out"), Tokenizer.from_pretrained("FOLDER")' in card
        and "yours to choose" in card
    )
    once = TrainConfig(steps=1, lr=1e-6, min_lr=0, warmup=0, precision="fp32", log_every=1)
    for start in (folder, tmp_path / "out"):
        again = fit_lvm(
            store,
            tmp_path / f"on-{start.name}",
            config=once,
            recipe=RECIPE,
            start=start,
        )
        assert again[0]["loss"] < 0.8 * log[0]["loss"]
        made = export_lvm(tmp_path / f"on-{start.name}", tmp_path / f"out-{start.name}").config.training[
            "stages"
        ]
        assert made[0] == stage and made[1]["steps"] == 1 and len(made) == 2


def test_recoded_labels_keep_their_pattern_and_inputs_stay():
    tokens = torch.randint(0, 32, (40, 4 * 2 * 16), generator=torch.Generator().manual_seed(0))
    codes = np.arange(4, 32)
    names = ["segmentation", "pose"] * 20
    found = permute_label_codes(
        tokens, names, 4, {"segmentation": 0.5}, codes, np.random.default_rng(0)
    ).view(40, 4, 2, 16)
    true = tokens.view(40, 4, 2, 16)
    assert torch.equal(found[:, :, 0], true[:, :, 0]) and torch.equal(found[1::2], true[1::2])
    changed = [i for i in range(0, 40, 2) if not torch.equal(found[i], true[i])]
    assert 5 <= len(changed) <= 15
    for i in changed:
        old, new = true[i, :, 1].flatten(), found[i, :, 1].flatten()
        pairs = set(zip(old.tolist(), new.tolist(), strict=True))
        assert len(pairs) == len(set(old.tolist())) == len(set(new.tolist())), "one code, one other"
        assert torch.equal(old[old < 4], new[old < 4]) and new[old >= 4].min() >= 4, (
            "codes that may not be written stay away"
        )


@pytest.mark.slow
def test_the_realised_shares_are_logged(store, tmp_path):
    """One task after another: the log shows which, and a share of replay."""
    for scheme, options in (("sequential", {}), ("replay", {"replay": 0.3})):
        recipe = dataclasses.replace(
            RECIPE, mixture=Mixture(scheme, order=("motion", "segmentation"), **options)
        )
        log = fit_lvm(
            store,
            tmp_path / scheme,
            shape="tiny",
            config=CONFIG,
            recipe=recipe,
        )
        first, last = ([r["shares"] for r in part] for part in (log[: len(log) // 2], log[len(log) // 2 :]))
        assert all(shares == {"motion": 1.0} for shares in first)
        share = np.mean([shares.get("motion", 0.0) for shares in last])
        assert share == 0 if scheme == "sequential" else 0.15 < share < 0.45
    log = fit_lvm(
        store,
        tmp_path / "natural",
        shape="tiny",
        config=CONFIG,
        recipe=dataclasses.replace(RECIPE, mixture=Mixture("natural")),
    )
    natural = 512 / 516  # 64 groups of 8 pairs beside 4 clips
    assert abs(np.mean([r["shares"].get("segmentation", 0.0) for r in log]) - natural) < 0.03


@pytest.mark.slow
def test_a_recipe_that_does_not_fit_is_refused(store, tmp_path):
    for options, message in (
        ({"phases": ((0.5, 4),)}, "phases"),
        ({"image_weight": -1.0}, "image_weight"),
        ({"corruption_rate": 2.0}, "corruption_rate"),
    ):
        with pytest.raises(ValueError, match=message):
            LVMRecipe(**options)
    few = dict(shape="tiny", config=CONFIG)
    with pytest.raises(ValueError, match="names segment, the store holds motion, segmentation"):
        fit_lvm(
            store,
            tmp_path,
            recipe=dataclasses.replace(RECIPE, mixture=Mixture("balanced", weights={"segment": 1.0})),
            **few,
        )
    with pytest.raises(
        ValueError, match="sentences of 40 pairs are 320 tokens, the model reads 256: at most 32 pairs"
    ):
        fit_lvm(store, tmp_path, recipe=dataclasses.replace(RECIPE, phases=((1.0, 40),)), **few)
    assert not LVM_PRESETS["tiny"].attention_bias
    with pytest.raises(ValueError, match="biases"):
        fit_lvm(
            store,
            tmp_path,
            shape="tiny",
            config=CONFIG,
            recipe=RECIPE,
            grid=4,
        )
    assert init_from_grid(LVM.from_shape("mini-student"), 64).shape == "mini-student"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on a CPU wants a C++ compiler")
def test_compiled_layers_learn_the_same(trained, store, tmp_path):
    config = TrainConfig(steps=3, lr=1e-2, warmup=5, precision="fp32", log_every=1)
    logs = [
        fit_lvm(
            store,
            tmp_path / str(compiled),
            shape="tiny",
            config=config,
            recipe=RECIPE,
            compiled=compiled,
        )
        for compiled in (False, True)
    ]
    assert [r["loss"] for r in logs[1]] == pytest.approx([r["loss"] for r in logs[0]], rel=1e-4)
    assert export_lvm(tmp_path / "True", tmp_path / "out").shape == "tiny"


@pytest.mark.slow
def test_a_factored_embedding_trains_its_projection_alone_and_is_folded(store, tmp_path):
    codebook = torch.randn(1024, 6, generator=torch.Generator().manual_seed(0))
    options = {"shape": "tiny", "config": CONFIG, "recipe": RECIPE}
    log = fit_lvm(store, tmp_path / "two", codebook=codebook, factored=True, **options)
    assert log[-1]["loss"] < log[0]["loss"] - 1
    weight = load_lvm(tmp_path / "two").llama.model.embed_tokens.weight.detach()
    ours = torch.linalg.lstsq(codebook, weight).solution
    torch.testing.assert_close(
        codebook @ ours, weight, atol=1e-4, rtol=1e-3
    )  # still a projection of the codebook
    export_lvm(tmp_path / "two", tmp_path / "out")
    with pytest.raises(ValueError, match="vocabulary of 1024"):
        fit_lvm(store, tmp_path / "short", codebook=codebook[:9], factored=True, **options)


@pytest.mark.slow
def test_activation_checkpointing_changes_no_loss(store, trained, tmp_path):
    log = fit_lvm(
        store,
        tmp_path,
        shape="tiny",
        config=CONFIG,
        recipe=RECIPE,
        checkpointing=True,
    )
    assert [r["loss"] for r in log] == pytest.approx([r["loss"] for r in trained[1]], abs=1e-4)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_its_sources(store, tmp_path):
    with pytest.raises(TrainingError, match=r"at step \d+ \(batch of (segmentation|motion): "):
        wild = dataclasses.replace(CONFIG, lr=1e30, clip=0)
        fit_lvm(store, tmp_path, shape="tiny", config=wild, recipe=RECIPE)


def test_a_model_is_pushed_with_its_card(monkeypatch):
    """Through transformers' own push, as far as the hub's door."""
    from types import SimpleNamespace

    from huggingface_hub import HfApi, ModelCard, constants

    sent, lvm = {}, LVM.from_pretrained("mini-student", device="cpu")
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **k: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(
        "transformers.utils.hub.create_and_tag_model_card",
        lambda *a, **k: ModelCard("---\nlicense: mit\n---\n"),
    )

    def commit(self, repo_id, operations, **options):
        sent.update({o.path_in_repo: o.path_or_fileobj for o in operations} | {"repo": repo_id})
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}")

    def card_sent(self, repo_id, **options):
        sent["card"] = str(self)

    monkeypatch.setattr(HfApi, "create_commit", commit)
    monkeypatch.setattr(ModelCard, "push_to_hub", card_sent)
    assert constants.HF_HUB_CACHE and "hub/me/student" in push_lvm(lvm, "me/student")
    assert {"config.json", "model.safetensors"} <= sent.keys() and sent["repo"] == "me/student"
    assert 'LVM.from_pretrained("me/student"), Tokenizer.from_pretrained("mini")' in sent["card"]
    assert "library_name: transformers" in sent["card"] and "Licence Apache-2.0" in sent["card"]
    assert "scenes of mini-world and little else" in sent["card"]
    lvm.config.training |= {
        "store": {"tasks": {"mine": {"pairs": 3}}, "tokenizer": lvm.tokenizer_fingerprint}
    }
    push_lvm(
        lvm, "me/mine"
    )  # of pairs of one's own in the same tokenizer: nothing of mini-world, and no word on their licence
    assert (
        "mini-world" not in sent["card"]
        and "yours to choose" in sent["card"]
        and "license: other" in sent["card"]
    )


@pytest.mark.parametrize("bf16", [False, True])
def test_fused_layers_give_the_same_loss_and_gradients(bf16):
    from lvmlab.training.cpu_layers import FusedAttention, FusedRMSNorm, fuse

    lvm, fused = (LVM.from_shape("mini-student", seed=3).train() for _ in range(2))
    fuse(fused.llama)
    kinds = [type(part) for part in fused.modules()]
    assert (kinds.count(FusedRMSNorm), kinds.count(FusedAttention)) == (11, 5)
    tokens = torch.randint(lvm.vocab_size, (2, 70), generator=torch.Generator().manual_seed(0))
    losses = []
    for model in (lvm, fused):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses.append(model(tokens, tokens))
        losses[-1].backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4 if bf16 else 1e-6, atol=0.0)
    for (name, expected), ours in zip(lvm.named_parameters(), fused.parameters(), strict=True):
        error = (ours.grad - expected.grad).norm() / expected.grad.norm()
        assert error < (0.05 if bf16 else 1e-5), name


def test_fused_layers_give_the_same_logits_and_still_decode():
    from lvmlab.model.generation import complete_tokens
    from lvmlab.training.cpu_layers import fuse

    lvm = LVM.from_shape("tiny", seed=3)
    tokens = torch.randint(lvm.vocab_size, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, answers = lvm(tokens), complete_tokens(lvm, tokens, 5).tokens
        fuse(lvm.llama)
        torch.testing.assert_close(lvm(tokens), before, atol=1e-4, rtol=1e-4)
    assert torch.equal(complete_tokens(lvm, tokens, 5).tokens, answers)


@pytest.mark.parametrize("fastest", ["standard", "fused", "compiled"])
def test_the_layers_that_were_measured_fastest_are_used(fastest, monkeypatch):
    from lvmlab.training import cpu_layers

    asked = []

    def layer_seconds(*shape, bf16, compiled=False):
        asked.append(compiled)
        kinds = ("standard", "fused", "compiled") if compiled else ("standard", "fused")
        return {kind: 0.5 if kind == fastest else 1.0 for kind in kinds}

    monkeypatch.setattr(cpu_layers, "layer_seconds", layer_seconds)
    monkeypatch.setattr(cpu_layers, "has_compiler", lambda: True)
    lvm = LVM.from_shape("tiny")
    cpu_layers.use_fastest_layers(lvm.llama, tokens=cpu_layers.LONG * cpu_layers.TOKENS / 4)
    assert asked == [False] and not cpu_layers.is_compiled(lvm.llama)
    lvm = LVM.from_shape("tiny")
    cpu_layers.use_fastest_layers(lvm.llama, tokens=cpu_layers.LONG * cpu_layers.TOKENS * 4)
    assert asked == [False, False, True]
    assert cpu_layers.is_compiled(lvm.llama) == (fastest == "compiled")
    assert (type(lvm.llama.model.norm) is cpu_layers.FusedRMSNorm) == (fastest == "fused")


def test_layers_are_measured_in_turn():
    from lvmlab.training.cpu_layers import layer_seconds

    taken = layer_seconds(32, 64, 2)
    assert set(taken) == {"standard", "fused"} and min(taken.values()) > 0


def test_a_class_with_too_few_rows_is_refused_at_the_start_by_name(tmp_path):
    pairs = np.full((9, 2, 4), 5, np.uint16)
    names = ["cats"] * 6 + ["dogs"] * 3
    meta = {"tokenizer": TOKENIZER, "tokens": 4, "tasks": {"pets": {}}}
    save_table(
        tmp_path / "store" / "pets.000000.arrow",
        pairs.reshape(9, -1),
        tokenizer=TOKENIZER,
        pictures=2,
        members=9,
        task="pets",
        split="train",
        group=names,
    )
    (tmp_path / "store" / "store.json").write_text(json.dumps(meta))
    recipe = LVMRecipe(tokens=128, phases=((1.0, 4),), mixture=Mixture("natural"))
    with pytest.raises(
        ValueError, match="do not fit pets: its class 'dogs' has 3 of the 4 rows they take; ask for at most 3"
    ):
        fit_lvm(tmp_path / "store", tmp_path / "training", shape="tiny", config=CONFIG, recipe=recipe)
    assert not (tmp_path / "training").exists()
    recipe = dataclasses.replace(recipe, phases=((1.0, 3),))
    once = dataclasses.replace(CONFIG, steps=1, warmup=0)
    assert fit_lvm(tmp_path / "store", tmp_path / "training", shape="tiny", config=once, recipe=recipe)
