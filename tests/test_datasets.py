"""Readers of public data sets, each on a tiny one written here in exactly its layout, with broken members
too.
"""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from lvmlab.data import augmentation as augment
from lvmlab.data import readers as ds
from lvmlab.data.readers import base
from lvmlab.utils import images
from lvmlab.world import skeleton

RED, BLUE = (255, 0, 0), (0, 0, 255)


def photograph(path, size=(40, 30), seed=0, side=None):
    """A picture of noise, or with ``side`` red on the left and blue on the right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    if side:
        pixels[:, : size[0] // 2], pixels[:, size[0] // 2 :] = RED, BLUE
    Image.fromarray(pixels).save(path)
    return pixels


def broken_jpeg(path):
    photograph(path)
    path.write_bytes(path.read_bytes()[:200])


def rows(reader, size=16, **options):
    return [row for _, row in reader.rows(size, **{"tolerate": 1.0} | options)]


def test_a_folder_of_two_folders(tmp_path):
    for i in range(3):
        photograph(tmp_path / "images" / f"{i}.jpg", seed=i)
        photograph(tmp_path / "labels" / f"{i}.png", seed=10 + i)
    photograph(tmp_path / "images" / "lonely.jpg")
    broken_jpeg(tmp_path / "images" / "torn.jpg")
    photograph(tmp_path / "labels" / "torn.png")
    photograph(tmp_path / "images" / "odd.jpg")
    photograph(tmp_path / "labels" / "odd.png", size=(20, 20))
    reader = ds.paired_folder(tmp_path)
    found = rows(reader)
    assert [r.source for r in found] == ["images/0.jpg", "images/1.jpg", "images/2.jpg"]
    assert found[0].pictures.shape == (2, 16, 16, 3) and found[0].pictures.dtype == np.uint8
    assert reader.report.members == 6 and set(reader.report.broken) == {
        "images/lonely.jpg",
        "images/torn.jpg",
        "images/odd.jpg",
    }
    assert (
        "no label" in reader.report.broken["images/lonely.jpg"]
        and "20x20" in reader.report.broken["images/odd.jpg"]
    )
    assert "3 broken" in str(reader.report) and "torn.jpg" in str(reader.report)


def test_more_than_one_in_a_hundred_broken_stops(tmp_path):
    for i in range(4):
        photograph(tmp_path / f"{i}.png", seed=i)
        photograph(tmp_path / f"{i}-label.png", seed=i)
    photograph(tmp_path / "alone.png")
    with pytest.raises(ds.Broken, match=r"more than 1% of pairs is broken(.|\n)*alone.png: it has no label"):
        list(ds.paired_folder(tmp_path).rows(16))
    assert len(rows(ds.paired_folder(tmp_path), tolerate=0.2)) == 4


def test_a_folder_that_is_missing_or_holds_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        ds.paired_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="a-label.png"):
        ds.paired_folder(tmp_path)


def test_a_mask_keeps_its_colours_and_a_photograph_is_blended(tmp_path):
    photograph(tmp_path / "a.png", size=(41, 31), side=True)
    mask = np.zeros((31, 41), np.uint8)
    mask[:, 13:] = 255
    Image.fromarray(mask).save(tmp_path / "a-label.png")
    for copy, row in ds.paired_folder(tmp_path).rows(17, copies=6):
        image, label = row.pictures
        assert set(np.unique(label)) <= {0, 255}, f"copy {copy} mixes a mask's colours"
    assert len(np.unique(image)) > 2 or copy


def coco(folder, people):
    for i in range(len(people)):
        photograph(folder / "val" / f"{i:012d}.jpg", size=(300, 256), seed=i)
    data = {
        "images": [
            {"id": i, "file_name": f"{i:012d}.jpg", "height": 256, "width": 300} for i in range(len(people))
        ],
        "annotations": [
            {
                "id": 10 * i + j,
                "image_id": i,
                "category_id": 1,
                "iscrowd": 0,
                "keypoints": [int(v) for v in np.ravel(k)],
                "num_keypoints": int((np.reshape(k, (-1, 3))[:, 2] > 0).sum()),
                "bbox": [0, 0, 9, 9],
                "area": 81,
            }
            for i, several in enumerate(people)
            for j, k in enumerate(several)
        ],
        "categories": [{"id": 1, "name": "person"}],
    }
    (folder / "a.json").write_text(json.dumps(data))
    return ds.coco_pose(folder / "val", folder / "a.json")


def person(x=150, y=60):
    points = np.zeros((17, 3))
    for joint, (dx, dy) in {
        0: (0, 0),
        5: (30, 25),
        6: (-30, 25),
        7: (45, 60),
        8: (-45, 60),
        9: (50, 95),
        10: (-50, 95),
        11: (18, 100),
        12: (-18, 100),
        13: (20, 140),
        14: (-20, 140),
        15: (20, 180),
        16: (-20, 180),
    }.items():
        points[joint] = x + dx, y + dy, 2
    return points


def test_coco_people_become_skeletons(tmp_path):
    partial = person()
    partial[[9, 7], 2] = 0  # a hidden left arm
    reader = coco(tmp_path, [[person()], [partial], [np.zeros((17, 3))]])
    whole, part = (row.pictures[1] for row in rows(reader, 256))
    assert (
        list(reader.report.skipped.values()) == ["no joint of it is annotated"] and not reader.report.broken
    )
    nose, wrist = (150 - 22, 60), (200 - 22, 155)  # 300 wide, cropped by 22 on the left
    assert (
        tuple(whole[nose[1], nose[0]]) == skeleton._WHEEL[0]
        and tuple(whole[60 - 6, nose[0]]) == skeleton._WHEEL[0]
    ), "discs of radius 8"
    assert not whole[60 - 11, nose[0]].any()
    assert tuple(whole[wrist[1], wrist[0]]) == skeleton._WHEEL[7] and not part[wrist[1], wrist[0]].any(), (
        "what is hidden is left out"
    )
    bone = whole[210, 128 - 30 : 128 - 10].any(1)  # the right shin alone, between knee and ankle
    assert 3 <= bone.sum() <= 6


def test_a_flipped_skeleton_swaps_left_and_right(tmp_path):
    straight = augment.Skeletons(person()[None], 256, 300)
    flipped = straight.flipped()
    assert flipped.people[0, 5, 0] == 300 - person()[6, 0] and flipped.people[0, 6, 0] == 300 - person()[5, 0]
    drawn, mirrored = (
        skeleton.draw_people(s.cropped(0, 22, 256, 256, 256).people, 256) for s in (straight, flipped)
    )
    for joint in (5, 6):  # the left shoulder's disc has the left one's colour on both
        for people, picture in ((straight, drawn), (flipped, mirrored)):
            x, y = people.people[0, joint, :2].astype(int) - (22, 0)
            assert tuple(picture[y, x]) == skeleton._WHEEL[{6: 2, 5: 5}[joint]]
    reader = coco(tmp_path, [[person()]])
    copies = {copy: row.pictures for copy, row in reader.rows(64, copies=8)}
    again = {copy: row.pictures for copy, row in reader.rows(64, copies=8)}
    assert (
        len(copies) == 9
        and all((copies[c] == again[c]).all() for c in copies)
        and (copies[1] != copies[2]).any()
    )


def test_a_copy_moves_image_and_label_alike(tmp_path):
    """Rain that falls to the left in the picture does so in the answer: of a pair of equal pictures, every
    copy is a pair of equal ones.
    """
    pixels = photograph(tmp_path / "input" / "a.png", size=(50, 40))
    (tmp_path / "target").mkdir()
    Image.fromarray(pixels).save(tmp_path / "target" / "a.png")
    side = photograph(tmp_path / "input" / "b.png", size=(50, 40), side=True)
    Image.fromarray(side).save(tmp_path / "target" / "b.png")
    found = {row.source + str(copy): row.pictures for copy, row in ds.rain13k(tmp_path).rows(16, copies=9)}
    assert len(found) == 20 and all(
        np.abs(a.astype(int) - b).max() <= 1 for name, (a, b) in found.items() if "a.png" in name
    )
    assert len({bytes(p) for p in found.values()}) == 20
    assert any(p[0, 8, 0, 2] > 200 for n, p in found.items() if "b.png" in n), (
        "some copy is flipped: blue lies left"
    )


def test_large_jpegs_are_decoded_small_and_look_the_same(tmp_path):
    for name in ("a", "a-label"):
        rng = np.random.default_rng(len(name))
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((640, 480), Image.BICUBIC)
        coarse.save(tmp_path / f"{name}.jpg", quality=95)
        coarse.save(tmp_path / f"{name}.bmp")
    assert images.pixels(tmp_path / "a.jpg").shape == (3, 480, 640) and images.pixels(
        tmp_path / "a.jpg", least=96
    ).shape == (3, 120, 160)
    assert images.pixels(tmp_path / "a.jpg", least=121).shape == (3, 240, 320) and images.pixels(
        tmp_path / "a.jpg", least=481
    ).shape == (3, 480, 640)
    assert images.pixels(tmp_path / "a.bmp", least=96).shape == (3, 480, 640)
    small = base.pair(tmp_path / "a.jpg", tmp_path / "a-label.jpg", "pictures", 96)
    whole = base.pair(tmp_path / "a.bmp", tmp_path / "a-label.jpg", "pictures", 96)
    assert [p.shape[-1] for p in (*small, *whole)] == [160, 160, 640, 640]
    near, far = (augment.pictures(found, 64).astype(int) for found in (small, whole))
    assert np.abs(near - far).mean() < 2.5
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "a.jpg").rename(tmp_path / "train" / "cat" / "a.jpg")
    (row,) = rows(ds.image_folder(tmp_path / "train"), 64)
    assert (row.pictures[0] == near[0]).all()


def sam(folder, name, size=(90, 80), wrong=False, empty=False):
    photograph(folder / f"{name}.jpg", size=size)
    large, small = np.zeros((2, size[1], size[0]), np.uint8)
    large[10:70, 10:80], small[30:50, 30:60] = 1, 1
    masks = [small, large]
    if wrong:
        masks.append(np.zeros((5, 5), np.uint8))
    encoded = [rle.encode(np.asfortranarray(m)) for m in masks]
    notes = [
        {"segmentation": {"size": e["size"], "counts": e["counts"].decode()}, "area": int(m.sum())}
        for e, m in zip(encoded, masks, strict=True)
    ]
    (folder / f"{name}.json").write_text(
        json.dumps({"image": {"file_name": f"{name}.jpg"}, "annotations": [] if empty else notes})
    )


def test_sa1b_in_folders_and_shards(tmp_path):
    inside = tmp_path / "one"
    sam(inside, "sa_1")
    sam(inside, "sa_2", wrong=True)
    sam(inside, "sa_3", empty=True)
    reader = ds.sa1b(inside, side=64)
    found = rows(reader, 64)
    assert [r.source for r in found] == [f"sa_1#{i}" for i in range(6)]
    assert "5x5" in reader.report.broken["sa_2"] and "no mask" in reader.report.skipped["sa_3"]
    colours = {tuple(c) for r in found for c in r.pictures[1].reshape(-1, 3)}
    assert len(colours) == 3 and (0, 0, 0) in colours, (
        "the ground and each mask's own colour: where masks overlap nothing is added up"
    )
    label = rows(ds.sa1b(inside, side=80), 80)[0].pictures[1]
    assert tuple(label[40, 40]) != tuple(label[15, 40]) and label[40, 40].any(), (
        "the small mask lies on the large one"
    )
    with tarfile.open(tmp_path / "sa_000000.tar", "w") as tar:
        for path in sorted(inside.glob("sa_1.*")):
            tar.add(path, f"./{path.name}")
        lost = tarfile.TarInfo("./sa_9.json")
        lost.size = len(content := (inside / "sa_1.json").read_bytes())
        tar.addfile(lost, io.BytesIO(content))
    for path in inside.glob("*"):
        path.unlink()
    packed = ds.sa1b(tmp_path, side=64)
    again = rows(packed, 64)
    assert all((a.pictures == b.pictures).all() for a, b in zip(found, again, strict=True)) and set(
        packed.report.broken
    ) == {"sa_9"}


def test_rain13k_as_lmdb(tmp_path):
    lmdb = pytest.importorskip("lmdb", reason="the extra lmdb")
    for side in ("input", "target"):
        with (
            lmdb.open(str(tmp_path / f"{side}.lmdb"), map_size=2**20) as store,
            store.begin(write=True) as transaction,
        ):
            for i in range(3):
                if side == "input" or i < 2:
                    file = io.BytesIO()
                    Image.fromarray(np.full((20, 20, 3), 40 * i + 9, np.uint8)).save(file, "png")
                    transaction.put(f"{i:04d}".encode(), file.getvalue())
        (tmp_path / f"{side}.lmdb" / "meta_info.txt").write_text(
            "".join(f"{i:04d}.png (20,20,3) 1\n" for i in range(3))
        )
    reader = ds.rain13k(tmp_path)
    found = rows(reader)
    assert [r.source for r in found] == ["0000", "0001"] and (found[1].pictures == 49).all()
    assert reader.report.broken == {"0002": "target.lmdb does not hold it"}


def test_gopro(tmp_path):
    for scene in ("GOPR1", "GOPR2"):
        for side in ("blur", "sharp", "blur_gamma"):
            photograph(tmp_path / "train" / scene / side / "000001.png")
    photograph(tmp_path / "train" / "GOPR2" / "blur" / "000002.png")
    reader = ds.gopro(tmp_path)
    assert [r.source for r in rows(reader)] == ["GOPR1/blur/000001.png", "GOPR2/blur/000001.png"]
    assert set(reader.report.broken) == {"GOPR2/blur/000002.png"} and reader.task == "deblur"


def test_videos_and_folders_of_frames(tmp_path):
    av = pytest.importorskip("av", reason="the extra video")
    for i in range(9):
        photograph(tmp_path / "walk" / f"{i:03d}.png", seed=i)
    photograph(tmp_path / "short" / "0.png")
    with av.open(str(tmp_path / "film.mp4"), "w") as film:
        stream = film.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 48, 32
        for i in range(8):
            film.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.full((32, 48, 3), 25 * i, np.uint8), format="rgb24")
                )
            )
        film.mux(stream.encode())
    (tmp_path / "torn.mp4").write_bytes(b"no film")
    reader = ds.clips(tmp_path, frames=4)
    found = rows(reader)
    assert [r.source for r in found] == ["walk#0", "walk#4", "film.mp4#0", "film.mp4#4"] and found[
        0
    ].pictures.shape == (4, 16, 16, 3)
    brightness = np.concatenate([found[2].pictures, found[3].pictures]).mean((1, 2, 3))
    assert np.abs(brightness - 25 * np.arange(8)).max() < 8, "the frames follow one another"
    assert set(reader.report.broken) == {"short", "torn.mp4"} and "1 frames" in reader.report.broken["short"]


def test_image_folder_groups_by_class(tmp_path):
    for name in ("n01", "n02"):
        photograph(tmp_path / "train" / name / f"{name}_1.JPEG")
    broken_jpeg(tmp_path / "train" / "n02" / "n02_2.JPEG")
    reader = ds.image_folder(tmp_path, split="train")
    assert [(r.source, r.group, len(r.pictures)) for r in rows(reader)] == [
        ("n01_1.JPEG", "n01", 1),
        ("n02_1.JPEG", "n02", 1),
    ]
    assert set(reader.report.broken) == {"n02/n02_2.JPEG"} and reader.kind == "image"


def test_pascal_folds(tmp_path):
    voc = tmp_path / "VOCdevkit" / "VOC2012"
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("a\nb\nc\n")
    (voc / "SegmentationClass").mkdir()
    for name, classes, shape in (("a", (1, 7), (30, 40)), ("b", (3, 255), (30, 40)), ("c", (1,), (9, 9))):
        photograph(voc / "JPEGImages" / f"{name}.jpg")
        mask = np.zeros(shape, np.uint8)
        for i, c in enumerate(classes):
            mask[5:15, 5 + 10 * i : 12 + 10 * i] = c
        picture = Image.fromarray(mask, "P")
        picture.putpalette(list(range(256)) * 3)
        picture.save(voc / "SegmentationClass" / f"{name}.png")
    reader = ds.pascal5i(tmp_path, 0)
    found = rows(reader, 30)
    assert [(r.source, r.group) for r in found] == [("a#aeroplane", "aeroplane"), ("b#bird", "bird")]
    label = found[0].pictures[1]
    assert set(np.unique(label)) == {0, 255} and (label[..., 0] > 0).sum() == 70
    assert "9x9" in reader.report.broken["c"] and [r.group for r in rows(ds.pascal5i(tmp_path, 1))] == ["car"]
    with pytest.raises(ValueError, match="folds 0 to 3"):
        ds.pascal5i(tmp_path, 4)


def test_a_datasets_data_set(tmp_path):
    from datasets import Dataset, Features
    from datasets import Image as Picture

    photograph(tmp_path / "a.png")
    broken_jpeg(tmp_path / "b.jpg")
    files = [str(tmp_path / "a.png"), str(tmp_path / "b.jpg")]
    data = Dataset.from_dict(
        {"photo": files, "mask": [files[0]] * 2}, features=Features(photo=Picture(), mask=Picture())
    )
    reader = ds.huggingface(data, "photo", "mask")
    assert [r.source for r in rows(reader)] == ["0"] and set(reader.report.broken) == {"1"}
    assert len(rows(ds.huggingface(data, "photo"))[0].pictures) == 1
    data.save_to_disk(tmp_path / "disk")
    (tmp_path / "parquet").mkdir()
    data.select([0]).to_parquet(tmp_path / "parquet" / "train.parquet")
    for where in ("disk", "parquet"):
        assert [
            r.source for r in rows(ds.huggingface(ds.load_data(tmp_path / where, "train"), "photo", "mask"))
        ] == ["0"]
    with pytest.raises(ValueError, match="no column 'image': choose from photo, mask"):
        ds.huggingface(data)
