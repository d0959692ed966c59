"""Pascal-5i (Shaban et al. 2017, arXiv 1709.03410): foreground segmentation of classes by folds."""

from pathlib import Path

import numpy as np

from lvmlab.data.readers.base import Broken, Reader, painted, picture
from lvmlab.utils.opening import open_picture

FOLDS, CLASSES_IN_FOLD = 4, 5
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle"),
    *("bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person"),
    *("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def pascal5i(root: str | Path, fold: int, *, split: str = "val") -> Reader:
    """Pascal VOC 2012 for 1-shot foreground segmentation: white on black, one row a picture and class.

    A group is a class, so that a prompt's example and query show the same one.

    Args:
        root: the folder that holds VOCdevkit.
        fold: 0 to 3, five classes each.
        split: "train", "trainval" or "val".
    """
    from torchvision.datasets import VOCSegmentation

    if fold not in range(FOLDS):
        raise ValueError(f"fold={fold!r}: Pascal-5i has folds 0 to 3")
    voc = VOCSegmentation(str(Path(root).expanduser()), year="2012", image_set=split)
    classes = range(CLASSES_IN_FOLD * fold, CLASSES_IN_FOLD * (fold + 1))

    def read(member: tuple[str, str], least: int) -> dict:
        image, opened = picture(member[0]), open_picture(member[1])
        if opened.mode not in ("P", "L"):
            raise Broken(f"the mask has PIL mode {opened.mode}, class numbers have P or L")
        mask = np.asarray(opened)
        if mask.shape != image.shape[-2:]:
            raise Broken(
                f"the mask is {mask.shape[1]}x{mask.shape[0]} but its picture "
                f"{image.shape[-1]}x{image.shape[-2]}"
            )
        return {
            f"{Path(member[0]).stem}#{VOC_CLASSES[c]}": (
                (image, painted((mask == c + 1) * 1.0)),
                VOC_CLASSES[c],
            )
            for c in classes
            if (mask == c + 1).any()
        }

    return Reader(
        "foreground",
        list(zip(voc.images, voc.masks, strict=True)),
        read,
        split=split,
        name=lambda member: Path(member[0]).stem,
        files=lambda member: [Path(path) for path in member],
        root=Path(root).expanduser(),
        origin={"fold": fold},
    )
