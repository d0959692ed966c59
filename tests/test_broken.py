"""Broken members are counted over the whole data set; what has no label of the task is skipped apart."""

import io
import json
import tarfile
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from lvmlab.data import readers
from lvmlab.data.building import build
from lvmlab.data.readers import Broken
from lvmlab.data.readers.video import decode
from lvmlab.data.store import Store
from lvmlab.tokenizer.tokenizer import Tokenizer

PERSON = [50, 50, 2] * 17


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_preset("tiny", seed=0, device="cpu")


def pairs(folder, count, torn=()):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        for end in ("", "-label"):
            Image.new("RGB", (16, 16), (i, 0, 0)).save(folder / f"{i:03d}{end}.png")
        if i in torn:
            (folder / f"{i:03d}.png").write_bytes(b"torn")


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_tolerated_share_is_of_the_whole_data_set(tmp_path, tokenizer, ranks):
    # two of 200, both in one part of 32: 6 % of the part, 1 % of the data set
    pairs(tmp_path / "d", 200, torn=(3, 7))

    def make(folder, **options):
        for rank in range(ranks):
            reader = readers.paired_folder(tmp_path / "d")
            build(folder, tokenizer, [reader], rank=rank, ranks=ranks, progress=False, **options)

    make(tmp_path / "store")
    assert Store(tmp_path / "store").counts() == {"pairs": 198}
    with pytest.raises(Broken, match=r"(?s)more than 0% of pairs is broken.*003.png"):
        make(tmp_path / "other", tolerate=0.004)


def test_broken_members_of_two_parts_and_of_an_earlier_build_add_up(tmp_path, tokenizer):
    pairs(tmp_path / "d", 70, torn=(0, 40))
    for _ in range(2):
        with pytest.raises(Broken, match=r"(?s)more than 2% of pairs is broken.*000.png.*040.png"):
            build(
                tmp_path / "s",
                tokenizer,
                [readers.paired_folder(tmp_path / "d")],
                tolerate=0.02,
                progress=False,
            )


def coco_json(folder, **changes):
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 64} for i in range(10)],
        "annotations": [{"image_id": i, "keypoints": PERSON if i else [0] * 51} for i in range(10)],
    }
    content.update(changes)
    for i in range(10):
        Image.new("RGB", (64, 64)).save(folder / f"{i}.png")
    path = folder / "people.json"
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return path


def test_pictures_without_joints_are_skipped_and_no_fault(tmp_path):
    reader = readers.coco_pose(tmp_path, coco_json(tmp_path))
    rows = list(reader.rows(16, tolerate=0.0))
    assert len(rows) == 9 and reader.report.skipped == {"0.png": "no joint of it is annotated"}
    assert "10 members, 9 rows, 0 broken, 1 skipped" in str(reader.report)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": None}, "no list 'annotations'"),
        ({"images": None}, "no list 'images'"),
        ({"annotations": {}}, "no list 'annotations'"),
        ({"annotations": [3]}, "no list 'annotations'"),
        ({"annotations": [{"keypoints": PERSON}]}, "without 'image_id'"),
        ({"images": [{"id": 1}]}, "without 'file_name'"),
        (
            {"images": [{"id": 1, "file_name": n, "height": 64, "width": 64} for n in ("1.png", "2.png")]},
            r"image id 1 twice \(1.png, 2.png\)",
        ),
        (
            {"images": [{"id": n, "file_name": "1.png", "height": 64, "width": 64} for n in (1, "1")]},
            "image id 1 twice",
        ),
    ],
)
def test_a_damaged_coco_file_is_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"people.json has .*{message}"):
        readers.coco_pose(tmp_path, coco_json(tmp_path, **changes))


def test_a_cut_coco_file_is_named_and_mixed_ids_are_one(tmp_path):
    people = [{"image_id": number, "keypoints": PERSON} for number in (1, "1", 2, "3")]
    reader = readers.coco_pose(tmp_path, coco_json(tmp_path, annotations=people))
    rows = [row for _, row in reader.rows(16, tolerate=0.0)]
    assert [row.source for row in rows] == ["1.png", "2.png", "3.png"]
    path = coco_json(tmp_path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="people.json is no JSON that can be read"):
        readers.coco_pose(tmp_path, path)
    with pytest.raises(ValueError, match="absent.json does not exist"):
        readers.coco_pose(tmp_path, tmp_path / "absent.json")


@pytest.mark.parametrize("joints", [PERSON[:30], [float("nan"), 1, 2] * 17, "text" * 20])
def test_a_person_without_seventeen_joints_is_broken(tmp_path, joints):
    path = coco_json(tmp_path, annotations=[{"image_id": 1, "keypoints": joints}])
    reader = readers.coco_pose(tmp_path, path)
    assert not list(reader.rows(16, tolerate=1.0)) and set(reader.report.broken) == {"1.png"}


def square():
    mask = np.zeros((40, 50), np.uint8)
    mask[10:30, 20:40] = 1
    return np.asfortranarray(mask)


def runs_of(mask):
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    return np.diff([0, *edges, len(flat)]).tolist()


