"""Features of frozen models and what is read from them; labelled pictures."""

import gzip
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lvmlab.data import labelled
from lvmlab.evaluation import probing as probe
from lvmlab.evaluation.features import LVMTrunk, PatchTrunk, PixelTrunk, TimmTrunk, extract
from lvmlab.model.aim import PatchConfig, PatchLM
from lvmlab.model.config import LVM_PRESETS
from lvmlab.model.lvm import LVM
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.utils import paths
from lvmlab.utils.images import from_uint8
from lvmlab.world import default

TINY = PatchConfig(16, 3, 2, patch=4, size=16, head_blocks=1, head_width=16)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "cache", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def squares(name, count=60, size=16, seed=0):
    """Pictures of noise with a bright square whose corner tells the class; three pictures are of one source."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    pictures = rng.integers(0, 90, (count, size, size, 3)).astype(np.uint8)
    for picture, label in zip(pictures, labels, strict=True):
        picture[8 * (label == 2) : 8 * (label == 2) + 8, 8 * (label == 1) : 8 * (label == 1) + 8] = 255
    return labelled.Labelled(
        name, size, lambda i: pictures[i], labels, ["a", "b", "c"], np.arange(count) // 3
    )


@pytest.fixture
def three():
    trunk = PatchTrunk(PatchLM.from_shape(TINY).eval())
    return [
        extract(trunk, squares(name, 600 if name == "train" else 60, seed=i), places=(0, 1), progress=False)
        for i, name in enumerate(("train", "val", "test"))
    ]


def test_features_are_extracted_once_and_are_those_of_the_model(three, cache, monkeypatch):
    trunk, data = PatchTrunk(PatchLM.from_shape(TINY).eval()), squares("val", seed=1)
    monkeypatch.setattr(PatchTrunk, "blocks", lambda *_: pytest.fail("worked out again"))
    again = extract(trunk, data, places=(0, 1), progress=False)
    monkeypatch.undo()
    expected = trunk.model.features(from_uint8(data.batch(range(60))))
    for block, features in enumerate(expected):
        assert np.abs(again.means[block] - features.mean(1).detach().numpy()).max() < 0.05
    assert again.places[1].shape == (60, 16, 16) and set(again.places) == {0, 1}
    assert np.abs(again.mean((0, 1)) - (again.means[0].astype(np.float32) + again.means[1]) / 2).max() < 1e-6


@pytest.mark.slow
def test_probes_read_what_is_there_and_nothing_from_noise(three):
    train, val, test = three
    for predicted in (
        probe.linear(train, val, test, 1),
        probe.attentive(train, val, test, (0, 1), heads=2, epochs=40)[0],
    ):
        assert probe.score(predicted, test.data)["score"] > 0.8
    near = probe.neighbours(train, test, 0, k=5)
    assert probe.score(near, test.data)["score"] > 0.6
    found = probe.score(probe.linear(train, val, test, 1), test.data)
    assert found["low"] <= found["score"] <= found["high"]
    shuffled = replace(
        train, data=replace(train.data, labels=np.random.default_rng(0).permutation(train.data.labels))
    )
    assert probe.score(probe.linear(shuffled, val, test, 1), test.data)["score"] < 0.65
    table = probe.confusion(test.data.labels, test.data)
    assert (table == np.eye(3)).all()
    with pytest.raises(ValueError, match="places="):
        probe.attentive(train, val, test, 2)


def test_balanced_accuracy_is_the_mean_of_recalls_and_its_interval_goes_by_sources():
    data = squares("x", 60)
    data = replace(data, labels=np.array([0] * 50 + [1] * 10))
    always = probe.score(np.zeros(60, int), data)
    assert always["score"] == pytest.approx(0.5)
    half = np.where(np.arange(60) % 2, 0, data.labels)
    wide, narrow = (probe.score(half, replace(data, sources=s)) for s in (np.arange(60) // 10, np.arange(60)))
    assert wide["high"] - wide["low"] != narrow["high"] - narrow["low"]


@pytest.mark.slow
def test_more_classes_than_a_few_take_torch(three, monkeypatch):
    monkeypatch.setattr(probe, "FEW_CLASSES", 2)
    train, val, test = three
    assert probe.score(probe.linear(train, val, test, 1), test.data)["score"] > 0.7


def test_a_token_model_gives_every_layer_and_a_place_knows_nothing_of_later_ones():
    lvm = LVM.from_shape(replace(LVM_PRESETS["tiny"], vocab_size=16)).eval()
    trunk = LVMTrunk(lvm, Tokenizer.from_preset("tiny"))
    pictures = torch.rand(2, 3, 16, 16)
    other = pictures.clone()
    other[:, :, 12:, 12:] = 1 - other[:, :, 12:, 12:]
    one, two = trunk.blocks(pictures), trunk.blocks(other)
    assert len(one) == lvm.config.num_hidden_layers and one[0].shape == (2, 16, lvm.config.hidden_size)
    assert torch.equal(one[-1][:, 0], two[-1][:, 0])
    normed = lvm.hidden(trunk.tokenizer.encode(pictures).clone())
    torch.testing.assert_close(lvm.llama.model.norm(one[-1]), normed)


def test_timm_and_pixels():
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0)
    trunk, pictures = TimmTrunk(model), torch.rand(2, 3, 32, 32)
    found = trunk.blocks(pictures)
    assert len(found) == 2 and found[0].shape == (2, 4, 192)
    mean, std = (torch.tensor(model.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    inner = model.blocks[0](
        model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed((pictures - mean) / std))))
    )
    torch.testing.assert_close(found[0], inner[:, 1:])
    assert torch.equal(PixelTrunk().blocks(pictures)[0], pictures.flatten(1)[:, None])


def test_aim_v2_is_a_source_of_features():
    """timm's model, here of random weights and in small: a block's output is transformers' own before its
    last norm.
    """
    import timm
    from transformers import Aimv2VisionConfig, Aimv2VisionModel

    names = (
        "aimv2_large_patch14_224",
        "aimv2_huge_patch14_224",
        "aimv2_1b_patch14_224",
        "aimv2_3b_patch14_224",
    )
    assert set(names) <= set(timm.list_models("aimv2*"))
    small = timm.create_model(
        names[0], img_size=28, embed_dim=32, depth=3, num_heads=2, mlp_ratio=2.75, num_classes=0
    )
    trunk, pictures = TimmTrunk(small), torch.rand(2, 3, 28, 28)
    found = [x.detach() for x in trunk.blocks(pictures)]
    assert len(found) == 3 and found[0].shape == (2, 4, 32)
    theirs = Aimv2VisionModel(
        Aimv2VisionConfig(
            hidden_size=32,
            intermediate_size=88,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
            use_head=False,
        )
    ).eval()
    ours = small.state_dict()
    state = {
        "embeddings.patch_embed.weight": ours["patch_embed.proj.weight"],
        "embeddings.patch_embed.bias": ours["patch_embed.proj.bias"],
        "embeddings.rms_norm.weight": ours["patch_embed.norm.weight"],
        "embeddings.position_embedding.weight": ours["pos_embed"][0],
        "rms_norm.weight": ours["norm.weight"],
    }
    for i in range(3):
        q, k, v = ours[f"blocks.{i}.attn.qkv.weight"].chunk(3)
        parts = {
            "attention.q_proj": q,
            "attention.k_proj": k,
            "attention.v_proj": v,
            "attention.out_proj": ours[f"blocks.{i}.attn.proj.weight"],
            "ffn.gate_proj": ours[f"blocks.{i}.mlp.fc1_g.weight"],
            "ffn.up_proj": ours[f"blocks.{i}.mlp.fc1_x.weight"],
            "ffn.down_proj": ours[f"blocks.{i}.mlp.fc2.weight"],
            "rms_norm1": ours[f"blocks.{i}.norm1.weight"],
            "rms_norm2": ours[f"blocks.{i}.norm2.weight"],
        }
        state |= {f"encoder.layers.{i}.{name}.weight": value for name, value in parts.items()}
    theirs.load_state_dict(state)
    mean, std = (torch.tensor(small.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    expected = theirs((pictures - mean) / std, output_hidden_states=True).hidden_states
    for block in (0, 1):
        torch.testing.assert_close(found[block], expected[block + 1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        small.norm(found[2]), theirs((pictures - mean) / std).last_hidden_state, atol=1e-5, rtol=1e-4
    )


def test_aims_released_probe_is_taken_as_it_is():
    head = probe.Attentive(8, 5, 2)
    names = {
        "cls_token",
        "k.weight",
        "v.weight",
        "linear.weight",
        "bn.running_mean",
        "bn.running_var",
        "bn.num_batches_tracked",
    }
    assert set(head.state_dict()) == names
    x = torch.randn(3, 6, 8)
    head.eval()
    seen = head.attention(x)
    assert seen.shape == (3, 2, 6) and torch.allclose(seen.sum(2), torch.ones(3, 2))
    v = head.v(head.bn(x.mT).mT).unflatten(2, (2, 4)).transpose(1, 2)
    torch.testing.assert_close(head.linear((seen[:, :, None] @ v).flatten(1)), head(x))


def test_objects_of_two_splits_share_no_family():
    train, test = (labelled.objects(split, times=2) for split in ("train", "test"))
    assert not set(train.sources) & set(test.sources) and len(train) == 2 * default().count(
        "objects", "train"
    )
    one, again = train.batch(range(3)), train.batch(range(3))
    assert (
        one.shape == (3, 64, 64, 3)
        and one.dtype == np.uint8
        and (one == again).all()
        and (one[0] != one[1]).any()
    )
    few, of = train.first(3), np.flatnonzero(train.labels == 0)
    assert all((few.picture(i) == train.picture(of[i])).all() for i in range(3))
    assert (
        set(np.bincount(few.labels)) <= {1, 2, 3}
        and (np.diff(few.labels) >= 0).all()
        and few.classes == default().classes
    )


def test_fashion_mnist_as_debian_has_it(tmp_path):
    pixels, labels = (
        np.random.default_rng(0).integers(0, 256, (4, 28, 28)).astype(np.uint8),
        np.array([3, 1, 4, 1], np.uint8),
    )
    with gzip.open(tmp_path / "t10k-images-idx3-ubyte.gz", "wb") as f:
        f.write(struct.pack(">IIII", 2051, 4, 28, 28) + pixels.tobytes())
    with gzip.open(tmp_path / "t10k-labels-idx1-ubyte.gz", "wb") as f:
        f.write(struct.pack(">II", 2049, 4) + labels.tobytes())
    found = labelled.fashion_mnist("test", 28, tmp_path)
    assert (
        found.labels.tolist() == [3, 1, 4, 1]
        and found.classes[3] == "dress"
        and (found.picture(2) == pixels[2][..., None]).all()
    )
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        labelled.fashion_mnist("train", 28, tmp_path)


def test_any_folder_of_classes(tmp_path):
    """As ImageNet lies, without a test part: what is chosen by is of train, after what is fitted on."""
    for klass in ("cat", "dog"):
        for split, count in (("train", 3), ("val", 1)):
            (tmp_path / split / klass).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (50, 40), (80 * i, 0, 0)).save(tmp_path / split / klass / f"{i}.png")
    found = labelled.image_folder(tmp_path, "val", 32)
    assert found.classes == ["cat", "dog"] and found.batch(range(2)).shape == (2, 32, 32, 3)
    train, val, test = labelled.splits(tmp_path, 2, 32)
    assert [len(part) for part in (train, val, test)] == [4, 2, 2] and len(
        {part.name for part in (train, val, test)}
    ) == 3
    assert train.batch(range(4))[:, 0, 0, 0].tolist() == [0, 80, 0, 80] and val.batch(range(2))[
        :, 0, 0, 0
    ].tolist() == [160, 160]


def test_classes_as_datasets_has_them(tmp_path):
    """As imagenet-1k of the hub: train and validation, an image and a label with names; saved here as
    `datasets` saves it.
    """
    import datasets

    def part(colours, labels):
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
        )
        return datasets.Dataset.from_dict(
            {"image": [Image.new("RGB", (50, 40), (c, 0, 0)) for c in colours], "label": labels}, features
        )

    datasets.DatasetDict(
        {"train": part([0, 80, 160, 240], [0, 1, 1, 0]), "validation": part([40], [1])}
    ).save_to_disk(tmp_path / "saved")
    train, val, test = labelled.splits(tmp_path / "saved", 1, 32)
    assert (
        train.classes == ["cat", "dog"] and test.labels.tolist() == [1] and test.name.startswith("saved val")
    )
    assert train.batch(range(2))[:, 0, 0, 0].tolist() == [0, 80] and val.batch(range(2))[
        :, 0, 0, 0
    ].tolist() == [240, 160]  # class after class
    with pytest.raises(ValueError, match="no column image, label: choose from picture"):
        labelled.columns(datasets.Dataset.from_dict({"picture": [1]}), "mine")
    text = datasets.Dataset.from_dict({"image": [None] * 3, "label": ["b", "a", "b"]})
    assert labelled.columns(text, "mine").classes == ["a", "b"] and labelled.columns(
        text, "mine"
    ).labels.tolist() == [1, 0, 1]
