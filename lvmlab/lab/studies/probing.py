"""What do features know, in which layer, and does a lower loss mean better ones? (AIM, arXiv 2401.08541)

    lvmlab study probing [--scale smoke] [ARM ...]    # computes what is not stored; resumes

Probes tell mini-world's 25 classes of objects, from families that no training saw, and Fashion-MNIST's ten,
of which no training saw any. Token models are the shipped ones; a seed is the probe's alone. Patch models are
pre-trained here on as many pictures each, from the same seeds. The floors are untrained trunks and pixels.

In fp32 a training takes 1.5 minutes (`small`) to 8 (LLaMA's blocks) of one core, the probes of a trunk about
one: an hour and a half of two cores in all. Two processes of one thread each (OMP_NUM_THREADS=1) are faster
than one process of two threads.
"""

import functools
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lvmlab.data import labelled
from lvmlab.data.labelled import Labelled
from lvmlab.evaluation import probing as probe
from lvmlab.evaluation.features import LVMTrunk, PatchTrunk, PixelTrunk, Trunk, extract
from lvmlab.lab import frames, runs
from lvmlab.lab.studies import common
from lvmlab.model.aim import AIM_PRESETS as PATCHES
from lvmlab.model.aim import PatchConfig, PatchLM
from lvmlab.model.lvm import LVM
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.training.aim import load_patchlm, pretrain
from lvmlab.training.loop import TrainConfig
from lvmlab.utils import paths
from lvmlab.utils.device import default_device, precision
from lvmlab.utils.images import from_uint8

STUDY, VERSION = "probing", 1
AIM = PATCHES["aim-mini"]
SMALL = PatchConfig(96, 4, 3, patch=8, size=64, head_blocks=4, head_width=192)
PROBES = {"linear": "linear probe", "attentive": "attentive probe", "fashion": "linear probe, Fashion-MNIST"}


@dataclass(frozen=True)
class Arm:
    """What is probed: a patch model, a token model, or pixels (neither).

    Attributes:
        patches: The patch model's configuration.
        tokens: The token model's name.
        tenth: Pre-trained on a tenth of the pictures.
        trained: False leaves the weights as they were initialised.
        probes: Of `PROBES`.
    """

    patches: PatchConfig | None = None
    tokens: str | None = None
    tenth: bool = False
    trained: bool = True
    probes: tuple[str, ...] = tuple(PROBES)


ARMS = {
    "mini-teacher": Arm(tokens="mini-teacher"),
    "mini-student": Arm(tokens="mini-student"),
    "mini-student-kd": Arm(tokens="mini-student-kd"),
    "aim-mini": Arm(AIM),
    "aim-mini, LLaMA's blocks": Arm(PATCHES["aim-mini-llama"]),
    "aim-mini, a tenth of the pictures": Arm(AIM, tenth=True),
    "small": Arm(SMALL),
    "small, a tenth of the pictures": Arm(SMALL, tenth=True),
    "aim-mini, no head": Arm(replace(AIM, head_blocks=0)),
    "aim-mini, plain causal": Arm(replace(AIM, prefix=False)),
    "aim-mini, untrained": Arm(AIM, trained=False),
    "mini-teacher, untrained": Arm(tokens="mini-teacher", trained=False),
    "pixels": Arm(probes=("linear", "fashion")),  # all at once
    "pixels by patches": Arm(probes=("attentive",)),
}
GRID = tuple(
    name for name in ARMS if name.startswith(("small", "aim-mini, a tenth")) or name == "aim-mini"
)  # 2 sizes x 2 data sizes


@dataclass(frozen=True)
class Setting:
    """A scale of the study.

    Attributes:
        steps: Of pre-training.
        batch: Pictures a step.
        seeds: Trainings of an arm.
        placements: Of each object in pre-training.
        tenth_per_class: Pictures of a class that are a tenth.
        probe_placements: Of each object that the probes are fitted and scored on.
        max_per_class: Pictures of a class for the probes; None for all.
        fashion_per_class: Pictures of a class of Fashion-MNIST; 0 leaves it out.
        epochs: Of the attentive probe.
        lr: Of pre-training.
        precision: auto, fp32 or bf16.
    """

    steps: int = 600
    batch: int = 32
    seeds: int = 3
    placements: int = 32
    tenth_per_class: int = 57
    probe_placements: int = 4
    max_per_class: int | None = None
    fashion_per_class: int = 200
    epochs: int = 20
    lr: float = 1e-3
    precision: str = "auto"


