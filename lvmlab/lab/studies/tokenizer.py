"""What a tokenizer's tokens carry; and a learned codebook (VQ) beside a fixed grid (FSQ, arXiv 2309.15505) at
equal budget.

lvmlab study tokenizer-vq-fsq    # VQ beside FSQ, about 4 minutes on two idle cores; ships the run in
assets/runs
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from lvmlab.data.picture_pool import render_pool
from lvmlab.evaluation.statistics import resample
from lvmlab.lab import runs
from lvmlab.lab.studies.common import across_seeds
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.tokenizer.vqgan import VQGANConfig
from lvmlab.training.loop import TrainConfig
from lvmlab.training.tokenizer import (
    FSQ_LEVELS,
    KINDS,
    QUANTISERS,
    Pool,
    TokenizerRecipe,
    psnr,
    to_float,
    train_tokenizer,
)
from lvmlab.training.tokenizer import evaluate as score
from lvmlab.training.tokenizer_export import load_training
from lvmlab.utils import images, paths
from lvmlab.utils.checks import check_fields
from lvmlab.world import default, of_size, tasks
from lvmlab.world.sentences import sentence

STUDY, VERSION = "tokenizer-vq-fsq", 2  # 2: silent residual branches, FSQ of features of unit variance
LABELS = {"two-colour masks": "segmentation", "skeletons": "pose"}
SCORES = {
    "psnr natural": "PSNR of photographs (dB)",
    "psnr two-colour": "PSNR of masks (dB)",
    "psnr skeleton": "PSNR of skeletons (dB)",
    "iou": "IoU of masks",
    "code use": "share of codes in use",
    "perplexity": "perplexity of the codes",
}


# What the tokens carry


def photographs(split: str, size: int = 64) -> tuple[list[str], Tensor]:
    """Every photograph of a split: names, and centre crops (B, 3, size, size)."""
    sources = default().all("photographs", split)
    return [source.name for source in sources], torch.stack([images.load(s.image, size) for s in sources])


def mean_colours(pictures: Tensor, grid: int) -> Tensor:
    """The model-free code to beat: each of grid x grid cells keeps its mean colour (24 bits), smoothly
    enlarged again.
    """
    small = (F.interpolate(pictures, (grid, grid), mode="area") * 255).round() / 255
    return F.interpolate(small, pictures.shape[-2:], mode="bilinear", align_corners=False)


def carries(tokenizer: Tokenizer, split: str = "val", count: int = 32) -> pd.DataFrame:
    """What is left of masks, skeletons and photographs after the tokens and after as many mean colours.

    Args:
        tokenizer: The tokenizer that is measured.
        split: Of mini-world.
        count: Pictures of masks, and of skeletons; photographs are all of the split.

    Returns:
        ``kind``, ``code``, ``metric``; ``score`` with its 95 % bootstrap interval over sources ``low`` to
        ``high``; how many ``pictures`` and ``sources``.
    """
    codes = {"tokens": tokenizer.round_trip, "mean colours": lambda x: mean_colours(x, tokenizer.grid)}
    rows = []
    for kind, name in LABELS.items():
        sentences = [sentence(name, split, i, laws=of_size(tokenizer.size), pairs=1) for i in range(count)]
        pairs, encodings = [s.pairs[0] for s in sentences], [s.encoding for s in sentences]
        truth, task = images.from_uint8(np.stack([p.label for p in pairs])), tasks.get(name)
        sources = [p.source for p in pairs]
        for code, through in codes.items():
            after = through(truth)
            scores = task.scores(images.to_uint8(after), pairs, encodings)[task.metric]
            rows.append(_row(kind, code, task.metric, scores, sources))
            rows.append(_row(kind, code, "PSNR", psnr(after, truth).numpy(), sources))

    names, truth = photographs(split, tokenizer.size)
    for code, through in codes.items():
        rows.append(_row("photographs", code, "PSNR", psnr(through(truth), truth).numpy(), names))
    return pd.DataFrame(rows)


def _row(kind: str, code: str, metric: str, values: np.ndarray, sources: list[str]) -> dict:
    means = resample([values], np.array(sources))[0]
    low, high = np.percentile(means[1:], (2.5, 97.5))
    row = {"kind": kind, "code": code, "metric": metric, "score": float(means[0])}
    return row | {
        "low": float(low),
        "high": float(high),
        "pictures": len(values),
        "sources": len(set(sources)),
    }


def reach(tokenizer: Tokenizer, pictures: Tensor, seed: int = 0) -> tuple[np.ndarray, float]:
    """How far one token reaches: every token of every picture is once replaced by a random other code.

    Returns the mean squared change by offset in cells, (2g - 1, 2g - 1) with the replaced cell in the middle
    (mean 1 over the
    offsets seen), and the share of all change that falls on the cell or its eight neighbours.
    """
    g, n = tokenizer.grid, tokenizer.tokens_per_image
    generator = torch.Generator().manual_seed(seed)
    total, seen, near = np.zeros((2 * g - 1, 2 * g - 1)), np.zeros((2 * g - 1, 2 * g - 1)), 0.0
    for tokens in tokenizer.encode(pictures):
        changed = tokens.repeat(n, 1)
        shift = torch.randint(1, tokenizer.codebook_size, (n,), generator=generator)
        changed.diagonal().add_(shift).remainder_(tokenizer.codebook_size)
        error = (tokenizer.decode(changed) - tokenizer.decode(tokens[None])).square().mean(1)  # (N, H, W)
        cells = F.adaptive_avg_pool2d(error, (g, g)).cpu().numpy()
        for i, cell in enumerate(cells):
            y, x = divmod(i, g)
            total[g - 1 - y : 2 * g - 1 - y, g - 1 - x : 2 * g - 1 - x] += cell
            seen[g - 1 - y : 2 * g - 1 - y, g - 1 - x : 2 * g - 1 - x] += 1
            near += cell[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].sum()
    mean = total / seen
    return mean / mean.mean(), float(near / total.sum())


@dataclass(frozen=True)
class Use:
    """How often each code is used, (K,)."""

    counts: np.ndarray

    @property
    def share(self) -> float:
        """Of the codes, those used at least once."""
        return float((self.counts > 0).mean())

    @property
    def dead(self) -> int:
        return int((self.counts == 0).sum())

    @property
    def perplexity(self) -> float:
        """As many equally likely codes would be as surprising; at most K."""
        p = self.counts[self.counts > 0] / max(1, self.counts.sum())
        return float(np.exp(-(p * np.log(p)).sum()))


def code_use(tokens: Tensor, codes: int) -> Use:
    """Tokens of any shape counted."""
    return Use(torch.bincount(tokens.flatten().cpu(), minlength=codes).numpy())


def use_by_kind(tokenizer: Tokenizer, pool: Pool, per_kind: int = 300) -> dict[str, Use]:
    """The codes' use by each kind of picture in a pool, on its first ``per_kind`` pictures, and by "all" of
    these.
    """
    uses = {
        kind: code_use(tokenizer.encode(to_float(pool.pictures[of[:per_kind]])), tokenizer.codebook_size)
        for kind, of in zip(KINDS, pool.of_kind, strict=True)
        if len(of) and kind != "other"
    }
    return {"all": Use(sum(use.counts for use in uses.values())), **uses}


# A small training, live


SMALL = replace(
    VQGANConfig.preset("mini"), hidden_channels=24, decoder_res_blocks=1, groups=8, codebook_size=256
)
SHORT = TokenizerRecipe(free_batches=40, shares=(0.34, 0.34, 0.32, 0.0))


def live_config(steps: int) -> TrainConfig:
    """For a training of about a minute: a short warm-up, a record each tenth step."""
    return TrainConfig(steps=steps, lr=2e-3, warmup=20, weight_decay=0.05, log_every=10)


def train_live(
    pool: Path, val_pool: Path, folder: str | Path, steps: int, on_log: Callable[[dict], None]
) -> list[dict]:
    """Trains SMALL for ``steps`` steps or 75 seconds, scored each 80th step; returns the log."""
    return train_tokenizer(
        pool,
        folder,
        preset=SMALL,
        recipe=SHORT,
        config=live_config(steps),
        batch=32,
        val_pool=val_pool,
        eval_every=80,
        budget_s=75,
        progress=False,
        on_log=on_log,
    )


def pools(pictures: int, val_pictures: int, progress: bool = False) -> tuple:
    """Pools of about so many train and val pictures in the cache folder, rendered once: two paths."""
    folder = paths.cache() / "studies" / STUDY
    folder.mkdir(parents=True, exist_ok=True)
    return tuple(
        render_pool(folder / f"{split}-{count}.npy", split, count, progress=progress)
        for split, count in (("train", pictures), ("val", val_pictures))
    )


# VQ beside FSQ


@dataclass(frozen=True)
class Setting:
    """A comparison's size: trainings of ``steps`` steps of ``batch`` pictures, the same pictures for both
    quantisers.
    """

    steps: int = 300
    batch: int = 32
    pictures: int = 4000
    val_pictures: int = 1200
    seeds: int = 3
    channels: int = 24
    codes: int = 1024
    lr: float = 2e-3

    def __post_init__(self):
        check_fields(self, **{field: (value > 0, "more than 0") for field, value in asdict(self).items()})
        check_fields(
            self,
            codes=(
                self.codes in FSQ_LEVELS,
                f"one that FSQ has levels for: {', '.join(map(str, FSQ_LEVELS))}",
            ),
        )

    @property
    def network(self) -> VQGANConfig:
        return replace(SMALL, hidden_channels=self.channels, codebook_size=self.codes)

    @property
    def training(self) -> TrainConfig:
        return TrainConfig(
            steps=self.steps, lr=self.lr, warmup=min(30, self.steps), weight_decay=0.05, precision="fp32"
        )

    @property
    def recipe(self) -> TokenizerRecipe:
        return replace(SHORT, free_batches=min(40, self.steps // 5))

    def config(self) -> dict:
        """All that decides the outcome: what the run is named by."""
        # without what decides nothing, and fields that came later, as long as they are what was always done
        network = self.network.canonical()
        training = {
            k: v
            for k, v in asdict(self.training).items()
            if k not in ("tracker", "save_seconds") and (k, v) != ("decay", "matrices")
        }
        return {
            "version": VERSION,
            **asdict(self),
            "network": network,
            "recipe": asdict(self.recipe),
            "training": training,
            "levels": FSQ_LEVELS[self.codes],
        }


def compare(setting: Setting = Setting(), *, progress: bool = True) -> dict:
    """VQ and FSQ trained alike from ``setting.seeds`` seeds each: the stored run, or a new one. A cut-short
    one goes on.
    """
    return runs.run(STUDY, setting.config(), lambda config: compute(config, progress))


def compute(config: dict, progress: bool = True) -> list[dict]:
    """One row a training: {quantiser, seed, codes, scores, seconds, curve}. config: a `Setting.config`."""
    setting = Setting(**{field.name: config[field.name] for field in fields(Setting)})
    train_pool, val_pool = pools(setting.pictures, setting.val_pictures, progress)
    rows = []
    for seed in range(setting.seeds):
        for quantiser in QUANTISERS:
            folder = paths.cache() / "studies" / runs.key(STUDY, config) / f"{quantiser}-{seed}"
            if progress:
                print(f"{quantiser}, seed {seed}: {setting.steps} steps")
            log = train_tokenizer(
                train_pool,
                folder,
                preset=setting.network,
                recipe=setting.recipe,
                batch=setting.batch,
                config=replace(setting.training, seed=seed),
                quantiser=quantiser,
                progress=progress,
            )
            scores, codes = _scores(folder, Pool(val_pool))
            rows.append(
                {
                    "quantiser": quantiser,
                    "seed": seed,
                    "codes": codes,
                    "scores": scores,
                    "seconds": log[-1]["seconds"],
                    "curve": [[r["step"], r["loss"]] for r in log],
                }
            )
    return rows


def _scores(folder, pool: Pool, per_kind: int = 128) -> tuple[dict[str, float], int]:
    model = load_training(folder)
    first = np.concatenate([of[:per_kind] for of in pool.of_kind])
    tokens = torch.cat(
        [
            model.round_trip(to_float(pool.pictures[part]))[1]
            for part in np.array_split(first, math.ceil(len(first) / 64))
        ]
    )
    return score(model, pool, per_kind) | {
        "perplexity": round(code_use(tokens, model.codebook_size).perplexity, 1)
    }, model.codebook_size


def seeds_of(record: dict, quantiser: str, metric: str) -> list[float]:
    """One score of every seed's training, by seed."""
    rows = sorted((r for r in record["result"] if r["quantiser"] == quantiser), key=lambda r: r["seed"])
    return [r["scores"][metric] for r in rows]


