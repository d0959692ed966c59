"""Data sets as the library `datasets` has them: of the hub, of a folder or file, or saved to disk."""

from pathlib import Path

from lvmlab.data.readers.base import Broken, Reader, Report, decide_kind, pair, picture
from lvmlab.utils.labels import Kind
from lvmlab.utils.listing import split_name
from lvmlab.utils.opening import Source


def load_data(source: str | Path, split: str):
    """A `datasets.Dataset` of the hub, of a folder or file, or one that `Dataset.save_to_disk` wrote.

    "val" is also found as "validation", and so on.

    Raises:
        ValueError: there is no such split; it lists those there are.
    """
    import datasets

    if saved_by_datasets(source):
        data = datasets.load_from_disk(str(Path(source).expanduser()))
    else:
        local = Path(source).expanduser()
        data = datasets.load_dataset(str(local if local.exists() else source))
    return data[split_name(split, data)] if isinstance(data, datasets.DatasetDict) else data


def saved_by_datasets(folder: str | Path) -> bool:
    """Whether `datasets` wrote this folder."""
    folder = Path(folder).expanduser()
    return any((folder / f"dataset_{what}.json").is_file() for what in ("info", "dict"))


def huggingface(
    data,
    image: str = "image",
    label: str | None = None,
    *,
    task: str = "pairs",
    kind: Kind | None = None,
    split: str = "train",
) -> Reader:
    """Any `datasets.Dataset` with image columns: pairs of ``image`` and ``label``, or images alone.

    Args:
        data: the data set.
        image: the column of pictures.
        label: the column of labels; None: single pictures.
        task: the name of the rows' task.
        kind: what the labels are; None looks at a sample.
        split: the name of the split.

    Raises:
        ValueError: there is no such column.
    """
    for column in filter(None, (image, label)):
        if column not in data.column_names:
            raise ValueError(
                f"the data set has no column {column!r}: choose from {', '.join(data.column_names)}"
            )
    origin = {"fingerprint": data._fingerprint}
    data, sentence = undecoded(data, image, label), ""
    if label:
        kind, sentence = decide_kind(kind, len(data), lambda i: source_of(data[i][label]))

    def read(index: int, least: int) -> dict:
        row = data[index]
        photograph = source_of(row[image])
        parts = pair(photograph, source_of(row[label]), kind) if label else (picture(photograph, least),)
        return {str(index): (parts, "")}

    return Reader(
        task,
        range(len(data)),
        read,
        "pair" if label else "image",
        split,
        report=Report(labels=sentence),
        origin=origin | ({"labels": kind} if label else {}),
    )


def undecoded(data, *columns: str | None):
    """The data set with the files of these columns as they are, so that our own opener reads them."""
    import datasets

    for column in filter(None, columns):
        if isinstance(data.features[column], datasets.Image):
            data = data.cast_column(column, datasets.Image(decode=False))
    return data


def source_of(cell) -> Source:
    """What `images.load` takes, of a cell of an undecoded column. Raises Broken for an empty one."""
    if not isinstance(cell, dict):
        return cell
    source = cell.get("bytes") or cell.get("path")
    if not source:
        raise Broken("its cell is empty")
    return Path(source) if isinstance(source, str) else source