SCALES = {
    "smoke": Setting(
        steps=4,
        batch=8,
        seeds=2,
        placements=1,
        tenth_per_class=2,
        probe_placements=1,
        max_per_class=2,
        fashion_per_class=0,
        epochs=2,
        precision="fp32",
    ),
    "study": Setting(),
}


def config(arm: str, setting: Setting) -> dict:
    """All that decides an arm's outcome: what its run is named by."""
    chosen, models = ARMS[arm], {}
    if chosen.tokens:
        models["tokenizer"] = Tokenizer.from_pretrained("mini", device="cpu").fingerprint
        models["model"] = LVM.from_pretrained(chosen.tokens, device="cpu").fingerprint()
    return {"version": VERSION, "arm": arm, **asdict(chosen), "setting": asdict(setting), **models}


def arm(name: str, setting: Setting, *, again: bool = False, compiled: bool = False) -> dict:
    """The stored run of an arm, or a new one."""
    return runs.run(STUDY, config(name, setting), compute, again=again)


def pictures(split: str, setting: Setting, kind: str = "linear") -> Labelled:
    """What a probe is fitted on ("train"), chosen by ("val") and scored on ("test")."""
    if kind == "fashion":
        return labelled.fashion_mnist(split).first(setting.fashion_per_class)
    objects = labelled.objects(split, times=setting.probe_placements)
    return objects if setting.max_per_class is None else objects.first(setting.max_per_class)


def compute(config: dict) -> list[dict]:
    """One row a seed.

    Returns:
        {seed, seconds, objective: the loss of pre-training on val, None where there was none}, and of each
        probe {blocks: [{val, score, low, high}], best: the block that val chooses, predicted: its classes of
        the test pictures}.
    """
    setting, chosen = Setting(**config["setting"]), ARMS[config["arm"]]
    folder = paths.cache() / "studies" / runs.key(STUDY, config)
    rows = []
    for seed in range(setting.seeds):
        # no seed enters the linear probes of a shipped model or of pixels: the first row has them
        known = rows[0] if rows and chosen.trained and not chosen.patches else {}
        row = functools.partial(_row, config["arm"], setting, seed, folder / f"seed-{seed}", known)
        rows.append(common.resumed(folder / f"seed-{seed}.json", row))
    return rows


