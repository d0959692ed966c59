import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from lvmlab.model.config import LVM_PRESETS, LVMConfig
from lvmlab.model.initialisation import init_from_codebook, init_from_grid
from lvmlab.model.lvm import LVM
from lvmlab.tokenizer.tokenizer import CheckpointError, Tokenizer
from lvmlab.utils import paths

CODES = 16


@pytest.fixture
def lvm():
    return LVM.from_shape("tiny", seed=1, vocab_size=CODES)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_preset("tiny", device="cpu", precision="fp32")


@pytest.fixture
def saved(lvm, tmp_path):
    lvm.save_pretrained(
        tmp_path / "model",
        tokenizer_fingerprint="0123",
        log=[{"step": 0}],
        card="# a card",
        dtype=torch.float32,
    )
    return tmp_path / "model"


def sentences(rows=3, length=40, codes=CODES):
    return torch.randint(0, codes, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name, low, high",
    [
        ("mini-student", 2, 3),
        ("mini-teacher", 7, 10),
        ("80m", 75, 85),
        ("300m", 291, 300),
        ("1b", 1148, 1165),
    ],
)
def test_shapes_have_the_published_sizes(name, low, high):
    with torch.device("meta"):
        lvm = LVM.from_shape(name)
    assert low < lvm.num_parameters / 1e6 < high and lvm.shape == name
    big = not name.startswith("mini")
    assert (lvm.max_seq_len, lvm.vocab_size) == ((2048, 8192) if big else (1024, 1024))
    attention = lvm.llama.model.layers[0].self_attn
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
        assert projection.bias is not None  # as in DeLVM
    assert (
        lvm.llama.lm_head.bias is None and lvm.llama.lm_head.weight is not lvm.llama.model.embed_tokens.weight
    )
    assert (
        lvm.config.rms_norm_eps == 1e-5
        and lvm.config.eos_token_id is lvm.config.bos_token_id is lvm.config.pad_token_id is None
    )


def test_a_seed_decides_the_weights_and_leaves_the_global_one_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (LVM.from_shape("tiny", seed=s).llama.lm_head.weight for s in (0, 0, 1))
    assert (
        torch.equal(one, same) and not torch.equal(one, other) and torch.equal(before, torch.get_rng_state())
    )


@pytest.mark.parametrize("shape", [{"n_heads": 3}, {"n_layers": 0}, {"dim": 1.5}])
def test_a_wrong_shape_names_its_field(shape):
    with pytest.raises(ValueError, match=f"LVMConfig.{next(iter(shape))}="):
        LVMConfig(**{"dim": 32, "n_layers": 2, "n_heads": 2, "ffn_dim": 64, **shape})


def test_loss_is_that_of_transformers_and_code_0_is_a_target(lvm):
    tokens = sentences()
    tokens[:, 7] = 0
    torch.testing.assert_close(lvm(tokens, tokens), lvm.llama(input_ids=tokens, labels=tokens).loss)
    only = torch.zeros(tokens.shape)
    only[:, 7] = 1
    torch.testing.assert_close(lvm(tokens, tokens, only), -lvm(tokens)[:, 6].log_softmax(-1)[:, 0].mean())


