import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lvmlab.tokenizer.tokenizer import CheckpointError, Tokenizer
from lvmlab.tokenizer.vqgan import VQGANConfig
from lvmlab.training.tokenizer import TokenizerRecipe, TrainingVQGAN
from lvmlab.utils import paths


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_preset("tiny", device="cpu", precision="fp32")


@pytest.fixture
def saved(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tok", log=[{"step": 0}])
    return tmp_path / "tok"


def pictures(count=5, size=16):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_there_and_back(tokenizer):
    tokens = tokenizer.encode(pictures())
    assert tokens.shape == (5, tokenizer.tokens_per_image) == (5, 16) and tokens.dtype == torch.int64
    assert 0 <= tokens.min() and tokens.max() < tokenizer.codebook_size == 16
    back = tokenizer.decode(tokens)
    assert (
        back.shape == (5, 3, 16, 16) and back.dtype == torch.float32 and back.min() >= 0 and back.max() <= 1
    )
    assert torch.equal(tokenizer.round_trip(pictures()), back)
    assert tokenizer.encode(pictures(0)).shape == (0, 16) and tokenizer.decode(tokens[:0]).shape == (
        0,
        3,
        16,
        16,
    )


def test_batches_of_any_size_give_the_same_tokens(tokenizer):
    small = Tokenizer(tokenizer.net, device="cpu", precision="fp32", batch_size=2)
    assert torch.equal(small.encode(pictures()), tokenizer.encode(pictures()))


@pytest.mark.parametrize("name, size, tokens, codes", [("mini", 64, 64, 1024), ("f16-8192", 256, 256, 8192)])
def test_presets(name, size, tokens, codes):
    config = VQGANConfig.preset(name)
    assert (config.resolution, config.grid**2, config.codebook_size) == (size, tokens, codes)


def test_a_seed_decides_weights_and_fingerprint(tokenizer):
    same, other = (Tokenizer.from_preset("tiny", seed=s, device="cpu", precision="fp32") for s in (0, 1))
    assert same.fingerprint == tokenizer.fingerprint != other.fingerprint and len(same.fingerprint) == 16


def test_saved_and_loaded_it_is_the_same(tokenizer, saved):
    again = Tokenizer.from_pretrained(saved, device="cpu", precision="fp32")
    assert again.fingerprint == tokenizer.fingerprint and again.config == tokenizer.config
    assert torch.equal(again.encode(pictures()), tokenizer.encode(pictures()))
    assert json.loads((saved / "log.json").read_text()) == [{"step": 0}] and not list(saved.glob(".*"))


def test_bf16_on_disk_leaves_the_codebook_alone(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path, dtype=torch.bfloat16)
    kinds = {name.split(".")[0]: v.dtype for name, v in load_file(tmp_path / "model.safetensors").items()}
    assert kinds["quantize"] == torch.float32 and kinds["encoder"] == torch.bfloat16
    again = Tokenizer.from_pretrained(tmp_path, device="cpu", precision="fp32")
    assert torch.equal(again.net.quantize.embedding.weight, tokenizer.net.quantize.embedding.weight)


def test_a_shipped_name(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "assets", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    tokenizer.save_pretrained(tmp_path / "models/one")
    assert Tokenizer.from_pretrained("one", device="cpu").fingerprint == tokenizer.fingerprint
    with pytest.raises(CheckpointError, match=r"no tokenizer 'two'.*shipped: one.*from_preset"):
        Tokenizer.from_pretrained("two")
    with pytest.raises(ValueError, match="choose from"):
        Tokenizer.from_preset("two")


@pytest.mark.parametrize(
    "images, message",
    [
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "uint8.*divide by 255"),
        (torch.rand(3, 16, 16), r"\(3, 16, 16\)"),
        (torch.rand(1, 3, 8, 8), r"\(B, 3, 16, 16\)"),
        (torch.rand(1, 1, 16, 16), r"\(1, 1, 16, 16\)"),
        (torch.rand(1, 3, 16, 16) * 255, "values in"),
        (torch.rand(1, 3, 16, 16) - 1, "values in"),
        (torch.full((1, 3, 16, 16), float("nan")), "nan"),
        ("a.png", "str"),
    ],
)
def test_bad_pictures_are_refused(tokenizer, images, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.encode(images)


@pytest.mark.parametrize(
    "tokens, message",
    [
        (torch.full((1, 16), 16), "id 16 is out of range.*0 to 15"),
        (torch.full((1, 16), -1), "id -1 is out of range"),
        (torch.zeros(1, 15, dtype=torch.int64), r"\(1, 15\)"),
        (torch.zeros(16, dtype=torch.int64), r"\(16,\)"),
        (torch.zeros(1, 16), "float32"),
        (torch.zeros(1, 16, dtype=torch.bool), "bool"),
    ],
)
def test_bad_tokens_are_refused(tokenizer, tokens, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.decode(tokens)


def damage(folder, how):
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "cut to nothing":
        weights.write_bytes(b"")
    elif how == "no weights":
        weights.unlink()
    elif how == "no config":
        config.unlink()
    elif how == "bad json":
        config.write_text(config.read_text()[:50])
    elif how == "other kind":
        config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "llama"}))
    elif how == "bad field":
        config.write_text(json.dumps({**json.loads(config.read_text()), "patch": 3}))
    else:
        state = load_file(weights)
        if how == "missing":
            del state["encoder.conv_in.bias"]
        elif how == "unexpected":
            state["encoder.conv_on.bias"] = torch.zeros(2)
        elif how == "misshapen":
            state["quantize.embedding.weight"] = torch.zeros(17, 4)
        elif how == "not finite":
            state["decoder.conv_in.bias"][0] = float("inf")
        save_file(state, weights)