def _row(name: str, setting: Setting, seed: int, folder: Path, known: dict) -> dict:
    """One training and its probes. known: a row of the same trunk, whose linear probes are taken over."""
    print(f"{name}, seed {seed}")
    chosen = ARMS[name]
    row = {"seed": seed, "seconds": 0.0, "objective": None, "precision": precision(setting.precision)}
    if chosen.patches and chosen.trained:
        data = labelled.objects("train", times=setting.placements).kept()
        training = TrainConfig(
            steps=setting.steps,
            lr=setting.lr,
            min_lr=setting.lr / 100,
            warmup=setting.steps // 20,
            weight_decay=0.05,
            seed=seed,
            precision=setting.precision,
            log_every=max(1, setting.steps // 20),
            save_every=max(1, setting.steps // 10),
        )
        log = pretrain(
            data.first(setting.tenth_per_class) if chosen.tenth else data,
            folder,
            shape=chosen.patches,
            config=training,
            batch=setting.batch,
        )
        row |= {
            "seconds": log[-1]["seconds"],
            "objective": objective(load_patchlm(folder), pictures("val", setting).kept()),
        }
    trunk = _trunk(chosen, seed, folder)
    for kind in chosen.probes:
        if kind != "fashion" or setting.fashion_per_class:
            probed = known.get(kind) if kind != "attentive" else None
            row[kind] = probed or _probed(kind, trunk, "attentive" in chosen.probes, setting, seed)
    return row


def _trunk(chosen: Arm, seed: int, folder: Path) -> Trunk:
    if chosen.patches:
        model = load_patchlm(folder) if chosen.trained else PatchLM.from_shape(chosen.patches, seed)
        return PatchTrunk(model.to(default_device()).eval())
    if chosen.tokens:
        lvm = LVM.from_pretrained(chosen.tokens) if chosen.trained else LVM.from_shape(chosen.tokens, seed)
        return LVMTrunk(lvm.to(default_device()).eval(), Tokenizer.from_pretrained("mini"))
    return PixelTrunk(None if "linear" in chosen.probes else AIM.patch)


def _probed(kind: str, trunk: Trunk, places: bool, setting: Setting, seed: int) -> dict:
    """One probe on every block. places: both probes of the objects read the same features."""
    splits = [pictures(split, setting, kind).kept() for split in ("train", "val", "test")]
    of_blocks = "all" if places and kind != "fashion" else ()
    features = [extract(trunk, data, places=of_blocks, progress=False) for data in splits]

    # val and test are predicted together
    train, val, test = features
    both = replace(
        test,
        means=[np.concatenate(m) for m in zip(val.means, test.means, strict=True)],
        places={block: np.concatenate([val.places[block], test.places[block]]) for block in val.places},
    )
    rows, classes = [], []
    for block in range(len(train.means)):
        if kind == "attentive":
            predicted, *_ = probe.attentive(train, val, both, block, epochs=setting.epochs, seed=seed)
        else:
            predicted = probe.linear(train, val, both, block, seed)
        of_val, of_test = np.split(predicted, [len(val.data)])
        rows.append({"val": probe.score(of_val, val.data)["score"], **probe.score(of_test, test.data)})
        classes.append(of_test.tolist())

    # gigabytes of features, which the attentive probe reads after the linear one
    if kind != "linear" or not places:
        for extracted in features:
            shutil.rmtree(extracted.folder)
    best = int(np.argmax([row["val"] for row in rows]))
    return {"blocks": rows, "best": best, "predicted": classes[best]}


@torch.inference_mode()
def objective(model: PatchLM, data: Labelled) -> float:
    """The loss of pre-training on pictures, under prefixes drawn once for all models."""
    generator = torch.Generator().manual_seed(0)
    batches = np.array_split(np.arange(len(data)), -(-len(data) // 64))
    return float(np.mean([model.loss(from_uint8(data.batch(rows)), generator).item() for rows in batches]))


def predictions(record: dict, kind: str) -> tuple[np.ndarray, Labelled]:
    """The classes that a probe predicts, and the test pictures.

    Returns:
        (seeds, P): of each seed, by the probe on the block that val chooses; and the pictures, whose files
        (Fashion-MNIST) are opened only where one is read.
    """
    predicted = np.array([row[kind]["predicted"] for row in record["result"]])
    setting = Setting(**record["config"]["setting"])
    if kind != "fashion":
        return predicted, pictures("test", setting)
    # `Labelled.first` has the pictures class after class
    labels = np.repeat(range(10), setting.fashion_per_class)
    picture = lambda i: pictures("test", setting, kind).picture(i)  # noqa: E731
    return predicted, Labelled(kind, 64, picture, labels, labelled.CLOTHES, np.arange(len(labels)))


def kinds(record: dict) -> list[str]:
    """The probes of a run."""
    return [kind for kind in PROBES if kind in record["result"][0]]


def table(records: dict[str, dict]) -> pd.DataFrame:
    """Balanced accuracy of each arm's probes; pixels are one arm.

    Returns:
        ``probe``, ``arm``; ``mean``, ``low``, ``high``: 95 % intervals over objects and seeds.
    """
    rows = []
    for name, record in records.items():
        for kind in kinds(record):
            mean, low, high = probe.score(*predictions(record, kind)).values()
            row = {"probe": kind, "arm": name.removesuffix(" by patches")}
            rows.append(row | {"mean": mean, "low": low, "high": high})
    return pd.DataFrame(rows)


def printed(rows: pd.DataFrame) -> pd.DataFrame:
    """`table` as texts to print, a line an arm and a column a probe."""
    cells = [frames.interval(row.mean, row.low, row.high, 3) for row in rows.itertuples(index=False)]
    lines = rows.assign(cell=cells).pivot(index="arm", columns="probe", values="cell")
    lines = lines.loc[rows.arm.unique(), rows.probe.unique()]
    return lines.rename(columns=lambda kind: f"{PROBES[kind]} (95 %)").rename_axis("arm").reset_index()


def correlations(records: dict[str, dict]) -> pd.DataFrame:
    """Correlation of the loss of pre-training and accuracy over `GRID`, and within each size.

    Returns:
        ``probe``, ``within``, ``trainings``, ``correlation``; over "all" it compares the two sizes.
    """
    rows = objectives({name: records[name] for name in GRID})
    sizes = rows.arm.str.split(",").str[0]
    groups = [("all", rows), *rows.groupby(sizes, sort=False)]
    return pd.DataFrame(
        {
            "probe": kind,
            "within": within,
            "trainings": len(group),
            "correlation": group.loss.corr(group[kind]),
        }
        for kind in kinds(records[GRID[0]])
        for within, group in groups
    )


def gained(
    records: dict[str, dict], name: str, against: str, kind: str = "linear"
) -> tuple[float, float, float]:
    """What an arm's features know more than another's, on the same objects drawn alike.

    Returns:
        (difference, low, high): a 95 % interval over objects and seeds.
    """
    one, other = (probe.balanced_accuracies(*predictions(records[arm], kind)) for arm in (name, against))
    return float(one[0] - other[0]), *map(float, np.percentile((one - other)[1:], (2.5, 97.5)))


COMPARISONS = [  # arms that AIM's questions set side by side
    ("mini-teacher", "mini-teacher, untrained"),
    ("aim-mini", "aim-mini, untrained"),
    ("aim-mini", "pixels"),
    ("aim-mini", "mini-teacher"),
    ("mini-student-kd", "mini-student"),
    ("aim-mini", "aim-mini, no head"),
    ("aim-mini", "aim-mini, plain causal"),
    ("aim-mini, LLaMA's blocks", "aim-mini"),
]


def differences(records: dict[str, dict], pairs: Sequence[tuple[str, str]] = COMPARISONS) -> pd.DataFrame:
    """`gained` of pairs of arms, where both have the probe.

    Returns:
        ``probe``, ``arm``, ``against``; ``mean``, ``low``, ``high``: 95 % intervals over objects and seeds.
    """
    rows = []
    for kind in PROBES:
        for name, against in pairs:
            if all(arm in records and kind in kinds(records[arm]) for arm in (name, against)):
                values = zip(("mean", "low", "high"), gained(records, name, against, kind), strict=True)
                rows.append({"probe": kind, "arm": name, "against": against} | dict(values))
    return pd.DataFrame(rows)


def blocks(records: dict[str, dict]) -> pd.DataFrame:
    """Which block val chooses for each probe, and what the blocks reach.

    Returns:
        ``arm``, ``probe``; ``chosen`` (by seed, from 1) of ``blocks``; the mean accuracy over seeds of the
        ``last`` block and of the ``highest``.
    """
    rows = []
    for name, record in records.items():
        for kind in kinds(record):
            probes = [row[kind] for row in record["result"]]
            scores = np.mean([[block["score"] for block in one["blocks"]] for one in probes], 0)
            chosen = [one["best"] + 1 for one in probes]
            row = {"arm": name, "probe": kind, "chosen": chosen, "blocks": len(scores)}
            rows.append(row | {"last": scores[-1], "highest": scores.max()})
    return pd.DataFrame(rows)


def objectives(records: dict[str, dict]) -> pd.DataFrame:
    """The pre-training's ``loss`` on val beside each probe's accuracy, a row a patch model's training."""
    rows = []
    for name, record in records.items():
        for row in record["result"]:
            if row["objective"] is not None:
                scores = {kind: row[kind]["blocks"][row[kind]["best"]]["score"] for kind in kinds(record)}
                rows.append({"arm": name, "seed": row["seed"], "loss": row["objective"]} | scores)
    return pd.DataFrame(rows)


def main() -> None:
    common.main(__doc__, SCALES, "arms", ARMS, arm, lambda records: frames.markdown(printed(table(records))))


if __name__ == "__main__":
    main()
