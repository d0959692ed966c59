"""Training AIM: pre-training on pictures alone (AIM, arXiv 2401.08541), then fine-tuning to classes.

    lvmlab train-aim FOLDER objects                    # pre-trains on mini-world's objects, minutes
    lvmlab train-aim TUNED objects --start FOLDER      # fine-tunes it

DeLVM's second-hand reports give an 80M LLaMA over patches 83.04 % top-1 on ImageNet. Its code was never
released, so this recipe is of published parts: AIM's pre-training (its section 3), mixup (arXiv
1710.09412), stochastic depth (arXiv 1603.09382), a learning rate that decays by layer (arXiv 2106.08254)
and label smoothing (arXiv 1512.00567), all by timm. It was not run on ImageNet with eight GPUs:

    accelerate launch -m lvmlab train-aim PRETRAINED IMAGENET --shape llama-80m-patch \\
        --steps 250000 --batch 4096 --lr 1e-3 --accumulation 4
    accelerate launch -m lvmlab train-aim TUNED IMAGENET --start PRETRAINED \\
        --steps 125000 --batch 1024 --lr 5e-4

That is 800 epochs and then 100, of 196 patches a picture. By `lvmlab cost llama-80m-patch --tokens 2.0e11
--device A100 --devices 8` the first takes 1.7e20 FLOPs, 47 hours of eight A100s at 40 % of their peak. More
than a third of it is in the head, which is dropped afterwards. The second has no such head: 1.3e19 FLOPs,
4 hours.
"""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from timm.data import Mixup
from timm.layers import drop_path
from timm.loss import SoftTargetCrossEntropy
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from lvmlab.data.augmentation import RATIO, SCALE
from lvmlab.data.labelled import Labelled
from lvmlab.model.aim import PatchConfig, PatchLM
from lvmlab.tokenizer.tokenizer import fingerprint
from lvmlab.training.checkpoints import CHECKPOINT, load_checkpoint
from lvmlab.training.loop import TrainConfig, train
from lvmlab.utils.checks import check_fields
from lvmlab.utils.images import from_uint8

_BLOCK = r"(?:blocks|llama\.layers)\.(\d+)"  # of either trunk


@dataclass(frozen=True)
class AIMRecipe:
    """How a patch model is fine-tuned.

    Args:
        mixup: Alpha of its Beta distribution; 0 for none.
        drop_path_rate: Share of pictures that pass by the last block (stochastic depth); it rises linearly
            from the first block on.
        layer_decay: Factor of the learning rate from each block to the one before it.
        smoothing: Of the labels.

    Raises:
        ValueError: A field is out of range; the message names it.
    """

    mixup: float = 0.8
    drop_path_rate: float = 0.1
    layer_decay: float = 0.75
    smoothing: float = 0.1

    def __post_init__(self):
        check_fields(
            self,
            mixup=(self.mixup >= 0, "0 or more"),
            drop_path_rate=(0 <= self.drop_path_rate < 1, "a share below 1"),
            layer_decay=(0 < self.layer_decay <= 1, "more than 0, at most 1"),
            smoothing=(0 <= self.smoothing < 1, "a share below 1"),
        )


