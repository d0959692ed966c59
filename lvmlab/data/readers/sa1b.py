"""SA-1B (Kirillov et al. 2023, arXiv 2304.02643) as squares with every mask in a colour of its own."""

import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
from torchvision import tv_tensors

from lvmlab.data.readers.base import Broken, NoLabel, Reader, painted, picture
from lvmlab.utils.listing import list_files
from lvmlab.utils.opening import read_bytes

# masks are painted in colours from 64 to 255, so that none is the ground's black
DARKEST, SPAN = 0.25, 0.75
Place = Path | tuple[Path, int, int]  # a file, or a shard with offset and length


def sa1b(root: str | Path, *, crops: int = 6, side: int = 800, split: str = "train") -> Reader:
    """SA-1B, NAME.jpg beside NAME.json in folders or in tar shards: squares of each picture.

    The largest mask is painted first: small ones lie on top, and every pixel has one mask's own colour.
    Squares and colours are drawn from the picture's name.

    Args:
        root: the folder of pictures or shards.
        crops: squares of each picture.
        side: of a square in pixels.
        split: the name of the split.

    Raises:
        ValueError: a shard cannot be read to its end; it names the shard.
    """
    root = Path(root).expanduser()
    members = [(path.stem, path.with_suffix(".jpg"), path) for path in list_files(root, (".json",))]
    for shard in list_files(root, (".tar",)):
        members += _inside(shard)

    def read(member: tuple[str, Place | None, Place], least: int) -> dict:
        name, place, annotation = member
        masks = _annotations(_content(annotation))
        if place is None:
            raise Broken("its picture is not in the shard")
        image = picture(_content(place))
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        label = _paint(masks, tuple(image.shape[-2:]), rng)
        edge = min(side, *image.shape[-2:])
        return dict(_square(f"{name}#{i}", image, label, edge, rng) for i in range(crops))

    return Reader(
        "segmentation",
        members,
        read,
        split=split,
        name=lambda member: member[0],
        files=lambda member: [place for place in member[1:] if place],
        root=root,
        origin={"crops": crops, "side": side},
    )


def _inside(shard: Path) -> list[tuple[str, Place | None, Place]]:
    """The annotated pictures of a tar shard."""
    try:
        with tarfile.open(shard) as tar:
            places = {Path(m.name): (shard, m.offset_data, m.size) for m in tar if m.isfile()}
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{shard} cannot be read to its end ({error}): download it again") from error
    size = shard.stat().st_size
    if any(offset + length > size for _, offset, length in places.values()):
        raise ValueError(f"{shard} cannot be read to its end (it is cut): download it again")
    return [
        (path.stem, places.get(path.with_suffix(".jpg")), place)
        for path, place in sorted(places.items())
        if path.suffix == ".json" and not path.name.startswith(".")
    ]


def _content(place: Place) -> bytes:
    if isinstance(place, Path):
        return read_bytes(place)
    shard, offset, length = place
    with open(shard, "rb") as file:
        file.seek(offset)
        return file.read(length)


def _annotations(content: bytes) -> list[dict]:
    """The masks of a picture. Raises NoLabel for a JSON of something else, or without masks."""
    entries = json.loads(content)
    if not isinstance(entries, dict) or not isinstance(entries.get("annotations"), list):
        raise NoLabel("it is no annotation of SA-1B")
    if not entries["annotations"]:
        raise NoLabel("no mask is annotated")
    return entries["annotations"]


def _paint(masks: list[dict], shape: tuple[int, int], rng: np.random.Generator) -> tv_tensors.Mask:
    """All masks of a picture (H, W), the largest first. Raises Broken."""
    canvas = np.zeros((*shape, 3), np.float32)
    for one in sorted(masks, key=lambda mask: -mask["area"]):
        canvas[_decode(one["segmentation"], shape)] = DARKEST + SPAN * rng.random(3)
    return painted(canvas)


def _decode(segmentation: dict | list, shape: tuple[int, int]) -> np.ndarray:
    """A mask as bool (H, W), from RLE, compressed or not, or polygons. Raises Broken."""
    from pycocotools import mask as rle

    height, width = shape
    if isinstance(segmentation, list):
        return rle.decode(rle.merge(rle.frPyObjects(segmentation, height, width))).astype(bool)
    size = segmentation["size"]
    # the size that the file claims is compared before anything of that size is made
    if list(size) != [height, width]:
        raise Broken(f"a mask is {size[1]}x{size[0]} but its picture {width}x{height}")
    if isinstance(segmentation["counts"], list):
        counts = segmentation["counts"]
        if sum(counts) != height * width or min(counts, default=0) < 0:
            raise Broken(f"a mask's runs have {sum(counts)} pixels but its picture {height * width}")
        segmentation = rle.frPyObjects(segmentation, height, width)
    return rle.decode(segmentation).astype(bool)


def _square(name: str, image: tv_tensors.Image, label: tv_tensors.Mask, edge: int, rng: np.random.Generator):
    """A random square of both, under its name."""
    top, left = (int(rng.integers(length - edge + 1)) for length in image.shape[-2:])
    window = (..., slice(top, top + edge), slice(left, left + edge))
    parts = tuple(tv_tensors.wrap(part[window], like=part) for part in (image, label))
    return name, (parts, "")
