"""One lister of files, one reading of names, one rule for classes, one opener; nothing outside its folder."""

import ast
import inspect
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lvmlab
from lvmlab.data import labelled, readers
from lvmlab.lab import runs
from lvmlab.utils import images, labels, listing, opening, paths
from lvmlab.utils.opening import ImageError

PACKAGE = Path(lvmlab.__file__).parent


def picture(path, colour="red", size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def sources(reader):
    return [row.source for _, row in reader.rows(8, tolerate=1.0)]


def clutter(folder):
    """What other programs leave in a folder of pictures."""
    picture(folder / ".ipynb_checkpoints" / "0-checkpoint.png")
    (folder / "._0.png").write_bytes(b"\0\5\26\7")
    (folder / "__MACOSX").mkdir(exist_ok=True)
    (folder / "__MACOSX" / "0.png").write_bytes(b"junk")
    (folder / "Thumbs.db").write_bytes(b"junk")
    (folder / "folder.png").mkdir(exist_ok=True)


def pairs_in_folders(root):
    for name in ("1", "2", "10"):
        picture(root / "images" / f"{name}.png")
        picture(root / "labels" / f"{name}.png")
    return [root / "images", root / "labels"], lambda: readers.paired_folder(root)


def pairs_beside(root):
    for name in ("1", "2", "10"):
        picture(root / f"{name}.png")
        picture(root / f"{name}-label.png")
    return [root], lambda: readers.paired_folder(root)


def scenes(root):
    for name in ("1", "2", "10"):
        picture(root / "S" / "blur" / f"{name}.png")
        picture(root / "S" / "sharp" / f"{name}.png")
    return [root, root / "S" / "blur"], lambda: readers.gopro(root)


def classes(root):
    for name in ("1", "2", "10"):
        picture(root / "cat" / f"{name}.png")
    return [root, root / "cat"], lambda: readers.image_folder(root)


@pytest.mark.parametrize("layout", [pairs_in_folders, pairs_beside, scenes, classes])
def test_every_reader_lists_files_alike(tmp_path, layout):
    folders, reader = layout(tmp_path)
    for folder in folders:
        clutter(folder)
    got = reader()
    assert [Path(name).stem for name in sources(got)] == ["1", "2", "10"], "frame 2 comes before frame 10"
    assert not got.report.broken


def test_frames_follow_one_another(tmp_path):
    for i in range(1, 13):
        picture(tmp_path / "walk" / f"{i}.png", (20 * i, 0, 0))
    clutter(tmp_path / "walk")
    ((_, row),) = readers.clips(tmp_path, frames=12).rows(8)
    assert row.pictures[:, 0, 0, 0].tolist() == [20 * i for i in range(1, 13)]


def test_names_are_read_in_one_way(tmp_path):
    picture(tmp_path / "A.png", "blue")
    picture(tmp_path / "A-label.png", "blue")
    picture(tmp_path / "a.png", "red")
    picture(tmp_path / "a-label.gif", "red")
    rows = {row.source: row.pictures for _, row in readers.paired_folder(tmp_path).rows(8)}
    assert sorted(rows) == ["A.png", "a.png"], "names that differ in case are two"
    assert (rows["A.png"][:, :, :, 2] > 250).all() and (rows["a.png"][:, :, :, 0] > 250).all()


def test_a_picture_takes_the_label_of_its_full_name(tmp_path):
    picture(tmp_path / "images" / "a.jpg")
    picture(tmp_path / "labels" / "a.png", "lime")
    picture(tmp_path / "labels" / "a.jpg", "blue")
    picture(tmp_path / "images" / "b.bmp")
    picture(tmp_path / "labels" / "b.png")
    picture(tmp_path / "labels" / "b.tif")
    reader = readers.paired_folder(tmp_path)
    ((_, row),) = reader.rows(8, tolerate=1.0)
    assert (row.pictures[1][..., 2] > 240).all()
    assert reader.report.broken == {"images/b.bmp": "it has several labels (b.png, b.tif): leave one"}


def test_a_name_that_is_not_utf8_is_named(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        picture(tmp_path / "ok.png").rename(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    with pytest.raises(ValueError, match=r"caf\\xe9.png: its name is not UTF-8; rename"):
        listing.list_files(tmp_path, (".png",))


@pytest.mark.parametrize("task", ["a/b", "../escaped", "..", "", ".hidden", "a\\b", "c:d", "x" * 300])
def test_a_task_is_a_plain_name(tmp_path, task):
    pairs_beside(tmp_path)
    with pytest.raises(ValueError, match="is no plain name"):
        readers.paired_folder(tmp_path, task)


def test_a_class_has_one_number_in_every_split(tmp_path):
    for split, names in (("train", "abc"), ("val", "bc"), ("test", "ac")):
        for name in names:
            picture(tmp_path / split / name / "0.png")
        clutter(tmp_path / split)
    for name in "abc":
        picture(tmp_path / "train" / name / "1.png")
    parts = [labelled.image_folder(tmp_path, split, 8) for split in ("train", "val", "test")]
    assert [part.classes for part in parts] == [["a", "b", "c"]] * 3
    assert [part.labels.tolist() for part in parts] == [[0, 0, 1, 1, 2, 2], [1, 2], [0, 2]]
    every = labelled.splits(tmp_path, 1, 8)
    assert all(part.classes == ["a", "b", "c"] for part in every)
    with pytest.raises(ValueError, match="train, 2 of each class after 2 holds no pictures: a probe takes 2"):
        labelled.splits(tmp_path, 2, 8)


def test_texts_as_classes_have_one_number_in_every_split(tmp_path):
    from datasets import Dataset, DatasetDict

    pixels = np.zeros((4, 4, 3), np.uint8).tolist()
    data = DatasetDict(
        {
            "train": Dataset.from_dict({"image": [pixels] * 6, "label": [*"aabbcc"]}),
            "validation": Dataset.from_dict({"image": [pixels] * 2, "label": [*"cb"]}),
        }
    )
    data.save_to_disk(tmp_path / "disk")
    fit, chosen, scored = labelled.splits(tmp_path / "disk", 1, 8)
    assert fit.classes == chosen.classes == scored.classes == ["a", "b", "c"]
    assert fit.labels.tolist() == chosen.labels.tolist() == [0, 1, 2] and sorted(scored.labels) == [1, 2]


@pytest.mark.parametrize(
    ("asked", "there"), [("val", "validation"), ("validation", "val"), ("val", "dev"), ("train", "training")]
)
def test_a_split_is_found_under_its_other_names(asked, there):
    assert listing.split_name(asked, [there, "other"]) == there
    with pytest.raises(ValueError, match="no split 'nowhere': choose from"):
        listing.split_name("nowhere", [there])


def test_text_is_utf8_on_every_machine():
    bare = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            keywords = {keyword.arg for keyword in node.keywords}
            mode = (
                node.args[1].value if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) else "r"
            )
            plain = isinstance(node.func, ast.Name) and name == "open" and "b" not in str(mode)
            of_path = name in ("read_text", "write_text")
            if (plain and node.args and "encoding" not in keywords) or (
                of_path and "encoding" not in keywords
            ):
                bare.append(f"{path.name}:{node.lineno}")
    assert bare == []


EXPANDED = {
    "images.load": lambda path: images.load(f"{path}/a.png"),
    "images.save": lambda path: images.save(images.load(f"{path}/a.png"), f"{path}/new.png"),
    "load_label": lambda path: labels.load_label(f"{path}/a.png", 8),
    "paired_folder": lambda path: readers.paired_folder(path),
    "image_folder": lambda path: readers.image_folder(f"{path}/classes"),
    "clips": lambda path: readers.clips(path),
    "gopro": lambda path: readers.gopro(f"{path}/scenes"),
    "labelled": lambda path: labelled.image_folder(f"{path}/classes", "", 8),
}


@pytest.mark.parametrize("name", EXPANDED)
def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    work = tmp_path / "elsewhere"
    work.mkdir()
    monkeypatch.chdir(work)
    pairs_beside(tmp_path / "d")
    picture(tmp_path / "d" / "a.png")
    picture(tmp_path / "d" / "a-label.png")
    picture(tmp_path / "d" / "classes" / "cat" / "0.png")
    scenes(tmp_path / "d" / "scenes")
    EXPANDED[name]("~/d")
    assert not list(work.iterdir()), "no folder is called ~"


# --- nothing outside its folder, nothing run, nothing without end

OPENERS = {
    "images.load": images.load,
    "images.pixels": images.pixels,
    "load_label": lambda path: labels.load_label(path, 8),
    "label_pixels": labels.label_pixels,
    "open_picture": opening.open_picture,
}


@pytest.mark.parametrize("opener", OPENERS)
def test_only_regular_files_are_opened(tmp_path, opener):
    os.mkfifo(tmp_path / "pipe.png")
    for path, reason in ((tmp_path / "pipe.png", "no regular file"), (Path("/dev/zero"), "no regular file")):
        with pytest.raises(ImageError, match=reason):
            OPENERS[opener](path)
    with pytest.raises(ImageError, match="is a folder"):
        OPENERS[opener](tmp_path)


@pytest.mark.parametrize("opener", OPENERS)
def test_no_program_is_run_for_a_picture(tmp_path, opener, monkeypatch):
    from PIL import EpsImagePlugin

    def run(*args, **kwargs):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(ImageError, match="a.png is no image"):
        OPENERS[opener](tmp_path / "a.png")


def test_no_other_opener_of_pictures_is_used():
    users = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "Image.open(" in text and path.name != "opening.py":
            users.append(path.relative_to(PACKAGE).as_posix())
    assert users == ["world/sources.py"], "world's own frozen atlas is the only other"


def test_a_pipe_among_pictures_is_a_broken_member(tmp_path):
    pairs_beside(tmp_path)
    os.mkfifo(tmp_path / "3.png")
    os.mkfifo(tmp_path / "3-label.png")
    reader = readers.paired_folder(tmp_path)
    assert sources(reader) == ["1.png", "2.png", "10.png"]
    assert "no regular file" in reader.report.broken["3.png"]


@pytest.mark.parametrize("name", ["../../x.jpg", "/etc/hostname", "a/../../b", "..\\b", ""])
def test_a_name_in_a_file_stays_below_its_folder(tmp_path, name):
    with pytest.raises(ValueError, match="leads outside"):
        paths.below(tmp_path, name)
    person = [100, 100, 2] * 17
    content = {
        "images": [{"id": 1, "file_name": name, "height": 16, "width": 20}],
        "annotations": [{"image_id": 1, "keypoints": person}],
    }
    picture(tmp_path / "x.jpg")
    (tmp_path / "in" / "pictures").mkdir(parents=True)
    (tmp_path / "a.json").write_text(json.dumps(content))
    reader = readers.coco_pose(tmp_path / "in" / "pictures", tmp_path / "a.json")
    assert sources(reader) == [] and "leads outside" in next(iter(reader.report.broken.values()))


@pytest.mark.parametrize("name", ["../../../victim", "/victim", "..", "a/b"])
def test_a_run_stays_below_the_cache(tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "note.txt").write_text("mine")
    folder = runs.folders()["cache"]
    folder.mkdir(parents=True)
    record = {"name": name, "study": "s", "config": {}, "world": "w", "result": 1}
    (folder / "s-000000000000.json").write_text(json.dumps(record))
    with pytest.raises((ValueError, FileNotFoundError)):
        runs.recompute("s-000000000000", lambda config: 1)
    assert (victim / "note.txt").exists()
    (tmp_path / "cache" / "secret.json").write_text(json.dumps(record))
    for call in (runs.load, runs.promote):
        with pytest.raises((ValueError, FileNotFoundError)):
            call(name)


def test_one_broken_run_stops_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = runs.save("sound", {"a": 1}, 1, 0.0)
    for name, text in (("torn-000000000000", '{"name": "to'), ("list-000000000000", "[]")):
        (runs.folders()["cache"] / f"{name}.json").write_text(text)
        for call in (runs.listing, lambda: runs.find("sound", a=1), runs.prune):
            if call is runs.listing or call is runs.prune:
                with pytest.warns(UserWarning, match=f"{name}.json is no run"):
                    call()
            else:
                assert call()["name"] == kept["name"]
        with pytest.raises(ValueError, match=f"{name}.json is no run.*remove it"):
            runs.load(name)
        (runs.folders()["cache"] / f"{name}.json").unlink()
    assert kept["name"] in set(runs.listing().name)


def test_sizes_are_compared_before_anything_is_allocated(tmp_path):
    picture(tmp_path / "sa_1.jpg")
    for size, counts in (([10**9, 10**9], "0"), ([16, 20], [10**18]), ([16, 20], [-5, 325]), ([16], [320])):
        note = {"annotations": [{"area": 1, "segmentation": {"size": size, "counts": counts}}]}
        (tmp_path / "sa_1.json").write_text(json.dumps(note))
        reader = readers.sa1b(tmp_path)
        assert sources(reader) == [] and set(reader.report.broken) == {"sa_1"}


def test_every_reader_has_a_rule_here():
    """A new reader is added to the layouts above."""
    public = {name for name in readers.__all__ if inspect.isfunction(getattr(readers, name))}
    layouts = {"paired_folder", "gopro", "image_folder", "clips", "coco_pose", "sa1b"}
    assert public - layouts == {"rain13k", "pascal5i", "huggingface", "load_data", "saved_by_datasets"}
