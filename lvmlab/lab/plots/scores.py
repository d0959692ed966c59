"""Charts of evaluations, of the rows of `lvmlab.lab.frames.scores`."""

import pandas as pd


def skill_chart(rows: pd.DataFrame, axis=None):
    """Skill of each task and model with its interval; returns the axis drawn on."""
    import matplotlib.pyplot as plt

    axis = axis or plt.subplots(figsize=(7, 3.2), facecolor="white", layout="constrained")[1]
    names, models = list(rows.task.unique()), list(rows.model.unique())
    for i, model in enumerate(models):
        own = rows[rows.model == model]
        places = [names.index(task) + (i - (len(models) - 1) / 2) * 0.8 / len(models) for task in own.task]
        bars = [own.skill - own.skill_low, own.skill_high - own.skill]
        axis.bar(places, own.skill, 0.75 / len(models), yerr=bars, capsize=3, label=model)
    axis.axhline(0, color="black", lw=1)
    axis.axhline(1, color="grey", lw=1, ls="--")
    axis.set_xticks(range(len(names)), names)
    axis.set_ylabel("skill (0: best floor, 1: ceiling)")
    axis.legend(frameon=False)
    return axis


def examples_chart(rows: pd.DataFrame, axis=None):
    """Skill by the number of examples, one line a task with its interval; returns the axis drawn on."""
    import matplotlib.pyplot as plt

    axis = axis or plt.subplots(figsize=(7, 3.6), facecolor="white", layout="constrained")[1]
    for name, own in rows.sort_values("examples").groupby("task", sort=False):
        (line,) = axis.plot(own.examples, own.skill, marker="o", label=name)
        axis.fill_between(
            own.examples, own.skill_low, own.skill_high, color=line.get_color(), alpha=0.15, lw=0
        )
    axis.axhline(0, color="black", lw=1)
    axis.set_xlabel("examples in the prompt")
    axis.set_ylabel("skill")
    axis.legend(frameon=False, ncols=3)
    return axis
