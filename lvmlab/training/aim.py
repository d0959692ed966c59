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
    """mixup: alpha of its Beta, 0 for none. drop_path_rate: the share of pictures that pass by the last block
    (stochastic depth), rising linearly from the
    first. layer_decay: of the learning rate, from each block to the one before it. smoothing: of the labels.
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
    """A patch model read both ways, the mean of its places, a linear head: images (B, 3, S, S) in [0, 1] to
    logits (B, classes).

    The model is taken over; the head of its pre-training goes.
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
        return self.head(self.model.trunk.norm(self.model.features(images)[-1]).mean(1))

    def group_matcher(self, coarse: bool = False) -> dict:
        """Which parameters are of which layer, as timm asks: the patches', each block's, and the rest."""
        return {"stem": r"^model\.preprocessor", "blocks": [(rf"^model\.trunk\.{_BLOCK}", None)]}

    def param_groups(self, config: TrainConfig) -> list[dict]:
        """What `lvmlab.training.loop` optimises, each layer with its share of the learning rate."""
        return param_groups_layer_decay(self, config.weight_decay, layer_decay=self.tuning.layer_decay)


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
    """Pre-trains a patch model on pictures, whose labels it does not see, and returns the log; resumes from
    ``folder`` (see `load_patchlm`).

    batch: pictures a step, crops of 0.4 to 1 of the area, mirrored half of the time. data: of any size from
        the shape's up.
    """
    model = PatchLM.from_shape(shape, seed=config.seed)

    def prepared(pictures: Tensor, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        return {
            "pictures": pictures,
            "prefix": model.prefixes(len(pictures), torch.Generator().manual_seed(int(rng.integers(2**31)))),
        }

    return _fitted(
        model,
        model.shape,
        data,
        folder,
        config,
        batch,
        prepared,
        lambda net, batch: net(batch["pictures"], batch["prefix"]),
        {},
        on_log,
        progress,
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
    """Fine-tunes a patch model to tell the classes of ``data`` and returns the log; resumes from ``folder``
    (see `load_classifier`).

    start: is trained in place. Raises ValueError for an odd number of pictures on a device, which mixup
        cannot pair.
    """
    more = {"classes": data.classes, "tuning": asdict(tuning), "start": fingerprint(start)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Classifier(start, len(data.classes), tuning)
    mixup = Mixup(tuning.mixup, label_smoothing=tuning.smoothing, num_classes=len(data.classes))
    mixup.mixup_enabled = tuning.mixup > 0
    if batch // config.accumulation % 2:
        raise ValueError(
            f"batch={batch!r}: mixup pairs pictures; give an even number for each of {config.accumulation} "
            f"parts of a step"
        )

    def prepared(pictures: Tensor, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        before = np.random.get_state()  # timm draws from numpy's one generator
        np.random.seed(rng.integers(2**31))
        pictures, labels = mixup(pictures, torch.from_numpy(data.labels[rows]).long())
        np.random.set_state(before)
        return {"pictures": pictures, "labels": labels}

    return _fitted(
        model,
        start.shape,
        data,
        folder,
        config,
        batch,
        prepared,
        lambda net, batch: SoftTargetCrossEntropy()(net(batch["pictures"]).float(), batch["labels"]),
        more,
        on_log,
        progress,
    )


def _fitted(
    model: nn.Module,
    shape: PatchConfig,
    data: Labelled,
    folder: str | Path,
    config: TrainConfig,
    batch: int,
    prepared: Callable,
    loss: Callable,
    more: dict,
    on_log: Callable | None,
    progress: bool,
) -> list[dict]:
    """The loop of both. prepared: of a part of a step's pictures, cropped and mirrored (B, 3, S, S) in [0,
    1], their rows, and what else is drawn
    from, to what the loss takes."""

    def batches(step: int, part: int, parts: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((config.seed, step * parts + part))
        rows = rng.integers(len(data), size=max(1, batch // parts))
        found = [
            _crop(torch.from_numpy(picture).movedim(2, 0), shape.size, rng) for picture in data.batch(rows)
        ]
        return prepared(from_uint8(torch.stack(found).movedim(1, 3).numpy()), rows, rng)

    identity = {"shape": asdict(shape), "data": [data.name, data.size, len(data)], "batch": batch, **more}
    return train(
        model,
        batches,
        lambda net, batch: (loss(net, batch), {"items": len(batch["pictures"])}),
        config,
        folder,
        on_log and (lambda record: on_log(record, model)),
        identity=identity,
        progress=progress,
    )


def _crop(picture: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    area, ratio = rng.uniform(*SCALE), np.exp(rng.uniform(*np.log(RATIO)))
    sides = [
        max(1, round(side * min(1.0, share**0.5)))
        for side, share in zip(picture.shape[1:], (area / ratio, area * ratio), strict=True)
    ]
    corner = [
        int(rng.integers(whole - side + 1)) for whole, side in zip(picture.shape[1:], sides, strict=True)
    ]
    picture = TF.resized_crop(picture, *corner, *sides, [size, size])
    return TF.horizontal_flip(picture) if rng.random() < 0.5 else picture


def load_patchlm(folder: str | Path) -> PatchLM:
    """The model of a pre-training's latest checkpoint, on the CPU, or what `PatchLM.from_pretrained` finds.
    Its `save_pretrained` keeps it.
    """
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
