"""mini-world: as large as promised, split by source, lawful, repeatable, small enough to ship and free to."""

import colorsys
import functools
import io
import re
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lvmlab.utils import paths
from lvmlab.world import SPLITS, default, scenes, tasks, weather
from lvmlab.world.sentences import generator, sentence
from lvmlab.world.tasks import base

WORLD = paths.assets() / "world"
FREE = {
    "CC0-1.0",
    "public domain",
    "CC-BY-2.0",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "MIT",
    "CC0-1.0 (assets), Apache-2.0 (model code)",
}


@functools.cache
def rows(kind):
    return pq.read_table(WORLD / f"{kind}.parquet").to_pylist()


@pytest.fixture(scope="module")
def drawn():
    """Fifteen scenes of objects and of bodies from each split."""
    seeds = [(split, np.random.default_rng([i, SPLITS.index(split)])) for split in SPLITS for i in range(15)]
    return [
        (scenes.objects_scene(default(), s, 64, rng), scenes.body_scene(default(), s, 64, rng), s)
        for s, rng in seeds
    ]


def test_the_world_is_as_large_as_promised():
    assert len({r["name"] for r in rows("photographs")}) == len(rows("photographs")) >= 50
    assert len({(r["name"], r["style"]) for r in rows("objects")}) == len(rows("objects")) >= 600
    assert len({r["klass"] for r in rows("objects")}) >= 10
    assert len({r["name"] for r in rows("bodies")}) == len(rows("bodies")) >= 600


def test_every_body_has_seventeen_keypoints_on_its_picture():
    for row in rows("bodies"):
        points = np.reshape(row["keypoints"], (-1, 2))
        size = Image.open(io.BytesIO(row["image"])).size
        assert points.shape == (17, 2) and len(row["visible"]) == 17, row["name"]
        assert (points >= -1).all() and (points <= np.add(size, 1)).all(), row["name"]


def test_left_and_right_are_exchanged_by_the_mirror():
    assert np.array_equal(scenes.MIRROR[scenes.MIRROR], np.arange(17))
    assert [int(i) for i in np.flatnonzero(scenes.MIRROR == np.arange(17))] == [0]


@pytest.mark.parametrize("kind, unit", [("photographs", "name"), ("objects", "family"), ("bodies", "body")])
def test_no_source_is_in_two_splits(kind, unit):
    homes = {}
    for row in rows(kind):
        homes.setdefault(row[unit], set()).add(row["split"])
    assert {s for split in homes.values() for s in split} == set(SPLITS)
    if kind == "objects":
        # shifted objects are the test families drawn in another style: as unknown in training as those
        styles = {split: {r["style"] for r in rows(kind) if r["split"] == split} for split in SPLITS}
        assert not styles["shifted"] & (styles["train"] | styles["val"] | styles["test"])
        homes = {
            name: split - {"shifted"} if split == {"test", "shifted"} else split
            for name, split in homes.items()
        }
    assert not [name for name, split in homes.items() if len(split) > 1]


def test_no_picture_is_stored_twice():
    for kind in ("photographs", "objects", "bodies"):
        assert len({r["image"] for r in rows(kind)}) == len(rows(kind))


def test_every_class_can_be_asked_for_in_every_split():
    for split in SPLITS:
        assert all(default().of_class(k, split) for k in default().classes)


def test_photographs_are_small():
    for row in rows("photographs"):
        image = Image.open(io.BytesIO(row["image"]))
        assert max(image.size) <= 512 and min(image.size) >= 64, row["name"]


def test_the_law_is_the_promised_one():
    assert (scenes.CROP, scenes.OBJECT_AREA, scenes.BODY_HEIGHT) == ((0.3, 0.9), (0.04, 0.25), (0.4, 0.9))
    assert scenes.MAX_HIDDEN == 0.25


