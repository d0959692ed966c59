"""Data sets to token stores: `lvmlab tokenize`."""

from pathlib import Path
from typing import Annotated

import tyro

from lvmlab.lab.commands.checks import check_file, check_folder, check_model
from lvmlab.lab.commands.choices import Labels, Reader

Folder = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FOLDER")]]


def tokenize(
    folder: Folder,
    root: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="ROOT")]],
    reader: Reader = "pairs",
    *,
    task: str | None = None,
    annotations: Path | None = None,
    split: str | None = None,
    fold: int = 0,
    tokenizer: str = "mini",
    copies: int = 0,
    tolerate: float = 0.01,
    parquet: Path | None = None,
    image: str = "image",
    label: str | None = None,
    labels: Labels | None = None,
) -> None:
    """Turn a data set into a token store. Resumes after an interruption.

    A folder of pairs is NAME.png beside NAME-label.png, or two folders (input/, target/) of the same names.
    Under `accelerate launch` the processes share the work.

    Args:
        folder: The store to write.
        root: The data set, in its own layout. With --reader datasets, what datasets.load_dataset takes.
        reader: Which data set it is. pairs is any folder of image pairs.
        task: The name of the task in the store. The default is the reader's own.
        annotations: The JSON file of COCO's keypoints.
        split: A name for the split; for images and pascal5i the part that is read.
        fold: The fold of Pascal-5i, 0 to 3.
        tokenizer: A shipped tokenizer, a folder or a hub id.
        copies: Augmented copies of each row.
        tolerate: The share of broken members that is skipped.
        parquet: A folder that also gets the store as Parquet files.
        image: With --reader datasets, the column of pictures.
        label: With --reader datasets, the column of labels. Without it the rows are single pictures.
        labels: What the labels are. The colours of masks are never mixed. The default looks at some labels.
    """
    if reader == "coco-pose" and annotations is None:
        raise ValueError("coco-pose needs --annotations person_keypoints_....json")
    if annotations is not None:
        check_file(annotations)
    if reader != "datasets":
        check_folder(root)
    check_model(tokenizer)

    from accelerate import PartialState

    from lvmlab.data.building import build
    from lvmlab.data.store import Store, export_parquet
    from lvmlab.tokenizer.tokenizer import Tokenizer
    from lvmlab.utils.device import default_device

    source = _open(reader, root, annotations, split, fold, image, label, labels)
    source.task = task or source.task
    state = PartialState(cpu=default_device().type == "cpu")
    build(
        folder,
        Tokenizer.from_pretrained(tokenizer),
        [source],
        copies=copies,
        tolerate=tolerate,
        rank=state.process_index,
        ranks=state.num_processes,
        progress=state.is_main_process,
    )
    print(f"process {state.process_index}: {source.report}")
    state.wait_for_everyone()
    if state.is_main_process:
        counts = Store(folder).counts()
        print(f"{folder} holds " + ", ".join(f"{count} rows of {name}" for name, count in counts.items()))
        if parquet:
            print(f"wrote {len(export_parquet(folder, parquet))} files to {parquet}")
        print(f"next: lvmlab train {folder.with_name(folder.name + '-model')} --store {folder}")


def _open(
    reader: str,
    root: Path,
    annotations: Path | None,
    split: str | None,
    fold: int,
    image: str,
    label: str | None,
    labels: str | None,
):
    """The reader of a data set."""
    from lvmlab.data import readers

    if labels and reader not in ("pairs", "datasets"):
        raise ValueError(f"--labels is for the readers pairs and datasets; {reader} knows its own")
    named = {"split": split} if split else {}
    if reader == "coco-pose":
        return readers.coco_pose(root, annotations, **named)
    if reader == "pascal5i":
        return readers.pascal5i(root, fold, **named)
    if reader == "datasets":
        return readers.huggingface(
            readers.load_data(root, split or "train"), image, label, kind=labels, **named
        )
    if reader == "pairs":
        return readers.paired_folder(root, kind=labels, **named)
    return getattr(readers, {"images": "image_folder"}.get(reader, reader))(root, **named)
