"""What does a small student gain from a large teacher? DeLVM's section 3.3 and figure 4, with `mini-teacher`.

    lvmlab study distillation [--scale smoke] [ARM ...]    # computes what is not stored; resumes

Every arm trains from the same seeds on the same frozen sentences, each read once, at a rate chosen for
it on val. Arms differ in the student's loss. One arm has no teacher and spends the compute of the teacher's
passes on more tokens; one pair of arms learns a single task.
"""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lvmlab.data.building import build
from lvmlab.data.mini_world import World
from lvmlab.data.mixture import Mixture
from lvmlab.distillation.cache import ALL_CODES, FrozenSentences, freeze_sentences, write_cache
from lvmlab.distillation.objectives import Distillation
from lvmlab.lab import frames, runs
from lvmlab.lab.studies import common
from lvmlab.lab.studies.common import MICRO
from lvmlab.model.config import LVMConfig
from lvmlab.model.lvm import LVM
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.training.export import load_lvm
from lvmlab.training.loop import TrainConfig
from lvmlab.training.lvm import train_lvm
from lvmlab.training.preparation import compile_layers, load_start, new_lvm, sentence_seed
from lvmlab.training.recipe import SHARES, LVMRecipe
from lvmlab.training.sampler import SentenceSampler
from lvmlab.utils import paths
from lvmlab.utils.device import precision
from lvmlab.world import tasks

STUDY, VERSION = "distillation", 1
TEACHER, LRS = "mini-teacher", (2e-3, 4e-3, 8e-3)
SMALL = LVMConfig(80, 4, 2, 216, attention_bias=True)  # 0.46M parameters
CURVE = 32  # val prompts of a curve
ANSWERS = 3  # val prompts of each task whose answers are stored, of the first seed


@dataclass(frozen=True)
class Arm:
    """The loss of a student, its size and its data.

    Args:
        distillation: None is cross entropy alone.
        on_policy: Share of sentences whose last answer the student writes.
        shape: The student's.
        only: A single task, whose teacher was tuned to it.
        times: So many times the tokens, drawn afresh.
    """

    distillation: Distillation | None = None
    on_policy: float = 0.0
    shape: LVMConfig = MICRO
    only: str | None = None
    times: float = 1.0

    @property
    def teacher(self) -> str:
        """What the arm needs: "none", "model", or "cache" of its predictions."""
        if self.distillation is None or self.distillation.divergence is None:
            return "none"
        return "model" if self.on_policy else "cache"


ARMS = {
    "alone": Arm(),
    "smoothing": Arm(Distillation(None, label_smoothing=0.1)),
    "forward": Arm(Distillation("forward")),
    "reverse": Arm(Distillation("reverse")),
    "js": Arm(Distillation("js")),
    "skew": Arm(Distillation("skew")),
    "on-policy": Arm(Distillation("forward", min_confidence=0.5), on_policy=0.5),
    "forward, T 2": Arm(Distillation("forward", temperature=2.0)),
    "forward, T 4": Arm(Distillation("forward", temperature=4.0)),
    "pose, alone": Arm(only="pose"),
    "pose, forward": Arm(Distillation("forward"), only="pose"),
    "small, alone": Arm(shape=SMALL),
    "small, forward": Arm(Distillation("forward"), shape=SMALL),
    # a teacher of 7.76M parameters reads a token at 2 x 7.76 MFLOP, the student learns it at 6 x 1.05
    "alone, the teacher's compute too": Arm(times=3.5),
}
SCREENED, CHOSEN = ("reverse", "js", "skew", "on-policy"), 2  # other losses, and how many are trained in full


@dataclass(frozen=True)
class Setting:
    """A scale of the study.

    Attributes:
        steps: Of a training.
        tokens: A step.
        seeds: Trainings of an arm.
        groups: Of 16 pairs, tokenised for each task.
        prompts: Scored in each task.
        curve: Points of a training's curve.
        tune: Steps of the trainings that choose the learning rate.
        teacher_steps: Of tuning a teacher to a single task.
        precision: auto, fp32 or bf16.
    """

    steps: int = 2000
    tokens: int = 2048
    seeds: int = 3
    groups: int = 600
    prompts: int = 64
    curve: int = 12
    tune: int = 400
    teacher_steps: int = 500
    precision: str = "auto"


SCALES = {
    "smoke": Setting(
        steps=60, tokens=1024, groups=20, prompts=8, curve=2, tune=20, teacher_steps=10, precision="fp32"
    ),
    "study": Setting(),
}


def config(arm: str, setting: Setting) -> dict:
    """All that decides an arm's outcome: what its run is named by."""
    tokenizer = Tokenizer.from_pretrained("mini", device="cpu").fingerprint
    teacher = LVM.from_pretrained(TEACHER, device="cpu").fingerprint()
    return {
        "version": VERSION,
        "arm": arm,
        **asdict(ARMS[arm]),
        "setting": asdict(setting),
        "tokenizer": tokenizer,
        "teacher": teacher,
        "lrs": LRS,
    }


