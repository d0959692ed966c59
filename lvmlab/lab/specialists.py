"""Specialists: small networks, one a task, that answer from pixels or from codes with full supervision.

Both kinds give the same maps for a task (`Goal`), so that what differs in their scores is what they read.
The one for pixels is a U-Net (arXiv 1505.04597), the one for codes a transformer over the grid whose
embedding starts afresh.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lvmlab.tokenizer.vitvq import Cells, ResBlock
from lvmlab.training import auxiliary
from lvmlab.utils.images import to_uint8
from lvmlab.world import skeleton
from lvmlab.world.encodings import Encoding
from lvmlab.world.tasks.base import Pair, paint, psnr

AVERAGE = 0.998  # decay of the weights' moving average, which is what is scored


PLACES = 32  # a side of the finest features of pictures, and of joints' maps


@dataclass(frozen=True)
class Goal:
    """What a specialist answers with: ``channels`` maps.

    kind: "mask" (one map of logits), "classes" (logits of the ground and each class), "joints" (logits of
    each joint's place) or "picture" (RGB).
    """

    kind: str
    channels: int

    def side(self, size: int) -> int:
        """Of the maps, where pictures have ``size`` pixels a side."""
        return {"joints": PLACES, "picture": size}.get(self.kind, max(PLACES, size // 2))

    def loss(self, maps: Tensor, targets: Tensor) -> Tensor:
        """Maps (B, C, h, w) against targets as `lab.perception.Examples` holds them."""
        if self.kind == "mask":
            return auxiliary.mask_loss(maps[:, 0], targets.float())
        if self.kind == "classes":
            return F.cross_entropy(maps, targets.long())
        if self.kind == "joints":
            return auxiliary.joint_loss(maps, targets[:, auxiliary.JOINTS])
        error = maps - targets.float() / 255
        return error.abs().mean() + 4 * error.square().mean()

    def scores(self, maps: Tensor, pairs: list[Pair], encodings: list[Encoding], task) -> np.ndarray:
        """The task's own score of each answer (B,): maps drawn as label images, joints read as they are."""
        if self.kind == "joints":
            points = auxiliary.places(maps).numpy() * pairs[0].image.shape[0]
            return np.array([_pck(p, pair) for p, pair in zip(points, pairs, strict=True)])
        maps = F.interpolate(maps, pairs[0].image.shape[:2], mode="bilinear")
        if self.kind == "mask":
            answers = [paint(m, e) for m, e in zip((maps[:, 0] > 0).float().numpy(), encodings, strict=True)]
        elif self.kind == "classes":
            answers = [_regions(*item) for item in zip(maps, pairs, encodings, strict=True)]
        else:
            answers = to_uint8(maps.clamp(0, 1))
        if task is None:
            return np.array([psnr(a, pair.label) for a, pair in zip(answers, pairs, strict=True)])
        return task.scores(np.stack(answers), pairs, encodings)[task.metric]


GOALS = {
    "segmentation": Goal("mask", 1),
    "semantic": Goal("classes", 26),
    "selection": Goal("mask", 1),
    "pose": Goal("joints", len(auxiliary.JOINTS)),
    "derain": Goal("picture", 3),
    "motion": Goal("picture", 3),
}
PAIRS = Goal("picture", 3)  # for pairs of one's own


def _pck(points: np.ndarray, pair: Pair) -> float:
    full = np.full((17, 2), np.nan)
    full[auxiliary.JOINTS] = points
    return skeleton.pck(full, pair.truth["keypoints"], pair.truth["box"])


def _regions(logits: Tensor, pair: Pair, encoding: Encoding) -> np.ndarray:
    """The likeliest of the sentence's classes and the ground at each pixel, in the sentence's colours."""
    shown = [1 + int(c) for c in pair.truth["classes"]]
    best = logits[[*shown, 0]].argmax(0).numpy()
    return paint((best == np.arange(len(shown))[:, None, None]).astype(np.float32), encoding)


class UNet(nn.Module):
    """Pictures (B, 3 * k, S, S) in [0, 1], and a condition (B, conditions) where there is one, to a goal's
    maps.
    """

    def __init__(self, goal: Goal, size: int, pictures: int = 1, conditions: int = 0, widths=(48, 96, 160)):
        super().__init__()
        self.patch = size // PLACES
        self.enter = nn.Conv2d(3 * pictures * self.patch**2, widths[0], 3, padding=1)
        self.given = nn.Linear(conditions, widths[-1]) if conditions else None
        self.encoders = nn.ModuleList(ResBlock(w) for w in widths)
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 2, stride=2) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.cells = Cells(PLACES // 2 ** (len(widths) - 1), widths[-1], 4, 2)
        self.up = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in zip(widths, widths[1:], strict=False))
        self.decoders = nn.ModuleList(ResBlock(w) for w in widths[:-1])
        self.side = goal.side(size) // PLACES
        self.out = nn.Conv2d(widths[0], goal.channels * self.side**2, 1)

    def forward(self, pictures: Tensor, condition: Tensor | None = None) -> Tensor:
        x = self.enter(F.pixel_unshuffle(pictures - 0.5, self.patch))
        skips = []
        for encode, down in zip(self.encoders, self.down, strict=False):
            x = encode(x)
            skips.append(x)
            x = down(x)
        x = self.encoders[-1](x)
        cells = x.flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, N, C)
        if self.given is not None:
            cells = cells + self.given(condition)[:, None]
        x = x + self.cells(cells).transpose(1, 2).unflatten(2, x.shape[2:])
        for up, decode, skip in zip(self.up[::-1], self.decoders[::-1], skips[::-1], strict=True):
            x = decode(F.pixel_shuffle(up(x), 2) + skip)
        return F.pixel_shuffle(self.out(x), self.side)