SEGMENTATIONS = {
    "compressed": lambda: {"size": [40, 50], "counts": rle.encode(square())["counts"].decode()},
    "uncompressed": lambda: {"size": [40, 50], "counts": runs_of(square())},
    "polygon": lambda: [[20, 10, 40, 10, 40, 30, 20, 30]],
}


@pytest.mark.parametrize("form", SEGMENTATIONS)
def test_every_form_of_mask_is_read(tmp_path, form):
    Image.new("RGB", (50, 40)).save(tmp_path / "sa_1.jpg")
    note = {"annotations": [{"area": 400, "segmentation": SEGMENTATIONS[form]()}]}
    (tmp_path / "sa_1.json").write_text(json.dumps(note))
    reader = readers.sa1b(tmp_path, crops=1, side=40)
    sample = reader.read(reader.members[0], 40)["sa_1#0"][0]
    assert (sample[1].sum(0) > 0).sum() > 150 and not reader.report.broken
    from lvmlab.data.readers.sa1b import _decode

    assert (_decode(SEGMENTATIONS[form](), (40, 50)) == square().astype(bool)).all()


def test_a_stray_json_is_skipped(tmp_path):
    Image.new("RGB", (50, 40)).save(tmp_path / "sa_1.jpg")
    note = {"annotations": [{"area": 400, "segmentation": SEGMENTATIONS["compressed"]()}]}
    (tmp_path / "sa_1.json").write_text(json.dumps(note))
    (tmp_path / "settings.json").write_text('{"a": 1}')
    (tmp_path / "list.json").write_text("[1, 2]")
    reader = readers.sa1b(tmp_path, crops=1, side=40)
    assert len(list(reader.rows(16, tolerate=0.0))) == 1
    assert set(reader.report.skipped) == {"settings", "list"} and not reader.report.broken


def test_a_cut_shard_is_named(tmp_path):
    with tarfile.open(tmp_path / "sa_000001.tar", "w") as tar:
        for i in range(3):
            file = io.BytesIO()
            Image.effect_noise((64, 64), 90).convert("RGB").save(file, "jpeg", quality=95)
            for suffix, content in ((".jpg", file.getvalue()), (".json", b'{"annotations": []}')):
                entry = tarfile.TarInfo(f"sa_{i}{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    whole = (tmp_path / "sa_000001.tar").read_bytes()
    assert len(readers.sa1b(tmp_path).members) == 3
    for length in (len(whole) // 3, 700, 100):
        (tmp_path / "sa_000001.tar").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="sa_000001.tar cannot be read to its end"):
            readers.sa1b(tmp_path)


def film(path, times, rate=10, base=Fraction(1, 100)):
    """A film of frames (64 wide, 32 high) at times in hundredths of a second; a frame's brightness is its
    time.
    """
    av = pytest.importorskip("av", reason="the extra video")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.time_base = 64, 32, base
        stream.codec_context.time_base = base
        for time in times:
            pixels = np.full((32, 64, 3), 2 * time, np.uint8)
            pixels[:, :16] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def brightness(frames):
    return [np.asarray(frame)[16, -8].mean() / 2 for frame in frames]


def test_frames_are_sampled_by_time(tmp_path):
    steady = decode(film(tmp_path / "steady.mp4", range(0, 100, 10)))
    assert np.allclose(brightness(steady), range(0, 100, 10), atol=4)
    assert np.allclose(brightness(decode(tmp_path / "steady.mp4", 3)), [0, 30, 60, 90], atol=4)
    # the first half has three times as many frames as the second
    av = pytest.importorskip("av", reason="the extra video")
    at = [*range(0, 60, 5), *range(60, 120, 15)]
    path = film(tmp_path / "varying.mp4", at)
    with av.open(str(path)) as container:
        interval = 100 / float(container.streams.video[0].average_rate)
    due = np.arange(0, at[-1] + interval / 2, 2 * interval)
    expected = [max(time for time in at if time <= now + interval / 2 + 1e-6) for now in due]
    assert len(expected) > 6 and np.allclose(brightness(decode(path, 2)), expected, atol=2.5)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_film_comes_upright(tmp_path, degrees):
    path = film(tmp_path / "phone.mp4", range(0, 100, 10))
    content = bytearray(path.read_bytes())
    # the matrix of the track header, in 16.16 numbers: how the picture is to be turned
    turn = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    matrix = [turn[0] << 16, turn[1] << 16, 0, turn[2] << 16, turn[3] << 16, 0, 0, 0, 1 << 30]
    start = content.index(b"tkhd") + 4 + 40
    content[start : start + 36] = b"".join((value & 0xFFFFFFFF).to_bytes(4, "big") for value in matrix)
    path.write_bytes(content)
    picture = np.asarray(decode(path)[0])
    # the white bar is on the left of what the sensor saw; clockwise by 90 degrees that is the top
    bar = {90: picture[:8], 180: picture[:, -8:], 270: picture[-8:]}[degrees]
    assert picture.shape[:2] == ((32, 64) if degrees == 180 else (64, 32)) and bar.mean() > 200