def findings(record: dict) -> pd.DataFrame:
    """VQ beside FSQ, a row a score.

    Returns:
        ``metric``, ``title``, the means ``vq`` and ``fsq``, ``difference`` (FSQ minus VQ seed by seed) with
        its 95 % t interval ``low`` to ``high``, and which is ``higher``: FSQ, VQ or undecided.
    """
    rows = []
    for metric, title in SCORES.items():
        vq, fsq = (np.array(seeds_of(record, quantiser, metric)) for quantiser in QUANTISERS)
        mean, low, high = across_seeds(fsq - vq)
        row = {"metric": metric, "title": title, "vq": vq.mean(), "fsq": fsq.mean()}
        row |= {"difference": mean, "low": low, "high": high}
        rows.append(row | {"higher": "FSQ" if low > 0 else "VQ" if high < 0 else "undecided"})
    return pd.DataFrame(rows)


def table(record: dict) -> pd.DataFrame:
    """`findings` as texts to print."""
    rows = findings(record)
    return pd.DataFrame(
        {
            "score": rows.title,
            "VQ": rows.vq.map("{:.3f}".format),
            "FSQ": rows.fsq.map("{:.3f}".format),
            "FSQ - VQ (95 %)": [
                f"{row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f})" for row in rows.itertuples()
            ],
            "higher": rows.higher,
        }
    )


def main() -> None:
    record = compare()
    print(table(record).to_string(index=False))
    print(runs.promote(record["name"]))


if __name__ == "__main__":
    main()
