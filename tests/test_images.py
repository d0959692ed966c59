import io

import numpy as np
import pytest
import torch
from PIL import Image

from lvmlab.utils import images
from lvmlab.utils.images import ImageError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def near(got, expected, tolerance=1e-6):
    torch.testing.assert_close(
        got, torch.as_tensor(np.asarray(expected), dtype=torch.float32), atol=tolerance, rtol=0
    )


def chw(array):
    return np.moveaxis(array, -1, 0)


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_every_kind_of_source_gives_the_same_pixels(photo):
    expected = chw(RGB / 255)
    with open(photo, "rb") as f:
        near(images.load(f), expected)
    for source in (
        photo,
        str(photo),
        photo.read_bytes(),
        Image.open(photo),
        RGB,
        torch.from_numpy(RGB).permute(2, 0, 1),
        io.BytesIO(photo.read_bytes()),
        (RGB / 255).astype(np.float32),
        RGB.astype(np.uint16) * 257,
        RGB[:, ::1],
    ):
        picture = images.load(source)
        assert picture.dtype == torch.float32 and picture.is_contiguous()
        near(picture, expected)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "La", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"]
)
def test_every_mode(mode):
    grey = np.linspace(0, 1, 600).reshape(20, 30)
    if mode in ("I", "I;16"):
        image = Image.fromarray((grey * 65535).astype(np.int32 if mode == "I" else np.uint16))
        assert image.mode == mode
        near(images.load(image), np.stack([grey] * 3), 1e-4)
    elif mode == "F":
        near(images.load(Image.fromarray(grey.astype(np.float32))), np.stack([grey] * 3))
    else:
        by = {"RGBa": "RGBA", "La": "LA", "PA": "P"}.get(mode)
        image = Image.fromarray(RGB)
        image = image.convert(by).convert(mode) if by else image.convert(mode)
        picture = images.load(image, 16)
        assert picture.shape == (3, 16, 16) and 0 <= picture.min() and picture.max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_over_white(tmp_path, mode):
    image = Image.new("LA" if mode == "LA" else "RGBA", (8, 8), (0, 0) if mode == "LA" else (200, 0, 0, 0))
    image.paste((0, 255) if mode == "LA" else (0, 0, 255, 255), (0, 0, 4, 8))
    image.convert(mode).save(tmp_path / "see-through.png")
    picture = images.load(tmp_path / "see-through.png")
    near(picture[:, :, 4:], np.ones((3, 8, 4)))
    near(picture[:, 0, 0], [0, 0, 0] if mode == "LA" else [0, 0, 1])


def test_colour_key_transparency_lies_over_white(tmp_path):
    Image.new("RGB", (4, 4), (10, 20, 30)).save(tmp_path / "key.png", transparency=(10, 20, 30))
    near(images.load(tmp_path / "key.png"), np.ones((3, 4, 4)))


def test_sixteen_bit_files_keep_their_scale(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    for suffix in ("png", "tif", "pgm"):
        Image.fromarray(ramp).save(tmp_path / f"ramp.{suffix}")
        near(images.load(tmp_path / f"ramp.{suffix}"), np.stack([ramp / 65535] * 3), 1e-6)


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (16, 8), "black")
    image.paste("white", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to view
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    picture = images.load(tmp_path / "turned.jpg")
    assert picture.shape == (3, 16, 8) and picture[:, :6].mean() > 0.9 and picture[:, 10:].mean() < 0.1


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    picture = images.load(tmp_path / "cmyk.jpg")
    assert picture[0].mean() > 0.8 and picture[1:].mean() < 0.2


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3000, 3), (2, 50000), (64, 64), (65, 64), (200, 301)])
def test_any_shape_becomes_a_square(shape):
    picture = images.load(np.full((*shape, 3), 0.25, np.float32), 64)
    assert picture.shape == (3, 64, 64)
    near(picture, np.full((3, 64, 64), 0.25))


def test_fit_is_resize_then_centre_crop():
    from torchvision.transforms.v2 import CenterCrop, Compose, Resize

    picture = torch.rand(3, 90, 200, generator=torch.Generator().manual_seed(0))
    near(images.load(picture, 32), Compose([Resize(32, antialias=True), CenterCrop(32)])(picture))


def test_array_alpha_and_grey():
    near(images.load(np.zeros((4, 4, 4), np.uint8)), np.ones((3, 4, 4)))
    near(images.load(np.full((4, 4), True)), np.ones((3, 4, 4)))
    near(images.load(torch.full((1, 4, 4), 0.5)), np.full((3, 4, 4), 0.5))


def refuse(source, *words, **more):
    with pytest.raises(ImageError) as caught:
        images.load(source, **more)
    for word in words:
        assert word in str(caught.value), f"{word!r} not in {caught.value}"


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "gif"])
def test_truncated_file(tmp_path, suffix):
    path = tmp_path / f"half.{suffix}"
    Image.fromarray(RNG.integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refuse(path, "half", "again" if suffix not in ("webp", "tif") else "")


def test_bad_files(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.png").write_text("no picture at all\n" * 50)
    (tmp_path / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    refuse(tmp_path / "empty.png", "empty.png", "0 bytes")
    refuse(tmp_path / "notes.png", "notes.png", "convert it to PNG or JPEG")
    refuse(tmp_path / "page.eps", "page.eps", "convert")
    refuse(tmp_path / "absent.png", "absent.png", "does not exist")
    refuse(tmp_path, str(tmp_path), "folder")
    refuse(b"", "empty")
    refuse(b"garbage", "convert")
    refuse(None, "path")
    refuse(3.5, "path")
    refuse(io.StringIO("text"), "binary")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_500, 14_000])  # beyond PIL's warning, beyond its error
def test_decompression_bomb(tmp_path, side):
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    refuse(tmp_path / "bomb.png", "bomb.png", "make it smaller")


@pytest.mark.parametrize(
    "array",
    [
        np.full((4, 4, 3), np.nan, np.float32),
        np.full((4, 4, 3), 2.0),
        np.full((4, 4, 3), -0.5),
        np.zeros((4, 4, 5)),
        np.zeros((0, 4, 3)),
        np.zeros(4),
        np.zeros((2, 3, 4, 4)),
        np.zeros((4, 4, 3), np.int64),
        np.array([["a"]]),
        torch.zeros(5, 4, 3),
        torch.full((3, 4, 4), torch.inf),
    ],
)
def test_bad_arrays(array):
    refuse(array)


def test_bad_ranges_and_size():
    refuse(Image.fromarray(np.full((4, 4), 70000, np.int32)), "outside [0, 1]")
    refuse(Image.fromarray(np.full((4, 4), 200, np.float32)), "outside [0, 1]", "255")
    refuse(RGB, "size=0", size=0)


def test_save_and_round_trips(tmp_path):
    picture = images.from_uint8(RGB)
    assert (images.to_uint8(picture) == RGB).all()
    assert images.save(picture, tmp_path / "new" / "out.png").exists()
    near(images.load(tmp_path / "new" / "out.png"), picture)
    images.save(picture, tmp_path / "out.jpg")
    assert Image.open(tmp_path / "out.jpg").format == "JPEG"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "out.jpg"]
    with pytest.raises(ImageError, match="suffix"):
        images.save(picture, tmp_path / "out")
    for bad in (picture * 2, picture * torch.nan, picture[None], picture[:1]):
        with pytest.raises(ImageError):
            images.save(bad, tmp_path / "never.png")
    assert not (tmp_path / "never.png").exists()
    with pytest.raises(ImageError, match="uint8"):
        images.from_uint8(RGB / 255)
