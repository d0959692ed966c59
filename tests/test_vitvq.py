import json

import pytest
import torch

from lvmlab.tokenizer.tokenizer import CheckpointError, Tokenizer
from lvmlab.tokenizer.vitvq import VITVQ_PRESETS, ViTVQ, ViTVQConfig


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_preset("tiny-v2", device="cpu", precision="fp32")


def pictures(count=5, size=32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_mini_v2_has_64_tokens_of_4096_codes():
    config = VITVQ_PRESETS["mini-v2"]
    assert (config.resolution, config.grid**2, config.codebook_size) == (128, 64, 4096)


def test_there_and_back(tokenizer):
    tokens = tokenizer.encode(pictures())
    assert tokens.shape == (5, 16) and tokens.dtype == torch.int64 and 0 <= tokens.min() and tokens.max() < 16
    back = tokenizer.decode(tokens)
    assert back.shape == (5, 3, 32, 32) and back.min() >= 0 and back.max() <= 1


@pytest.mark.parametrize("head", [(), (8, 8)])
def test_saved_and_loaded_it_is_the_same(head, tmp_path):
    torch.manual_seed(0)
    net = ViTVQ(ViTVQConfig(**{**VITVQ_PRESETS["tiny-v2"].__dict__, "head": head}))
    for p in net.parameters():  # what begins at zero must be saved as well
        p.data.add_(0.01 * torch.randn_like(p))
    tokenizer = Tokenizer(net, device="cpu", precision="fp32")
    tokenizer.save_pretrained(tmp_path / "tok")
    again = Tokenizer.from_pretrained(tmp_path / "tok", device="cpu", precision="fp32")
    assert again.fingerprint == tokenizer.fingerprint and again.config == tokenizer.config
    tokens = tokenizer.encode(pictures())
    assert torch.equal(again.encode(pictures()), tokens)
    assert torch.equal(again.decode(tokens), tokenizer.decode(tokens))


def test_a_field_that_does_not_fit_is_refused(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "heads": 3}))
    with pytest.raises(CheckpointError, match="multiple of heads=3"):
        Tokenizer.from_pretrained(tmp_path, device="cpu")


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"width": 0}, "width=0"),
        ({"resolution": 100}, "multiple of 16"),
        ({"stem_blocks": (1,)}, "one a level"),
        ({"head": (8,) * 5}, "at most 4 levels"),
        ({"codebook_size": 1}, "over 1"),
    ],
)
def test_bad_shapes_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        ViTVQConfig(**changed)


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    net = ViTVQ(ViTVQConfig(**{**VITVQ_PRESETS["tiny-v2"].__dict__, "head": (8, 8), "stem_blocks": (1, 1)}))
    for p in net.parameters():
        p.data.add_(0.01 * torch.randn_like(p))
    net.render(net.features(pictures())).square().mean().backward()
    without = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {"quantize.embedding.weight"}  # learned by moving averages


def test_a_flat_picture_has_one_code_wherever_a_cell_stands(tokenizer):
    tokens = tokenizer.encode(torch.full((1, 3, 32, 32), 0.3))
    assert tokens.unique().numel() == 1
