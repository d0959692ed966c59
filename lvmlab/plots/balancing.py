"""Figures of the study of balancing: every seed a dot, means with their 95 % t intervals over seeds."""

import numpy as np
from matplotlib.figure import Figure

from lvmlab.plots.tokenizer import _axes
from lvmlab.studies.balancing import COPIES, PAIRS, TASKS, effects
from lvmlab.studies.common import across_seeds, final_losses, skills

COLOURS = {"segmentation": "#0072b2", "derain": "#009e73", "pose": "#d55e00"}


def arms_chart(records: dict[str, dict], what: str = "loss") -> Figure:
    """One panel a task, one line an arm. what: "loss", the answers' cross entropy, or "skill"."""
    value = final_losses if what == "loss" else skills
    figure, axes = _axes(1, len(TASKS), 9.6, 1.4 + 0.3 * len(records), sharey=True)
    for axis, task in zip(axes, TASKS, strict=True):
        for place, record in enumerate(records.values()):
            values = value(record, task)
            mean, low, high = across_seeds(values)
            axis.plot(values, np.full(len(values), place) + 0.14, "o", ms=4, color=COLOURS[task], alpha=0.5)
            error = [[mean - low], [high - mean]] if len(values) > 1 else None
            axis.errorbar([mean], [place - 0.1], xerr=error, fmt="s", ms=5, capsize=4, color=COLOURS[task])
        axis.set_title(f"{task} ({PAIRS[task]} pairs)", fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    figure.supxlabel("cross entropy of the answer, nats a token" if what == "loss" else "skill (0: best floor)", fontsize=9)
    axes[0].set_yticks(range(len(records)), records)
    axes[0].invert_yaxis()
    return figure


def effects_chart(records: dict[str, dict]) -> Figure:
    """What sampling and augmentation do to each task's cross entropy, with intervals; left of zero is better."""
    figure, axis = _axes(1, 1, 7.2, 3.2)
    names: list[str] = []
    for shift, task in zip((-0.22, 0, 0.22), TASKS, strict=True):
        found = effects(records, task)
        names = list(found)
        mean, low, high = np.array(list(found.values())).T
        axis.errorbar(mean, np.arange(len(names)) + shift, xerr=[mean - low, high - mean], fmt="s", ms=5, capsize=4, color=COLOURS[task], label=task)
    axis.axvline(0, color="grey", lw=1)
    axis.set(yticks=range(len(names)), yticklabels=names, xlabel="change of cross entropy, nats a token (left: better)")
    axis.invert_yaxis()
    axis.legend(frameon=False, fontsize=8)
    return figure


def copies_chart(records: dict[str, dict], task: str = "pose") -> Figure:
    """A scarce task's loss against how many augmented copies of each pair are drawn from; the dashed line is the real missing data."""
    figure, axis = _axes(1, 1, 5.6, 3.4)
    copies = {"balanced": 0, "balanced, 3 copies": 3, "balanced, 10 copies": 10, "balanced, augmented": COPIES[task]}
    found = np.array([across_seeds(final_losses(records[name], task)) for name in copies])
    real, low, high = across_seeds(final_losses(records["balanced, real data"], task))
    places = range(len(copies))
    axis.errorbar(places, found[:, 0], yerr=[found[:, 0] - found[:, 1], found[:, 2] - found[:, 0]], fmt="o-", capsize=4, color=COLOURS[task])
    axis.axhline(real, color="black", ls="--", lw=1, label=f"{PAIRS['segmentation']} real pairs")
    axis.axhspan(low, high, color="black", alpha=0.08, lw=0)
    axis.set(xticks=places, xticklabels=copies.values(), xlabel=f"augmented copies of each of {PAIRS[task]} pairs", ylabel="nats a token", title=task)
    axis.legend(frameon=False, fontsize=8)
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
