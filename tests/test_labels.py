"""A label is no photograph: one loader for folders, `datasets`, the command line and the studio."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from lvmlab.data import readers
from lvmlab.utils import images, labels
from lvmlab.utils.opening import ImageError

SHAPE = (30, 40)


def square(background=0, foreground=255, dtype=np.uint8):
    mask = np.full(SHAPE, background, dtype)
    mask[10:20, 10:20] = foreground
    return mask


def seen(label):
    """Where a label uint8 (2, S, S, 3) or (3, H, W) is white; everything else is black."""
    assert set(np.unique(label)) <= {0, 255}
    return label


def palette_file(path):
    picture = Image.fromarray(square(0, 1), "P")
    picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.save(path)


def transparent(path, mode="RGBA"):
    alpha = Image.fromarray(square())
    picture = Image.new("L" if mode == "LA" else "RGB", alpha.size, "white")
    picture.putalpha(alpha)
    picture.save(path)


def bilevel(path):
    Image.fromarray(square()).convert("1").save(path)


# each is the same white square on black
MASKS = {
    "grey": lambda path: Image.fromarray(square()).save(path),
    "rgb": lambda path: Image.fromarray(square()).convert("RGB").save(path),
    "0 and 1": lambda path: Image.fromarray(square(0, 1)).save(path),
    "0 and 1 in colour channels": lambda path: Image.fromarray(square(0, 1)).convert("RGB").save(path),
    "bilevel": bilevel,
    "palette": palette_file,
    "white on transparent": transparent,
    "grey and transparent": lambda path: transparent(path, "LA"),
    "16 bits of 0 and 255": lambda path: Image.fromarray(square(dtype=np.uint16)).save(path),
    "16 bits of 0 and 1": lambda path: Image.fromarray(square(0, 1, np.uint16)).save(path),
    "16 bits": lambda path: Image.fromarray(square(0, 65535, np.uint16)).save(path),
    "32 bits": lambda path: Image.fromarray(square(dtype=np.int32)).save(path),
    "floats": lambda path: Image.fromarray(square(0, 1).astype(np.float32)).save(path),
}


def through_folder(label, tmp_path):
    (row,) = [row for _, row in readers.paired_folder(tmp_path).rows(15, tolerate=0)]
    return row.pictures[1]


def through_datasets(label, tmp_path):
    from datasets import Dataset, Features
    from datasets import Image as Picture

    files = {"photo": [str(tmp_path / "a.png")], "mask": [str(label)]}
    data = Dataset.from_dict(files, features=Features(photo=Picture(), mask=Picture()))
    (row,) = [row for _, row in readers.huggingface(data, "photo", "mask").rows(15, tolerate=0)]
    return row.pictures[1]


def through_loader(label, tmp_path):
    return images.to_uint8(labels.load_label(label, 15, turned_like=tmp_path / "a.png"))


def through_bytes(label, tmp_path):
    return images.to_uint8(labels.load_label(label.read_bytes(), 15))


WAYS = [through_folder, through_datasets, through_loader, through_bytes]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", MASKS)
def test_every_way_reads_the_same_mask(tmp_path, kind, way):
    Image.new("RGB", SHAPE[::-1], "red").save(tmp_path / "a.png")
    label = tmp_path / ("a-label.tif" if kind in ("32 bits", "floats") else "a-label.png")
    MASKS[kind](label)
    expected = np.zeros((15, 15, 3), np.uint8)
    # 40x30 to 20x15, of which the middle 15 columns: the square at 10 to 20 comes to 5 to 10, less 2 or 3
    got = seen(way(label, tmp_path))
    expected[5:10, 2:8] = 255
    assert (got != expected)[:, [0, 1, 4, 5, 6, 9, 10, 14]].sum() == 0 and got[5:10].sum() == got.sum()
    assert 25 <= (got[..., 0] > 0).sum() <= 30


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_colours_of_a_palette_and_its_border_stay(tmp_path, way):
    Image.new("RGB", SHAPE[::-1], "red").save(tmp_path / "a.png")
    mask = square(0, 15)
    mask[9:21, 9] = 255
    picture = Image.fromarray(mask, "P")
    colours = np.zeros((256, 3), np.uint8)
    colours[15], colours[255] = (192, 128, 128), (224, 224, 192)
    picture.putpalette(colours.tobytes())
    picture.save(tmp_path / "a-label.png")
    got = {tuple(colour) for colour in way(tmp_path / "a-label.png", tmp_path).reshape(-1, 3).tolist()}
    assert {(0, 0, 0), (192, 128, 128)} <= got <= {(0, 0, 0), (192, 128, 128), (224, 224, 192)}


@pytest.mark.parametrize("values", [(0, 1, 2), (0, 7), (0, 1, 255), range(20)])
def test_class_numbers_without_a_palette_are_refused(tmp_path, values):
    mask = np.zeros(SHAPE, np.uint8)
    mask.flat[: len(values)] = values
    Image.fromarray(mask).save(tmp_path / "numbers.png")
    with pytest.raises(ImageError, match=r"numbers.png holds the class numbers 0, .*palette"):
        labels.load_label(tmp_path / "numbers.png", 16)


def test_black_on_transparent_is_refused_not_guessed(tmp_path):
    picture = Image.new("RGB", SHAPE[::-1], "black")
    picture.putalpha(Image.fromarray(square()))
    picture.save(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="gone.png is one colour on transparent"):
        labels.load_label(tmp_path / "gone.png", 16)


def test_what_the_labels_are_is_decided_once_and_said(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        noise = rng.integers(0, 256, (*SHAPE, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
        # one of the six labels is flat, as a clean sky is
        flat = np.full((*SHAPE, 3), 90, np.uint8)
        flat[:, ::2] = 130
        Image.fromarray(flat if i == 3 else noise).save(tmp_path / f"{i}-label.png")
    reader = readers.paired_folder(tmp_path)
    rows = {row.source: row.pictures[1] for _, row in reader.rows(15)}
    assert reader.origin["labels"] == "pictures"
    assert "labels are pictures: 1 of 6 looked at" in str(reader.report)
    assert set(np.unique(rows["3.png"])) - {90, 130}, "a flat picture among pictures is blended as they are"
    masks = readers.paired_folder(tmp_path, kind="masks")
    rows = {row.source: row.pictures[1] for _, row in masks.rows(15)}
    assert set(np.unique(rows["3.png"])) <= {90, 130} and "as was asked for" in str(masks.report)
    with pytest.raises(ValueError, match="give masks or pictures"):
        readers.paired_folder(tmp_path, kind="mask")


def turned_photo(path, orientation, size=(40, 30)):
    picture = Image.new("RGB", size, "black")
    picture.paste("red", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(path, exif=exif, quality=95)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_label_lies_as_its_turned_picture(tmp_path, orientation):
    turned_photo(tmp_path / "a.jpg", orientation)
    raw = np.zeros(SHAPE, np.uint8)
    raw[:10, :10] = 255
    Image.fromarray(raw).save(tmp_path / "a-label.png")
    photo = images.load(tmp_path / "a.jpg")
    label = labels.label_pixels(tmp_path / "a-label.png", turned_like=tmp_path / "a.jpg")
    assert label.shape == photo.shape == (3, 40, 30)
    assert ((photo[0] > 0.5) == (label[0] > 0)).float().mean() > 0.99
    # one that was drawn on the upright picture stays as it is
    upright = Image.fromarray(images.to_uint8((photo > 0.5).float()))
    upright.save(tmp_path / "a-label.png")
    again = labels.label_pixels(tmp_path / "a-label.png", turned_like=tmp_path / "a.jpg")
    assert ((photo[0] > 0.5) == (again[0] > 0)).float().mean() > 0.99


@pytest.mark.parametrize(("orientation", "size"), [(3, (40, 30)), (2, (40, 30)), (6, (30, 30))])
def test_a_label_whose_orientation_cannot_be_known_is_refused(tmp_path, orientation, size):
    turned_photo(tmp_path / "a.jpg", orientation, size)
    Image.new("L", size).save(tmp_path / "a-label.png")
    with pytest.raises(ImageError, match="a-label.png: its picture is turned by EXIF"):
        labels.load_label(tmp_path / "a-label.png", 16, turned_like=tmp_path / "a.jpg")


def test_a_label_of_another_view_is_refused(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    Image.new("L", (30, 40)).save(tmp_path / "b.png")
    with pytest.raises(ImageError, match="b.png is 30x40 but its picture 40x30"):
        labels.load_label(tmp_path / "b.png", 16, turned_like=tmp_path / "a.png")
    Image.new("L", (80, 60)).save(tmp_path / "b.png")
    assert labels.load_label(tmp_path / "b.png", 16, turned_like=tmp_path / "a.png").shape == (3, 16, 16)


def test_a_picture_of_32_bits_is_read_by_its_range():
    ramp = np.arange(256, dtype=np.int32).reshape(16, 16)
    assert torch.allclose(images.load(Image.fromarray(ramp))[0], torch.from_numpy(ramp / 255).float())


def test_the_studio_reads_a_label_as_a_label(tmp_path):
    from lvmlab.lab.studio.session import Session

    class Small:
        size = 15

    session = Session.__new__(Session)
    session.tokenizer, session.known = Small(), False
    from lvmlab.world.sentences import sentence

    session.sentence = sentence("segmentation", "val", 0, pairs=2)
    session.set = lambda edited, known: setattr(session, "sentence", edited)
    MASKS["0 and 1"](tmp_path / "mask.png")
    session.put(tmp_path / "mask.png", 0, "label")
    assert set(np.unique(session.sentence.pairs[0].label)) == {0, 255}


def test_photographs_may_have_any_transparency():
    file = io.BytesIO()
    transparent(file) if False else Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(file, "png")
    assert images.load(file.getvalue()).min() == 1, "a photograph lies over white"
