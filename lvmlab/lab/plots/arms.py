"""Figures of a study's arms: every seed a dot, means with 95 % t intervals over seeds, and their curves."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lvmlab.lab.plots.axes import COLOURS, subplots
from lvmlab.lab.studies.common import across_seeds

LABELS = {
    "loss": "cross entropy of the answer, nats a token",
    "skill": "skill (0: best floor)",
    "accuracy": "accuracy of the answer's tokens",
}


def arms_chart(rows: pd.DataFrame, titles: dict[str, str], measure: str = "loss") -> Figure:
    """One panel a task, one line an arm.

    Args:
        rows: Of `lvmlab.lab.frames.trainings`; your own arms beside the stored ones with `pandas.concat`.
        titles: A panel's title by task.
        measure: "loss", "skill" or "accuracy".
    """
    arms = list(rows.arm.unique())
    width, height = max(6.0, 3.2 * len(titles)), 1.4 + 0.3 * len(arms)
    figure, axes = subplots(1, len(titles), width, height, sharey=True, squeeze=False)
    for axis, (task, title) in zip(axes[0], titles.items(), strict=True):
        for place, arm in enumerate(arms):
            values = rows[(rows.arm == arm) & (rows.task == task)][measure]
            if values.empty:
                continue
            mean, low, high = across_seeds(values)
            axis.plot(values, np.full(len(values), place) + 0.14, "o", ms=4, color=COLOURS[task], alpha=0.5)
            error = [[mean - low], [high - mean]] if len(values) > 1 else None
            axis.errorbar([mean], [place - 0.1], xerr=error, fmt="s", ms=5, capsize=4, color=COLOURS[task])
        axis.set_title(title, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    figure.supxlabel(LABELS[measure], fontsize=9)
    axes[0, 0].set_yticks(range(len(arms)), arms)
    axes[0, 0].invert_yaxis()
    return figure


def differences_chart(
    rows: pd.DataFrame, label: str, lines: str = "arm", groups: str = "task", height: float = 0.55
) -> Figure:
    """Intervals about zero, one colour a group.

    Args:
        rows: ``mean``, ``low`` and ``high`` of each line and group.
        label: Of the horizontal axis.
        lines: The column that names a line.
        groups: The column that names a group.
        height: Of a line, in inches.
    """
    names, kinds = list(rows[lines].unique()), list(rows[groups].unique())
    figure, axis = subplots(1, 1, 7.2, 1.4 + height * len(names))
    shifts = np.linspace(-0.25, 0.25, len(kinds)) * (len(kinds) > 1)
    for shift, kind in zip(shifts, kinds, strict=True):
        own = rows[rows[groups] == kind]
        places = [names.index(name) + shift for name in own[lines]]
        error, style = [own["mean"] - own.low, own.high - own["mean"]], {"fmt": "s", "ms": 5, "capsize": 4}
        axis.errorbar(own["mean"], places, xerr=error, color=COLOURS.get(kind), label=kind, **style)
    axis.axvline(0, color="grey", lw=1)
    axis.set(yticks=range(len(names)), yticklabels=names, xlabel=label)
    axis.invert_yaxis()
    axis.legend(frameon=False, fontsize=8)
    return figure


def curves_chart(rows: pd.DataFrame, tasks: Sequence[str]) -> Figure:
    """Each task's loss along the training of each arm: mean of the seeds, and their range.

    Args:
        rows: Of `lvmlab.lab.frames.curves`.
        tasks: The tasks that are drawn.
    """
    arms = list(rows.arm.unique())
    columns = min(3, len(arms))
    lines = -(-len(arms) // columns)
    figure, axes = subplots(lines, columns, 9.6, 2.6 * lines, sharex=True, sharey=True, squeeze=False)
    for axis, arm in zip(axes.flat, arms, strict=False):
        for task in tasks:
            of_step = rows[(rows.arm == arm) & (rows.task == task)].groupby("step").loss
            axis.plot(of_step.mean(), color=COLOURS[task], label=task)
            span = of_step.agg(["min", "max"])
            axis.fill_between(span.index, span["min"], span["max"], color=COLOURS[task], alpha=0.15, lw=0)
        axis.set_title(arm, fontsize=9)
    for axis in axes.flat[len(arms) :]:
        axis.set_axis_off()
    for axis in axes[-1]:
        axis.set_xlabel("step", fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel("nats a token", fontsize=9)
    axes.flat[0].legend(frameon=False, fontsize=8)
    return figure
