"""The laws of mini-world: one frozen value a version, handed down to all that draws."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Laws:
    """How one version of mini-world is drawn. The defaults are those of mini-world-v2.

    Args:
        version: the name under which its fixed prompts are frozen.
        size: pixels a side of every picture.
        crop: side of a background crop, shares of the photograph's short side.
        enlarged: whether a crop may hold fewer than ``size`` x ``size`` pixels of a photograph that has more.
        objects: fewest and most objects of a scene that may show any class.
        object_area: of each object, shares of the picture's area.
        body_height: shares of the picture's side; also the most that a body is wide.
        max_hidden: the largest share of an object's pixels that objects in front of it may hide.
        rotation_filter: of Pillow's, with which objects are rotated; bicubic takes twice as long and rings.
        free_encodings: label colours and palettes from everywhere but the held-out places
            (`lvmlab.world.encodings`); False: from mini-world-v1's short lists.
        trained: the tasks of the training mix.
        new: the tasks that no training shows.
    """

    version: str = "mini-world-v2"
    size: int = 128
    crop: tuple[float, float] = (0.3, 0.9)
    enlarged: bool = False
    objects: tuple[int, int] = (1, 3)
    object_area: tuple[float, float] = (0.06, 0.30)
    body_height: tuple[float, float] = (0.55, 0.95)
    max_hidden: float = 0.25
    rotation_filter: str = "BILINEAR"
    free_encodings: bool = True
    trained: tuple[str, ...] = (
        "segmentation",
        "semantic",
        "selection",
        "category",
        "pose",
        "derain",
        "motion",
    )
    new: tuple[str, ...] = ("deblur", "colourise", "inpaint", "edges")


V2 = Laws()
V1 = Laws(
    version="mini-world-v1",
    size=64,
    enlarged=True,
    objects=(1, 4),
    object_area=(0.04, 0.25),
    body_height=(0.4, 0.9),
    rotation_filter="BICUBIC",
    free_encodings=False,
    trained=("segmentation", "selection", "pose", "derain", "motion"),
)
DEFAULT = V1  # until the shipped models are trained on mini-world-v2


def of_size(size: int) -> Laws:
    """The laws of the pictures that a tokenizer of ``size`` pixels a side reads, drawn at that size."""
    return replace(V1 if size <= V1.size else V2, size=size)
