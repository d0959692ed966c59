"""Public data sets as their users have them: each reader is a list of members and a way to read one.

    reader = coco_pose("val2017", "person_keypoints_val2017.json")
    for row in reader.rows(size=256): ...        # broken members are skipped, counted and named in
    reader.report

`torchvision.datasets`, `datasets` and `pycocotools` find and decode what they can; here is what makes pairs
of it.
"""

import contextlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from lvmlab.data.augmentation import Sample, Skeletons, pictures
from lvmlab.utils import images
from lvmlab.world.sentences import Row

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FOLDERS = (
    ("images", "labels"),
    ("image", "label"),
    ("images", "masks"),
    ("input", "target"),
    ("rain", "norain"),
    ("blur", "sharp"),
    ("A", "B"),
    ("JPEGImages", "SegmentationClass"),
)
VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
READERS = 2  # threads that read members of a data set
PALETTE = (
    0.25,
    0.75,
)  # SA-1B's masks are painted in colours from 64 to 255, so that none is the ground's black
_BROKEN = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    RuntimeError,
    SyntaxError,
    Image.DecompressionBombError,
)  # what a damaged file makes its decoder raise


class Broken(ValueError):
    """A member that cannot be used, and why."""


@dataclass
class Report:
    """How many members were read, and why which were not."""

    members: int = 0
    rows: int = 0
    broken: dict[str, str] = field(default_factory=dict)

    def __str__(self):
        lines = [f"{self.members} members, {self.rows} rows, {len(self.broken)} broken"]
        return "\n".join(
            lines
            + [f"  {name}: {reason}" for name, reason in list(self.broken.items())[:20]]
            + ["  ..."] * (len(self.broken) > 20)
        )


@dataclass
class Reader:
    """``read(member, least)`` gives the member's samples, {name: (sample, group)}; it raises for a broken
    one.

    least: the short side that a JPEG must keep, see `images.pixels`; to be heeded where no annotation is in
        pixels.
    """

    task: str
    members: Sequence[Any]
    read: Callable[[Any, int], dict[str, tuple[Sample, str]]]
    kind: str = "pair"  # or "image", "clip"
    split: str = "train"
    name: Callable[[Any], str] = str
    report: Report = field(default_factory=Report)

    def __post_init__(self):
        if not len(self.members):
            raise ValueError(f"the reader of {self.task} found no members: check the folder and its layout")

    def member(self, index: int, size: int, copies: int = 0) -> list[tuple[int, Row]]:
        """(copy, row) of one member, ``copies`` as in `rows`. Raises Broken."""
        least = 3 * size if copies else 3 * size // 2  # a copy's crop may be little more than half as wide
        try:
            found = self.read(self.members[index], least)
            return [
                (copy, Row(pictures(sample, size, name, copy), name, group))
                for copy in range(copies + 1)
                for name, (sample, group) in found.items()
            ]
        except _BROKEN as error:
            raise Broken(
                str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            ) from error

    def rows(
        self, size: int, *, copies: int = 0, tolerate: float = 0.01, part: range | None = None
    ) -> Iterator[tuple[int, Row]]:
        """(copy, row) of the members in ``part`` (None: all), each as it is and then in ``copies`` augmented
        copies.

        Raises Broken, with the report, as soon as more than ``tolerate`` of those members are broken.
        """
        part = range(len(self.members)) if part is None else part

        def one(index: int) -> list[tuple[int, Row]] | Broken:
            try:
                return self.member(index, size, copies)
            except Broken as error:
                return error

        with ThreadPoolExecutor(READERS) as pool:  # decoding holds no lock
            results = pool.map(one, part)
            yield from self._counted(part, results, tolerate)

    def _counted(self, part: range, results: Iterator, tolerate: float) -> Iterator[tuple[int, Row]]:
        for index, found in zip(part, results, strict=True):
            self.report.members += 1
            if isinstance(error := found, Broken):
                self.report.broken[self.name(self.members[index])] = str(error)
                if len(self.report.broken) > tolerate * len(part):
                    raise Broken(
                        f"more than {tolerate:.0%} of {self.task} is broken: repair it, or allow more "
                        f"(tolerate)\n{self.report}"
                    ) from error
                continue
            self.report.rows += len(found)
            yield from found


def _image(source, least: int | None = None) -> tv_tensors.Image:
    """uint8: resampling full-size pictures in it is several times as fast as in float."""
    found = images.pixels(source, least)
    return tv_tensors.Image(
        found if found.dtype == torch.uint8 else (found.clamp(0, 1) * 255).round().to(torch.uint8)
    )


