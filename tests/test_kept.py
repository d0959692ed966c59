"""A stored result is used only for what it was made from: stores, exports, imports, features, pools."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from lvmlab.data import readers
from lvmlab.data.building import build
from lvmlab.data.store import Store, export_parquet
from lvmlab.data.token_files import import_tokens
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.utils import digests


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_preset("tiny", seed=0, device="cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def noise(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)).save(path)


def pairs(folder, numbers, seed=0):
    for i in numbers:
        noise(folder / f"{i:03d}.png", 1000 * seed + i)
        noise(folder / f"{i:03d}-label.png", 1000 * seed + 500 + i)
    return folder


def make(store, folder, tokenizer, **options):
    build(store, tokenizer, [readers.paired_folder(folder, **options)], progress=False)


def rows(store, task="pairs"):
    """{source: tokens}; a source that is there twice is an error."""
    table = Store(store).tasks[task]
    names = table.column("source")
    assert len(set(names)) == len(names)
    return dict(zip(names, table[np.arange(len(table))].reshape(len(table), -1).tolist(), strict=True))


def fresh(tmp_path, folder, tokenizer):
    make(tmp_path / "fresh", folder, tokenizer)
    return rows(tmp_path / "fresh")


def append(folder):
    pairs(folder, range(70, 80))


def insert(folder):
    for name in ("000a.png", "000a-label.png"):
        noise(folder / name, 77)


def shrink(folder):
    for i in (*range(3, 5), *range(60, 70)):
        for end in ("", "-label"):
            (folder / f"{i:03d}{end}.png").unlink()


def correct(folder):
    noise(folder / "035-label.png", 9)


def correct_in_secret(folder):
    """Another label of the same size in bytes."""
    path = folder / "035-label.png"
    before = path.stat()
    content = (folder / "034-label.png").read_bytes()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


@pytest.mark.parametrize("change", [append, insert, shrink, correct, correct_in_secret])
def test_a_store_follows_its_folder(tmp_path, tokenizer, change):
    folder = pairs(tmp_path / "d", range(70))
    make(tmp_path / "store", folder, tokenizer)
    change(folder)
    make(tmp_path / "store", folder, tokenizer)
    assert rows(tmp_path / "store") == fresh(tmp_path, folder, tokenizer)


def test_what_is_unchanged_is_not_read_again(tmp_path, tokenizer, monkeypatch):
    folder = pairs(tmp_path / "d", range(70))
    make(tmp_path / "store", folder, tokenizer)
    before = rows(tmp_path / "store")
    read = []
    whole = readers.Reader.member
    monkeypatch.setattr(readers.Reader, "member", lambda self, i, *a: read.append(i) or whole(self, i, *a))
    make(tmp_path / "store", folder, tokenizer)
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    make(tmp_path / "store", folder, tokenizer)
    folder.rename(tmp_path / "moved")
    make(tmp_path / "store", tmp_path / "moved", tokenizer)
    assert read == [] and rows(tmp_path / "store") == before
    correct(tmp_path / "moved")
    make(tmp_path / "store", tmp_path / "moved", tokenizer)
    assert sorted(read) == list(range(32, 64)), "one part of 32 is made again"


def test_another_folder_is_refused_and_stands_beside_under_its_own_name(tmp_path, tokenizer):
    one, other = pairs(tmp_path / "a", range(5)), pairs(tmp_path / "b", range(5), seed=1)
    make(tmp_path / "store", one, tokenizer)
    with pytest.raises(ValueError, match=r"pairs's root: '.*/a' there, '.*/b' here.*--task"):
        make(tmp_path / "store", other, tokenizer)
    with pytest.raises(ValueError, match="pairs's split: 'train' there, 'val' here"):
        make(tmp_path / "store", one, tokenizer, split="val")
    make(tmp_path / "store", other, tokenizer, task="b")
    assert Store(tmp_path / "store").counts() == {"b": 5, "pairs": 5}


def test_another_fold_is_refused(tmp_path, tokenizer):
    voc = tmp_path / "VOCdevkit" / "VOC2012"
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("a\n")
    (voc / "SegmentationClass").mkdir()
    noise(voc / "JPEGImages" / "a.jpg", 0)
    Image.fromarray(np.eye(20, dtype=np.uint8) * 7, "P").save(voc / "SegmentationClass" / "a.png")
    build(tmp_path / "store", tokenizer, [readers.pascal5i(tmp_path, 1)], progress=False)
    with pytest.raises(ValueError, match="foreground's fold: 1 there, 0 here"):
        build(tmp_path / "store", tokenizer, [readers.pascal5i(tmp_path, 0)], progress=False)


def test_exports_and_imports_leave_no_old_rows(tmp_path, tokenizer):
    folder = pairs(tmp_path / "d", range(70))
    make(tmp_path / "store", folder, tokenizer)
    assert len(export_parquet(tmp_path / "store", tmp_path / "out")) == 3
    for i in range(10, 70):
        for end in ("", "-label"):
            (folder / f"{i:03d}{end}.png").unlink()
    make(tmp_path / "store", folder, tokenizer)
    written = export_parquet(tmp_path / "store", tmp_path / "out")
    assert sorted((tmp_path / "out").iterdir()) == written and len(written) == 1

    def lines(count):
        text = "".join(json.dumps({"tokens": [i % 16] * 32}) + "\n" for i in range(count))
        (tmp_path / "a.bin").write_text(text)
        return import_tokens(tmp_path / "a.bin", "delvm", tmp_path / "imported", tokenizer, "t")

    monkey = pytest.MonkeyPatch()
    monkey.setattr("lvmlab.data.token_files.PART", 10)
    with monkey.context():
        assert lines(105) == 105 and lines(100) == 100 and lines(25) == 25
        assert Store(tmp_path / "imported").counts() == {"t": 25}
    monkey.undo()


@pytest.mark.parametrize("bad", ["3.9", "true", '"7"', "null", "[1]", "1e2"])
def test_a_token_is_an_integer_and_a_broken_import_is_no_store(tmp_path, tokenizer, bad):
    good = json.dumps({"tokens": [1] * 32}) + "\n"
    torn = '{"tokens": [' + ", ".join([bad] + ["1"] * 31) + "]}\n"
    (tmp_path / "a.bin").write_text(good * 12 + "\n" + torn)
    monkey = pytest.MonkeyPatch()
    monkey.setattr("lvmlab.data.token_files.PART", 10)
    with pytest.raises(ValueError, match="line 14 is no line of the delvm format"):
        import_tokens(tmp_path / "a.bin", "delvm", tmp_path / "store", tokenizer, "t")
    monkey.undo()
    with pytest.raises(ValueError, match="is half built"):
        Store(tmp_path / "store")
    (tmp_path / "a.bin").write_text(good * 12 + "\n\n" + good)
    assert import_tokens(tmp_path / "a.bin", "delvm", tmp_path / "store", tokenizer, "t") == 13
    assert Store(tmp_path / "store").counts() == {"t": 13}


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


DAMAGES = {
    "a flipped byte": (flip, "pairs.000032.arrow was altered"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "pairs.000032.arrow was altered"),
    "empty": (lambda path: path.write_bytes(b""), "pairs.000032.arrow was altered"),
    "missing": (lambda path: path.unlink(), "pairs.000032.arrow is missing"),
    "one more": (
        lambda path: path.with_name("pairs.000900.arrow").write_bytes(path.read_bytes()),
        "pairs.000900.arrow is not of this store",
    ),
    "swapped": (
        lambda path: path.write_bytes(path.with_name("pairs.000000.arrow").read_bytes()),
        "pairs.000032.arrow was altered",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_refused_by_name(tmp_path, tokenizer, damage):
    folder = pairs(tmp_path / "d", range(70))
    make(tmp_path / "store", folder, tokenizer)
    before, identity = rows(tmp_path / "store"), Store(tmp_path / "store").meta
    harm, message = DAMAGES[damage]
    harm(tmp_path / "store" / "pairs.000032.arrow")
    with pytest.raises(ValueError, match=message):
        Store(tmp_path / "store")
    (tmp_path / "store" / "pairs.000900.arrow").unlink(missing_ok=True)
    make(tmp_path / "store", folder, tokenizer)
    assert rows(tmp_path / "store") == before and Store(tmp_path / "store").meta == identity


@pytest.mark.parametrize("content", ["", "{", "[]", '{"tokenizer": 3, "tasks": {}}', "\0"])
def test_a_damaged_index_is_named(tmp_path, content):
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(ValueError, match="store.json is damaged"):
        Store(tmp_path)


def test_a_training_knows_the_rows_of_its_store(tmp_path, tokenizer):
    """`meta` is part of a training's identity: rows exchanged under the same name make it another."""
    folder = pairs(tmp_path / "d", range(5))
    make(tmp_path / "store", folder, tokenizer)
    before = Store(tmp_path / "store").meta
    correct_label = folder / "003-label.png"
    noise(correct_label, 99)
    make(tmp_path / "store", folder, tokenizer)
    after = Store(tmp_path / "store").meta
    assert before["content"] != after["content"] and before["tasks"] == after["tasks"]


