"""Which design of a tokenizer keeps what matters: variants of mini-v2, each trained for as many pictures.

    lvmlab study tokenizer-designs    # hours of two idle cores; a run a design

Each design changes one thing of the network or of the recipe. The scores are read on val from the
quantised codes, by the auxiliary decoder that was trained with them, and from the picture decoder; the
last stage is left out.
"""

from dataclasses import asdict, dataclass, replace

import pandas as pd

from lvmlab.data.truths import Plan, open_pool
from lvmlab.lab import frames, runs
from lvmlab.lab.studies import common
from lvmlab.tokenizer.vitvq import VITVQ_PRESETS, ViTVQConfig
from lvmlab.training.auxiliary import TERMS
from lvmlab.training.vitvq import Recipe, evaluate, load_stage, train_stage
from lvmlab.utils import paths
from lvmlab.utils.checks import check_fields

STUDY, VERSION = "tokenizer-designs", 1
DESIGNS: dict[str, tuple[dict, dict]] = {  # changes of the network, changes of the recipe
    "mini-v2": ({}, {}),
    "no truths": ({}, dict.fromkeys(TERMS, 0.0)),
    "labels are a fifth": ({}, {"shares": (0.42, 0.10, 0.28, 0.08, 0.03, 0.09)}),
    "no continuous stage": ({}, {"continuous": 1}),
    "fewer blocks": ({"encoder_blocks": 2, "decoder_blocks": 2}, {}),
    "patches of 16 px, no convolutions between": ({"stem_patch": 8, "stem": (96,), "stem_blocks": (0,)}, {}),
    "1024 codes": ({"codebook_size": 1024}, {}),
}


@dataclass(frozen=True)
class Setting:
    """The size of each training: pictures in the pools, and steps of both stages."""

    preset: str = "mini-v2"
    pictures: int = 60_000
    val_pictures: int = 3000
    continuous: int = 150
    codes: int = 850
    seed: int = 0

    def __post_init__(self):
        sizes = {k: v for k, v in asdict(self).items() if k not in ("preset", "seed")}
        check_fields(self, **{k: (v > 0, "more than 0") for k, v in sizes.items()})
        check_fields(self, preset=(self.preset in VITVQ_PRESETS, f"one of {', '.join(VITVQ_PRESETS)}"))

    def network(self, design: str) -> ViTVQConfig:
        return replace(VITVQ_PRESETS[self.preset], **DESIGNS[design][0])

    def recipe(self, design: str) -> Recipe:
        return replace(Recipe(continuous=self.continuous, codes=self.codes), **DESIGNS[design][1])


SCALES = {
    "smoke": Setting("tiny-v2", pictures=200, val_pictures=80, continuous=2, codes=2),
    "study": Setting(),
}


def design(name: str, setting: Setting = Setting(), *, progress: bool = True) -> dict:
    """The stored run of a design, or a new one; one that was interrupted resumes."""
    if name not in DESIGNS:
        raise ValueError(f"{name!r} is no design: choose from {', '.join(DESIGNS)}")
    changed = {"network": asdict(setting.network(name)), "recipe": asdict(setting.recipe(name))}
    config = {"version": VERSION, "design": name, **asdict(setting), **changed}
    return runs.run(STUDY, config, lambda config: compute(config, progress))


def compute(config: dict, progress: bool = True) -> dict:
    """{scores, parameters, pictures, pictures a second, curve} of one design. config: as `design` makes
    it.
    """
    network, recipe = ViTVQConfig(**config["network"]), Recipe(**config["recipe"])
    folder, laws = paths.cache() / "studies", replace(Plan().laws, size=network.resolution)
    counts = {"train": config["pictures"], "val": config["val_pictures"]}
    pools = {
        split: open_pool(folder / f"{STUDY}-{network.resolution}-{count}-{split}", Plan(split, count, laws))
        for split, count in counts.items()
    }
    here, logs = folder / runs.key(STUDY, config), {}
    for stage in ("continuous", "codes"):
        logs[stage] = train_stage(
            here,
            stage,
            pools["train"],
            pools["val"],
            network,
            recipe,
            seed=config["seed"],
            eval_every=10**9,
            budget_s=None,
            progress=progress,
            tracker="none",
        )
    model = load_stage(here, "codes")
    pictures, seconds = (
        recipe.batch * (recipe.continuous + recipe.codes),
        sum(log[-1]["seconds"] for log in logs.values()),
    )
    return {
        "scores": evaluate(model, pools["val"]),
        "parameters": sum(p.numel() for p in model.net.parameters()),
        "pictures": pictures,
        "pictures a second": pictures / seconds,
        "curve": [[stage, r["step"], r["mean_loss"]] for stage, log in logs.items() for r in log],
    }


COLUMNS = {
    "objects": "masks, IoU",
    "classes": "classes, accuracy",
    "pck": "joints, PCK@0.1",
    "iou": "labels, IoU",
    "psnr skeleton": "skeletons, dB",
    "psnr objects halved": "pictures at half size, dB",
    "code use": "codes in use",
}


def table(records: dict[str, dict]) -> pd.DataFrame:
    """A line a design: what its codes carry after as many pictures, and how fast it trains."""
    rows = [
        {
            "design": name,
            **{title: record["result"]["scores"].get(key) for key, title in COLUMNS.items()},
            "pictures a second": record["result"]["pictures a second"],
        }
        for name, record in records.items()
    ]
    return pd.DataFrame(rows)


def main() -> None:
    common.main(
        __doc__,
        SCALES,
        "designs",
        DESIGNS,
        lambda name, setting, compiled: design(name, setting),
        lambda records: frames.markdown(table(records).round(3)),
    )


if __name__ == "__main__":
    main()
