"""Figures of the study of balancing: every seed a dot, means with their 95 % t intervals over seeds."""

import numpy as np
from matplotlib.figure import Figure

from lvmlab.plots.tokenizer import _axes
from lvmlab.studies.balancing import PAIRS, TASKS, final_losses, skills
from lvmlab.studies.tokenizer import across_seeds

COLOURS = {"segmentation": "#0072b2", "derain": "#009e73", "pose": "#d55e00"}


def arms_chart(records: dict[str, dict], what: str = "loss") -> Figure:
    """One panel a task, one line an arm. what: "loss", the answers' cross entropy, or "skill"."""
    value = final_losses if what == "loss" else skills
    figure, axes = _axes(1, len(TASKS), 9.6, 1.4 + 0.3 * len(records), sharey=True)
    for axis, task in zip(axes, TASKS, strict=True):
        for place, record in enumerate(records.values()):
            values = value(record, task)
            mean, low, high = across_seeds(list(values))
            axis.plot(values, np.full(len(values), place) + 0.14, "o", ms=4, color=COLOURS[task], alpha=0.5)
            error = [[mean - low], [high - mean]] if len(values) > 1 else None
            axis.errorbar([mean], [place - 0.1], xerr=error, fmt="s", ms=5, capsize=4, color=COLOURS[task])
        axis.set_title(f"{task} ({PAIRS[task]} pairs)", fontsize=10)
        axis.set_xlabel("cross entropy of the answer, nats a token" if what == "loss" else "skill (0: best floor)", fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(records)), records)
    axes[0].invert_yaxis()
    return figure


def forgetting_chart(records: dict[str, dict]) -> Figure:
    """Each task's loss along the training of each arm: mean of the seeds, and their range."""
    columns = min(3, len(records))
    rows = -(-len(records) // columns)
    figure, axes = _axes(rows, columns, 9.6, 2.6 * rows, sharex=True, sharey=True, squeeze=False)
    for axis, (name, record) in zip(axes.flat, records.items(), strict=False):
        steps = [point["step"] for point in record["result"][0]["curve"]]
        for task in TASKS:
            values = np.array([[point[task] for point in row["curve"]] for row in record["result"]])
            axis.plot(steps, values.mean(0), color=COLOURS[task], label=task)
            axis.fill_between(steps, values.min(0), values.max(0), color=COLOURS[task], alpha=0.15, lw=0)
        axis.set_title(name, fontsize=9)
    for axis in axes.flat[len(records) :]:
        axis.set_axis_off()
    for axis in axes[-1]:
        axis.set_xlabel("step", fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel("nats a token", fontsize=9)
    axes.flat[0].legend(frameon=False, fontsize=8)
    return figure