def _painted(mask: np.ndarray) -> tv_tensors.Mask:
    """Colours in [0, 1], (H, W, 3) or (H, W), as a label whose pixels are never mixed."""
    mask = np.broadcast_to(mask[..., None], (*mask.shape, 3)) if mask.ndim == 2 else mask
    return tv_tensors.Mask(
        torch.from_numpy(np.ascontiguousarray((mask * 255).round().astype(np.uint8).transpose(2, 0, 1)))
    )


def _label(source) -> tv_tensors.Image | tv_tensors.Mask:
    """A label picture; one of few colours (palette, black and white) is a mask."""
    few = False
    if isinstance(source, (str, Path)):
        with Image.open(source) as opened:
            few = opened.mode in ("P", "1") or opened.format != "JPEG" and opened.getcolors(64) is not None
    found = _image(source)
    return tv_tensors.Mask(found) if few else found


def _files(image: Path, label: Path, least: int) -> tuple:
    """The files of a pair; made smaller as they are decoded only where both can be alike."""
    if {image.suffix.lower(), label.suffix.lower()} <= {".jpg", ".jpeg"}:
        with Image.open(image) as one, Image.open(label) as other:
            if (one.format, one.size) == (other.format, other.size):
                return _alike(_image(one, least), _image(other, least))
    return _alike(_image(image), _label(label))


def _alike(image, label, what: str = "label") -> tuple:
    if image.shape[-2:] != label.shape[-2:]:
        raise Broken(
            f"the {what} is {label.shape[-1]}x{label.shape[-2]} but its picture "
            f"{image.shape[-1]}x{image.shape[-2]}"
        )
    return image, label


def _found(folder: Path, suffixes=SUFFIXES) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: check the path and the data set's layout")
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes and not p.name.startswith("."))


