"""What does a small student gain from a large teacher? DeLVM's section 3.3 and figure 4, with `mini-teacher`.

    python -m lvmlab.studies.distillation [--scale smoke] [ARM ...]    # every arm and seed that is not stored; goes on where it was stopped

Every arm trains from the same seeds on the same frozen sentences, each read once, at a learning rate chosen for it on val; what differs is
what the student is held to. One arm has no teacher and as much compute as the teacher's passes cost; one pair is of a single task.
"""

import functools
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from lvmlab import paths, runs, tasks
from lvmlab.device import precision
from lvmlab.distill import Objective
from lvmlab.lvm import LVM, Shape
from lvmlab.lvm_train import SHARES, Drawn, Recipe, load_lvm, train_lvm
from lvmlab.mixture import Mixture
from lvmlab.store import build
from lvmlab.studies import common
from lvmlab.studies.common import MICRO
from lvmlab.teacher import Frozen, freeze, write_cache
from lvmlab.tokenizer import Tokenizer
from lvmlab.train import TrainConfig
from lvmlab.worlds import World

STUDY, VERSION = "distillation", 1
TEACHER, LRS = "mini-teacher", (1e-3, 2e-3, 4e-3)
SMALL = Shape(80, 4, 2, 216, bias=True)  # 0.46M parameters
SHOWN, CURVE = 3, 32  # first val prompts of each task whose answers are kept, of the first seed; prompts that the curves are of


@dataclass(frozen=True)
class Arm:
    """What a student is held to. objective: None is cross entropy alone. only: a single task, whose teacher was tuned to it.
    times: so many times the tokens, drawn afresh."""

    objective: Objective | None = None
    shape: Shape = MICRO
    only: str | None = None
    times: float = 1.0


ARMS = {"alone": Arm(), "smoothing": Arm(Objective("smoothing")), "forward": Arm(Objective("forward")), "reverse": Arm(Objective("reverse")),
        "js": Arm(Objective("js")), "skew": Arm(Objective("skew")), "hidden": Arm(Objective("hidden")), "own": Arm(Objective("own")),
        "forward, T 2": Arm(Objective("forward", temperature=2.0)), "forward, T 4": Arm(Objective("forward", temperature=4.0)),
        "pose, alone": Arm(only="pose"), "pose, forward": Arm(Objective("forward"), only="pose"), "small, alone": Arm(shape=SMALL),
        "small, forward": Arm(Objective("forward"), shape=SMALL),
        "alone, the teacher's compute too": Arm(times=3.5),  # a teacher of 7.76M reads a token at 2 x 7.76 MFLOP, the student learns it at 6 x 1.05
    }


@dataclass(frozen=True)
class Setting:
    """A scale of the study. groups: of 16 pairs tokenised for each task. tune: steps of the trainings that choose the learning rate."""

    steps: int = 2000
    tokens: int = 2048
    seeds: int = 3
    groups: int = 600
    prompts: int = 64
    curve: int = 12
    tune: int = 400
    teacher_steps: int = 500  # of tuning a teacher to a single task
    precision: str = "auto"


SCALES = {"smoke": Setting(steps=60, tokens=1024, groups=20, prompts=8, curve=2, tune=20, teacher_steps=10, precision="fp32"), "study": Setting()}


def config(arm: str, setting: Setting) -> dict:
    """All that decides an arm's outcome, as plain JSON: what its run is named by."""
    tokenizer, teacher = Tokenizer.from_pretrained("mini", device="cpu").fingerprint, LVM.from_pretrained(TEACHER, device="cpu").fingerprint()
    whole = {"version": VERSION, "arm": arm, **asdict(ARMS[arm]), "setting": asdict(setting), "tokenizer": tokenizer, "teacher": teacher, "lrs": LRS}
    return json.loads(json.dumps(whole))


def arm(name: str, setting: Setting, *, again: bool = False, compiled: bool = False) -> dict:
    """The stored run of an arm, or a new one."""
    return runs.run(STUDY, config(name, setting), functools.partial(compute, compiled=compiled), again=again)


def recipe(setting: Setting, only: str | None) -> Recipe:
    """Sentences of four pairs; those of a single task where one is named."""
    return Recipe(tokens=setting.tokens, phases=((1.0, 4),), mixture=Mixture("resampled", weights={only: 1.0} if only else SHARES))


def store(groups: int) -> Path:
    """The token store of the trained tasks, tokenised once."""
    folder = paths.cache() / "studies" / STUDY / f"store-{groups}"
    build(folder, Tokenizer.from_pretrained("mini"), [World(task, groups) for task in tasks.TRAINED])
    return folder


