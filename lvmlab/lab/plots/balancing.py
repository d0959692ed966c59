"""The figure of the study of balancing that is its own; those of any study's arms are in
`lvmlab.lab.plots.arms`.
"""

import numpy as np
from matplotlib.figure import Figure

from lvmlab.lab.plots.arms import COLOURS
from lvmlab.lab.plots.tokenizer import _axes
from lvmlab.lab.studies.balancing import COPIES, PAIRS
from lvmlab.lab.studies.common import across_seeds, final_losses


def copies_chart(records: dict[str, dict]) -> Figure:
    """The scarce tasks' losses against how many augmented copies of each pair are drawn from; dashed, the
    real missing data.
    """
    figure, axes = _axes(1, 2, 8.6, 3.4)
    for axis, task in zip(axes, ("pose", "derain"), strict=True):
        stored = {
            "balanced": 0,
            "balanced, 3 copies": 3,
            "balanced, 10 copies": 10,
            "balanced, augmented": COPIES[task],
        }
        copies = {
            count: name for name, count in stored.items()
        }  # of two arms with as many copies the one with all
        found = np.array([across_seeds(final_losses(records[name], task)) for name in copies.values()])
        real, low, high = across_seeds(final_losses(records["balanced, real data"], task))
        places = range(len(copies))
        axis.errorbar(
            places,
            found[:, 0],
            yerr=[found[:, 0] - found[:, 1], found[:, 2] - found[:, 0]],
            fmt="o-",
            capsize=4,
            color=COLOURS[task],
        )
        axis.axhline(real, color="black", ls="--", lw=1, label=f"{PAIRS['segmentation']} real pairs")
        axis.axhspan(low, high, color="black", alpha=0.08, lw=0)
        axis.set(
            xticks=places,
            xticklabels=copies,
            xlabel=f"augmented copies of each of {PAIRS[task]} pairs",
            title=task,
        )
        axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("cross entropy, nats a token")
    return figure
