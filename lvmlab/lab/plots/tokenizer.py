"""What tokens are and carry, a training as it goes, and VQ beside FSQ. Each function draws on white and
returns the figure.
"""

import io
import time

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lvmlab.lab.plots.axes import frame_cell, show_picture, subplots
from lvmlab.lab.studies.common import across_seeds
from lvmlab.lab.studies.tokenizer import SCORES, Use, findings, psnr, seeds_of
from lvmlab.tokenizer.tokenizer import Tokenizer

NAMES = {"all": "all three kinds", "natural": "photographs", "two-colour": "masks", "skeleton": "skeletons"}
COLOURS = {"tokens": "#1f77b4", "mean colours": "#b0b0b0", "vq": "#1f77b4", "fsq": "#d95f02"}


def _frame_token(axis, position: int, tokenizer: Tokenizer) -> None:
    side, (y, x) = tokenizer.size / tokenizer.grid, divmod(position, tokenizer.grid)
    frame_cell(axis, (x * side - 0.5, y * side - 0.5), side)


def token_picture(tokenizer: Tokenizer, picture: Tensor) -> Figure:
    """A picture (3, S, S), its token ids written over it, and what the tokens give back."""
    tokens, g, side = tokenizer.encode(picture[None]), tokenizer.grid, tokenizer.size / tokenizer.grid
    figure, axes = subplots(1, 3, 9, 3.3)
    show_picture(axes[0], picture, f"the picture, {tokenizer.size} x {tokenizer.size} px")
    show_picture(axes[1], 0.35 * picture + 0.65, f"its {g} x {g} tokens")
    show_picture(axes[2], tokenizer.decode(tokens)[0], "decoded from the tokens")
    for i, token in enumerate(tokens[0].tolist()):
        y, x = divmod(i, g)
        axes[1].text(
            (x + 0.5) * side - 0.5, (y + 0.5) * side - 0.5, token, ha="center", va="center", fontsize=6.5
        )
    for line in np.arange(1, g) * side - 0.5:
        axes[1].axhline(line, color="white", lw=0.8)
        axes[1].axvline(line, color="white", lw=0.8)
    return figure


def one_token(tokenizer: Tokenizer, tokens: Tensor, position: int, code: int) -> Figure:
    """Tokens (N,) decoded as they are and with one of them replaced; the difference, in grey levels of 255,
    beside them.
    """
    changed = tokens.clone()
    changed[position] = code
    before, after = tokenizer.decode(torch.stack([tokens, changed]))
    figure, axes = subplots(1, 3, 9, 3.1)
    show_picture(axes[0], before, "decoded")
    show_picture(axes[1], after, f"token {position}: code {tokens[position]} made {code}")
    image = axes[2].imshow(255 * (after - before).abs().mean(0).cpu(), cmap="magma", vmin=0)
    axes[2].set(title="difference, grey levels of 255", xticks=[], yticks=[])
    axes[2].title.set_fontsize(10)
    figure.colorbar(image, ax=axes[2], shrink=0.8)
    for axis in axes:
        _frame_token(axis, position, tokenizer)
    return figure


def reach_map(relative: np.ndarray) -> Figure:
    """`reach`'s map: mean squared change by offset from the replaced token, logarithmic."""
    from matplotlib.colors import LogNorm

    figure, axis = subplots(1, 1, 4.6, 3.8)
    half = relative.shape[0] // 2
    image = axis.imshow(
        np.maximum(relative, 1e-4),
        cmap="magma",
        norm=LogNorm(),
        extent=(-half - 0.5, half + 0.5, half + 0.5, -half - 0.5),
    )
    frame_cell(axis, (-0.5, -0.5), 1)
    axis.set(xlabel="tokens to the right", ylabel="tokens below", title="how far one token reaches")
    axis.set(xticks=range(1 - half, half, 2), yticks=range(1 - half, half, 2))
    figure.colorbar(image, ax=axis, label="squared change (mean 1)")
    return figure


