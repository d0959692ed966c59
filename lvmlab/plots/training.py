"""Figures of pre-training: what each further example is worth, how loss falls with size and tokens, and whether skill follows."""

import numpy as np
from matplotlib.figure import Figure

from lvmlab.evaluate import resample
from lvmlab.plots.arms import COLOURS
from lvmlab.plots.tokenizer import _axes
from lvmlab.studies.common import across_seeds
from lvmlab.studies.scaling import law, points, predicted


def examples_chart(found: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """{task: (losses (B, pictures - 1) of `evaluate.picture_losses`, sources (B,))}: a label's loss by the number of examples before it.

    Bands are 95 % bootstraps over sources; the thin line is the loss of the inputs, which no example foretells.
    """
    figure, axes = _axes(1, len(found), 2.6 * len(found), 3.0, sharey=True, squeeze=False)
    for axis, (task, (losses, sources)) in zip(axes[0], found.items(), strict=True):
        for which, width in ((0, 2.2), (1, 0.9)):  # pictures after the first: label, input, label, ...
            part = losses[:, which::2]
            mean, low, high = _bootstrapped(part, sources)
            shown = np.arange(part.shape[1]) + which
            axis.plot(shown, mean, "o-" if width > 1 else "-", lw=width, ms=3.5, color=COLOURS[task] if width > 1 else "grey")
            axis.fill_between(shown, low, high, color=COLOURS[task] if width > 1 else "grey", alpha=0.18, lw=0)
        axis.set(title=task, xlabel="examples before it")
        axis.title.set_fontsize(10)
        axis.grid(axis="y", alpha=0.3)
    axes[0, 0].set_ylabel("cross entropy, nats a token")
    axes[0, 0].text(0.97, 0.97, "dots: labels\nline: inputs", transform=axes[0, 0].transAxes, ha="right", va="top", fontsize=8)
    return figure


def _bootstrapped(part: np.ndarray, sources: np.ndarray) -> np.ndarray:
    draws = resample(list(part.T), sources)  # (columns, 1 + resamples)
    return np.stack([draws[:, 0], *np.percentile(draws[:, 1:], (2.5, 97.5), axis=1)])


def scaling_chart(records: dict[str, dict]) -> Figure:
    """Loss against tokens, one line a size, seeds as dots, and the fitted law dashed; and skill against loss, one dot a training."""
    figure, axes = _axes(1, 2, 9.2, 3.6)
    every = points(records)
    fit = law(every)
    shades = np.linspace(0.25, 0.95, len(records))
    for shade, (name, record) in zip(shades, records.items(), strict=True):
        found, colour = points({name: record}), (0.0, 0.25 + 0.35 * (1 - shade), shade)
        budgets = np.unique(found[:, 1])
        means = [across_seeds(found[found[:, 1] == budget, 2])[0] for budget in budgets]
        axes[0].plot(found[:, 1] / 1e6, found[:, 2], "o", ms=4, alpha=0.6, color=colour)
        axes[0].plot(budgets / 1e6, means, color=colour, label=name)
        smooth = np.geomspace(budgets[0], budgets[-1], 40)
        axes[0].plot(smooth / 1e6, predicted(fit, found[0, 0], smooth), "--", lw=1, color=colour)
        axes[1].plot(found[:, 2], found[:, 3], "o", ms=5, alpha=0.8, color=colour, label=name)
    axes[0].set(xlabel="tokens, millions", ylabel="cross entropy, nats a token", xscale="log", title="loss; dashed: the fitted law")
    marks = np.unique(every[:, 1]) / 1e6
    axes[0].set_xticks(marks, [f"{mark:.1f}" for mark in marks])
    axes[0].set_xticks([], minor=True)
    axes[1].set(xlabel="cross entropy, nats a token", ylabel="skill, mean of the tasks", title="skill against loss")
    for axis in axes:
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.3)
    axes[1].legend(frameon=False, fontsize=8, title="parameters", title_fontsize=8)
    return figure
