"""A data set as a list of members and a way to read one; broken members are counted over the whole of it."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from lvmlab.data.augmentation import Sample, pictures
from lvmlab.utils import images
from lvmlab.utils.digests import Place
from lvmlab.utils.labels import Kind, choose_kind, label_pixels
from lvmlab.utils.opening import Source, open_picture
from lvmlab.utils.paths import check_component
from lvmlab.world.sentences import Row

THREADS = 2  # that read members of a data set
LOOKED_AT = 32  # labels that decide whether a data set's labels are masks
SHOWN = 20  # names in a printed report
# what a damaged file makes its decoder raise
DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    RuntimeError,
    SyntaxError,
    OverflowError,
    MemoryError,
    Image.DecompressionBombError,
)


class Broken(ValueError):
    """A member that cannot be used, and why."""


class NoLabel(Broken):
    """A member without a label of the task: it is skipped, and no fault of the data set."""


@dataclass
class Report:
    """How many members were read, and why which were not.

    Attributes:
        members: that were read or tried.
        rows: that they gave.
        stored: members whose rows an earlier build had made.
        broken: name of a broken member to the reason.
        skipped: name of a member without a label of the task to the reason.
        labels: what the labels are, and what decided it.
    """

    members: int = 0
    rows: int = 0
    stored: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    labels: str = ""

    def __str__(self):
        head = f"{self.members} members, {self.rows} rows, {len(self.broken)} broken"
        head += f", {len(self.skipped)} skipped" if self.skipped else ""
        lines = [head + (f"; {self.stored} members were stored before" if self.stored else "")]
        lines += [self.labels] if self.labels else []
        lines += [f"  {name}: {reason}" for name, reason in list(self.broken.items())[:SHOWN]]
        lines += ["  ..."] if len(self.broken) > SHOWN else []
        return "\n".join(lines)


@dataclass
class Reader:
    """Members, and ``read(member, least)`` that gives a member's samples.

    Attributes:
        task: the name of the rows' task.
        members: anything that ``read`` takes.
        read: gives {name: (sample, group)}; raises for a broken member. least: the short side that a JPEG
            keeps at least, see `images.pixels`; heeded where no annotation is in pixels.
        kind: of a sample: "pair", "image" or "clip".
        split: the name of the split.
        name: what a report calls a member.
        files: the files that a member is read from, or pieces of them, or its annotation as text.
        root: the folder that names are relative to.
        origin: what else decides the rows; a store is refused for rows of another origin.
    """

    task: str
    members: Sequence[Any]
    read: Callable[[Any, int], dict[str, tuple[Sample, str]]]
    kind: str = "pair"
    split: str = "train"
    name: Callable[[Any], str] = str
    report: Report = field(default_factory=Report)
    files: Callable[[Any], Sequence[Place]] | None = None
    root: Path | None = None
    origin: dict = field(default_factory=dict)

    def __post_init__(self):
        check_component(self.task, "the task")
        if not len(self.members):
            raise ValueError(f"the reader of {self.task} found no members: check the folder and its layout")

    def member(self, index: int, size: int, copies: int = 0) -> list[tuple[int, Row]]:
        """(copy, row) of one member, ``copies`` as in `rows`.

        Raises:
            Broken: it cannot be read.
            NoLabel: it has no label of the task.
        """
        least = 3 * size if copies else 3 * size // 2  # a copy's crop may be little more than half as wide
        try:
            samples = self.read(self.members[index], least)
            return [
                (copy, Row(pictures(sample, size, name, copy), name, group))
                for copy in range(copies + 1)
                for name, (sample, group) in samples.items()
            ]
        except NoLabel:
            raise
        except DAMAGE as error:
            raise Broken(_first_line(error)) from error

    def sources(self, part: range) -> list[Place]:
        """What the members of a part are read from."""
        return [place for index in part for place in self.files(self.members[index])]

    def rows(
        self, size: int, *, copies: int = 0, tolerate: float = 0.01, part: range | None = None
    ) -> Iterator[tuple[int, Row]]:
        """(copy, row) of the members, each as it is and then in augmented copies.

        Args:
            size: pixels along each side.
            copies: how many augmented copies of each row.
            tolerate: the share of all members that may be broken.
            part: the members to read; None: all.

        Raises:
            Broken: with the report, as soon as more than ``tolerate`` of all members are broken.
        """
        part = range(len(self.members)) if part is None else part

        def one(index: int) -> list[tuple[int, Row]] | Broken:
            try:
                return self.member(index, size, copies)
            except Broken as error:
                return error

        with ThreadPoolExecutor(THREADS) as pool:  # decoding holds no lock
            yield from self._counted(part, pool.map(one, part), tolerate)

    def _counted(self, part: range, results: Iterator, tolerate: float) -> Iterator[tuple[int, Row]]:
        for index, result in zip(part, results, strict=True):
            self.report.members += 1
            if isinstance(result, NoLabel):
                self.report.skipped[self.name(self.members[index])] = str(result)
            elif isinstance(result, Broken):
                self.report.broken[self.name(self.members[index])] = str(result)
                self.check_broken(tolerate, result)
            else:
                self.report.rows += len(result)
                yield from result

    def check_broken(self, tolerate: float, cause: Exception | None = None) -> None:
        """Raises Broken, with the report, if more than ``tolerate`` of all members are broken."""
        if len(self.report.broken) > tolerate * len(self.members):
            raise Broken(
                f"more than {tolerate:.0%} of {self.task} is broken: repair it, or allow more "
                f"(tolerate)\n{self.report}"
            ) from cause


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def picture(source: Source, least: int | None = None) -> tv_tensors.Image:
    """A picture as uint8 (3, H, W): resampling in it is several times as fast as in float."""
    pixels = images.pixels(source, least)
    if pixels.dtype != torch.uint8:
        pixels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    return tv_tensors.Image(pixels)


def painted(mask: np.ndarray) -> tv_tensors.Mask:
    """Colours in [0, 1], (H, W, 3) or (H, W), as a label whose colours are never mixed."""
    colours = np.broadcast_to(mask[..., None], (*mask.shape, 3)) if mask.ndim == 2 else mask
    pixels = (colours * 255).round().astype(np.uint8).transpose(2, 0, 1)
    return tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(pixels)))


def pair(image: Source, label: Source, kind: Kind, least: int | None = None) -> tuple:
    """A picture and its label, alike in geometry.

    JPEGs of one size are made smaller as they are decoded, where no colour of a mask can mix.

    Args:
        image: whatever `images.load` takes.
        label: the same.
        kind: what the labels of the data set are.
        least: the short side to keep at least.

    Raises:
        Broken: the label has another size than its picture.
        ImageError: one of them cannot be read.
    """
    if kind == "pictures" and least and _both_jpegs(image, label):
        return check_alike(picture(image, least), picture(label, least))
    pixels = label_pixels(label, kind, turned_like=image)
    wrap = tv_tensors.Mask if kind == "masks" else tv_tensors.Image
    return check_alike(picture(image), wrap(pixels))


def _both_jpegs(image: Source, label: Source) -> bool:
    if not all(isinstance(source, Path) for source in (image, label)):
        return False
    if not {image.suffix.lower(), label.suffix.lower()} <= {".jpg", ".jpeg"}:
        return False
    first, second = open_picture(image), open_picture(label)
    plain = all(opened.getexif().get(0x0112, 1) == 1 for opened in (first, second))
    return plain and (first.format, first.size) == (second.format, second.size)


def check_alike(image, label, what: str = "label") -> tuple:
    """Returns both; raises Broken unless they have one height and width."""
    if image.shape[-2:] != label.shape[-2:]:
        raise Broken(
            f"the {what} is {label.shape[-1]}x{label.shape[-2]} but its picture "
            f"{image.shape[-1]}x{image.shape[-2]}"
        )
    return image, label


def decide_kind(given: Kind | None, count: int, label: Callable[[int], Source | None]) -> tuple[Kind, str]:
    """What the labels of a data set are, and a sentence for its report: given, or by a sample spread over it.

    Args:
        given: "masks", "pictures", or None to look.
        count: of the data set's members.
        label: the label of a member, or None where it has none.
    """
    if given not in (None, "masks", "pictures"):
        raise ValueError(f"labels={given!r} is not known: give masks or pictures")
    if given:
        return given, f"labels are {given}, as was asked for"
    places = np.unique(np.linspace(0, count - 1, min(count, LOOKED_AT)).round().astype(int)) if count else []
    sample = []
    for place in map(int, places):
        with contextlib.suppress(*DAMAGE):
            sample.append(label(place))
    return choose_kind(source for source in sample if source is not None)
