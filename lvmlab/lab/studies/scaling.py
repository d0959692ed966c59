"""How loss falls with parameters and tokens, and whether skill follows (AIM, arXiv 2401.08541, section 5).

    lvmlab study scaling [--scale smoke] [SIZE ...]    # computes what is not stored; resumes

A size trains at a constant rate along one trunk. At each token budget a branch leaves the trunk, and its rate
falls to nearly nothing over a fifth as many tokens more (warm-up, stable, decay: arXiv 2405.18392). So the
budgets share what they can.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import least_squares
from scipy.stats import spearmanr

from lvmlab.evaluation.scoring import Scorer
from lvmlab.lab import frames, runs
from lvmlab.lab.studies import common, distillation
from lvmlab.lab.studies.tokenizer import code_use
from lvmlab.model.config import LVM_PRESETS, LVMConfig
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.training.export import load_lvm
from lvmlab.training.loop import TrainConfig
from lvmlab.training.lvm import train_lvm
from lvmlab.training.preparation import compile_layers, load_start, new_lvm, sentence_seed
from lvmlab.training.sampler import SentenceSampler
from lvmlab.utils import paths
from lvmlab.utils.device import precision
from lvmlab.world import tasks

STUDY, VERSION = "scaling", 1
SIZES = {
    "0.3M": LVMConfig(64, 3, 2, 168, attention_bias=True),
    "0.6M": LVMConfig(96, 4, 3, 256, attention_bias=True),
    "1.0M": common.MICRO,
    "2.6M": LVM_PRESETS["mini-student"],
}
LRS = (2e-3, 4e-3, 8e-3)  # and lower ones where the lowest is best


@dataclass(frozen=True)
class Setting:
    """A scale of the study. budgets: steps of the trunk at which a branch leaves it."""

    budgets: tuple[int, ...] = (500, 1000, 2000)
    tokens: int = 2048
    seeds: int = 3
    groups: int = 600
    prompts: int = 64
    tune: int = 300
    precision: str = "auto"


SCALES = {
    "smoke": Setting(budgets=(20, 40), tokens=1024, groups=20, prompts=8, tune=10, precision="fp32"),
    "study": Setting(),
}


def config(size: str, setting: Setting) -> dict:
    """All that decides a size's outcome."""
    return {
        "version": VERSION,
        "size": size,
        "shape": asdict(SIZES[size]),
        "setting": asdict(setting),
        "lrs": LRS,
        "tokenizer": Tokenizer.from_pretrained("mini", device="cpu").fingerprint,
    }


def size(name: str, setting: Setting, *, again: bool = False, compiled: bool = False) -> dict:
    """The stored run of a size, or a new one."""
    return runs.run(STUDY, config(name, setting), functools.partial(compute, compiled=compiled), again=again)