def paired_folder(
    root: str | Path,
    task: str = "pairs",
    *,
    inputs: str | None = None,
    labels: str | None = None,
    split: str = "train",
) -> Reader:
    """Any folder of paired images: two sub-folders with the same names in them, or NAME.png beside
    NAME-label.png (or _label).

    inputs, labels: the sub-folders, where they are none of FOLDERS. A picture without a label is broken.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder: give the folder that holds the pairs")
    names = (
        (inputs, labels)
        if inputs and labels
        else next((pair for pair in FOLDERS if all((root / n).is_dir() for n in pair)), None)
    )
    if names:
        first, second = (root / name for name in names)
        known = {p.relative_to(second).with_suffix(""): p for p in _found(second)}
        members = [(p, known.get(p.relative_to(first).with_suffix(""))) for p in _found(first)]
    else:
        every = {
            p.with_suffix("").name.lower(): p for p in sorted(root.iterdir()) if p.suffix.lower() in SUFFIXES
        }
        ends = ("-label", "_label")
        members = [
            (p, next((every[n + e] for e in ends if n + e in every), None))
            for n, p in every.items()
            if not n.endswith(ends)
        ]
    if not members:
        likely = " or ".join("/".join(f) for f in FOLDERS[:4])
        raise ValueError(
            f"{root} holds no pairs: make two folders ({likely}) or name files a.png, a-label.png"
        )

    def read(member, least: int) -> dict:
        image, label = member
        if label is None:
            raise Broken("it has no label of its name")
        return {image.relative_to(root).as_posix(): (_files(image, label, least), "")}

    return Reader(task, members, read, split=split, name=lambda m: m[0].relative_to(root).as_posix())


def coco_pose(pictures: str | Path, annotations: str | Path, *, split: str = "train") -> Reader:
    """COCO's person keypoints; the label is every annotated person's skeleton. A picture without joints is
    broken.
    """
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(annotations))
    ids = sorted({a["image_id"] for a in coco.dataset["annotations"]})

    def read(number: int, least: int) -> dict:
        info = coco.loadImgs(number)[0]
        people = [
            a["keypoints"]
            for a in coco.imgToAnns[number]
            if not a.get("iscrowd") and any(a.get("keypoints", [])[2::3])
        ]
        if not people:
            raise Broken("no joint of it is annotated")
        image = _image(Path(pictures) / info["file_name"])
        if image.shape[-2:] != (info["height"], info["width"]):
            raise Broken(
                f"it is {image.shape[-1]}x{image.shape[-2]}, its annotation says "
                f"{info['width']}x{info['height']}"
            )
        return {
            f"{info['file_name']}": (
                (image, Skeletons(np.reshape(people, (-1, 17, 3)), *image.shape[-2:])),
                "",
            )
        }

    return Reader(
        "pose",
        ids,
        read,
        split=split,
        name=lambda number: coco.imgs.get(number, {}).get("file_name", str(number)),
    )


def sa1b(root: str | Path, *, crops: int = 6, side: int = 800, split: str = "train") -> Reader:
    """SA-1B, NAME.jpg beside NAME.json in folders or in tar shards: ``crops`` squares of ``side`` of each
    picture, masks in random colours.

    The largest mask is painted first, so that the small ones lie on top and every pixel has one mask's own
    colour. Crops and colours are
    drawn from the picture's name.
    """
    from pycocotools import mask as rle

    root, members = Path(root), []
    for path in _found(root, (".json",)):
        members.append((path.stem, path.with_suffix(".jpg"), path))
    for shard in _found(root, (".tar",)):
        with tarfile.open(shard) as tar:
            inside = {Path(m.name): (shard, m.offset_data, m.size) for m in tar if m.isfile()}
        members += [
            (p.stem, inside.get(p.with_suffix(".jpg")), where)
            for p, where in sorted(inside.items())
            if p.suffix == ".json"
        ]

    def content(where) -> bytes:
        if where is None:
            raise Broken("its picture is not in the shard")
        if isinstance(where, Path):
            return where.read_bytes()
        with open(where[0], "rb") as file:
            file.seek(where[1])
            return file.read(where[2])

    def read(member, least: int) -> dict:
        name, picture, annotation = member
        image, masks = _image(content(picture)), json.loads(content(annotation))["annotations"]
        if not masks:
            raise Broken("no mask is annotated")
        rng, painted = (
            np.random.default_rng(zlib.crc32(name.encode())),
            np.zeros((*image.shape[-2:], 3), np.float32),
        )
        for one in sorted(masks, key=lambda a: -a["area"]):
            mask = rle.decode(one["segmentation"]).astype(bool)
            if mask.shape != painted.shape[:2]:
                raise Broken(
                    f"a mask is {mask.shape[1]}x{mask.shape[0]} but its picture "
                    f"{image.shape[-1]}x{image.shape[-2]}"
                )
            painted[mask] = PALETTE[0] + PALETTE[1] * rng.random(3)
        label, edge, found = _painted(painted), min(side, *image.shape[-2:]), {}
        for i in range(crops):
            top, left = (int(rng.integers(length - edge + 1)) for length in image.shape[-2:])
            window = (..., slice(top, top + edge), slice(left, left + edge))
            found[f"{name}#{i}"] = (
                (tv_tensors.wrap(image[window], like=image), tv_tensors.wrap(label[window], like=label)),
                "",
            )
        return found

    return Reader("segmentation", members, read, split=split, name=lambda m: m[0])


def rain13k(root: str | Path, *, split: str = "train") -> Reader:
    """Rain13K: the folders input/ and target/, or BasicSR's input.lmdb and target.lmdb (meta_info.txt names
    the keys; extra: lmdb).
    """
    root = Path(root)
    if not (root / "input.lmdb").is_dir():
        return paired_folder(root, "derain", inputs="input", labels="target", split=split)
    try:
        import lmdb
    except ImportError as error:
        raise ModuleNotFoundError("reading an lmdb needs the extra: pip install lvmlab[lmdb]") from error
    stores = {
        side: lmdb.open(str(root / f"{side}.lmdb"), readonly=True, lock=False) for side in ("input", "target")
    }
    keys = [
        line.split(" ")[0].removesuffix(".png")
        for line in (root / "input.lmdb" / "meta_info.txt").read_text().splitlines()
        if line
    ]

    def read(key: str, least: int) -> dict:
        found = []
        for side, store in stores.items():
            with store.begin() as transaction:
                data = transaction.get(key.encode())
            if data is None:
                raise Broken(f"{side}.lmdb does not hold it")
            found.append(_image(bytes(data)))
        return {key: (_alike(*found), "")}

    return Reader("derain", keys, read, split=split)


def gopro(root: str | Path, *, split: str = "train") -> Reader:
    """GoPro: SCENE/blur/*.png beside SCENE/sharp/*.png, under ``root`` or root/``split``."""
    root = Path(root) / split if (Path(root) / split).is_dir() else Path(root)
    members = [(p, p.parents[1] / "sharp" / p.name) for p in _found(root) if p.parent.name == "blur"]
    return Reader(
        "deblur",
        members,
        lambda m, least: {m[0].relative_to(root).as_posix(): (_files(*m, least), "")},
        split=split,
        name=lambda m: m[0].relative_to(root).as_posix(),
    )


def clips(root: str | Path, *, frames: int = 16, stride: int = 1, split: str = "train") -> Reader:
    """Videos and folders of frames under ``root`` as clips of ``frames`` frames, every ``stride``-th, one
    after another; extra for videos: av.
    """
    root, films = Path(root), (".mp4", ".avi", ".mov", ".mkv", ".webm")
    folders: dict[Path, list[Path]] = {}
    for path in _found(root):
        folders.setdefault(path.parent, []).append(path)
    members = [(folder, list_) for folder, list_ in folders.items()] + [
        (path, None) for path in _found(root, films)
    ]

    def read(member, least: int) -> dict:
        where, files = member
        every = [p for p in files[::stride]] if files else _decoded(where, stride)
        if len(every) < frames:
            raise Broken(f"it has {len(every)} frames at stride {stride}, a clip takes {frames}")
        name = where.relative_to(root).as_posix()
        return {
            f"{name}#{i}": (tuple(_image(f, least) for f in every[i : i + frames]), "")
            for i in range(0, len(every) - frames + 1, frames)
        }

    return Reader("frames", members, read, "clip", split, lambda m: m[0].relative_to(root).as_posix())


def _decoded(path: Path, stride: int) -> list[Image.Image]:
    try:
        import av
    except ImportError as error:
        raise ModuleNotFoundError("reading videos needs the extra: pip install lvmlab[video]") from error
    with av.open(str(path)) as film:
        return [frame.to_image() for i, frame in enumerate(film.decode(video=0)) if i % stride == 0]


def image_folder(root: str | Path, *, split: str = "") -> Reader:
    """ImageFolder and ImageNet, root[/split]/CLASS/*: single images; a sentence of them may take one class
    (its group).
    """
    from torchvision.datasets import ImageFolder

    found = ImageFolder(Path(root) / split, loader=lambda path: path)
    return Reader(
        "images",
        found.samples,
        lambda m, least: {Path(m[0]).name: ((_image(m[0], least),), found.classes[m[1]])},
        "image",
        split or "train",
        lambda m: f"{found.classes[m[1]]}/{Path(m[0]).name}",
    )


def pascal5i(root: str | Path, fold: int, *, split: str = "val") -> Reader:
    """Pascal VOC 2012 for 1-shot foreground segmentation: the five classes of ``fold`` (0 to 3), white on
    black, one row a picture and class.

    root: the folder that holds VOCdevkit. A group is a class, so a prompt's example and query show the same
        one.
    """
    from torchvision.datasets import VOCSegmentation

    if fold not in range(4):
        raise ValueError(f"fold={fold!r}: Pascal-5i has folds 0 to 3")
    voc = VOCSegmentation(str(root), year="2012", image_set=split)

    def read(member, least: int) -> dict:
        image, mask = _image(member[0]), np.asarray(Image.open(member[1]))
        if mask.shape != image.shape[-2:]:
            raise Broken(
                f"the mask is {mask.shape[1]}x{mask.shape[0]} but its picture "
                f"{image.shape[-1]}x{image.shape[-2]}"
            )
        present = [c for c in range(5 * fold, 5 * fold + 5) if (mask == c + 1).any()]
        return {
            f"{Path(member[0]).stem}#{VOC_CLASSES[c]}": (
                (image, _painted((mask == c + 1) * 1.0)),
                VOC_CLASSES[c],
            )
            for c in present
        }

    return Reader(
        "foreground",
        list(zip(voc.images, voc.masks, strict=True)),
        read,
        split=split,
        name=lambda m: Path(m[0]).stem,
    )


def loaded(source: str | Path, split: str):
    """A data set of the hub, or of a folder or file, as `datasets` loads it; or one that
    `Dataset.save_to_disk` wrote.
    """
    import datasets

    found = (
        datasets.load_from_disk(str(source))
        if saved(source)
        else datasets.load_dataset(str(source), split=split)
    )
    return found[split] if isinstance(found, datasets.DatasetDict) else found


def saved(folder: str | Path) -> bool:
    """Whether `datasets` wrote it."""
    return any((Path(folder) / f"dataset_{what}.json").is_file() for what in ("info", "dict"))


def huggingface(
    data, image: str = "image", label: str | None = None, *, task: str = "pairs", split: str = "train"
) -> Reader:
    """Any `datasets.Dataset` with image columns: pairs of ``image`` and ``label``, or images alone."""
    for column in filter(None, (image, label)):
        if column not in data.column_names:
            raise ValueError(
                f"the data set has no column {column!r}: choose from {', '.join(data.column_names)}"
            )

    def read(index: int, least: int) -> dict:
        row = data[index]
        parts = [_image(row[image])] + ([_label(row[label])] if label else [])
        return {str(index): (_alike(*parts) if label else tuple(parts), "")}

    return Reader(task, range(len(data)), read, "pair" if label else "image", split)
