"""Fine-tuning of any model that loads, whole or through adapters, and what is saved of it."""

import sys

import layouts
import numpy as np
import pytest
import torch
from stores import TOKENIZER, fit_lvm, write_store
from transformers import LlamaForCausalLM

from lvmlab.data.mixture import Mixture
from lvmlab.model.generation import complete_tokens
from lvmlab.model.lora import SCALE, adapt, merge
from lvmlab.model.lvm import LVM
from lvmlab.training.checkpoints import load_checkpoint
from lvmlab.training.export import export_lvm, load_lvm
from lvmlab.training.loop import TrainConfig
from lvmlab.training.recipe import LVMRecipe

pytestmark = pytest.mark.slow

CONFIG = TrainConfig(steps=8, lr=2e-2, warmup=1, precision="fp32", save_every=100, log_every=1)
RECIPE = LVMRecipe(tokens=64, phases=((1.0, 4),), mixture=Mixture("natural"))


@pytest.fixture
def store(tmp_path):
    """Pictures of 4 tokens out of 32; a label is its image's tokens plus 8."""
    images = np.random.default_rng(0).integers(0, 16, (64, 8, 4))
    write_store(tmp_path / "store", {"segmentation": np.stack([images, images + 8], 2).astype(np.uint16)})
    return tmp_path / "store"


def folder_of(kind, tmp_path):
    config = {"delvm": layouts.DELVM, "vit": layouts.VIT, "lvm": layouts.LLAMA}[kind]
    state = layouts.draw(layouts.transformer_shapes, config)
    return layouts.write_transformer(
        tmp_path / kind, state, config, "model.safetensors" if kind == "lvm" else "pytorch_model.bin"
    )


def tuned(store, folder, start, config=CONFIG, **options):
    return fit_lvm(store, folder, start=start, config=config, recipe=RECIPE, **options)


@pytest.mark.parametrize("lora", [0, 2], ids=["whole", "adapters"])
@pytest.mark.parametrize("kind", ["delvm", "vit", "lvm"])
def test_any_layout_is_tuned_in_one_call_and_saved_whole(tmp_path, store, kind, lora):
    start = folder_of(kind, tmp_path)
    log = tuned(store, tmp_path / "tuned", start, lora=lora)
    assert log[-1]["loss"] < log[0]["loss"] - 0.1
    before, after = LVM.from_pretrained(start, device="cpu"), load_lvm(tmp_path / "tuned")
    assert (
        after.config.model_type == before.config.model_type
        and after.codebook_size == before.codebook_size
        and after.max_seq_len == before.max_seq_len
    )
    assert {k: v.shape for k, v in after.state_dict().items()} == {
        k: v.shape for k, v in before.state_dict().items()
    }
    if kind == "vit":
        return
    out = export_lvm(tmp_path / "tuned", tmp_path / "out")
    plain, tokens = (
        LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32),
        torch.arange(24)[None],
    )
    torch.testing.assert_close(plain(tokens).logits, out.to("cpu")(tokens), atol=1e-5, rtol=1e-5)
    assert plain.config.rms_norm_eps == 1e-6 and out.tokenizer_fingerprint == TOKENIZER
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: other" in card and ("adapters of rank 2" in card) == bool(lora)
    again = tuned(store, tmp_path / "again", tmp_path / "out", TrainConfig(steps=1, precision="fp32"))
    assert again[0]["loss"] < log[0]["loss"] - 0.1


def test_adapters_alone_are_trained_and_are_in_the_weights_afterwards(tmp_path, store):
    """The parts of a checkpoint: the frozen weights are the start's to the bit, and W + SCALE * B @ A is what
    PEFT computes unmerged.
    """
    start = folder_of("delvm", tmp_path)
    tuned(store, tmp_path / "tuned", start, lora=2)
    state, before = (
        load_checkpoint(tmp_path / "tuned")["model"],
        LVM.from_pretrained(start, device="cpu").state_dict(),
    )
    frozen = {k.replace(".base_layer.", "."): v for k, v in state.items() if ".lora_" not in k}
    assert frozen.keys() == before.keys() and all(torch.equal(frozen[k], before[k]) for k in before)
    adapters = [k for k in state if ".lora_B" in k]
    assert (
        len(adapters) == 3 * 7
        and all(state[k].abs().sum() > 0 for k in adapters)
        and not any("lm_head" in k or "embed" in k for k in adapters)
    )
    unmerged = adapt(LVM.from_pretrained(start, device="cpu"), 2, seed=5)
    unmerged.load_state_dict(state)
    merged, tokens = load_lvm(tmp_path / "tuned"), torch.arange(24)[None]
    torch.testing.assert_close(merged(tokens), unmerged.eval()(tokens), atol=1e-5, rtol=1e-5)
    assert (merged(tokens) - LVM.from_pretrained(start, device="cpu")(tokens)).abs().max() > 0.05
    found = merge(state)
    name = "llama.model.layers.1.mlp.up_proj"
    expected = (
        before[f"{name}.weight"]
        + SCALE * state[f"{name}.lora_B.default.weight"] @ state[f"{name}.lora_A.default.weight"]
    )
    assert found.keys() == before.keys() and torch.equal(found[f"{name}.weight"], expected)
    prompts = torch.arange(16)[None]
    assert torch.equal(
        complete_tokens(unmerged, prompts, 8).tokens, complete_tokens(merged, prompts, 8).tokens
    ), "decoding knows of adapters"


def test_a_killed_tuning_goes_on_to_the_same_losses(tmp_path, store):
    start, whole = (
        folder_of("delvm", tmp_path),
        TrainConfig(steps=8, lr=2e-2, warmup=1, precision="fp32", save_every=4, log_every=1),
    )
    log = tuned(store, tmp_path / "whole", start, whole, lora=2)
    tuned(store, tmp_path / "parts", start, whole, lora=2, budget_s=0.0)
    assert load_checkpoint(tmp_path / "parts")["step"] == 1
    parts = tuned(store, tmp_path / "parts", start, whole, lora=2)
    assert [r["loss"] for r in parts] == pytest.approx([r["loss"] for r in log], abs=2e-6)


def test_fresh_adapters_change_nothing_and_what_does_not_fit_is_refused(tmp_path, store, monkeypatch):
    lvm, tokens = LVM.from_shape("tiny"), torch.arange(24)[None]
    before = lvm(tokens).clone()
    assert torch.equal(adapt(lvm, 4)(tokens), before)
    assert 0 < sum(p.numel() for p in lvm.parameters() if p.requires_grad) < 0.15 * lvm.num_parameters
    with pytest.raises(ValueError, match="lora=-1"):
        adapt(lvm, -1)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install lvmlab\[lora\]"):
        tuned(store, tmp_path / "missing", LVM.from_shape("tiny"), lora=2)
