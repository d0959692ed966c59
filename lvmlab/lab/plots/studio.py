"""What the prompt studio shows, as plain figures: entropy, alternatives and attention of one answer, and what
an answer hangs on.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lvmlab.lab.plots.arms import differences_chart
from lvmlab.lab.plots.axes import subplots
from lvmlab.world.sentences import Sentence


def _row(pictures: np.ndarray, titles: list[str], side: float = 1.2) -> tuple[Figure, np.ndarray]:
    figure, axes = subplots(
        1,
        len(pictures),
        side * len(pictures),
        side + 0.5,
        squeeze=False,
        subplot_kw={"xticks": [], "yticks": []},
    )
    for axis, picture, title in zip(axes[0], pictures, titles, strict=True):
        axis.imshow(picture, interpolation="nearest", extent=(0, 1, 0, 1))
        axis.set_title(title, fontsize=8)
    return figure, axes[0]


def entropy_maps(pictures: dict[str, np.ndarray], entropies: dict[str, np.ndarray]) -> Figure:
    """Pictures uint8 (S, S, 3) by title, then by title the entropy of each token of such a picture, (N,) in
    nats, all on one scale.
    """
    blank = [np.full_like(next(iter(pictures.values())), 255)] * len(entropies)
    figure, axes = _row([*pictures.values(), *blank], [*pictures, *entropies], 1.9)
    maps = [np.reshape(values, (round(len(values) ** 0.5), -1)) for values in entropies.values()]
    for axis, values in zip(axes[len(pictures) :], maps, strict=True):
        image = axis.imshow(values, vmin=0, vmax=np.max(maps), extent=(0, 1, 0, 1))
    figure.colorbar(image, ax=axes, shrink=0.8, label="nats")
    return figure


def alternatives_chart(ids, probabilities, patches: np.ndarray) -> Figure:
    """The likeliest codes of one place as `lvmlab.evaluation.inspection.alternatives` gives them, drawn among
    their neighbours.
    """
    return _row(
        patches,
        [f"{float(p):.0%}\ncode {int(code)}" for code, p in zip(ids, probabilities, strict=True)],
        1.0,
    )[0]


def attention_map(prompt: Sentence, answer: np.ndarray, weights: np.ndarray, tokens: int) -> Figure:
    """Attention (T,) laid over the prompt's pictures and the answer uint8 (S, S, 3), ``tokens`` of it a
    picture; each is titled with its share.
    """
    pictures, grid = [*prompt.pictures()[:-1], answer], round(tokens**0.5)
    names = [f"{side} {i + 1}" for i in range(len(prompt.pairs) - 1) for side in ("image", "label")] + [
        "query",
        "answer",
    ]
    maps = np.pad(weights, (0, len(pictures) * tokens - len(weights))).reshape(-1, grid, grid)
    figure, axes = _row(
        pictures, [f"{name}\n{heat.sum():.0%}" for name, heat in zip(names, maps, strict=True)]
    )
    for axis, heat in zip(axes, maps, strict=True):
        # dark where it did not look; the brightest are the top hundredth, for one token can hold most of the
        # weight
        dark = 0.75 * (1 - np.sqrt(np.clip(heat / np.quantile(weights, 0.99), 0, 1)))
        axis.imshow(np.zeros((grid, grid)), cmap="gray", vmin=0, alpha=dark, extent=(0, 1, 0, 1))
    return figure


def sensitivity_chart(rows: list[dict]) -> Figure:
    """Rows of `lvmlab.evaluation.sensitivity.measure`: the skill of each change with its 95 % interval over
    sources.
    """
    skills = pd.DataFrame(rows).dropna(subset="skill")
    lines = pd.DataFrame(
        {
            "task": skills.task,
            "change": skills["group"] + ": " + skills["name"],
            "mean": skills.skill,
            "low": skills.skill_low,
            "high": skills.skill_high,
        }
    )
    label = "skill (0: best floor, 1: ceiling), 95 % over sources"
    return differences_chart(lines, label, lines="change", height=0.24)