def arm(name: str, setting: Setting, *, again: bool = False, compiled: bool = False) -> dict:
    """The stored run of an arm, or a new one."""
    return runs.run(STUDY, config(name, setting), functools.partial(compute, compiled=compiled), again=again)


def recipe(setting: Setting, only: str | None) -> LVMRecipe:
    """Sentences of four pairs; those of a single task where one is named."""
    return LVMRecipe(
        tokens=setting.tokens,
        phases=((1.0, 4),),
        mixture=Mixture("balanced", weights={only: 1.0} if only else SHARES),
    )


def store(groups: int) -> Path:
    """The token store of the trained tasks, tokenised once."""
    folder = paths.cache() / "studies" / STUDY / f"store-{groups}"
    build(folder, Tokenizer.from_pretrained("mini"), [World(task, groups) for task in tasks.TRAINED])
    return folder


def sentences(setting: Setting, only: str | None) -> tuple[Path, Path]:
    """The token store, and the frozen list of all sentences that a training reads, both stored."""
    root, data = paths.cache() / "studies" / STUDY, store(setting.groups)
    sampler = SentenceSampler(data, recipe(setting, only), steps=setting.steps, seed=0)
    count = setting.steps * sampler(0, 0, 1)["tokens"].shape[0]
    folder = root / f"sentences-{only or 'all'}-{setting.groups}-{count}"
    return data, freeze_sentences(folder, sampler, count, sampler.identity)


def teacher(setting: Setting, only: str | None, data: Path) -> LVM:
    """`mini-teacher`, or what it becomes when it is tuned to a single task."""
    if only is None:
        return LVM.from_pretrained(TEACHER)
    folder = paths.cache() / "studies" / STUDY / f"teacher-{only}-{setting.teacher_steps}-{setting.groups}"
    tuning = TrainConfig(
        steps=setting.teacher_steps,
        lr=5e-4,
        min_lr=2e-5,
        warmup=setting.teacher_steps // 20,
        optimizer="muon",
        seed=7,
        precision=setting.precision,
        save_every=100,
    )
    model = load_start(paths.assets() / "models" / TEACHER)
    seed = sentence_seed(model, tuning.seed)
    sampler = SentenceSampler(data, recipe(setting, only), steps=tuning.steps, seed=seed)
    train_lvm(model, sampler, folder, tuning)
    return load_lvm(folder)


def tuning(name: str, setting: Setting, *, again: bool = False, compiled: bool = False) -> dict:
    """The stored run, or a new one, that chooses an arm's learning rate by short trainings at `LRS`."""
    setup = config(name, setting) | {"part": "tuning"}
    return runs.run(STUDY, setup, functools.partial(tune, compiled=compiled), again=again)


def lowest(record: dict) -> tuple[float, float]:
    """Of a `tuning`: (least val loss over the learning rates, that rate)."""
    return min((row["loss"], row["lr"]) for row in record["result"])


def chosen(setting: Setting, *, compiled: bool = False) -> tuple[str, ...]:
    """The arms that are trained in full: of SCREENED the CHOSEN whose tuning ended lowest on val."""
    order = sorted(SCREENED, key=lambda name: lowest(tuning(name, setting, compiled=compiled)))
    return tuple(name for name in ARMS if name not in order[CHOSEN:])