class Classifier(nn.Module):
    """A patch model without a causal mask, the mean of its patches, and a linear head.

    Args:
        model: Is taken over; the head of its pre-training goes.
        classes: How many.
        tuning: See `AIMRecipe`.
    """

    def __init__(self, model: PatchLM, classes: int, tuning: AIMRecipe = AIMRecipe()):
        super().__init__()
        self.model, self.tuning, self.head = model, tuning, nn.Linear(model.shape.dim, classes)
        model.predictor = nn.Identity()
        nn.init.normal_(self.head.weight, std=0.01)
        blocks = [module for name, module in model.trunk.named_modules() if re.fullmatch(_BLOCK, name)]
        for i, block in enumerate(blocks):
            share = tuning.drop_path_rate * i / max(1, len(blocks) - 1)
            block.register_forward_hook(
                lambda of, given, out, share=share: given[0] + drop_path(out - given[0], share, of.training)
            )

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1] to logits (B, classes)."""
        return self.head(self.model.trunk.norm(self.model.features(images)[-1]).mean(1))

    def group_matcher(self, coarse: bool = False) -> dict:
        """Which parameters are of which layer, as timm asks: the patches', each block's, and the rest."""
        return {"stem": r"^model\.preprocessor", "blocks": [(rf"^model\.trunk\.{_BLOCK}", None)]}

    def param_groups(self, config: TrainConfig) -> list[dict]:
        """What `lvmlab.training.loop` optimises, each layer with its share of the learning rate."""
        return param_groups_layer_decay(self, config.weight_decay, layer_decay=self.tuning.layer_decay)


class Crops:
    """Training batches of random crops, mirrored half of the time; each is a function of its place alone.

    Args:
        data: The pictures.
        size: Side of the crops in pixels, S.
        batch: Pictures a step.
        seed: Of the draws.
        prepare: (pictures (B, 3, S, S) in [0, 1], their rows, a generator) to the batch.
    """

    def __init__(self, data: Labelled, size: int, batch: int, seed: int, prepare: Callable):
        self.data, self.size, self.batch, self.seed, self.prepare = data, size, batch, seed, prepare

    def __call__(self, step: int, part: int, parts: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, step * parts + part))
        rows = rng.integers(len(self.data), size=max(1, self.batch // parts))
        crops = [
            _crop(torch.from_numpy(picture).movedim(2, 0), self.size, rng)
            for picture in self.data.batch(rows)
        ]
        return self.prepare(from_uint8(torch.stack(crops).movedim(1, 3).numpy()), rows, rng)


def pretrain(
    data: Labelled,
    folder: str | Path,
    *,
    shape: str | PatchConfig,
    config: TrainConfig,
    batch: int = 64,
    progress: bool = True,
    on_log: Callable[[dict, PatchLM], None] | None = None,
) -> list[dict]:
    """Pre-trains a patch model on pictures without their labels; resumes from the folder's checkpoint.

    Args:
        data: Of any size from the shape's up; crops have 0.4 to 1 of the area.
        folder: Of checkpoint and log; `load_patchlm` reads it.
        shape: A name in AIM_PRESETS or a configuration.
        config: How to optimise.
        batch: Pictures a step.
        progress: Show a bar.
        on_log: Is called with each record and the model.

    Returns:
        The log.
    """
    model = PatchLM.from_shape(shape, seed=config.seed)

    def prepare(pictures: Tensor, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        return {"pictures": pictures, "prefix": model.prefixes(len(pictures), generator)}

    def loss(net: nn.Module, batch: dict) -> tuple[Tensor, dict]:
        return net(batch["pictures"], batch["prefix"]), {"items": len(batch["pictures"])}

    return train(
        model,
        Crops(data, model.shape.size, batch, config.seed, prepare),
        loss,
        config,
        folder,
        on_log and (lambda record: on_log(record, model)),
        identity=_identity(model.shape, data, batch),
        progress=progress,
    )


def finetune(
    start: PatchLM,
    data: Labelled,
    folder: str | Path,
    *,
    config: TrainConfig,
    tuning: AIMRecipe = AIMRecipe(),
    batch: int = 64,
    progress: bool = True,
    on_log: Callable[[dict, Classifier], None] | None = None,
) -> list[dict]:
    """Fine-tunes a patch model to classes; resumes from the folder's checkpoint.

    Args:
        start: Is trained in place.
        data: Labelled pictures.
        folder: Of checkpoint and log; `load_classifier` reads it.
        config: How to optimise.
        tuning: See `AIMRecipe`.
        batch: Pictures a step.
        progress: Show a bar.
        on_log: Is called with each record and the model.

    Returns:
        The log.

    Raises:
        ValueError: A device gets an odd number of pictures, which mixup cannot pair.
    """
    if batch // config.accumulation % 2:
        raise ValueError(
            f"batch={batch!r}: mixup pairs pictures; give an even number for each of {config.accumulation} "
            f"parts of a step"
        )
    more = {"classes": data.classes, "tuning": asdict(tuning), "start": fingerprint(start)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Classifier(start, len(data.classes), tuning)
    mixup = Mixup(tuning.mixup, label_smoothing=tuning.smoothing, num_classes=len(data.classes))
    mixup.mixup_enabled = tuning.mixup > 0

    def prepare(pictures: Tensor, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        before = np.random.get_state()  # timm draws from numpy's one generator
        np.random.seed(rng.integers(2**31))
        pictures, labels = mixup(pictures, torch.from_numpy(data.labels[rows]).long())
        np.random.set_state(before)
        return {"pictures": pictures, "labels": labels}

    def loss(net: nn.Module, batch: dict) -> tuple[Tensor, dict]:
        value = SoftTargetCrossEntropy()(net(batch["pictures"]).float(), batch["labels"])
        return value, {"items": len(batch["pictures"])}

    return train(
        model,
        Crops(data, start.shape.size, batch, config.seed, prepare),
        loss,
        config,
        folder,
        on_log and (lambda record: on_log(record, model)),
        identity=_identity(start.shape, data, batch) | more,
        progress=progress,
    )


def _identity(shape: PatchConfig, data: Labelled, batch: int) -> dict:
    return {"shape": asdict(shape), "data": [data.name, data.digest(), data.size, len(data)], "batch": batch}


def _crop(picture: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """A random part of a picture (3, H, W) at (3, size, size), mirrored half of the time."""
    area, ratio = rng.uniform(*SCALE), np.exp(rng.uniform(*np.log(RATIO)))
    sides = [
        max(1, round(side * min(1.0, share**0.5)))
        for side, share in zip(picture.shape[1:], (area / ratio, area * ratio), strict=True)
    ]
    corner = [int(rng.integers(full - side + 1)) for full, side in zip(picture.shape[1:], sides, strict=True)]
    picture = TF.resized_crop(picture, *corner, *sides, [size, size])
    return TF.horizontal_flip(picture) if rng.random() < 0.5 else picture


def load_patchlm(folder: str | Path) -> PatchLM:
    """The model of a pre-training's checkpoint, on the CPU, or what `PatchLM.from_pretrained` loads."""
    if not (Path(folder) / CHECKPOINT).is_file():
        return PatchLM.from_pretrained(folder, device="cpu")
    checkpoint = load_checkpoint(folder)
    model = PatchLM(PatchConfig(**checkpoint["identity"]["more"]["shape"]))
    model.load_state_dict(checkpoint["model"])
    return model.eval()


def load_classifier(folder: str | Path) -> Classifier:
    """The model of a fine-tuning's latest checkpoint, on the CPU."""
    checkpoint = load_checkpoint(folder)
    more = checkpoint["identity"]["more"]
    model = Classifier(
        PatchLM(PatchConfig(**more["shape"])), len(more["classes"]), AIMRecipe(**more["tuning"])
    )
    model.load_state_dict(checkpoint["model"])
    return model.eval()


@torch.inference_mode()
def answers(model: Classifier, data: Labelled, batch: int = 64) -> np.ndarray:
    """The class of each picture, (P,), as `lvmlab.evaluation.probing.score` takes them."""
    parts = np.array_split(np.arange(len(data)), -(-len(data) // batch))
    return torch.cat(
        [model(from_uint8(data.batch(rows)).to(model.head.weight.device)).argmax(1).cpu() for rows in parts]
    ).numpy()
