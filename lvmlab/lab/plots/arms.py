"""Figures of a study's arms: every seed a dot, means with their 95 % t intervals over seeds; and their
curves.
"""

import numpy as np
from matplotlib.figure import Figure

from lvmlab.lab.plots.tokenizer import _axes
from lvmlab.lab.studies.common import across_seeds, final_losses, skills

COLOURS = {
    "segmentation": "#0072b2",
    "selection": "#56b4e9",
    "pose": "#d55e00",
    "derain": "#009e73",
    "motion": "#cc79a7",
    "linear": "#0072b2",
    "attentive": "#d55e00",
    "fashion": "#009e73",
}  # tasks, and the kinds of probes
LABELS = {
    "loss": "cross entropy of the answer, nats a token",
    "skill": "skill (0: best floor)",
    "accuracy": "accuracy of the answer's tokens",
}


def arms_chart(records: dict[str, dict], titles: dict[str, str], what: str = "loss") -> Figure:
    """One panel a task, one line an arm. titles: {task: title}. what: "loss", "skill" or "accuracy"."""
    figure, axes = _axes(
        1, len(titles), max(6.0, 3.2 * len(titles)), 1.4 + 0.3 * len(records), sharey=True, squeeze=False
    )
    for axis, (task, title) in zip(axes[0], titles.items(), strict=True):
        for place, record in enumerate(records.values()):
            values = {"loss": final_losses, "skill": skills}.get(what, lambda r, t: final_losses(r, t, what))(
                record, task
            )
            mean, low, high = across_seeds(values)
            axis.plot(values, np.full(len(values), place) + 0.14, "o", ms=4, color=COLOURS[task], alpha=0.5)
            error = [[mean - low], [high - mean]] if len(values) > 1 else None
            axis.errorbar([mean], [place - 0.1], xerr=error, fmt="s", ms=5, capsize=4, color=COLOURS[task])
        axis.set_title(title, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    figure.supxlabel(LABELS[what], fontsize=9)
    axes[0, 0].set_yticks(range(len(records)), records)
    axes[0, 0].invert_yaxis()
    return figure


def differences_chart(
    found: dict[str, dict[str, tuple[float, float, float]]], label: str, height: float = 0.55
) -> Figure:
    """{task: {line: (mean, low, high)}} as intervals about zero, one colour a task; ``height`` of a line in
    inches.
    """
    lines = list(next(iter(found.values())))
    figure, axis = _axes(1, 1, 7.2, 1.4 + height * len(lines))
    for shift, (task, of) in zip(
        np.linspace(-0.25, 0.25, len(found)) * (len(found) > 1), found.items(), strict=True
    ):
        mean, low, high = np.array([of[line] for line in lines]).T
        places, colour = np.arange(len(lines)) + shift, COLOURS.get(task)
        axis.errorbar(
            mean, places, xerr=[mean - low, high - mean], fmt="s", ms=5, capsize=4, color=colour, label=task
        )
    axis.axvline(0, color="grey", lw=1)
    axis.set(yticks=range(len(lines)), yticklabels=lines, xlabel=label)
    axis.invert_yaxis()
    axis.legend(frameon=False, fontsize=8)
    return figure


def curves_chart(records: dict[str, dict], tasks: tuple[str, ...]) -> Figure:
    """Each task's loss along the training of each arm: mean of the seeds, and their range."""
    columns = min(3, len(records))
    rows = -(-len(records) // columns)
    figure, axes = _axes(rows, columns, 9.6, 2.6 * rows, sharex=True, sharey=True, squeeze=False)
    for axis, (name, record) in zip(axes.flat, records.items(), strict=False):
        steps = [point["step"] for point in record["result"][0]["curve"]]
        for task in tasks:
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
