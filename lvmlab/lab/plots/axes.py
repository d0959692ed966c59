"""What all figures share: axes on white, a picture in an axis, and the colour of a task."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

COLOURS = {
    "segmentation": "#0072b2",
    "selection": "#56b4e9",
    "pose": "#d55e00",
    "derain": "#009e73",
    "motion": "#cc79a7",
    "semantic": "#e69f00",
    "linear": "#0072b2",
    "attentive": "#d55e00",
    "fashion": "#009e73",
}  # of tasks, and of the kinds of probes


def subplots(rows: int, columns: int, width: float, height: float, **options) -> tuple[Figure, Axes]:
    """A white figure of ``width`` x ``height`` inches and its axes; options as for matplotlib's."""
    import matplotlib.pyplot as plt

    style = {"facecolor": "white", "layout": "constrained", "dpi": 80}
    return plt.subplots(rows, columns, figsize=(width, height), **style, **options)


def show_picture(axis: Axes, picture: Tensor, title: str = "") -> None:
    """A picture (3, H, W) in [0, 1] without ticks; values beyond are clipped."""
    axis.imshow(picture.detach().cpu().clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.set_title(title, fontsize=10)
    axis.set_xticks([])
    axis.set_yticks([])


def frame_cell(axis: Axes, corner: tuple[float, float], side: float) -> None:
    """A red square with its upper left ``corner`` (x, y) there, in the axis's units."""
    from matplotlib.patches import Rectangle

    axis.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="red", lw=2))
