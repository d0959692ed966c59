"""Figures of what features know: by layer, against the loss of pre-training, and where a probe looks."""

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from lvmlab.lab.plots.axes import show_picture, subplots
from lvmlab.lab.studies.common import across_seeds
from lvmlab.lab.studies.probing import GRID, PROBES, kinds

FLOORS = {
    "aim-mini, untrained": ":",
    "mini-teacher, untrained": "-.",
    "pixels": "--",
    "pixels by patches": "--",
}  # grey


def layers_chart(records: dict[str, dict]) -> Figure:
    """Balanced accuracy on the test pictures by depth (0: the first block, 1: the last), a panel a probe:
    mean of the seeds, and their range.
    """
    panels = [kind for kind in PROBES if any(kind in kinds(record) for record in records.values())]
    figure, axes = subplots(1, len(panels), 4.6 * len(panels), 4.6)
    colours = iter(
        (
            "#0072b2",
            "#56b4e9",
            "#009e73",
            "#d55e00",
            "#cc79a7",
            "#e69f00",
            "#000000",
            "#8c564b",
            "#7f3c8d",
            "#a5aa99",
        )
    )
    for name, record in records.items():
        colour = "grey" if name in FLOORS else next(colours)
        for axis, kind in zip(axes, panels, strict=True):
            if kind in kinds(record):
                rows = record["result"]
                scores = np.array([[block["score"] for block in row[kind]["blocks"]] for row in rows])
                depth = np.linspace(0, 1, max(2, scores.shape[1]))  # one block alone is a level line
                lines = (scores.mean(0), scores.min(0), scores.max(0))
                mean, low, high = (np.broadcast_to(line, depth.shape) for line in lines)
                axis.plot(
                    depth,
                    mean,
                    FLOORS.get(name, "o-"),
                    ms=3.5,
                    color=colour,
                    lw=1.4,
                    label=name.removesuffix(" by patches"),
                )
                axis.fill_between(depth, low, high, color=colour, alpha=0.13, lw=0)
    for axis, kind in zip(axes, panels, strict=True):
        axis.set(title=PROBES[kind], xlabel="depth: first block to last", xlim=(-0.03, 1.03))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("balanced accuracy")
    figure.legend(
        *axes[0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside lower center", ncols=3
    )
    return figure


def objective_chart(records: dict[str, dict]) -> Figure:
    """AIM's second finding: balanced accuracy against the loss of pre-training on unseen objects, one dot a
    training, 2 sizes x 2 data sizes.
    """
    panels = kinds(records[GRID[0]])
    figure, axes = subplots(1, len(panels), 4.3 * len(panels), 3.8)
    for axis, kind in zip(axes, panels, strict=True):
        for name in GRID:
            points = np.array(
                [
                    [row["objective"], row[kind]["blocks"][row[kind]["best"]]["score"]]
                    for row in records[name]["result"]
                ]
            )
            colour, filled = "#d55e00" if name.startswith("small") else "#0072b2", "tenth" not in name
            axis.plot(*points.T, "o", ms=6, color=colour, mfc=colour if filled else "white", label=name)
            axis.plot(*[[across_seeds(column)[0]] for column in points.T], "+", ms=11, color=colour)
        axis.set(title=PROBES[kind], xlabel="loss of pre-training on val")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("balanced accuracy")
    figure.legend(
        *axes[0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside lower center", ncols=4
    )
    return figure


def attention_chart(pictures: Tensor, attention: Tensor, titles: list[str]) -> Figure:
    """Pictures (B, 3, S, S) in [0, 1] above the same, lit where a probe's query looks: attention (B, heads,
    N), the mean of its heads.
    """
    figure, axes = subplots(2, len(pictures), 1.75 * len(pictures), 3.9, squeeze=False)
    looks = attention.mean(1).unflatten(1, [int(attention.shape[2] ** 0.5)] * 2)[
        :, None
    ]  # (B, 1, side, side)
    looks = F.interpolate(looks / looks.amax((2, 3), keepdim=True), pictures.shape[-2:], mode="nearest").cpu()
    for column, picture, look, title in zip(axes.T, pictures, looks, titles, strict=True):
        show_picture(column[0], picture, title)
        show_picture(
            column[1],
            picture.mean(0).cpu() * 0.75 * torch.ones(3, 1, 1) * (1 - look)
            + look * torch.tensor([1.0, 0.85, 0.2]).view(3, 1, 1),
        )
    axes[0, 0].set_ylabel("picture", fontsize=9)
    axes[1, 0].set_ylabel("the probe looks", fontsize=9)
    return figure
