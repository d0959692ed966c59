"""Figures of pre-training: what each further example is worth, how loss falls with size and tokens, and
whether skill follows.
"""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lvmlab.evaluation.scoring import resample
from lvmlab.lab.plots.arms import COLOURS
from lvmlab.lab.plots.tokenizer import _axes
from lvmlab.lab.studies.common import across_seeds
from lvmlab.lab.studies.scaling import law, points, predicted


def examples_chart(found: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """{task: (losses (B, pictures - 1, n) of `evaluate.picture_losses`, sources (B,))}: a label's loss by the
    number of examples before it.

    Of the whole label, of its first row of tokens, whose colours nothing but an example can tell, and of the
    inputs, which no example
    foretells. Bands are 95 % bootstraps over sources.
    """
    figure, axes = _axes(1, len(found), 2.6 * len(found), 3.4, sharey=True, squeeze=False)
    for axis, (task, (losses, sources)) in zip(axes[0], found.items(), strict=True):
        row = round(losses.shape[2] ** 0.5)
        lines = (
            (losses[:, ::2], 0, "o-", COLOURS[task]),
            (losses[:, ::2, :row], 0, "s:", COLOURS[task]),
            (losses[:, 1::2], 1, "-", "grey"),
        )
        for part, first, style, colour in lines:
            mean, low, high = _bootstrapped(part.mean(2), sources)
            shown = np.arange(part.shape[1]) + first
            axis.plot(shown, mean, style, lw=1 if first else 1.8, ms=3.5, color=colour)
            axis.fill_between(shown, low, high, color=colour, alpha=0.15, lw=0)
        axis.set(title=task, xlabel="examples before it", ylim=(0, None))
        axis.title.set_fontsize(10)
        axis.grid(axis="y", alpha=0.3)
    axes[0, 0].set_ylabel("cross entropy, nats a token")
    kinds = (("black", "-", "o"), ("black", ":", "s"), ("grey", "-", ""))
    keys = [Line2D([], [], color=colour, ls=line, marker=mark) for colour, line, mark in kinds]
    figure.legend(
        keys,
        ["label", "its first row of tokens", "input"],
        loc="outside upper center",
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    return figure


def _bootstrapped(part: np.ndarray, sources: np.ndarray) -> np.ndarray:
    draws = resample(list(part.T), sources)  # (columns, 1 + resamples)
    return np.stack([draws[:, 0], *np.percentile(draws[:, 1:], (2.5, 97.5), axis=1)])


def scaling_chart(records: dict[str, dict]) -> Figure:
    """Loss against tokens, one line a size, seeds as dots, and the fitted law dashed; and skill against loss,
    one dot a training.
    """
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
    axes[0].set(
        xlabel="tokens, millions",
        ylabel="cross entropy, nats a token",
        xscale="log",
        title="loss; dashed: the fitted law",
    )
    marks = np.unique(every[:, 1]) / 1e6
    axes[0].set_xticks(marks, [f"{mark:.1f}" for mark in marks])
    axes[0].set_xticks([], minor=True)
    axes[1].set(
        xlabel="cross entropy, nats a token", ylabel="skill, mean of the tasks", title="skill against loss"
    )
    for axis in axes:
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.3)
    axes[1].legend(frameon=False, fontsize=8, title="parameters", title_fontsize=8)
    return figure