def test_a_digest_is_over_names_and_contents(tmp_path):
    noise(tmp_path / "a" / "x.png", 1)
    noise(tmp_path / "b" / "x.png", 1)
    os.utime(tmp_path / "b" / "x.png", (5, 5))
    one, other = (digests.content(tmp_path / d, [tmp_path / d / "x.png"]) for d in "ab")
    assert one == other, "neither the place of the root nor a time counts"
    assert digests.signature(tmp_path, [tmp_path / "a" / "x.png"]) != digests.signature(tmp_path, [])
    (tmp_path / "b" / "x.png").rename(tmp_path / "b" / "y.png")
    assert digests.content(tmp_path / "b", [tmp_path / "b" / "y.png"]) != one
    large = tmp_path / "large"
    large.write_bytes(b"1" * 100)
    first = digests.file_digest(large, 10)
    assert first == digests.file_digest(large, 10) == digests.file_digest(large)
    large.write_bytes(b"2" * 100)
    assert digests.file_digest(large, 10) != first


def test_pictures_of_two_folders_of_one_name_are_two(tmp_path):
    from lvmlab.data import labelled

    for i, folder in enumerate(("one", "two")):
        for name in ("cat", "dog"):
            noise(tmp_path / folder / "pets" / "train" / name / "0.png", i)
    one, two = (labelled.image_folder(tmp_path / folder / "pets", "train", 8) for folder in ("one", "two"))
    assert (one.name, one.size, len(one)) == (two.name, two.size, len(two)) and one.digest() != two.digest()
    kept = [part.kept().picture(0) for part in (one, two)]
    assert (kept[0] == one.picture(0)).all() and (kept[1] == two.picture(0)).all()
    noise(tmp_path / "one" / "pets" / "train" / "cat" / "0.png", 5)
    again = labelled.image_folder(tmp_path / "one" / "pets", "train", 8).kept()
    assert (again.picture(0) != kept[0]).any(), "a picture that was exchanged is read anew"


