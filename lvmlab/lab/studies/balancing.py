"""Does augmentation balance a long tail? DeLVM's section 3.2 and figures 2 and 3, on mini-world with one.

    lvmlab study balancing [--scale smoke]    # computes every arm and seed that is not stored; resumes

Segmentation has many pairs, derain few, and pose very few pairs from few bodies on few photographs. Every arm
trains the same small model from the same seeds on as many tokens at a constant learning rate. Arms differ in
the task of the next sentence and in the rows it is made from. A pair is rendered once, as in a data set.
"""

import functools
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lvmlab.data.building import build
from lvmlab.data.mini_world import World
from lvmlab.data.mixture import Mixture
from lvmlab.lab import frames, runs
from lvmlab.lab.studies import common
from lvmlab.lab.studies.common import MICRO
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.training.export import load_lvm
from lvmlab.training.loop import TrainConfig
from lvmlab.training.lvm import train_lvm
from lvmlab.training.preparation import compile_layers, new_lvm
from lvmlab.training.recipe import LVMRecipe
from lvmlab.training.sampler import SentenceSampler
from lvmlab.utils import paths
from lvmlab.utils.device import precision

STUDY, VERSION = "balancing", 1
TASKS = ("segmentation", "derain", "pose")
PAIRS = {"segmentation": 2000, "derain": 300, "pose": 75}  # the long tail
LIMITS = {"derain": (("photographs", 30),), "pose": (("bodies", 10), ("photographs", 10))}
COPIES = {"derain": 10, "pose": 30}
EVEN = dict.fromkeys(TASKS, 1.0)
CURVE = 32  # val prompts of a curve
ANSWERS = 3  # val prompts of each task whose answers are stored, of the first seed


@dataclass(frozen=True)
class Arm:
    """A way to balance.

    Attributes:
        mixture: Which task and which rows the next sentence is of.
        full: As many real pairs of every task as of segmentation, from all sources: the data that
            augmentation replaces.
    """

    mixture: Mixture
    full: bool = False


ARMS = {
    "natural": Arm(Mixture("natural")),
    "natural, augmented": Arm(Mixture("mixture", weights=PAIRS)),
    "balanced": Arm(Mixture("balanced", weights=EVEN)),
    "balanced, augmented": Arm(Mixture("mixture", weights=EVEN)),
    # the paper's mixture: some of both
    "balanced, 10 copies": Arm(Mixture("mixture", weights=EVEN, copies=10)),
    "balanced, 3 copies": Arm(Mixture("mixture", weights=EVEN, copies=3)),
    "balanced, real data": Arm(Mixture("balanced", weights=EVEN), full=True),
    "sequential: segmentation, derain, pose": Arm(Mixture("sequential", order=TASKS)),
    "sequential: pose, segmentation, derain": Arm(
        Mixture("sequential", order=("pose", "segmentation", "derain"))
    ),
    "sequential: derain, pose, segmentation": Arm(
        Mixture("sequential", order=("derain", "pose", "segmentation"))
    ),
    "replay 5 %": Arm(Mixture("replay", order=TASKS, replay=0.05)),
    "replay 20 %": Arm(Mixture("replay", order=TASKS, replay=0.20)),
}


