"""Does augmentation balance a long tail? DeLVM's section 3.2 and figures 2 and 3, on mini-world with one.

    lvmlab study balancing [--scale smoke]    # every arm and seed that is not stored; goes on
    where it was stopped

Much segmentation, little derain, and pose of few pairs from few bodies on few photographs. Every arm trains
the same small model from the
same seeds on as many tokens at a constant learning rate; what differs is which task the next sentence is of,
and from which rows it is made.
mini-world itself varies crop and place when a pair is rendered; a pair that is rendered once and kept is one
pair, as in a data set.
"""

import functools
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lvmlab.data.mini_world import World
from lvmlab.data.mixture import Mixture
from lvmlab.data.store import build
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
FEW = {"derain": (("photographs", 30),), "pose": (("bodies", 10), ("photographs", 10))}
COPIES = {"derain": 10, "pose": 30}
EVEN = dict.fromkeys(TASKS, 1.0)
CURVE = 32  # val prompts that the curves are of
SHOWN = 3  # first val prompts of each task whose answers are kept, of the first seed


@dataclass(frozen=True)
class Arm:
    """A way to balance. full: as many real pairs of every task as of segmentation, from all sources: what
    augmentation stands in for.
    """

    mixture: Mixture
    full: bool = False


ARMS = {
    "natural": Arm(Mixture("natural")),
    "natural, augmented": Arm(Mixture("mixture", weights=PAIRS)),
    "balanced": Arm(Mixture("balanced", weights=EVEN)),
    "balanced, augmented": Arm(Mixture("mixture", weights=EVEN)),
    "balanced, 10 copies": Arm(
        Mixture("mixture", weights=EVEN, copies=10)
    ),  # the paper's mixture: some of both
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
    """A scale of the study. shrink divides the pairs of every task; curve: how often each task's loss is
    taken in a training.
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
        wanted, group = (
            PAIRS["segmentation" if full else task] // self.shrink,
            16 if task == "segmentation" else 15,
        )
        return max(1, wanted // group), group


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
        "limit_sources": FEW,
        "copies": COPIES,
        "split": split,
    }


def store(setting: Setting, full: bool) -> Path:
    """The token store of the long tail, or of the full data, tokenised once into the cache folder."""
    folder = paths.cache() / "studies" / STUDY / f"store-{'full' if full else 'tail'}-{setting.shrink}"
    worlds = []
    for task in TASKS:
        groups, pairs = setting.pairs(task, full)
        worlds.append(World(task, groups, pairs=pairs, limit_sources=() if full else FEW.get(task, ())))
    build(folder, Tokenizer.from_pretrained("mini"), worlds, copies={} if full else COPIES)
    return folder


def arm(
    name: str, setting: Setting, split: str = "val", *, again: bool = False, compiled: bool = False
) -> dict:
    """The stored run of an arm, or a new one. split: "val" to choose by; "test" once, for the arm that was
    chosen. compiled: see `train_lvm`.
    """
    return runs.run(
        STUDY, config(name, setting, split), functools.partial(compute, compiled=compiled), again=again
    )


def compute(wanted: dict, compiled: bool = False) -> list[dict]:
    """One row a seed: {seed, seconds, counts, curve: [{step, TASK: cross entropy}], scores: rows of the
    evaluation, losses, answers}.
    """
    setting, chosen = Setting(**wanted["setting"]), ARMS[wanted["arm"]]
    data, tokenizer = store(setting, chosen.full), Tokenizer.from_pretrained("mini")
    asked = {
        split: common.scorers(TASKS, setting.prompts, split, tokenizer) for split in {"val", wanted["split"]}
    }
    # one training serves both splits; its curve is always val's
    folder = paths.cache() / "studies" / runs.key(STUDY, wanted | {"split": "val"})
    return [
        common.kept(
            folder / f"seed-{seed}" / f"{wanted['split']}.json",
            lambda seed=seed: _train(
                wanted, setting, chosen, seed, data, asked, folder / f"seed-{seed}", compiled
            ),
        )
        for seed in range(setting.seeds)
    ]


def _train(
    wanted: dict,
    setting: Setting,
    chosen: Arm,
    seed: int,
    data: Path,
    asked: dict[str, common.Scorers],
    folder: Path,
    compiled: bool,
) -> dict:
    print(f"{wanted['arm']}, seed {seed}")
    recipe = LVMRecipe(tokens=setting.tokens, phases=((1.0, 4),), mixture=chosen.mixture)
    # every arm of a seed begins with the same weights; the rate stays, for where it falls the last task would
    # be learned least
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
    tokenizer = next(iter(asked["val"].values())).tokenizer
    model = new_lvm(MICRO, tokenizer, seed=seed)
    log = train_lvm(
        compile_layers(model) if compiled else model,
        SentenceSampler(data, recipe, steps=setting.steps, seed=seed),
        folder,
        training,
        on_log=lambda record, lvm: record.update(losses=common.losses(lvm, asked["val"], CURVE)),
    )
    found = common.scored(
        load_lvm(folder), asked[wanted["split"]], name=wanted["arm"], shown=SHOWN if seed == 0 else 0
    )
    return {
        "seed": seed,
        "seconds": log[-1]["seconds"],
        "device": log[0]["device"],
        "precision": precision(setting.precision),
        "curve": [{"step": r["step"], "shares": r["shares"], **r["losses"]} for r in log],
        **found,
    }


def realised(records: dict[str, dict]) -> pd.DataFrame:
    """The share of sentences that each task had, over the whole training and all seeds: arms by tasks."""
    shares = {}
    for name, record in records.items():
        points = [
            point["shares"] for row in record["result"] for point in row["curve"][1:]
        ]  # the first: one batch
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
        rows: Of `lvmlab.lab.frames.trainings`, those four arms among them.
        measure: A column of them: "loss", "skill".

    Returns:
        ``task``, ``effect``; ``mean``, ``low``, ``high``: 95 % t intervals over seeds.
    """
    lines = []
    for task in TASKS:
        natural, augmented, balanced, both = (
            common.by_seed(rows, task, measure)[arm] for arm in list(ARMS)[:4]
        )
        of_task = {
            "sampling": (balanced - natural + both - augmented) / 2,
            "augmentation": (augmented - natural + both - balanced) / 2,
            "interaction": both - balanced - augmented + natural,
        }
        lines += [{"task": task, "effect": name} | common.spread(values) for name, values in of_task.items()]
    return pd.DataFrame(lines)


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