def compute(config: dict, compiled: bool = False) -> list[dict]:
    """One row a seed and budget: {seed, budget, tokens, parameters, lr, seconds, scores, losses}."""
    setting = Setting(**config["setting"] | {"budgets": tuple(config["setting"]["budgets"])})
    folder, tokenizer = paths.cache() / "studies" / runs.key(STUDY, config), Tokenizer.from_pretrained("mini")
    data, recipe = distillation.store(setting.groups), distillation.recipe(setting, None)
    scorers = common.scorers(tasks.TRAINED, setting.prompts, "val", tokenizer)

    def training(steps: int, lr: float, low: float, seed: int) -> TrainConfig:
        return TrainConfig(
            steps=steps,
            lr=lr,
            min_lr=low,
            warmup=0 if low < lr else max(1, setting.budgets[0] // 5),
            optimizer="muon",
            seed=seed,
            precision=setting.precision,
            log_every=max(1, steps // 4),
            save_every=max(1, steps // 10),
        )

    def fit(where: Path, training: TrainConfig, start: Path | None = None) -> list[dict]:
        size = SIZES[config["size"]]
        model = load_start(start) if start else new_lvm(size, tokenizer, seed=training.seed)
        seed = sentence_seed(model, training.seed)
        sampler = SentenceSampler(data, recipe, steps=training.steps, seed=seed)
        return train_lvm(compile_layers(model) if compiled else model, sampler, where, training)

    def tune(lr: float) -> dict:
        fit(folder / f"lr-{lr}", training(setting.tune, lr, lr, 100))
        return {"loss": float(np.mean([*common.losses(load_lvm(folder / f"lr-{lr}"), scorers).values()]))}

    # where the grid's lowest rate is best, a lower one may be better still
    tuned, rates = {}, LRS
    while rates:
        for lr in rates:
            tuned[lr] = common.resumed(folder / f"lr-{lr}.json", functools.partial(tune, lr))["loss"]
        best = min(tuned, key=tuned.get)
        rates = (best / 2,) if best == min(tuned) else ()

    def branch(seed: int, budget: int) -> dict:
        print(f"{config['size']}, seed {seed}, {budget} steps")

        # the trunk up to a budget starts from the budget before, with a fresh optimiser and a short warm-up
        earlier = [b for b in setting.budgets if b < budget]
        trunk, decay = folder / f"seed-{seed}-{budget}", folder / f"seed-{seed}-{budget}-decay"
        length = budget - (earlier[-1] if earlier else 0)
        start = folder / f"seed-{seed}-{earlier[-1]}" if earlier else None
        stable = fit(trunk, training(length, best, best, seed), start)
        log = fit(decay, training(budget // 5, best, best / 30, seed), trunk)
        lvm = load_lvm(decay)
        return {
            "seed": seed,
            "budget": budget,
            "tokens": (budget + budget // 5) * setting.tokens,
            "parameters": lvm.num_parameters,
            "lr": best,
            "tuning": tuned,
            "seconds": stable[-1]["seconds"] + log[-1]["seconds"],
            "precision": precision(setting.precision),
            **common.scored(lvm, scorers, name=config["size"]),
        }

    branches = [(seed, budget) for seed in range(setting.seeds) for budget in setting.budgets]
    return [
        common.resumed(folder / f"seed-{seed}-{budget}.json", functools.partial(branch, seed, budget))
        for seed, budget in branches
    ]


def points(records: dict[str, dict]) -> pd.DataFrame:
    """A row a training: ``arm``, ``seed``, ``parameters``, ``tokens``, mean ``loss`` and mean ``skill`` of
    the tasks.
    """
    training = ["arm", "seed", "parameters", "tokens"]
    return frames.trainings(records).groupby(training, sort=False)[["loss", "skill"]].mean().reset_index()


def law(trainings: pd.DataFrame, floor: float | None = None) -> dict[str, float]:
    """The fit of loss = E + A / (N / 1e6)^a + B / (D / 1e6)^b (Hoffmann et al., arXiv 2203.15556) to
    `points`.

    It is robust (Huber) and on the logarithm of the loss.

    Args:
        trainings: Of `points`.
        floor: E is held there; None fits it too.

    Returns:
        E, A, a, B and b.
    """
    n, d, loss = (trainings[column].to_numpy() for column in ("parameters", "tokens", "loss"))

    def error(constants: np.ndarray) -> np.ndarray:
        return np.log(predicted(dict(zip("EAaBb", constants, strict=True)), n, d)) - np.log(loss)

    low, high = (0.0, loss.min()) if floor is None else (floor, floor + 1e-9)
    bounds = [low, 0, 0.01, 0, 0.01], [high, 20, 3, 20, 3]
    fits = [
        least_squares(
            error, [low + e * (high - low), 0.5, a, 0.5, a], bounds=bounds, loss="huber", f_scale=1e-2
        )
        for e in ((0.1, 0.5, 0.9) if floor is None else (0.5,))
        for a in (0.2, 0.6)
    ]
    return dict(zip("EAaBb", map(float, min(fits, key=lambda fit: fit.cost).x), strict=True))


def profile(
    trainings: pd.DataFrame, floors: Sequence[float] = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)
) -> pd.DataFrame:
    """How well the law fits when its floor E is held: a fit on the bound 0 says little of E by itself.

    Returns:
        ``E``, and the root mean square and the largest relative error of the loss, ``rms`` and ``largest``.
    """
    lines = []
    for floor in floors:
        fit = law(trainings, floor)
        error = predicted(fit, trainings.parameters, trainings.tokens) / trainings.loss - 1
        lines.append(
            {"E": floor, "rms": float((error**2).mean() ** 0.5), "largest": float(error.abs().max())}
        )
    return pd.DataFrame(lines)


def correlations(trainings: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation of mean loss and mean skill: over all trainings, and within each size and each budget.

    Loss and skill are of the same answers to the same prompts.

    Args:
        trainings: Of `points`.

    Returns:
        ``within``, ``trainings``, ``correlation``.
    """
    groups = {"all": trainings}
    groups |= {f"size {size}": group for size, group in trainings.groupby("arm", sort=False)}
    groups |= {f"{tokens / 1e6:.1f}M tokens": group for tokens, group in trainings.groupby("tokens")}
    return pd.DataFrame(
        {"within": name, "trainings": len(group), "correlation": spearmanr(group.loss, group.skill).statistic}
        for name, group in groups.items()
    )


def predicted(fit: dict[str, float], n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The law's loss at n parameters and d tokens."""
    return fit["E"] + fit["A"] / (n / 1e6) ** fit["a"] + fit["B"] / (d / 1e6) ** fit["b"]


def code_entropy(scorers: Iterable[Scorer], tokenizer: Tokenizer) -> float:
    """The loss of a model that knows only how often each code occurs in a task's true answers: the mean over
    tasks, nats a token.
    """
    n, codes = tokenizer.tokens_per_image, tokenizer.codebook_size
    return float(np.mean([np.log(code_use(each.tokens[:, -n:], codes).perplexity) for each in scorers]))


def left_out(trainings: pd.DataFrame) -> pd.DataFrame:
    """The law's constants of all `points`, and the least and most of the fits that leave out one size and
    budget.

    Returns:
        ``constant``, ``value``, ``low``, ``high``.
    """
    cells = trainings.groupby(["parameters", "tokens"]).groups.values()
    fits = pd.DataFrame([law(trainings.drop(cell)) for cell in cells])
    value = pd.Series(law(trainings))
    lines = pd.DataFrame({"value": value, "low": fits.min(), "high": fits.max()})
    return lines.rename_axis("constant").reset_index()


def table(records: dict[str, dict]) -> str:
    """`common.table` of each size at each budget, then the law's constants with the range of `left_out`, as
    Markdown.
    """
    rows = frames.trainings(records)
    rows["arm"] = [
        f"{arm}, {tokens / 1e6:.1f}M tokens" for arm, tokens in zip(rows.arm, rows.tokens, strict=True)
    ]
    constants = left_out(points(records))
    named = (
        f"{row.constant} = {frames.interval(row.value, row.low, row.high)}" for row in constants.itertuples()
    )
    law_line = f"E + A / N^a + B / D^b, N and D in millions: {', '.join(named)}"
    return f"{frames.markdown(common.table(rows, tasks.TRAINED))}\n\n{law_line}"


def main() -> None:
    common.main(__doc__, SCALES, "sizes", SIZES, size, table)


if __name__ == "__main__":
    main()