@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_every_gradient_equal_plain_cross_entropy(lvm, weighted):
    tokens = sentences()
    weights = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1)) if weighted else None
    loss = lvm(tokens, tokens, weights)
    loss.backward()
    ours = {name: p.grad.clone() for name, p in lvm.named_parameters()}
    assert all(g.abs().sum() > 0 for g in ours.values())
    lvm.zero_grad()
    each = F.cross_entropy(lvm(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    w = torch.ones_like(each) if weights is None else weights[:, 1:].flatten()
    plain = (each * w).sum() / w.sum()
    plain.backward()
    torch.testing.assert_close(loss, plain)
    for name, p in lvm.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_loss_under_bf16_is_fp32_and_close(lvm, weighted):
    tokens = sentences()
    weights = torch.ones(tokens.shape) if weighted else None
    with torch.autocast("cpu", torch.bfloat16):
        loss = lvm(tokens, tokens, weights)
    loss.backward()
    assert loss.dtype == torch.float32 and abs(loss.item() - lvm(tokens, tokens).item()) < 5e-3


def test_more_logits_than_a_chunk_are_never_held(monkeypatch):
    monkeypatch.setattr("lvmlab.model.loss.CHUNK", 8 * 128 * 4096 // 4)

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(value, torch.Tensor):
                    self.numel = max(self.numel, value.numel())
            return out

    lvm, tokens = LVM.from_shape("tiny", vocab_size=4096), sentences(8, 129, 4096)
    with Largest() as held:
        lvm(tokens, tokens).backward()
        lvm(tokens, tokens, torch.ones(tokens.shape)).backward()
    assert held.numel <= 8 * 128 * 4096 / 4


@pytest.mark.parametrize(
    "tokens, message",
    [
        (torch.zeros(2, 8), "float32"),
        (torch.zeros(8, dtype=torch.int64), r"\(8,\)"),
        (torch.zeros(0, 8, dtype=torch.int64), r"\(0, 8\)"),
        (torch.full((1, 8), CODES), f"id {CODES} is out of range"),
        (torch.full((1, 8), -100), "id -100 is out of range"),
        (torch.zeros(1, 257, dtype=torch.int64), "context of 256"),
        (torch.zeros(1, 1, dtype=torch.int64), "at least 2"),
        ([1, 2], "list"),
    ],
)
def test_bad_tokens_are_refused(lvm, tokens, message):
    with pytest.raises(ValueError, match=message):
        lvm(tokens, tokens)


@pytest.mark.parametrize(
    "weights", [torch.ones(3, 39), -torch.ones(3, 40), torch.zeros(3, 40), torch.full((3, 40), float("nan"))]
)
def test_bad_weights_are_refused(lvm, weights):
    with pytest.raises(ValueError, match="weights"):
        lvm(sentences(), sentences(), weights)


def test_saved_and_loaded_it_is_the_same_here_and_in_plain_transformers(lvm, saved):
    tokens = sentences()
    again = LVM.from_pretrained(saved, device="cpu")
    assert torch.equal(again(tokens), lvm(tokens)) and not again.training
    assert (again.shape, again.max_seq_len, again.tokenizer_fingerprint) == ("tiny", 256, "0123")
    plain = AutoModelForCausalLM.from_pretrained(saved)
    assert torch.equal(plain(tokens).logits, lvm(tokens)) and type(plain).__name__ == "LlamaForCausalLM"
    assert (
        json.loads((saved / "log.json").read_text()) == [{"step": 0}]
        and (saved / "README.md").read_text() == "# a card"
    )
    assert not [p for p in saved.iterdir() if p.name.startswith(".")]


def test_weights_are_bf16_on_disk_and_fp32_in_use(lvm, tmp_path):
    lvm.save_pretrained(tmp_path)
    assert {v.dtype for v in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    again = LVM.from_pretrained(tmp_path, device="cpu")
    assert lvm.llama.lm_head.weight.dtype == again.llama.lm_head.weight.dtype == torch.float32
    assert torch.equal(again.llama.lm_head.weight, lvm.llama.lm_head.weight.bfloat16().float())


class Runs:
    """What would run code when it is unpickled."""

    def __reduce__(self):
        return print, ("executed",)


def damage(folder, how):
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "no weights":
        weights.unlink()
    elif how == "pickle":
        torch.save({**load_file(weights), "more": Runs()}, folder / "pytorch_model.bin")
        weights.unlink()
    elif how == "no config":
        config.unlink()
    elif how == "bad json":
        config.write_text("{")
    elif how == "other kind":
        config.write_text(json.dumps({"model_type": "gpt2"}))
    else:
        state = load_file(weights)
        if how == "missing":
            del state["model.layers.1.mlp.up_proj.weight"]
        elif how == "unexpected":
            state["model.layers.7.mlp.up_proj.weight"] = torch.zeros(3)
        elif how == "misshapen":
            state["lm_head.weight"] = torch.zeros(CODES + 1, 32)
        elif how == "not finite":
            state["model.norm.weight"][0] = float("nan")
        save_file(state, weights, metadata={"format": "pt"})


def test_a_pickle_of_tensors_alone_is_read(saved, lvm):
    torch.save(load_file(saved / "model.safetensors"), saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    assert LVM.from_pretrained(saved, device="cpu").fingerprint() == lvm.fingerprint()


@pytest.mark.parametrize(
    "how, message",
    [
        ("truncated", "damaged"),
        ("no weights", "model.safetensors"),
        ("pickle", "wants print"),
        ("no config", "config.json is missing"),
        ("bad json", "damaged"),
        ("other kind", "gpt2"),
        ("missing", "missing: model.layers.1.mlp.up_proj.weight"),
        ("unexpected", "unexpected: model.layers.7.mlp.up_proj.weight"),
        ("misshapen", "misshapen: lm_head.weight"),
        ("not finite", "not finite: model.norm.weight"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_left_as_it_is(saved, how, message):
    damage(saved, how)
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    with pytest.raises(CheckpointError, match=message):
        LVM.from_pretrained(saved, device="cpu")
    assert before == {p.name: p.read_bytes() for p in saved.iterdir()}


def test_shapes_and_trained_weights_are_never_mixed_up(saved, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "assets", lambda: tmp_path / "assets")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="is a shape.*LVM.from_shape"):
        LVM.from_pretrained("mini-student")
    with pytest.raises(CheckpointError, match="shipped: none"):
        LVM.from_pretrained("no such model")
    with pytest.raises(ValueError, match="LVM.from_pretrained"):
        LVM.from_shape(str(saved))
    with pytest.raises(ValueError, match="choose from tiny, mini-student"):
        LVM.from_shape("mini-pupil")
    LVM.from_pretrained(saved, device="cpu").save_pretrained(tmp_path / "assets/models/shipped-one")
    tokenizer.save_pretrained(tmp_path / "assets/models/mini")
    assert LVM.from_pretrained("shipped-one", device="cpu").tokenizer_fingerprint == "0123"
    with pytest.raises(ValueError, match="LVM.from_pretrained"):
        LVM.from_shape("shipped-one")
    with pytest.raises(CheckpointError, match="Tokenizer.from_pretrained"):
        LVM.from_pretrained("mini")
    with pytest.raises(CheckpointError, match="shipped: shipped-one"):
        LVM.from_pretrained("no such model")


def test_a_tokenizer_that_does_not_fit_is_refused(lvm, tokenizer, tmp_path):
    lvm.check_fits(tokenizer)
    lvm.save_pretrained(tmp_path, tokenizer_fingerprint=tokenizer.fingerprint)
    lvm.check_fits(tokenizer)
    with pytest.raises(ValueError, match="another tokenizer"):
        lvm.check_fits(Tokenizer.from_preset("tiny", seed=1, device="cpu", precision="fp32"))
    with pytest.raises(ValueError, match="16 codes but the model speaks 1024"):
        LVM.from_shape("tiny").check_fits(tokenizer)
    with pytest.raises(ValueError, match="context of 31"):
        LVM.from_shape(LVMConfig(32, 1, 2, 64, max_seq_len=31, vocab_size=CODES)).check_fits(tokenizer)


def test_unused_ids_beyond_the_codes_fit(tokenizer, tmp_path):
    LVM.from_shape("tiny", vocab_size=CODES + 4).save_pretrained(tmp_path)
    LVM.from_pretrained(tmp_path, device="cpu", codebook_size=CODES).check_fits(tokenizer)
    assert set(LVM_PRESETS) >= {"mini-student", "mini-teacher", "80m", "300m", "1b"}


def test_codes_that_look_alike_start_alike_in_embedding_and_head():
    codebook = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    codebook[1] = codebook[0] + 0.01
    lvm = LVM.from_shape("tiny", vocab_size=64)
    before = lvm.llama.lm_head.weight.std().item()
    init_from_codebook(lvm, codebook)
    for rows in (lvm.llama.model.embed_tokens.weight, lvm.llama.lm_head.weight):
        near, far = (rows[1] - rows[0]).norm().item(), (rows[2:] - rows[0]).norm(dim=1).min().item()
        assert near < 0.1 * far and rows.requires_grad
    assert abs(lvm.llama.lm_head.weight.std().item() / before - 1) < 0.05
    with pytest.raises(ValueError, match="65, 8"):
        init_from_codebook(lvm, torch.zeros(65, 8))


def test_heads_start_at_the_place_about_to_be_written():
    shape = LVMConfig(
        dim=64, n_layers=2, n_heads=2, ffn_dim=64, max_seq_len=256, vocab_size=64, attention_bias=True
    )
    lvm = init_from_grid(LVM.from_shape(shape), 16)
    lvm.llama.set_attn_implementation("eager")
    tokens = torch.randint(0, 64, (2, 128), generator=torch.Generator().manual_seed(0))
    maps = lvm.llama.model(input_ids=tokens, output_attentions=True).attentions
    looked = maps[0][:, 0, 32:].argmax(
        -1
    )  # the first head: 15 back is the next token's place in the picture before
    assert (looked == torch.arange(32, 128) - 15).float().mean() > 0.9
    with pytest.raises(ValueError, match="biases"):
        init_from_grid(LVM.from_shape("tiny"), 16)
