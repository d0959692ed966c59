"""What the prompt studio shows, as plain figures: entropy, alternatives and attention of one answer, and what an answer hangs on."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lvmlab.plots.tokenizer import _axes
from lvmlab.sentences import Sentence


def entropy_map(picture: np.ndarray, entropies: np.ndarray, title: str = "answer") -> Figure:
    """An answer uint8 (S, S, 3) beside the entropy of each of its tokens, (N,) in nats."""
    grid = round(len(entropies) ** 0.5)
    figure, axes = _axes(1, 2, 6.4, 3.0, subplot_kw={"xticks": [], "yticks": []})
    axes[0].imshow(picture, interpolation="nearest")
    axes[0].set_title(title, fontsize=10)
    drawn = axes[1].imshow(np.reshape(entropies, (grid, grid)), cmap="viridis", vmin=0)
    axes[1].set_title("entropy of each token, nats", fontsize=10)
    figure.colorbar(drawn, ax=axes[1], shrink=0.8)
    return figure


def alternatives_chart(ids, probabilities, patches: np.ndarray) -> Figure:
    """The likeliest codes of one place as `lvmlab.inside.alternatives` gives them, drawn among their neighbours."""
    figure, axes = _axes(1, len(ids), 1.1 * len(ids), 1.6, squeeze=False, subplot_kw={"xticks": [], "yticks": []})
    for axis, code, p, patch in zip(axes[0], ids, probabilities, patches, strict=True):
        axis.imshow(patch, interpolation="nearest")
        axis.set_title(f"{float(p):.0%}\ncode {int(code)}", fontsize=8)
    return figure


def attention_map(asked: Sentence, answer: np.ndarray, weights: np.ndarray, tokens: int) -> Figure:
    """Attention (T,) laid over the prompt's pictures and the answer uint8 (S, S, 3), ``tokens`` of it a picture; each is titled with its share."""
    pictures, grid = [*asked.pictures()[:-1], answer], round(tokens**0.5)
    names = [f"{side} {i + 1}" for i in range(len(asked.pairs) - 1) for side in ("image", "label")] + ["query", "answer"]
    maps = np.pad(weights, (0, len(pictures) * tokens - len(weights))).reshape(-1, grid, grid)
    figure, axes = _axes(1, len(pictures), 1.25 * len(pictures), 1.7, subplot_kw={"xticks": [], "yticks": []})
    for axis, picture, name, heat in zip(axes, pictures, names, maps, strict=True):
        axis.imshow(picture, interpolation="nearest", extent=(0, 1, 0, 1))
        # square roots: one token can hold most of the weight, and the others are to be seen beside it
        axis.imshow(heat, cmap="inferno", alpha=0.7 * np.sqrt(heat / maps.max()), vmin=0, vmax=maps.max(), extent=(0, 1, 0, 1))
        axis.set_title(f"{name}\n{heat.sum():.0%}", fontsize=8)
    return figure


def sensitivity_chart(rows: list[dict]) -> Figure:
    """Rows of `lvmlab.sensitivity.measure`: the skill of each change with its 95 % interval over sources; the plain prompt as a band."""
    figure = Figure(figsize=(7.6, 1.1 + 0.25 * len(rows)), dpi=80, facecolor="white", layout="constrained")  # not pyplot's: drawn in a thread
    axis, shown = FigureCanvasAgg(figure).figure.subplots(), [r for r in rows if r["skill"] is not None]
    for place, row in enumerate(shown):
        low, mean, high = (row[k] for k in ("skill_low", "skill", "skill_high"))
        axis.plot([low, high], [place, place], color="black" if row["group"] == "plain" else "#0072b2")
        axis.plot(mean, place, "o", ms=5, color="black" if row["group"] == "plain" else "#0072b2")
        if row["group"] == "plain":
            axis.axvspan(low, high, color="grey", alpha=0.15, lw=0)
    axis.axvline(0, color="grey", lw=1)
    axis.set_yticks(range(len(shown)), [f"{r['group']}: {r['name']}" for r in shown], fontsize=9)
    axis.set_xlabel("skill (0: best floor, 1: ceiling), 95 % over sources", fontsize=9)
    axis.grid(axis="x", alpha=0.3)
    axis.invert_yaxis()
    return figure