def sentences(setting: Setting, only: str | None) -> tuple[Path, Path]:
    """The token store, and the frozen list of all sentences that a training reads, both made once."""
    root, data = paths.cache() / "studies" / STUDY, store(setting.groups)
    drawn = Drawn(data, recipe(setting, only), steps=setting.steps, seed=0)
    count = setting.steps * drawn(0, 0, 1)["tokens"].shape[0]
    return data, freeze(root / f"list-{only or 'all'}-{setting.groups}-{count}", drawn, count, drawn.identity)


def teacher(setting: Setting, only: str | None, data: Path) -> LVM:
    """`mini-teacher`, or what it becomes when it is tuned to a single task."""
    if only is None:
        return LVM.from_pretrained(TEACHER)
    folder = paths.cache() / "studies" / STUDY / f"teacher-{only}-{setting.teacher_steps}-{setting.groups}"
    tuning = TrainConfig(steps=setting.teacher_steps, lr=5e-4, min_lr=2e-5, warmup=setting.teacher_steps // 20, optimizer="muon", seed=7,
                         precision=setting.precision, save_every=100)
    train_lvm(data, folder, shape=TEACHER, config=tuning, recipe=recipe(setting, only), start=paths.assets() / "models" / TEACHER)
    return load_lvm(folder)


def compute(wanted: dict, compiled: bool = False) -> list[dict]:
    """One row a seed: {seed, lr, tuning: {lr: val loss}, seconds, curve, scores, losses, answers, flops}."""
    setting, chosen, tokenizer = Setting(**wanted["setting"]), ARMS[wanted["arm"]], Tokenizer.from_pretrained("mini")
    data, listed = sentences(setting, chosen.only)
    asked = common.scorers((chosen.only,) if chosen.only else tasks.TRAINED, setting.prompts, "val", tokenizer)
    master = teacher(setting, chosen.only, data) if chosen.objective and chosen.objective.teacher != "none" else None
    if master and chosen.objective.teacher == "logits":
        write_cache(listed, master)
    folder = paths.cache() / "studies" / runs.key(STUDY, wanted)

    def train(name: str, seed: int, steps: int, lr: float) -> dict:
        print(f"{wanted['arm']}, {name}")
        made = recipe(replace(setting, steps=steps), chosen.only)
        cached = master.fingerprint() if master and chosen.objective.teacher == "logits" else None
        frozen = Frozen(listed, max(1, setting.tokens // 512), seed, teacher=cached)
        training = TrainConfig(steps=steps, lr=lr, min_lr=lr / 30, warmup=max(1, steps // 20), optimizer="muon", seed=seed,
                               precision=setting.precision, log_every=max(1, steps // setting.curve), save_every=max(1, steps // 10))
        log = train_lvm(frozen if chosen.times == 1 else data, folder / name, shape=chosen.shape, config=training, recipe=made, compiled=compiled,
                        codebook=tokenizer.net.quantize.table().cpu(), teacher=None if cached else master, objective=chosen.objective,
                        on_log=lambda record, lvm: record.update(losses=common.losses(lvm, asked, CURVE)))
        curve = [{"step": r["step"], **r["losses"]} for r in log]
        return {"seed": seed, "lr": lr, "seconds": log[-1]["seconds"], "device": log[0]["device"], "curve": curve}

    def tune(lr: float) -> dict:
        row = train(f"lr-{lr}", 100, setting.tune, lr)
        return row | {"loss": float(np.mean([row["curve"][-1][task] for task in asked]))}

    tuned = {lr: common.kept(folder / f"lr-{lr}.json", lambda lr=lr: tune(lr))["loss"] for lr in LRS}
    best = min(tuned, key=tuned.get)

    def one(seed: int) -> dict:
        steps = round(setting.steps * chosen.times)
        row = train(f"seed-{seed}", seed, steps, best)
        lvm = load_lvm(folder / f"seed-{seed}")
        read = steps * setting.tokens
        flops = {"student": 6 * lvm.num_parameters * read, "teacher": 2 * (master.num_parameters if master else 0) * read}
        return row | {"tuning": tuned, "precision": precision(setting.precision), "parameters": lvm.num_parameters, "flops": flops,
                      **common.scored(lvm, asked, name=wanted["arm"], shown=SHOWN if seed == 0 else 0)}  # fmt: skip

    return [common.kept(folder / f"seed-{seed}.json", lambda seed=seed: one(seed)) for seed in range(setting.seeds)]


def gained(records: dict[str, dict], name: str, task: str, against: str = "alone", measure: str = "cross entropy") -> tuple[float, float, float]:
    """What an arm changes against another, seed by seed: (mean, low, high), 95 % t interval; nats a token, below 0 is better."""
    return common.across_seeds(common.final_losses(records[name], task, measure) - common.final_losses(records[against], task, measure))


def main() -> None:
    common.main(__doc__, SCALES, "arms", ARMS, arm, lambda name, record: {
        task: round(float(common.final_losses(record, task).mean()), 3) for task in record["result"][0]["losses"]})


if __name__ == "__main__":
    main()
