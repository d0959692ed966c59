"""Labelled pictures for probes: mini-world's objects, Fashion-MNIST, ImageNet or any other classes in folders
or as `datasets` has them.
"""

import gzip
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lvmlab.data.readers.hub import load_data, saved_by_datasets, source_of, undecoded
from lvmlab.utils import digests, images, paths
from lvmlab.utils.files import atomic, write_file
from lvmlab.utils.listing import list_files, list_shared_classes, split_name
from lvmlab.utils.opening import SUFFIXES
from lvmlab.world import DEFAULT, Sources, default, scenes
from lvmlab.world.sentences import generator

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it
CLOTHES = [
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
]  # Fashion-MNIST's classes
READERS = 2


@dataclass(frozen=True)
class Labelled:
    """Pictures with classes.

    Attributes:
        name: what a reader calls them.
        size: pixels along each side.
        picture: gives uint8 (size, size, 3) of a number.
        labels: (P,), numbers of classes.
        classes: their names, the same in every split.
        sources: (P,), what intervals are taken over.
        digest: of what they are read from; what is cached of them is named by it.
    """

    name: str
    size: int
    picture: Callable[[int], np.ndarray] = field(repr=False)
    labels: np.ndarray = field(repr=False)
    classes: list[str] = field(repr=False)
    sources: np.ndarray = field(repr=False)
    digest: Callable[[], str] = field(repr=False, default=lambda: "")

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: range | np.ndarray) -> np.ndarray:
        """Pictures uint8 (len(rows), size, size, 3)."""
        with ThreadPoolExecutor(READERS) as pool:
            return np.stack(list(pool.map(self.picture, map(int, rows))))

    def kept(self) -> "Labelled":
        """The same pictures, drawn once into the cache folder and read from there: what a training of many
        epochs wants.
        """
        path = paths.cache() / "pictures" / f"{self.name} {self.size} {self.digest()}.npy"
        if not path.is_file():
            write_file(
                path,
                np.concatenate(
                    [self.batch(part) for part in np.array_split(np.arange(len(self)), -(-len(self) // 64))]
                ),
            )
        pictures = np.load(path, mmap_mode="r")
        return replace(self, picture=lambda i: np.array(pictures[i]))

    def first(self, count: int, after: int = 0) -> "Labelled":
        """The first pictures of every class, ``count`` of each at most, ``after`` so many others: class after
        class.
        """
        kept = np.concatenate(
            [np.flatnonzero(self.labels == c)[after : after + count] for c in np.unique(self.labels)]
        )
        name = f"{self.name}, {count} of each class" + f" after {after}" * bool(after)
        return replace(
            self,
            name=name,
            picture=lambda i: self.picture(int(kept[i])),
            labels=self.labels[kept],
            sources=self.sources[kept],
        )


def find(name: str | Path, split: str, size: int = 64) -> Labelled:
    """Pictures by name: "objects" (mini-world's), "fashion" (Fashion-MNIST), a folder's SPLIT/CLASS/* as
    ImageNet's, or what `datasets` loads.
    """
    made = {"objects": objects, "fashion": fashion_mnist}
    if name in made:
        return made[name](split, size)
    if Path(name).expanduser().is_dir() and not saved_by_datasets(name):
        return image_folder(name, split, size)
    return columns(load_data(name, split), f"{Path(name).name} {split}", size)


def splits(name: str | Path, count: int, size: int = 64) -> list[Labelled]:
    """What a probe is fitted on, chosen by and scored on, ``count`` pictures of a class at most. Of a folder
    that is train, train and val.
    """
    if name in ("objects", "fashion"):
        return [find(name, split, size).first(count) for split in ("train", "val", "test")]
    train, val = same_classes([find(name, "train", size), find(name, "val", size)])
    parts = [train.first(count), train.first(count, after=count), val.first(count)]
    for part in parts:
        if not len(part):
            raise ValueError(
                f"{part.name} holds no pictures: a probe takes {count} of each class to fit, {count} others "
                f"to choose by and some to score; ask for fewer, or give more pictures"
            )
    return parts


def same_classes(parts: list[Labelled]) -> list[Labelled]:
    """The same pictures under one numbering of the classes of all parts."""
    if all(part.classes == parts[0].classes for part in parts):
        return parts
    classes = sorted({name for part in parts for name in part.classes})
    numbers = {name: i for i, name in enumerate(classes)}
    return [
        replace(
            part, classes=classes, labels=np.array([numbers[part.classes[label]] for label in part.labels])
        )
        for part in parts
    ]


def objects(split: str, size: int = 64, times: int = 4, sources: Sources | None = None) -> Labelled:
    """mini-world's objects of a split, each ``times`` on photographs of the split; no family is in two
    splits.
    """
    world, laws = sources or default(), replace(DEFAULT, size=size)
    sprites, names = world.all("objects", split), world.classes
    classes = {name: i for i, name in enumerate(names)}

    def picture(i: int) -> np.ndarray:
        rng = generator(31, split, "objects", i)
        canvas, _ = scenes.background(world, split, laws, rng)
        canvas = canvas.copy()
        layer = scenes.place(sprites[i // times], laws, rng.uniform(0.12, 0.35), rng)
        x, y = (
            int(rng.integers(-side // 8, max(1, size - side + side // 8)))
            for side in (layer.shape[1], layer.shape[0])
        )
        scenes.paste(canvas, layer, x, y)
        return (canvas.clip(0, 1) * 255).round().astype(np.uint8)

    labels = np.repeat([classes[sprite.klass] for sprite in sprites], times)
    return Labelled(
        f"mini-world objects {split} x{times}",
        size,
        picture,
        labels,
        names,
        np.repeat([s.family for s in sprites], times),
        lambda: DEFAULT.version,
    )


def fashion_mnist(split: str, size: int = 64, root: Path = DEBIAN) -> Labelled:
    """Fashion-MNIST, grey as three channels; every picture is a source of its own. Raises FileNotFoundError
    with the remedy.

    split: "test", or of its 60,000 training pictures the last 10,000 as "val" and the others as "train".
    """
    from torchvision.datasets.mnist import read_image_file, read_label_file

    part, rows = {"train": ("train", slice(50_000)), "val": ("train", slice(50_000, None))}.get(
        split, ("t10k", slice(None))
    )
    files = [_unpacked(Path(root), f"{part}-{what}") for what in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    pixels, labels = (
        read_image_file(str(files[0])).numpy()[rows],
        read_label_file(str(files[1])).numpy()[rows],
    )
    return Labelled(
        f"Fashion-MNIST {split}",
        size,
        lambda i: images.to_uint8(images.load(pixels[i], size)),
        labels,
        CLOTHES,
        np.arange(len(labels)),
    )


def _unpacked(root: Path, name: str) -> Path:
    """torchvision reads plain idx files; Debian's are gzipped."""
    plain, packed, kept = root / name, root / f"{name}.gz", paths.cache() / "fashion-mnist" / name
    if plain.is_file():
        return plain
    if not packed.is_file():
        raise FileNotFoundError(
            f"{packed} is missing: install Debian's package dataset-fashion-mnist, or give the folder of the "
            f"four idx files"
        )
    if not kept.is_file():
        with atomic(kept) as temporary:
            temporary.write_bytes(gzip.decompress(packed.read_bytes()))
    return kept


def image_folder(root: str | Path, split: str = "", size: int = 224) -> Labelled:
    """root[/split]/CLASS/*, as ImageNet has them; every picture is a source of its own.

    A class has one number in every split of ``root``.
    """
    root = Path(root).expanduser()
    if split and root.is_dir():
        split = split_name(split, [path.name for path in root.iterdir() if path.is_dir()])
    classes = list_shared_classes(root, split)
    files = [
        (path, label)
        for label, name in enumerate(classes)
        if (root / split / name).is_dir()
        for path in list_files(root / split / name, SUFFIXES)
    ]
    return Labelled(
        f"{root.name} {split}".strip(),
        size,
        lambda i: images.to_uint8(images.load(files[i][0], size)),
        np.array([label for _, label in files]),
        classes,
        np.arange(len(files)),
        lambda: digests.remembered_content(root / split, [path for path, _ in files]),
    )


def columns(data, name: str, size: int = 224, image: str = "image", label: str = "label") -> Labelled:
    """A `datasets.Dataset` with a column of pictures and one of classes, as the hub's imagenet-1k; every
    picture is a source of its own.
    """
    if missing := {image, label} - set(data.column_names):
        raise ValueError(
            f"{name} has no column {', '.join(sorted(missing))}: choose from {', '.join(data.column_names)}"
        )
    fingerprint = data._fingerprint
    data = undecoded(data, image)
    names, labels = np.unique(data[label], return_inverse=True)
    if known := getattr(data.features[label], "names", None):
        names, labels = known, np.array(data[label])
    return Labelled(
        name,
        size,
        lambda i: images.to_uint8(images.load(source_of(data[i][image]), size)),
        labels,
        [*map(str, names)],
        np.arange(len(labels)),
        lambda: fingerprint,
    )