@pytest.mark.parametrize(
    "how, message",
    [
        ("truncated", "damaged"),
        ("cut to nothing", "damaged"),
        ("no weights", "model.safetensors is missing"),
        ("no config", "config.json is missing"),
        ("bad json", "damaged"),
        ("other kind", "another kind|no lvmlab VQGAN"),
        ("bad field", "patch=3"),
        ("missing", "missing: encoder.conv_in.bias"),
        ("unexpected", "unexpected: encoder.conv_on.bias"),
        ("misshapen", r"misshapen: quantize.embedding.weight \(17, 4\) for \(16, 4\)"),
        ("not finite", "not finite: decoder.conv_in.bias"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_left_as_it_is(saved, how, message):
    damage(saved, how)
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_pretrained(saved, device="cpu")
    assert before == {p.name: p.read_bytes() for p in saved.iterdir()}


def test_a_pickle_in_place_of_weights_is_not_executed(saved):
    torch.save({"a": torch.zeros(1)}, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Tokenizer.from_pretrained(saved, device="cpu")


@pytest.mark.parametrize("cosine", [True, False], ids=["cosine", "euclidean"])
def test_the_training_quantisers_tokens_are_those_of_encode(cosine):
    torch.manual_seed(0)
    config = VQGANConfig(**{**VQGANConfig.preset("tiny").__dict__, "cosine": cosine})
    model = TrainingVQGAN(config, TokenizerRecipe(free_batches=0, dead_below=0))
    for _ in range(3):  # k-means, then two updates
        model(pictures(32))
    model.eval()
    with torch.no_grad():
        picture, tokens, _ = model(pictures(8))
    exported = Tokenizer(model.export(), device="cpu", precision="fp32")
    assert len(tokens.unique()) > 4 and torch.equal(exported.encode(pictures(8)), tokens)
    torch.testing.assert_close(exported.decode(tokens), picture.clamp(0, 1), atol=1e-5, rtol=0)


def test_a_flat_cell_has_one_code_wherever_it_lies():
    """Of a local encoder: the tokens are then a language in which a colour is a word."""
    tokenizer = Tokenizer.from_preset("mini", device="cpu", precision="fp32")
    images = torch.full((1, 3, 64, 64), 0.2)
    images[:, :, 16:40, 24:56] = torch.tensor([0.9, 0.4, 0.1]).view(3, 1, 1)
    tokens = tokenizer.encode(images).view(8, 8)
    inside, outside = tokens[3, 4:6], torch.cat([tokens[7, 1:7], tokens[1:7, 1]])
    assert len(inside.unique()) == len(outside.unique()) == 1 and inside[0] != outside[0]
