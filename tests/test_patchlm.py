"""Autoregression over patches: its mask, its targets, its places, and that it learns."""

import math
from dataclasses import replace

import pytest
import torch

from lvmlab.model.aim import AIM_PRESETS, PatchConfig, PatchLM, sincos_2d
from lvmlab.utils.checkpoints import CheckpointError

TINY = PatchConfig(16, 3, 2, patch=4, size=16, head_blocks=2, head_width=24)
KINDS = {
    "aim": TINY,
    "llama": replace(TINY, block="llama", ffn_dim=24),
    "random": replace(TINY, order="random"),
    "causal": replace(TINY, prefix=False),
    "no head": replace(TINY, head_blocks=0),
}


def images(count=3, size=16):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name, millions",
    [("aim-600m", 690), ("aim-1b", 1220), ("aim-3b", 2740), ("aim-7b", 6480), ("llama-80m-patch", 86)],
)
def test_shapes_have_the_published_sizes(name, millions):
    with torch.device("meta"):
        model = PatchLM(AIM_PRESETS[name])
    count = sum(p.numel() for part in (model.preprocessor, model.trunk) for p in part.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_foretold_is_not_seen(kind):
    """A patch changes no prediction of a patch before it, nor, outside the prefix, of itself."""
    model = PatchLM.from_shape(KINDS[kind]).eval()
    one, prefix = images(1), torch.tensor([5])
    changed = one.clone()
    row, column = divmod(int(model.order[9]), 4)
    changed[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = (
        0.5 + torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1)) / 3
    )
    found = []
    model.predictor.register_forward_hook(lambda module, given, out: found.append(out))
    model(one, prefix)
    model(changed, prefix)
    same = (found[0] - found[1]).abs().amax(1) < 1e-6  # (N - 5,): what foretells patches 5 to 15
    assert len(same) == 11 and same[:5].all() and not same[5:].any()


def test_a_prefix_is_read_both_ways_and_is_not_foretold():
    model = PatchLM.from_shape(TINY).eval()
    found, seen = [], []
    model.predictor.register_forward_hook(lambda module, given, out: found.append(out))
    model.trunk.register_forward_hook(lambda module, given, out: seen.append(out[-1][0]))
    one = images(1)
    changed = one.clone()
    changed[:, :, 4:8, 0:4] = 0.1  # the fifth patch, the last of the prefix
    model(one, torch.tensor([5]))
    model(changed, torch.tensor([5]))
    assert ((seen[0] - seen[1]).abs().amax(1) > 1e-6).all(), "the first places see the whole prefix"
    whole = model(one, torch.tensor([5]))
    assert found[0].shape == (11, 48), "the head sees no place within the prefix"
    assert whole.item() == pytest.approx(
        (found[0] - model.targets(one)[0, 5:]).square().mean().item(), rel=1e-5
    )  # patches 5 to 15
    two, lengths = images(2), torch.tensor([5, 12])
    apart = [model(two[i : i + 1], lengths[i : i + 1]).item() for i in range(2)]
    assert model(two, lengths).item() == pytest.approx((11 * apart[0] + 4 * apart[1]) / 15, rel=1e-5)
    assert PatchLM.from_shape(KINDS["causal"]).prefixes(9, torch.Generator()).tolist() == [1] * 9, (
        "plain causal: all but the first are foretold"
    )
    drawn = model.prefixes(4000, torch.Generator().manual_seed(0))
    assert drawn.min() == 1 and drawn.max() == 15 and drawn.float().mean() == pytest.approx(8, abs=0.3)


def test_targets_are_normalised_patches_in_raster_order():
    model, pictures = PatchLM.from_shape(TINY), images()
    found = model.targets(pictures)
    assert (
        found.shape == (3, 16, 48)
        and found.mean(2).abs().max() < 1e-5
        and (found.var(2, unbiased=False) - 1).abs().max() < 1e-3
    )
    patch = pictures[0, :, 4:8, 8:12].flatten()  # row 1, column 2
    torch.testing.assert_close(
        found[0, 6], (patch - patch.mean()) / patch.std(unbiased=False), atol=1e-4, rtol=1e-4
    )