def test_a_background_is_a_crop_of_30_to_90_percent():
    ramp = np.zeros((300, 510, 3), np.uint8)
    ramp[..., 0] = np.arange(510) // 2  # the crop's side can be read off its slope
    photograph = SimpleNamespace(name="ramp", image=Image.fromarray(ramp))
    source = SimpleNamespace(pick=lambda *_: photograph)
    sides = []
    for seed in range(300):
        red = scenes.background(source, "train", 64, np.random.default_rng(seed))[0][..., 0]
        sides.append(abs(red[:, 2:-2].mean(0)[-1] - red[:, 2:-2].mean(0)[0]) * 255 * 2 * 64 / 59 / 300)
    assert min(sides) > 0.28 and max(sides) < 0.92
    assert min(sides) < 0.35 and max(sides) > 0.85


def test_objects_keep_the_law(drawn):
    counts = set()
    for scene, _, split in drawn:
        counts.add(len(scene.placed))
        assert len(scene.masks) == len(scene.placed)
        assert np.sum(scene.masks, 0).max() <= 1 + 1e-5
        for item, mask in zip(scene.placed, scene.masks, strict=True):
            alpha = item.alpha(64)
            height, width = item.layer.shape[:2]
            assert item.sprite.split == split or split == "shifted"
            assert min(item.x, item.y) >= 0 and item.x + width <= 64 and item.y + height <= 64
            assert 0.04 - 0.005 <= alpha.mean() <= 0.25 + 0.005
            assert mask.sum() >= 0.75 * alpha.sum() - 1e-3
            assert (mask <= alpha + 1e-6).all() and mask.min() >= 0
    assert counts == {1, 2, 3, 4}


def test_masks_are_exact(drawn):
    for scene, _, _ in drawn:
        for item, mask in zip(scene.placed, scene.masks, strict=True):
            canvas = np.zeros((64, 64, 3), np.float32)
            scenes.paste(canvas, item.layer, item.x, item.y)
            sure = mask > 0.999
            # bicubic rotation rings: the object in front may lend a pixel beside it up to a twentieth of its
            # light
            assert sure.any() and np.abs(scene.image[sure] - canvas[sure]).max() < 0.05
            assert np.abs(scene.image[sure] - canvas[sure]).mean() < 0.001


def test_bodies_keep_the_law(drawn):
    for _, scene, split in drawn:
        x0, y0, x1, y1 = scene.box
        high, wide = (y1 - y0) / 64, (x1 - x0) / 64
        assert min(x0, y0) >= 0 and max(x1, y1) <= 64
        assert max(high, wide) <= 0.9 + 1 / 64
        assert high >= 0.4 - 1 / 64 or wide >= 0.9 - 1 / 64
        assert scene.keypoints.shape == (17, 2)
        assert (scene.keypoints >= (x0 - 1, y0 - 1)).all() and (scene.keypoints <= (x1 + 1, y1 + 1)).all()
        assert {r["split"] for r in rows("bodies") if r["body"] == scene.body} == {split}


def test_a_seed_gives_one_sentence():
    def pictures(*args, **options):
        return sentence(*args, pairs=2, **options).pictures()

    for task in ("segmentation", "pose", "derain", "motion"):
        first = pictures(task, "train", 3, seed=5)
        assert np.array_equal(first, pictures(task, "train", 3, seed=5))
        for other in (
            pictures(task, "train", 3, seed=6),
            pictures(task, "train", 4, seed=5),
            pictures(task, "val", 3, seed=5),
        ):
            assert not np.array_equal(first, other)


def test_objects_of_another_split_leave_the_rest_alone():
    known = default().with_objects_of("train")
    rng = np.random.default_rng(0)
    assert known.pick("objects", "test", rng).split == "train"
    assert known.pick_of_class("mammal", "test", rng).split == "train"
    assert known.pick("photographs", "test", rng).split == "test"
    assert default().pick_of_class("mammal", "test", rng).split == "test"


def encodings(task, held_out, count=300):
    return [
        tasks.get(task).encoding(generator(0, "train", task, i, held_out), held_out) for i in range(count)
    ]


def hue_and_ground(encoding, grounds):
    """The label's hue, and which named background it lies on; colours may be exchanged."""
    first, second = encoding.colours
    names = {colour: name for name, colour in grounds.items()}
    colour, ground = (first, second) if second in names else (second, first)
    return colorsys.rgb_to_hsv(*(c / 255 for c in colour))[0], names[ground]


