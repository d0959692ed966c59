"""The raw material of mini-world: photographs, object sprites and body sprites, each in exactly one split.

The three tables are Parquet files in ``assets/world``; pictures stay compressed until they are first used.
Sprites are kept with premultiplied alpha, so that resizing never bleeds the colour of invisible pixels into
an edge.
"""

import copy
import functools
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from lvmlab.utils import paths

SPLITS = ("train", "val", "test", "shifted")


@dataclass(frozen=True)
class Photograph:
    """A photograph and the one split that it is in."""

    name: str
    split: str
    image: Image.Image  # RGB, long side at most 512


@dataclass(frozen=True)
class Sprite:
    """A cut-out: ``image`` is premultiplied ("RGBa"); ``area`` counts its opaque pixels.

    Objects carry ``klass`` and ``family``; bodies carry ``keypoints`` (17, 2) in pixels of the sprite, x
    before y, in COCO's order, and ``visible`` (17,).
    """

    name: str
    family: str
    split: str
    klass: str
    image: Image.Image
    area: float
    keypoints: np.ndarray | None = None
    visible: np.ndarray | None = None


class _Table:
    """Rows of one Parquet file, decoded on demand and kept."""

    def __init__(self, path: Path, decode):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run `python assets/build.py` or reinstall lvmlab")
        self.rows = pq.read_table(path).to_pylist()
        self.indices = {s: [i for i, row in enumerate(self.rows) if row["split"] == s] for s in SPLITS}
        self.get = functools.cache(lambda i: decode(self.rows[i]))


def _photograph(row: dict) -> Photograph:
    return Photograph(row["name"], row["split"], Image.open(io.BytesIO(row["image"])).convert("RGB"))


def _sprite(row: dict) -> Sprite:
    image = Image.open(io.BytesIO(row["image"])).convert("RGBA")
    area = float((np.asarray(image)[..., 3] > 127).sum())
    body = "keypoints" in row
    return Sprite(
        name=row["name"],
        family=row["body"] if body else row["family"],
        split=row["split"],
        klass="body" if body else row["klass"],
        image=image.convert("RGBa"),
        area=area,
        keypoints=np.asarray(row["keypoints"], np.float64).reshape(17, 2) if body else None,
        visible=np.asarray(row["visible"], bool) if body else None,
    )


class Sources:
    """Every source of mini-world by kind ("photographs", "objects", "bodies") and split.

    Args:
        folder: of the three tables; None: the shipped ones.

    Raises:
        FileNotFoundError: a table is missing.
    """

    def __init__(self, folder: Path | None = None):
        folder = folder or paths.assets() / "world"
        self.tables = {
            "photographs": _Table(folder / "photographs.parquet", _photograph),
            "objects": _Table(folder / "objects.parquet", _sprite),
            "bodies": _Table(folder / "bodies.parquet", _sprite),
        }

    def count(self, kind: str, split: str) -> int:
        """How many sources there are."""
        return len(self.tables[kind].indices[split])

    def pick(self, kind: str, split: str, rng: np.random.Generator) -> Photograph | Sprite:
        """One source, all alike likely."""
        table = self.tables[kind]
        return table.get(table.indices[split][rng.integers(len(table.indices[split]))])

    def all(self, kind: str, split: str) -> list[Photograph | Sprite]:
        """Every source, in the table's order."""
        table = self.tables[kind]
        return [table.get(i) for i in table.indices[split]]

    def with_objects_of(self, split: str) -> "Sources":
        """The same sources, but the objects of every split are those of ``split``."""
        other = copy.copy(self)
        objects = copy.copy(self.tables["objects"])
        objects.indices = dict.fromkeys(SPLITS, objects.indices[split])
        other.tables = {**self.tables, "objects": objects}
        return other

    def limit_sources(self, split: str, **counts: int) -> "Sources":
        """The same sources, but fewer of ``split``.

        Args:
            split: whose sources are fewer; the other splits keep theirs.
            counts: of each kind named, how many photographs, object families or bodies stay, first by name.
        """
        other = copy.copy(self)
        other.tables = dict(self.tables)
        keys = {"photographs": "name", "objects": "family", "bodies": "body"}
        for kind, count in counts.items():
            table = copy.copy(self.tables[kind])
            of = {i: table.rows[i][keys[kind]] for i in table.indices[split]}
            names = sorted(set(of.values()))[:count]
            table.indices = {**table.indices, split: [i for i, name in of.items() if name in names]}
            other.tables[kind] = table
        return other

    @functools.cached_property
    def classes(self) -> list[str]:
        """The object classes, sorted by name."""
        return sorted({row["klass"] for row in self.tables["objects"].rows})

    @functools.cache  # noqa: B019  the table lives as long as the process
    def of_class(self, klass: str, split: str) -> list[int]:
        """The rows of a class's objects."""
        table = self.tables["objects"]
        return [i for i in table.indices[split] if table.rows[i]["klass"] == klass]

    def pick_of_class(self, klass: str, split: str, rng: np.random.Generator) -> Sprite:
        """One object of a class, all alike likely."""
        indices = self.of_class(klass, split)
        return self.tables["objects"].get(indices[rng.integers(len(indices))])


@functools.cache
def default() -> Sources:
    """The shipped sources, read once a process."""
    return Sources()
