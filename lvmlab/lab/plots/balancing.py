"""The figure that the study of balancing has alone; those of any study are in `lvmlab.lab.plots.arms`."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lvmlab.lab.plots.axes import COLOURS, subplots
from lvmlab.lab.studies.balancing import COPIES, PAIRS
from lvmlab.lab.studies.common import across_seeds, by_seed


def copies_chart(rows: pd.DataFrame) -> Figure:
    """The scarce tasks' losses by the number of augmented copies of each pair; dashed, the real missing data.

    Args:
        rows: Of `lvmlab.lab.frames.trainings`.
    """
    figure, axes = subplots(1, 2, 8.6, 3.4)
    for axis, task in zip(axes, ("pose", "derain"), strict=True):
        losses, colour = by_seed(rows, task), COLOURS[task]

        # arms by their number of copies; of two with as many the one that draws from copies alone
        arms = {0: "balanced", 3: "balanced, 3 copies", 10: "balanced, 10 copies"}
        arms[COPIES[task]] = "balanced, augmented"
        means, lows, highs = np.array([across_seeds(losses[arm]) for arm in arms.values()]).T
        errors = [means - lows, highs - means]
        axis.errorbar(range(len(arms)), means, yerr=errors, fmt="o-", capsize=4, color=colour)

        real, low, high = across_seeds(losses["balanced, real data"])
        axis.axhline(real, color="black", ls="--", lw=1, label=f"{PAIRS['segmentation']} real pairs")
        axis.axhspan(low, high, color="black", alpha=0.08, lw=0)

        label = f"augmented copies of each of {PAIRS[task]} pairs"
        axis.set(xticks=range(len(arms)), xticklabels=arms, xlabel=label, title=task)
        axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("cross entropy, nats a token")
    return figure