def test_features_of_two_folders_of_one_name_are_two(tmp_path):
    import torch

    from lvmlab.data import labelled
    from lvmlab.evaluation.features import extract

    class Means:
        name = "means"

        def fingerprint(self):
            return "means"

        def blocks(self, pictures):
            return [pictures.flatten(2).movedim(1, 2)[:, :4].to(torch.float32)]

    for i, folder in enumerate(("one", "two")):
        for name in ("cat", "dog"):
            noise(tmp_path / folder / "pets" / "train" / name / "0.png", i)
    found = [
        extract(Means(), labelled.image_folder(tmp_path / folder / "pets", "train", 8), progress=False)
        for folder in ("one", "two")
    ]
    assert (np.array(found[0].means[0]) != np.array(found[1].means[0])).any()


def test_a_pool_of_another_plan_is_rendered_anew(tmp_path, monkeypatch):
    from lvmlab.data import picture_pool

    class Serial:
        def __init__(self, *args, **options):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        map = staticmethod(lambda function, jobs, chunksize: map(function, jobs))

    monkeypatch.setattr(picture_pool, "ProcessPoolExecutor", Serial)
    monkeypatch.setitem(picture_pool.SHARES, picture_pool.DEFAULT.version, {"derain": 1.0})

    def pool(count, split="val"):
        path = picture_pool.render_pool(tmp_path / "pool.npy", split, count, progress=False)
        return np.load(path)

    first, time = pool(8), (tmp_path / "pool.npy").stat().st_mtime_ns
    assert len(first) == 8 and len(pool(8)) == 8 and (tmp_path / "pool.npy").stat().st_mtime_ns == time
    assert len(pool(24)) == 24
    assert (pool(8, "test")[0] != first[0]).any()