@dataclass(frozen=True)
class Setting:
    """A scale of the study.

    Attributes:
        steps: Of a training.
        tokens: A step.
        seeds: Trainings of an arm.
        shrink: Divides the pairs of every task.
        prompts: Scored in each task.
        curve: Points of a training's curve.
        lr: The constant learning rate.
        precision: auto, fp32 or bf16.
    """

    steps: int = 2000
    tokens: int = 2048
    seeds: int = 3
    shrink: int = 1
    prompts: int = 64
    curve: int = 20
    lr: float = 2e-3
    precision: str = "auto"

    def pairs(self, task: str, full: bool) -> tuple[int, int]:
        """Groups, and pairs a group, of a task: groups of 15 or 16 share an encoding."""
        pairs = PAIRS["segmentation" if full else task] // self.shrink
        group = 16 if task == "segmentation" else 15
        return max(1, pairs // group), group


SCALES = {
    "smoke": Setting(steps=100, tokens=1024, shrink=10, prompts=8, curve=2, precision="fp32"),
    "study": Setting(),
}


def config(arm: str, setting: Setting, split: str = "val") -> dict:
    """All that decides an arm's outcome: what its run is named by. split: that it is scored on."""
    tokenizer = Tokenizer.from_pretrained("mini", device="cpu").fingerprint
    return {
        "version": VERSION,
        "arm": arm,
        **asdict(ARMS[arm]),
        "setting": asdict(setting),
        "shape": asdict(MICRO),
        "tokenizer": tokenizer,
        "pairs": PAIRS,
        "limit_sources": LIMITS,
        "copies": COPIES,
        "split": split,
    }


def store(setting: Setting, full: bool) -> Path:
    """The token store of the long tail, or of the full data, tokenised once into the cache folder."""
    folder = paths.cache() / "studies" / STUDY / f"store-{'full' if full else 'tail'}-{setting.shrink}"
    worlds = []
    for task in TASKS:
        groups, pairs = setting.pairs(task, full)
        worlds.append(World(task, groups, pairs=pairs, limit_sources=() if full else LIMITS.get(task, ())))
    build(folder, Tokenizer.from_pretrained("mini"), worlds, copies={} if full else COPIES)
    return folder


def arm(
    name: str, setting: Setting, split: str = "val", *, again: bool = False, compiled: bool = False
) -> dict:
    """The stored run of an arm, or a new one.

    Args:
        name: One of `ARMS`.
        setting: Of `SCALES`.
        split: "val" to choose by; "test" once, for the arm that was chosen.
        again: Computes even where the run is stored.
        compiled: Layers under torch.compile.
    """
    return runs.run(
        STUDY, config(name, setting, split), functools.partial(compute, compiled=compiled), again=again
    )


def compute(config: dict, compiled: bool = False) -> list[dict]:
    """One row a seed: {seed, seconds, device, precision, curve: [{step, shares, TASK: cross entropy}]} and
    `common.scored`.
    """
    setting, tokenizer = Setting(**config["setting"]), Tokenizer.from_pretrained("mini")
    splits = {"val", config["split"]}
    scorers = {split: common.scorers(TASKS, setting.prompts, split, tokenizer) for split in splits}

    # one training serves both splits; its curve is always val's
    folder = paths.cache() / "studies" / runs.key(STUDY, config | {"split": "val"})
    rows = []
    for seed in range(setting.seeds):
        where = folder / f"seed-{seed}"
        train = functools.partial(_train, config, setting, seed, scorers, where, compiled)
        rows.append(common.resumed(where / f"{config['split']}.json", train))
    return rows


def _train(
    config: dict,
    setting: Setting,
    seed: int,
    scorers: dict[str, common.Scorers],
    folder: Path,
    compiled: bool,
) -> dict:
    print(f"{config['arm']}, seed {seed}")
    scheme = ARMS[config["arm"]]
    data = store(setting, scheme.full)
    recipe = LVMRecipe(tokens=setting.tokens, phases=((1.0, 4),), mixture=scheme.mixture)

    # arms of a seed start with the same weights; under a falling rate the last task would be learned least
    training = TrainConfig(
        steps=setting.steps,
        lr=setting.lr,
        min_lr=setting.lr,
        warmup=max(1, setting.steps // 20),
        optimizer="muon",
        seed=seed,
        precision=setting.precision,
        log_every=max(1, setting.steps // setting.curve),
        save_every=max(1, setting.steps // 10),
    )
    tokenizer = next(iter(scorers["val"].values())).tokenizer
    model = new_lvm(MICRO, tokenizer, seed=seed)
    log = train_lvm(
        compile_layers(model) if compiled else model,
        SentenceSampler(data, recipe, steps=setting.steps, seed=seed),
        folder,
        training,
        on_log=lambda record, lvm: record.update(losses=common.losses(lvm, scorers["val"], CURVE)),
    )
    answers = ANSWERS if seed == 0 else 0
    final = common.scored(load_lvm(folder), scorers[config["split"]], name=config["arm"], answers=answers)
    return {
        "seed": seed,
        "seconds": log[-1]["seconds"],
        "device": log[0]["device"],
        "precision": precision(setting.precision),
        "curve": [{"step": r["step"], "shares": r["shares"], **r["losses"]} for r in log],
        **final,
    }


def realised(records: dict[str, dict]) -> pd.DataFrame:
    """The share of sentences that each task had, over the whole training and all seeds: arms by tasks."""
    shares = {}
    for name, record in records.items():
        # the first point is of one batch
        points = [point["shares"] for row in record["result"] for point in row["curve"][1:]]
        shares[name] = {task: np.mean([point.get(task, 0.0) for point in points]) for task in TASKS}
    return pd.DataFrame(shares).T


def best(rows: pd.DataFrame) -> str:
    """The arm of least mean cross entropy over the tasks, of those that need no other data and keep no order.

    Args:
        rows: Of `lvmlab.lab.frames.trainings`.
    """
    names = [name for name in rows.arm.unique() if not ARMS[name].full and not ARMS[name].mixture.order]
    return rows[rows.arm.isin(names)].groupby("arm").loss.mean().idxmin()


def effects(rows: pd.DataFrame, measure: str = "loss") -> pd.DataFrame:
    """What sampling and augmentation do to each task, each apart from the other.

    The 2x2 of {natural, balanced} x {plain, augmented}: an effect is the mean of its two differences, by
    seed; the interaction is how much more augmentation does when the tasks are balanced.

    Args:
        rows: Of `lvmlab.lab.frames.trainings` or `best_points`, those four arms among them.
        measure: A column of them: "loss", "skill", "best".

    Returns:
        ``task``, ``effect``; ``mean``, ``low``, ``high``: 95 % t intervals over seeds; ``p`` by Holm's
        correction over all tasks and effects, which are secondary outcomes. `primary_effects` has the primary
        ones.
    """
    lines = pd.concat([_effects(rows[rows.task == task], task, measure) for task in TASKS], ignore_index=True)
    return lines.assign(p=common.holm(lines.p))


def primary_effects(rows: pd.DataFrame, measure: str = "loss") -> pd.DataFrame:
    """`effects` on the primary outcome, the mean over the tasks; ``p`` needs no correction."""
    means = rows[rows.task.isin(TASKS)].groupby(["arm", "seed"], as_index=False)[measure].mean()
    return _effects(means.assign(task="mean"), "mean", measure)


def _effects(rows: pd.DataFrame, task: str, measure: str) -> pd.DataFrame:
    natural, augmented, balanced, both = (common.by_seed(rows, task, measure)[arm] for arm in list(ARMS)[:4])
    of_seed = {
        "sampling": (balanced - natural + both - augmented) / 2,
        "augmentation": (augmented - natural + both - balanced) / 2,
        "interaction": both - balanced - augmented + natural,
    }
    return pd.DataFrame(
        {"task": task, "effect": name} | common.spread(values) | {"p": common.p_value(values)}
        for name, values in of_seed.items()
    )


def never_trained(rows: pd.DataFrame) -> pd.DataFrame:
    """What each task's loss is without any training on it: the lowest point of a sequential arm before its
    turn.

    Args:
        rows: Of `lvmlab.lab.frames.curves`, of the sequential arms.

    Returns:
        ``task``; ``mean``, ``low``, ``high`` in nats a token: 95 % t intervals over seeds.
    """
    rows = rows.sort_values("step")
    sentences = rows.groupby(["arm", "seed", "task"]).share.cumsum()
    before = rows[(sentences == 0) & (rows.step > 0)]
    lowest = {task: before[before.task == task].groupby("seed").loss.min() for task in TASKS}
    return pd.DataFrame({"task": task} | common.spread(values) for task, values in lowest.items())


def main() -> None:
    parser = common.parser(__doc__, SCALES, "arms")
    parser.add_argument(
        "--split",
        choices=("val", "test"),
        default="val",
        help="that is scored: test once, for the arm chosen on val",
    )
    args = parser.parse_args()
    records = common.shipped(
        args.arms or ARMS, lambda name: arm(name, SCALES[args.scale], args.split, compiled=args.compiled)
    )
    print(frames.markdown(common.table(frames.trainings(records), TASKS)))


if __name__ == "__main__":
    main()
