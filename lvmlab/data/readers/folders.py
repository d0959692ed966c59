"""Data sets that are folders of pictures: pairs, GoPro's scenes, classes."""

from pathlib import Path

from lvmlab.data.readers.base import Broken, Reader, Report, decide_kind, pair, picture
from lvmlab.utils.labels import Kind
from lvmlab.utils.listing import by_stem, list_classes, list_files
from lvmlab.utils.opening import SUFFIXES

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
ENDS = ("-label", "_label")


def paired_folder(
    root: str | Path,
    task: str = "pairs",
    *,
    inputs: str | None = None,
    labels: str | None = None,
    kind: Kind | None = None,
    split: str = "train",
) -> Reader:
    """Any folder of paired images: two sub-folders with the same names, or NAME.png beside NAME-label.png.

    A picture without a label is broken; so is one with several labels of which none has its full name.

    Args:
        root: the folder.
        task: the name of the rows' task.
        inputs: the sub-folder of pictures, where it is none of FOLDERS.
        labels: the sub-folder of labels.
        kind: what the labels are; None looks at a sample.
        split: the name of the split.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no pairs.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder: give the folder that holds the pairs")
    known = [names for names in FOLDERS if all((root / name).is_dir() for name in names)]
    if inputs and labels:
        members = _between(root / inputs, root / labels)
    elif known:
        members = _between(*(root / name for name in known[0]))
    else:
        members = _beside(root)
    if not members:
        likely = " or ".join("/".join(names) for names in FOLDERS[:4])
        raise ValueError(
            f"{root} holds no pairs: make two folders ({likely}) or name files a.png, a-label.png"
        )
    return _pairs(root, task, members, kind, split)


def gopro(root: str | Path, *, split: str = "train") -> Reader:
    """GoPro: SCENE/blur/*.png beside SCENE/sharp/*.png, under ``root`` or root/``split``."""
    root = Path(root).expanduser()
    root = root / split if (root / split).is_dir() else root
    blurred = [path for path in list_files(root, SUFFIXES) if path.parent.name == "blur"]
    members = [(path, [path.parents[1] / "sharp" / path.name]) for path in blurred]
    return _pairs(root, "deblur", members, "pictures", split)


def image_folder(root: str | Path, *, split: str = "") -> Reader:
    """ImageNet and others, root[/split]/CLASS/*: single images, whose group is their class."""
    root = Path(root).expanduser() / split
    members = [(path, name) for name in list_classes(root) for path in list_files(root / name, SUFFIXES)]
    return Reader(
        "images",
        members,
        lambda member, least: {member[0].name: ((picture(member[0], least),), member[1])},
        "image",
        split or "train",
        lambda member: f"{member[1]}/{member[0].name}",
        files=lambda member: [member[0]],
        root=root,
    )


def _pairs(root: Path, task: str, members: list, kind: Kind | None, split: str) -> Reader:
    """A reader of (picture, candidates for its label)."""
    kind, sentence = decide_kind(kind, len(members), lambda i: next(iter(members[i][1]), None))

    def read(member: tuple[Path, list[Path]], least: int) -> dict:
        image, candidates = member
        label = _label_of(image, candidates)
        return {image.relative_to(root).as_posix(): (pair(image, label, kind, least), "")}

    return Reader(
        task,
        members,
        read,
        split=split,
        name=lambda member: member[0].relative_to(root).as_posix(),
        report=Report(labels=sentence),
        files=lambda member: [member[0], *member[1]],
        root=root,
        origin={"labels": kind},
    )


def _label_of(image: Path, candidates: list[Path]) -> Path:
    """The only label, or the one with the picture's own suffix. Raises Broken."""
    if not candidates:
        raise Broken("it has no label of its name")
    same = [path for path in candidates if path.suffix == image.suffix]
    chosen = candidates if len(candidates) == 1 else same
    if len(chosen) != 1:
        raise Broken(f"it has several labels ({', '.join(p.name for p in candidates)}): leave one")
    return chosen[0]


def _between(pictures: Path, labels: Path) -> list[tuple[Path, list[Path]]]:
    """The pictures of one folder with the labels of the same name in another."""
    stems = by_stem(list_files(labels, SUFFIXES), labels)
    return [
        (path, stems.get(path.relative_to(pictures).with_suffix("").as_posix(), []))
        for path in list_files(pictures, SUFFIXES)
    ]


def _beside(root: Path) -> list[tuple[Path, list[Path]]]:
    """The pictures of one folder with the labels beside them."""
    stems = by_stem(list_files(root, SUFFIXES, deep=False), root)
    return [
        (path, [label for end in ENDS for label in stems.get(stem + end, [])])
        for stem, paths in stems.items()
        if not stem.endswith(ENDS)
        for path in paths
    ]