def test_places_tell_the_column_first():
    found = sincos_2d(2, 3, 8)
    assert found.shape == (6, 8)
    torch.testing.assert_close(
        found[5],
        torch.cat([f(torch.tensor([n * 1.0, n * 0.01])) for n in (2, 1) for f in (torch.sin, torch.cos)]),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_features_read_both_ways_and_every_parameter_learns(kind):
    model = PatchLM.from_shape(KINDS[kind])
    model.loss(images(), torch.Generator().manual_seed(0)).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not still
    model.eval()
    one, other = images(1), images(1)
    other[:, :, 12:, 12:] = 0.2
    layers = [model.features(x) for x in (one, other)]
    assert len(layers[0]) == 3 and layers[0][0].shape == (1, 16, 16)
    assert ((layers[0][0] - layers[1][0]).abs().amax(2) > 1e-7).all(), "the last patch is seen from the first"


@pytest.mark.slow
def test_it_learns():
    model, pictures = PatchLM.from_shape(TINY), images(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = None
    for step in range(60):
        loss = model.loss(pictures, torch.Generator().manual_seed(step % 4))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        first = first or loss.item()
    assert first == pytest.approx(1, abs=0.6) and loss.item() < 0.6 * first


@pytest.mark.parametrize(
    "field, value",
    [("dim", 18), ("n_layers", 0), ("size", 18), ("head_blocks", -1), ("block", "x"), ("order", "spiral")],
)
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(ValueError, match=f"PatchConfig.{field}="):
        replace(TINY, **{field: value})


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="multiples of the patch"):
        PatchLM.from_shape(TINY).features(torch.rand(1, 3, 18, 16))
    with pytest.raises(ValueError, match="choose from"):
        PatchLM.from_shape("aim-9b")


def released(folder, width=256, blocks=2, patch=14, split=True):
    """A small random checkpoint under the keys of apple/ml-aim (aim-v1/aim/v1/torch), as its hub has it in
    one file or two.
    """
    rng = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=rng) * 0.05  # noqa: E731
    state = {
        "preprocessor.patchifier.proj.weight": draw(width, 3, patch, patch),
        "preprocessor.patchifier.proj.bias": draw(width),
        "preprocessor.patchifier.norm.weight": 1 + draw(width),
        "preprocessor.patchifier.norm.bias": draw(width),
        "trunk.post_trunk_norm.weight": 1 + draw(width),
        "trunk.post_trunk_norm.bias": draw(width),
    }
    for i in range(blocks):
        of = f"trunk.blocks.{i}."
        state |= {
            f"{of}attn.qkv.weight": draw(3 * width, width),
            f"{of}attn.proj.weight": draw(width, width),
            f"{of}mlp.fc1.weight": draw(4 * width, width),
            f"{of}mlp.fc2.weight": draw(width, 4 * width),
        }
        state |= {
            f"{of}{norm}.{kind}": (kind == "weight") + draw(width)
            for norm in ("norm_1", "norm_2")
            for kind in ("weight", "bias")
        }
    head = {
        "cls_token": draw(1, 1, width),
        "k.weight": draw(width, width),
        "v.weight": draw(width, width),
        "linear.weight": draw(10, width),
        "bn.running_mean": draw(width),
        "bn.running_var": 1 + draw(width).abs(),
        "bn.num_batches_tracked": torch.tensor(5),
    }
    if split:
        torch.save(state, folder / "backbone.pth")
        torch.save(head, folder / "head.pth")
    else:
        torch.save(state | {f"head.{k}": v for k, v in head.items()}, folder / "pytorch_model.bin")
    return state, head


def by_hand(state, images, heads=2, blocks=2, patch=14):
    """The published equations, written again: every block's output."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    norm = lambda x, of: torch.nn.functional.layer_norm(
        x, x.shape[-1:], state[f"{of}.weight"], state[f"{of}.bias"], 1e-6
    )  # noqa: E731
    of = "preprocessor.patchifier"
    x = torch.nn.functional.conv2d(
        (images - mean) / std, state[f"{of}.proj.weight"], state[f"{of}.proj.bias"], stride=patch
    )
    height, width, channels = *x.shape[2:], x.shape[1]
    x = norm(x.flatten(2).transpose(1, 2), f"{of}.norm")
    place = torch.zeros(height * width, channels)
    for y in range(height):
        for c in range(width):
            for k in range(channels // 4):
                rate = 1 / 10_000 ** (k / (channels / 4))
                values = [math.sin(c * rate), math.cos(c * rate), math.sin(y * rate), math.cos(y * rate)]
                for quarter, value in enumerate(values):
                    place[y * width + c, quarter * channels // 4 + k] = value
    x, found = x + place, []
    for i in range(blocks):
        of = f"trunk.blocks.{i}"
        q, k, v = (
            (norm(x, f"{of}.norm_1") @ state[f"{of}.attn.qkv.weight"].T)
            .unflatten(2, (3, heads, -1))
            .permute(2, 0, 3, 1, 4)
        )
        seen = (q @ k.transpose(2, 3) / (channels // heads) ** 0.5).softmax(3) @ v
        x = x + seen.transpose(1, 2).flatten(2) @ state[f"{of}.attn.proj.weight"].T
        x = (
            x
            + torch.nn.functional.gelu(norm(x, f"{of}.norm_2") @ state[f"{of}.mlp.fc1.weight"].T)
            @ state[f"{of}.mlp.fc2.weight"].T
        )
        found.append(x)
    return found


@pytest.mark.parametrize("split", [True, False])
def test_the_released_weights_give_the_published_features(tmp_path, split):
    state, head = released(tmp_path, split=split)
    model = PatchLM.from_pretrained(tmp_path, device="cpu")
    pictures = torch.rand(2, 3, 42, 56, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(model.features(pictures), by_hand(state, pictures), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert model.probe.keys() == head.keys()


def test_a_backbone_that_does_not_fit_is_named_with_all_keys(tmp_path):
    state, _ = released(tmp_path)
    bad = {k: v for k, v in state.items() if "blocks.1.norm_1" not in k} | {
        "trunk.blocks.0.extra": torch.zeros(1)
    }
    torch.save(bad, tmp_path / "backbone.pth")
    with pytest.raises(
        CheckpointError,
        match=r"missing: trunk.blocks.1.norm_1.bias, trunk.blocks.1.norm_1.weight; unexpected: trunk.blocks.0.extra",
    ):
        PatchLM.from_pretrained(tmp_path)
    (tmp_path / "backbone.pth").unlink()
    with pytest.raises(CheckpointError, match="no AIM backbone"):
        PatchLM.from_pretrained(tmp_path)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model = PatchLM.from_shape(TINY).eval()
    model.save_pretrained(tmp_path, torch.float32)
    again = PatchLM.from_pretrained(tmp_path, device="cpu")
    assert again.shape == TINY
    torch.testing.assert_close(again.features(images())[-1], model.features(images())[-1])
