"""Figures of pre-training: what an example is worth, how loss falls with size and tokens, skill with loss."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lvmlab.evaluation.statistics import resample
from lvmlab.lab.plots.axes import COLOURS, subplots
from lvmlab.lab.studies.scaling import law, predicted


def examples_chart(losses_of: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """A label's loss by the number of examples before it.

    Three lines a task: the whole label; its first row of tokens, whose colours only an example can tell; the
    inputs, which no example predicts. Bands are 95 % bootstraps over sources.

    Args:
        losses_of: By task: losses (B, pictures - 1, n) of `picture_losses`, and sources (B,).
    """
    figure, axes = subplots(1, len(losses_of), 2.6 * len(losses_of), 3.4, sharey=True, squeeze=False)
    for axis, (task, (losses, sources)) in zip(axes[0], losses_of.items(), strict=True):
        row = round(losses.shape[2] ** 0.5)
        lines = (
            (losses[:, ::2], 0, "o-", COLOURS[task]),
            (losses[:, ::2, :row], 0, "s:", COLOURS[task]),
            (losses[:, 1::2], 1, "-", "grey"),
        )
        for values, first, style, colour in lines:
            mean, low, high = _bootstrapped(values.mean(2), sources)
            examples = np.arange(values.shape[1]) + first
            axis.plot(examples, mean, style, lw=1 if first else 1.8, ms=3.5, color=colour)
            axis.fill_between(examples, low, high, color=colour, alpha=0.15, lw=0)
        axis.set(title=task, xlabel="examples before it", ylim=(0, None))
        axis.title.set_fontsize(10)
        axis.grid(axis="y", alpha=0.3)
    axes[0, 0].set_ylabel("cross entropy, nats a token")

    # one legend for all panels
    kinds = (("black", "-", "o"), ("black", ":", "s"), ("grey", "-", ""))
    keys = [Line2D([], [], color=colour, ls=line, marker=mark) for colour, line, mark in kinds]
    labels, place = ["label", "its first row of tokens", "input"], "outside upper center"
    figure.legend(keys, labels, loc=place, ncols=3, frameon=False, fontsize=9)
    return figure


def _bootstrapped(part: np.ndarray, sources: np.ndarray) -> np.ndarray:
    draws = resample(list(part.T), sources)  # (columns, 1 + resamples)
    return np.stack([draws[:, 0], *np.percentile(draws[:, 1:], (2.5, 97.5), axis=1)])


def scaling_chart(trainings: pd.DataFrame) -> Figure:
    """Loss by tokens, a line a size, seeds as dots, the fitted law dashed; and skill by loss, a dot a
    training.

    Args:
        trainings: Of `lvmlab.lab.studies.scaling.points`.
    """
    figure, axes = subplots(1, 2, 9.2, 3.6)
    fit, sizes = law(trainings), trainings.arm.unique()
    for shade, size in zip(np.linspace(0.25, 0.95, len(sizes)), sizes, strict=True):
        own, colour = trainings[trainings.arm == size], (0.0, 0.25 + 0.35 * (1 - shade), shade)
        means = own.groupby("tokens").loss.mean()
        axes[0].plot(own.tokens / 1e6, own.loss, "o", ms=4, alpha=0.6, color=colour)
        axes[0].plot(means.index / 1e6, means, color=colour, label=size)
        tokens = np.geomspace(means.index.min(), means.index.max(), 40)
        axes[0].plot(tokens / 1e6, predicted(fit, own.parameters.iloc[0], tokens), "--", lw=1, color=colour)
        axes[1].plot(own.loss, own.skill, "o", ms=5, alpha=0.8, color=colour, label=size)

    # the budgets are the ticks of the first panel
    labels = {"xlabel": "tokens, millions", "ylabel": "cross entropy, nats a token"}
    axes[0].set(xscale="log", title="loss; dashed: the fitted law", **labels)
    marks = np.unique(trainings.tokens) / 1e6
    axes[0].set_xticks(marks, [f"{mark:.1f}" for mark in marks])
    axes[0].set_xticks([], minor=True)
    labels = {"xlabel": "cross entropy, nats a token", "ylabel": "skill, mean of the tasks"}
    axes[1].set(title="skill against loss", **labels)
    for axis in axes:
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.3)
    axes[1].legend(frameon=False, fontsize=8, title="parameters", title_fontsize=8)
    return figure