@dataclass
class Trainings:
    """What the trainings of one arm share."""

    config: dict
    compiled: bool

    def __post_init__(self):
        self.setting, self.arm = Setting(**self.config["setting"]), ARMS[self.config["arm"]]
        self.tokenizer = Tokenizer.from_pretrained("mini")
        self.data, self.sentences = sentences(self.setting, self.arm.only)
        names = (self.arm.only,) if self.arm.only else tasks.TRAINED
        self.scorers = common.scorers(names, self.setting.prompts, "val", self.tokenizer)
        needed = self.arm.teacher
        self.teacher = teacher(self.setting, self.arm.only, self.data) if needed != "none" else None
        if (
            needed == "cache"
            and self.teacher.vocab_size > ALL_CODES
            and not self.arm.distillation.accepts_top
        ):
            needed = "model"  # the cache of a larger codebook keeps the likeliest codes alone
        self.cached = write_cache(self.sentences, self.teacher) if needed == "cache" else None
        self.folder = paths.cache() / "studies" / runs.key(STUDY, self.config)

    def train(self, name: str, seed: int, steps: int, lr: float) -> dict:
        """{seed, lr, seconds, device, curve: [{step, TASK: cross entropy}]} of one training, whose model lies
        in the folder ``name``.
        """
        print(f"{self.config['arm']}, {name}")
        setting, arm = self.setting, self.arm
        if arm.times > 1:
            batches = SentenceSampler(self.data, recipe(setting, arm.only), steps=steps, seed=seed)
        else:
            size = max(1, setting.tokens // 512)
            batches = FrozenSentences(self.sentences, size, seed, self.cached, arm.on_policy)
        training = TrainConfig(
            steps=steps,
            lr=lr,
            min_lr=lr / 30,
            warmup=max(1, steps // 20),
            optimizer="muon",
            seed=seed,
            precision=setting.precision,
            log_every=max(1, steps // setting.curve),
            save_every=max(1, steps // 10),
        )
        model = new_lvm(arm.shape, self.tokenizer, seed=seed)
        log = train_lvm(
            compile_layers(model) if self.compiled else model,
            batches,
            self.folder / name,
            training,
            arm.distillation,
            teacher=None if self.cached else self.teacher,
            on_log=lambda record, lvm: record.update(losses=common.losses(lvm, self.scorers, CURVE)),
        )
        curve = [{"step": r["step"], **r["losses"]} for r in log]
        return {
            "seed": seed,
            "lr": lr,
            "seconds": log[-1]["seconds"],
            "device": log[0]["device"],
            "curve": curve,
        }


def tune(config: dict, compiled: bool = False) -> list[dict]:
    """One row a learning rate: {seed, lr, loss: mean val cross entropy of the tasks at the end, seconds,
    curve}.
    """
    trainings = Trainings(config, compiled)

    def one(lr: float) -> dict:
        row = trainings.train(f"lr-{lr}", 100, trainings.setting.tune, lr)
        return row | {"loss": float(np.mean([row["curve"][-1][task] for task in trainings.scorers]))}

    return [common.resumed(trainings.folder / f"lr-{lr}.json", lambda lr=lr: one(lr)) for lr in LRS]


def compute(config: dict, compiled: bool = False) -> list[dict]:
    """One row a seed: {seed, lr, seconds, curve, scores, losses, answers, flops; teacher: its losses, where
    it was tuned to a single task}.
    """
    trainings = Trainings(config, compiled)
    setting, teacher_lvm = trainings.setting, trainings.teacher
    lr = lowest(tuning(config["arm"], setting, compiled=compiled))[1]

    def one(seed: int) -> dict:
        steps = round(setting.steps * trainings.arm.times)
        row = trainings.train(f"seed-{seed}", seed, steps, lr)
        lvm, read = load_lvm(trainings.folder / f"seed-{seed}"), steps * setting.tokens
        flops = {
            "student": 6 * lvm.num_parameters * read,
            "teacher": 2 * (teacher_lvm.num_parameters if teacher_lvm else 0) * read,
        }
        # a teacher of a single task does not ship: its losses are stored here
        tuned = teacher_lvm and trainings.arm.only
        teacher_losses = {"teacher": common.losses(teacher_lvm, trainings.scorers)} if tuned else {}
        return row | {
            "precision": precision(setting.precision),
            "parameters": lvm.num_parameters,
            "flops": flops,
            **teacher_losses,
            **common.scored(lvm, trainings.scorers, name=config["arm"], answers=ANSWERS if seed == 0 else 0),
        }

    return [
        common.resumed(trainings.folder / f"seed-{seed}.json", lambda seed=seed: one(seed))
        for seed in range(setting.seeds)
    ]


def gains(
    rows: pd.DataFrame, names: Sequence[str], against: str = "alone", measure: str = "loss"
) -> pd.DataFrame:
    """What arms change against another, seed by seed.

    Args:
        rows: Of `lvmlab.lab.frames.trainings`.
        names: The arms.
        against: The arm that they are compared with.
        measure: A column of the rows; in nats a token below 0 is better.

    Returns:
        ``arm``, ``task``; ``mean``, ``low``, ``high``: 95 % t intervals over seeds.
    """
    lines = []
    for task in rows[rows.arm == against].task.unique():
        values = common.by_seed(rows, task, measure)
        changes = values[[name for name in names if name in values]].sub(values[against], axis=0)
        lines += [{"arm": name, "task": task} | common.spread(changes[name]) for name in changes]
    return pd.DataFrame(lines)


def closed(rows: pd.DataFrame, name: str, teacher: dict[str, float], against: str = "alone") -> pd.DataFrame:
    """The share of the gap to the teacher that an arm closes, seed by seed.

    Args:
        rows: Of `lvmlab.lab.frames.trainings`.
        name: The arm.
        teacher: The teacher's cross entropy by task.
        against: The arm whose gap it is.

    Returns:
        ``task``, ``teacher``, ``student`` (nats a token of ``against``); ``mean``, ``low``, ``high``: 95 % t
        intervals over seeds.
    """
    lines = []
    for task, best in teacher.items():
        losses = common.by_seed(rows, task)
        share = (losses[against] - losses[name]) / (losses[against] - best)
        lines.append(
            {"task": task, "teacher": best, "student": losses[against].mean()} | common.spread(share)
        )
    return pd.DataFrame(lines)


def main() -> None:
    args = common.parser(__doc__, SCALES, "arms").parse_args()
    setting, options = SCALES[args.scale], {"compiled": args.compiled}
    # an arm that val drops leaves its tuning alone
    common.shipped(() if args.arms else SCREENED, lambda name: tuning(name, setting, **options))
    names = args.arms or chosen(setting)
    common.shipped(names, lambda name: tuning(name, setting, **options))
    records = common.shipped(names, lambda name: arm(name, setting, **options))
    print(frames.markdown(common.table(frames.trainings(records), tasks.TRAINED)))


if __name__ == "__main__":
    main()