class CodeReader(nn.Module):
    """Tokens (B, k * N), and a condition (B, conditions) where there is one, to a goal's maps."""

    def __init__(
        self, goal: Goal, size: int, grid: int, codes: int, pictures: int = 1, conditions: int = 0, width=192
    ):
        super().__init__()
        self.grid, self.pictures = grid, pictures
        self.embedding = nn.Embedding(codes, width)
        nn.init.normal_(self.embedding.weight, std=0.5)
        self.place = nn.Parameter(0.02 * torch.randn(grid**2, width))
        self.enter = nn.Linear(pictures * width, width)
        self.given = nn.Linear(conditions, width) if conditions else None
        self.cells = Cells(grid, width, 6, 4)
        self.side = goal.side(size) // grid
        self.out = nn.Linear(width, goal.channels * self.side**2)

    def forward(self, tokens: Tensor, condition: Tensor | None = None) -> Tensor:
        x = self.embedding(tokens).unflatten(1, (self.pictures, -1))  # (B, k, N, width)
        x = self.enter(x.transpose(1, 2).flatten(2)) + self.place
        if self.given is not None:
            x = x + self.given(condition)[:, None]
        x = self.out(self.cells(x)).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return F.pixel_shuffle(x, self.side)


class Specialist(nn.Module):
    """A network in training and the moving average of its weights, which answers once `eval` is called."""

    def __init__(self, net: nn.Module, goal: Goal):
        super().__init__()
        self.net, self.goal = net, goal
        self.average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
        self.average.requires_grad_(False)

    def forward(self, inputs: Tensor, condition: Tensor | None = None) -> Tensor:
        return (self.net if self.training else self.average)(inputs, condition)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """For `training.loop.train`; `model` is this module as the loop wrapped it."""
        self.average.update_parameters(self.net)  # as of the step before
        value = self.goal.loss(model(batch["inputs"], batch.get("condition")), batch["targets"])
        return value, {"items": len(batch["inputs"])}
