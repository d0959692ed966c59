"""What do features know, in which layer, and does a lower loss mean better ones? AIM's questions (arXiv
2401.08541, sections 4 and 5), in small.

    lvmlab study probing [--scale smoke] [ARM ...]    # every arm and seed that is not stored;
    goes on where it was stopped

Probes tell mini-world's 25 classes of objects, from families that no training saw, and Fashion-MNIST's ten,
of which no training saw any. Token
models are the shipped ones, of which a seed is the probe's alone; patch models are pre-trained here on as
many pictures each, from the same seeds.
The floors are untrained trunks and the pixels themselves.

In fp32 a training takes 1.5 minutes (`small`) to 8 (LLaMA's blocks) of one core, the probes of a trunk about
one: an hour and a half of two cores in
all, and less where two processes of one thread each share the arms (OMP_NUM_THREADS=1) than where one has two
threads.
"""

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
    """What is probed: the patch model of a shape, the token model of a name, or pixels (neither). few:
    pre-trained on a tenth of the pictures.
    trained: False leaves the weights as they were drawn."""

    patches: PatchConfig | None = None
    tokens: str | None = None
    few: bool = False
    trained: bool = True
    probes: tuple[str, ...] = tuple(PROBES)


ARMS = {
    "mini-teacher": Arm(tokens="mini-teacher"),
    "mini-student": Arm(tokens="mini-student"),
    "mini-student-kd": Arm(tokens="mini-student-kd"),
    "aim-mini": Arm(AIM),
    "aim-mini, LLaMA's blocks": Arm(PATCHES["aim-mini-llama"]),
    "aim-mini, a tenth of the pictures": Arm(AIM, few=True),
    "small": Arm(SMALL),
    "small, a tenth of the pictures": Arm(SMALL, few=True),
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
    """A scale of the study. times: placements of each object in pre-training; few: pictures of a class that
    are a tenth. seen: placements of each
    object that the probes are fitted and scored on. most: pictures of a class, None: all. fashion: of a class
    of Fashion-MNIST, 0: not asked.
    """

    steps: int = 600
    batch: int = 32
    seeds: int = 3
    times: int = 32
    few: int = 57
    seen: int = 4
    most: int | None = None
    fashion: int = 200
    epochs: int = 20
    lr: float = 1e-3
    precision: str = "auto"


SCALES = {
    "smoke": Setting(
        steps=4, batch=8, seeds=2, times=1, few=2, seen=1, most=2, fashion=0, epochs=2, precision="fp32"
    ),
    "study": Setting(),
}


def config(arm: str, setting: Setting) -> dict:
    """All that decides an arm's outcome: what its run is named by."""
    chosen = ARMS[arm]
    models = (
        {
            "tokenizer": Tokenizer.from_pretrained("mini", device="cpu").fingerprint,
            "model": LVM.from_pretrained(chosen.tokens, device="cpu").fingerprint(),
        }
        if chosen.tokens
        else {}
    )
    return {"version": VERSION, "arm": arm, **asdict(chosen), "setting": asdict(setting), **models}


def arm(name: str, setting: Setting, *, again: bool = False, compiled: bool = False) -> dict:
    """The stored run of an arm, or a new one."""
    return runs.run(STUDY, config(name, setting), compute, again=again)


def pictures(split: str, setting: Setting, kind: str = "linear") -> Labelled:
    """What a probe is fitted on ("train"), chosen by ("val") and scored on ("test")."""
    if kind == "fashion":
        return labelled.fashion_mnist(split).first(setting.fashion)
    found = labelled.objects(split, times=setting.seen)
    return found if setting.most is None else found.first(setting.most)


def compute(wanted: dict) -> list[dict]:
    """One row a seed: {seed, seconds, objective: the pre-training's loss on val, None where there was none;
    and of each probe {blocks: [{val, score,
    low, high}], best: the block that val chooses, predicted: the test pictures' classes by it}}."""
    folder, setting = paths.cache() / "studies" / runs.key(STUDY, wanted), Setting(**wanted["setting"])

    def one(seed: int, known: dict) -> dict:
        return common.kept(
            folder / f"seed-{seed}.json",
            lambda: _row(wanted["arm"], setting, seed, folder / f"seed-{seed}", known),
        )

    first, chosen = one(0, {}), ARMS[wanted["arm"]]
    return [
        first,
        *(
            one(seed, first if chosen.trained and not chosen.patches else {})
            for seed in range(1, setting.seeds)
        ),
    ]


def _row(name: str, setting: Setting, seed: int, folder: Path, known: dict) -> dict:
    """known: a row of the same trunk, whose linear probes need no second fit: no seed enters them."""
    print(f"{name}, seed {seed}")
    chosen, row = (
        ARMS[name],
        {"seed": seed, "seconds": 0.0, "objective": None, "precision": precision(setting.precision)},
    )
    if chosen.patches and chosen.trained:
        data = labelled.objects("train", times=setting.times).kept()
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
            data.first(setting.few) if chosen.few else data,
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
        if kind != "fashion" or setting.fashion:
            row[kind] = (
                known[kind]
                if known and kind != "attentive"
                else _probed(kind, trunk, "attentive" in chosen.probes, setting, seed)
            )
    return row


def _trunk(chosen: Arm, seed: int, folder: Path) -> Trunk:
    if chosen.patches:
        return PatchTrunk(
            (load_patchlm(folder) if chosen.trained else PatchLM.from_shape(chosen.patches, seed))
            .to(default_device())
            .eval()
        )
    if chosen.tokens:
        lvm = (
            LVM.from_pretrained(chosen.tokens)
            if chosen.trained
            else LVM.from_shape(chosen.tokens, seed).to(default_device()).eval()
        )
        return LVMTrunk(lvm, Tokenizer.from_pretrained("mini"))
    return PixelTrunk(None if "linear" in chosen.probes else AIM.patch)


def _probed(kind: str, trunk: Trunk, places: bool, setting: Setting, seed: int) -> dict:
    """places: both probes of the objects are asked, and read the same features."""
    asked = [pictures(split, setting, kind).kept() for split in ("train", "val", "test")]
    found = [
        extract(trunk, data, places="all" if places and kind != "fashion" else (), progress=False)
        for data in asked
    ]
    train, val, test = found
    both = replace(
        test,
        means=[np.concatenate(m) for m in zip(val.means, test.means, strict=True)],
        places={block: np.concatenate([val.places[block], test.places[block]]) for block in val.places},
    )
    rows, every = [], []
    for block in range(len(train.means)):
        told = (
            probe.linear(train, val, both, block, seed)
            if kind != "attentive"
            else (probe.attentive(train, val, both, block, epochs=setting.epochs, seed=seed)[0])
        )
        rows.append(
            {
                "val": probe.score(told[: len(val.data)], val.data)["score"],
                **probe.score(told[len(val.data) :], test.data),
            }
        )
        every.append(told[len(val.data) :].tolist())
    if kind != "linear" or not places:  # else the attentive probe reads them next
        for extracted in found:
            shutil.rmtree(extracted.folder)  # every place of every block: gigabytes in all
    best = int(np.argmax([row["val"] for row in rows]))
    return {"blocks": rows, "best": best, "predicted": every[best]}


@torch.inference_mode()
def objective(model: PatchLM, data: Labelled) -> float:
    """The loss of pre-training on pictures, under prefixes drawn once for all models."""
    rng, parts = torch.Generator().manual_seed(0), np.array_split(np.arange(len(data)), -(-len(data) // 64))
    return float(np.mean([model.loss(from_uint8(data.batch(rows)), rng).item() for rows in parts]))


def predictions(record: dict, kind: str) -> tuple[np.ndarray, Labelled]:
    """What each seed's probe, on the block that val chose for it, says of the test pictures, (seeds, P), and
    these.

    Fashion-MNIST's files are opened only where one of its pictures is asked for.
    """
    found, setting = (
        np.array([row[kind]["predicted"] for row in record["result"]]),
        Setting(**record["config"]["setting"]),
    )
    if kind != "fashion":
        return found, pictures("test", setting)
    labels = np.repeat(
        range(10), setting.fashion
    )  # `Labelled.first` has them class after class: none of their files is needed to score
    return found, Labelled(
        kind,
        64,
        lambda i: pictures("test", setting, kind).picture(i),
        labels,
        labelled.CLOTHES,
        np.arange(len(labels)),
    )


def kinds(record: dict) -> list[str]:
    """Of its probes."""
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
    """The pre-training's ``loss`` on val beside the accuracy of each probe, a row a patch model's training."""
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