def codebook_sheet(tokenizer: Tokenizer, use: Use, columns: int = 32) -> Figure:
    """Every code as the picture made of nothing else (half a cell at its middle), the most used first; the
    first dead one is framed.
    """
    g, size, order = tokenizer.grid, tokenizer.size, np.argsort(-use.counts, kind="stable")
    pictures = tokenizer.decode(torch.from_numpy(order)[:, None].expand(-1, tokenizer.tokens_per_image))
    half = max(1, size // g // 4)
    middle = pictures[:, :, size // 2 - half : size // 2 + half, size // 2 - half : size // 2 + half]
    rows, side = -(-len(order) // columns), 2 * half
    sheet = torch.ones(3, rows * (side + 1), columns * (side + 1))
    for i, swatch in enumerate(middle):
        y, x = divmod(i, columns)
        sheet[:, y * (side + 1) : y * (side + 1) + side, x * (side + 1) : x * (side + 1) + side] = swatch
    figure, axis = subplots(1, 1, 5.2, 5.2 * rows / columns + 0.4)
    show_picture(axis, sheet, f"{len(order)} codes, by use: most used top left, {use.dead} unused")
    if use.dead:
        y, x = divmod(len(order) - use.dead, columns)
        frame_cell(axis, (x * (side + 1) - 1, y * (side + 1) - 1), side + 1)
    return figure


def use_curves(uses: dict[str, Use]) -> Figure:
    """How often each code is used, the codes of each kind of picture sorted anew."""
    figure, axis = subplots(1, 1, 6.6, 3.6)
    for name, use in uses.items():
        counts = np.sort(use.counts)[::-1]
        label = f"{NAMES.get(name, name)}: {use.share:.0%} used, perplexity {use.perplexity:.0f}"
        axis.plot(
            np.arange(1, len(counts) + 1),
            np.where(counts > 0, counts / counts.sum(), np.nan),
            label=label,
            lw=2.5 if name == "all" else 1.5,
        )
    axis.axhline(1 / len(counts), color="grey", ls="--", lw=1)
    axis.text(len(counts), 1 / len(counts), "all alike", ha="right", va="bottom", fontsize=8, color="grey")
    axis.set(
        yscale="log",
        xlabel="code, the most used first",
        ylabel="share of the tokens",
        title="which codes are used",
    )
    axis.legend(frameon=False, fontsize=8)
    return figure


def carries_chart(rows: pd.DataFrame) -> Figure:
    """`carries`' rows: PSNR of each kind, and the scores of masks and skeletons, with their intervals."""
    figure, axes = subplots(1, 2, 9.6, 3.6, width_ratios=(3, 2))
    pixel, meaning = rows[rows.metric == "PSNR"], rows[rows.metric != "PSNR"]
    for axis, panel, digits in ((axes[0], pixel, 1), (axes[1], meaning, 2)):
        for i, (code, bars) in enumerate(panel.groupby("code", sort=False)):
            x, error = np.arange(len(bars)) + (i - 0.5) * 0.4, [bars.score - bars.low, bars.high - bars.score]
            axis.bar(x, bars.score, 0.38, yerr=error, capsize=4, color=COLOURS[code], label=f"as {code}")
            ink = "white" if code == "tokens" else "black"
            for place, score in zip(x, bars.score, strict=True):
                y, text = 0.02 * axis.get_ylim()[1], f"{score:.{digits}f}"
                axis.text(place, y, text, ha="center", fontsize=8, color=ink)
    axes[0].set_xticks(range(pixel.kind.nunique()), pixel.kind.unique())
    names = (meaning.kind + "\n" + meaning.metric).unique()
    axes[1].set_xticks(range(len(names)), names)

    axes[0].set(ylabel="PSNR (dB)", ylim=(0, 1.25 * pixel.high.max()))
    axes[1].set(ylabel="score, 1 is perfect", ylim=(0, 1.05))
    axes[0].legend(frameon=False, fontsize=8, loc="upper right")
    axes[0].set_title("faithful to the pixel", fontsize=10)
    axes[1].set_title("faithful to the meaning", fontsize=10)
    return figure


def photograph_chart(tokenizer: Tokenizer, names: list[str], pictures: Tensor) -> Figure:
    """PSNR of each photograph's centre crop after the round trip; the worst and the best are shown."""
    after = tokenizer.round_trip(pictures)
    values = psnr(after, pictures).cpu().numpy()
    order = np.argsort(values)
    figure, axes = subplots(2, 3, 9.4, max(3.6, 0.19 * len(names) + 1.2), width_ratios=(3.4, 1.5, 1.5))
    grid = axes[0, 0].get_gridspec()
    for axis in axes[:, 0]:
        axis.remove()
    bars = figure.add_subplot(grid[:, 0])
    bars.barh(range(len(names)), values[order], color=COLOURS["tokens"])
    bars.set_yticks(range(len(names)), [names[i].removeprefix("gcompris-") for i in order], fontsize=7.5)
    bars.axvline(values.mean(), color="black", lw=1, ls="--", label=f"mean {values.mean():.1f} dB")
    bars.set(
        xlabel="PSNR (dB) after the round trip", xlim=(0, 1.4 * values.max()), ylim=(-0.7, len(names) - 0.3)
    )
    bars.legend(frameon=False, fontsize=8, loc="lower right")
    for row, (i, which) in zip(axes, ((order[-1], "best"), (order[0], "worst")), strict=True):
        show_picture(row[1], pictures[i], f"{which}:\n{names[i].split('-')[-1]}")
        show_picture(row[2], after[i], f"after, {values[i]:.1f} dB")
    return figure


def picture_rows(rows: dict[str, Tensor]) -> Figure:
    """Named rows of pictures (B, 3, S, S), one below the other."""
    figure, axes = subplots(len(rows), len(next(iter(rows.values()))), 7.8, 1.08 * len(rows), squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            show_picture(axis, picture)
        line[0].set_ylabel(name, fontsize=9, rotation=0, ha="right", va="center")
    return figure


class LiveLoss:
    """A plot of a training that redraws itself in a notebook: pass it as ``on_log``. Outside a notebook it
    only collects.

    steps: of the whole training, for the axis. every: seconds between two drawings. items: what a batch
        holds. `log` holds the
    records; `close` draws them for the last time.
    """

    def __init__(self, steps: int, every: float = 2.0, items: str = "pictures"):
        self.steps, self.every, self.items, self.log = steps, every, items, []
        self._handle, self._drawn = None, 0.0

    def __call__(self, record: dict, *model) -> None:
        self.log.append(record)
        if time.monotonic() - self._drawn > self.every:
            self.draw()
            self._drawn = time.monotonic()

    def close(self) -> list[dict]:
        self.draw()
        return self.log

    def draw(self) -> None:
        import IPython
        from IPython.display import Image, display

        if IPython.get_ipython() is None or not self.log:
            return
        picture = Image(data=self.png(), format="png")
        if self._handle is None:
            self._handle = display(picture, display_id=True)
        else:
            self._handle.update(picture)

    def png(self) -> bytes:
        """The plot so far: the loss, and beside it PSNR on val pictures where the records have it."""
        figure = Figure(figsize=(9, 3), facecolor="white", layout="constrained")
        pictures = self.items == "pictures"  # a language model's records have no pictures to compare
        left, right = (*figure.subplots(1, 1 + pictures, squeeze=False)[0], None)[:2]
        last = self.log[-1]
        left.plot([r["step"] for r in self.log], [r.get("mean_loss", r["loss"]) for r in self.log])
        left.set(
            xlabel="step",
            ylabel="loss",
            yscale="log" if pictures else "linear",
            xlim=(0, self.steps),
            title=f"step {last['step'] + 1} of {self.steps}, {last['seconds']:.0f} s, "
            f"{last['items_per_second']:.0f} {self.items} a second",
        )
        left.title.set_fontsize(10)
        if pictures:
            self._scores(right)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=80)
        return out.getvalue()

    def _scores(self, axis) -> None:
        scored = [r for r in self.log if "val" in r]
        for name in ("natural", "two-colour", "skeleton"):
            points = [(r["step"], r["val"][f"psnr {name}"]) for r in scored if f"psnr {name}" in r["val"]]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", ms=4, label=NAMES[name])
        axis.set(xlabel="step", ylabel="PSNR (dB)", xlim=(0, self.steps), title="round trip of val pictures")
        if scored:
            axis.legend(frameon=False, fontsize=8, loc="lower right")
        axis.title.set_fontsize(10)


def vq_fsq_chart(record: dict) -> Figure:
    """Every score of both quantisers: each seed a dot, the mean and its 95 % t interval beside it."""
    figure, axes = subplots(2, 3, 9.6, 5.2)
    higher = findings(record).set_index("metric").higher
    for axis, (metric, title) in zip(axes.flat, SCORES.items(), strict=True):
        for i, quantiser in enumerate(("vq", "fsq")):
            values = seeds_of(record, quantiser, metric)
            mean, low, high = across_seeds(values)
            axis.plot(np.full(len(values), i - 0.12), values, "o", color=COLOURS[quantiser], alpha=0.6)
            error = [[mean - low], [high - mean]] if len(values) > 1 else None
            axis.errorbar([i + 0.12], [mean], error, fmt="s", capsize=5, color=COLOURS[quantiser])
        axis.set_xticks((0, 1), ("VQ", "FSQ"))
        axis.set_xlim(-0.5, 1.5)
        axis.set_title(f"{title}\nhigher: {higher[metric]}", fontsize=9)
    return figure


def curves_chart(record: dict) -> Figure:
    """The loss of every training of the comparison."""
    figure, axis = subplots(1, 1, 6.4, 3.2)
    for row in record["result"]:
        label = row["quantiser"].upper() if row["seed"] == 0 else None
        axis.plot(*zip(*row["curve"], strict=True), color=COLOURS[row["quantiser"]], alpha=0.7, label=label)
    axis.set(
        xlabel="step",
        ylabel="loss on training pictures",
        yscale="log",
        title="VQ starts unquantised, then meets its codebook",
    )
    axis.legend(frameon=False)
    return figure