@pytest.mark.parametrize("task", ["segmentation", "selection"])
def test_colours_held_out_are_never_drawn_in_training(task):
    low, high = base.HELD_OUT_HUES
    assert not set(base.BACKGROUNDS.values()) & set(base.HELD_OUT_BACKGROUNDS.values())
    seen = [hue_and_ground(e, base.BACKGROUNDS) for e in encodings(task, held_out=False)]
    assert not [hue for hue, _ in seen if low + 0.003 < hue < high - 0.003]
    assert {ground for _, ground in seen} == set(base.BACKGROUNDS)
    new = [hue_and_ground(e, base.HELD_OUT_BACKGROUNDS) for e in encodings(task, held_out=True)]
    assert all(low - 0.003 <= hue <= high + 0.003 for hue, _ in new)
    assert {ground for _, ground in new} == set(base.HELD_OUT_BACKGROUNDS)


def test_two_colours_can_be_told_apart():
    for held_out in (False, True):
        for encoding in encodings("segmentation", held_out):
            assert np.linalg.norm(np.subtract(*encoding.colours)) >= 0.5 * 255 - 1e-6


def test_the_palette_held_out_is_never_drawn_in_training():
    assert {e.option("palette") for e in encodings("pose", held_out=False)} == {"openpose", "mirrored"}
    assert {e.option("palette") for e in encodings("pose", held_out=True)} == {"turned"}


def test_tasks_without_an_encoding_hold_none_out():
    for name in ("derain", "motion", "deblur", "colourise", "inpaint", "edges"):
        with pytest.raises(ValueError, match=name):
            sentence(name, "test", 0, held_out=True)


@pytest.mark.parametrize("seed", range(4))
def test_rain_and_blur_change_pictures_within_bounds(seed):
    rng = np.random.default_rng(seed)
    image = scenes.background(default(), "train", 64, rng)[0]
    before = image.copy()
    for after in (
        weather.rain(image, weather.Rain.draw(rng), rng),
        weather.motion_blur(image, rng.uniform(0, 180), 0.2),
    ):
        assert after.shape == image.shape and after.min() >= 0 and after.max() <= 1
        assert np.abs(after - image).mean() > 0.005
    assert np.array_equal(image, before)


def test_blur_averages_along_its_line_only():
    image = np.zeros((64, 64, 3), np.float32)
    image[:, 32] = 1
    along, across = weather.motion_blur(image, 90, 0.2), weather.motion_blur(image, 0, 0.2)
    assert np.allclose(along, image, atol=1e-4)
    assert across.max() < 0.2 and np.isclose(across.sum(), image.sum(), rtol=0.02)


def credits():
    """{part: {file: licence}} of the tables in CREDITS.md."""
    parts, part = {}, None
    for line in (paths.assets() / "CREDITS.md").read_text().splitlines():
        if line.startswith("## "):
            part = parts.setdefault(line.split()[1].lower(), {})
        elif line.startswith("|") and not line.startswith(("| file", "|---")):
            file, author, licence, origin = (cell.strip() for cell in line.strip("|").split("|"))
            assert author and origin, line
            part[file] = licence
    return parts


def test_every_photograph_is_credited_and_free_to_ship():
    found = credits()
    assert set(found["photographs"]) == {r["name"] for r in rows("photographs")}
    assert {kind for kind in found if found[kind]} >= {"photographs", "objects", "bodies"}
    for part in found.values():
        for file, licence in part.items():
            assert licence in FREE, f"{file}: {licence}"
            assert not re.search(r"GPL|-SA|-NC|-ND", licence), file


@pytest.mark.parametrize("folder, limit", [("world", 20), ("models", 60), ("runs", 5)])
def test_assets_are_small_enough_to_ship(folder, limit):
    total = sum(p.stat().st_size for p in (paths.assets() / folder).rglob("*") if p.is_file())
    assert total <= limit * 1e6, f"assets/{folder} is {total / 1e6:.1f} MB"
