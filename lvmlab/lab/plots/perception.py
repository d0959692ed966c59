"""Tables and charts of perception ceilings."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

INPUTS = ("pixels", "round trip", "codes")


def table(rows: list[dict]) -> pd.DataFrame:
    """A line a task: the score from each input, and the codes' share of the pixels'."""
    frame = pd.DataFrame(rows)
    scores = frame.pivot(index=["task", "metric"], columns="reads", values="score")
    scores = scores[[i for i in INPUTS if i in scores]].reindex(frame[["task", "metric"]].drop_duplicates())
    scores["codes / pixels"] = scores["codes"] / scores["pixels"]
    return scores.rename_axis(columns=None).reset_index()


def chart(rows: list[dict], axis=None):
    """A group of bars a task, one bar an input, with 95 % intervals; PSNR is shown in tens of dB."""
    axis = axis or plt.subplots(figsize=(7, 3))[1]
    names = list(dict.fromkeys(row["task"] for row in rows))
    for place, source in enumerate(INPUTS):
        shown = {row["task"]: row for row in rows if row["reads"] == source}
        unit = [10 if shown[n]["metric"] == "PSNR" else 1 for n in names]
        score, low, high = (np.array([shown[n][k] for n in names]) / unit for k in ("score", "low", "high"))
        axis.bar(
            np.arange(len(names)) + 0.27 * (place - 1),
            score,
            0.25,
            yerr=[score - low, high - score],
            label=source,
        )
    metrics = {row["task"]: row["metric"] + (" / 10 dB" if row["metric"] == "PSNR" else "") for row in rows}
    axis.set_xticks(range(len(names)), [f"{n}\n{metrics[n]}" for n in names])
    axis.set_ylabel("score on val")
    axis.legend(title="read by the specialist")
    return axis
