"""What a tokenizer's codes must tell besides the picture: masks, classes, joints, bones and the clean
picture under rain.

A light decoder reads them from the quantised codes while the tokenizer trains, and is thrown away after
it. It stands in for a perceptual loss (LPIPS, arXiv 1801.03924), whose network learned from labelled
pictures too.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvmlab.data.truths import KINDS, UNKNOWN
from lvmlab.tokenizer.vitvq import Cells, ViTVQConfig
from lvmlab.world import skeleton

JOINTS, BONES = list(skeleton.DRAWN), skeleton.LIMBS
SPREAD = 1 / 32  # of a joint's target, in sides
TERMS = ("objects", "classes", "joints", "bones", "clean")


class AuxiliaryDecoder(nn.Module):
    """Codes (B, N, D) to maps of what the picture shows, each cell's by a linear path from its code and by
    blocks over all cells.
    """

    def __init__(self, config: ViTVQConfig, classes: int, blocks: int = 2):
        super().__init__()
        self.grid, fine = config.grid, config.stride // 2
        # `classes` of objects, the ground and bodies
        # channels and values a cell's side: masks and clean pictures at half the resolution, the others at
        # a quarter
        self.maps = {
            "objects": (1, fine),
            "clean": (3, fine),
            "classes": (classes + 2, fine // 2),
            "joints": (len(JOINTS), fine // 2),
            "bones": (len(BONES) + 1, fine // 2),
        }
        width = sum(channels * side**2 for channels, side in self.maps.values())
        self.enter = nn.Linear(config.embed_dim, config.width)
        self.cells = Cells(config.grid, config.width, config.heads, blocks)
        self.linear, self.out = nn.Linear(config.embed_dim, width), nn.Linear(config.width, width)

    def forward(self, codes: Tensor) -> dict[str, Tensor]:
        x = self.out(self.cells(self.enter(codes))) + self.linear(codes)
        x = x.transpose(1, 2).unflatten(2, (self.grid, self.grid))  # (B, N, C) -> (B, C, h, w)
        parts = x.split([channels * side**2 for channels, side in self.maps.values()], 1)
        return {
            name: F.pixel_shuffle(part, side)
            for (name, (_, side)), part in zip(self.maps.items(), parts, strict=True)
        }


def terms(answers: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The loss of each map over the pictures whose truth is known, times their share of the batch."""
    found = {}
    known, body = batch["classes"][:, 0, 0] != UNKNOWN, (batch["kinds"] == KINDS.index("body"))
    rain = batch["kinds"] == KINDS.index("rain")
    if known.any():
        share, truth = known.float().mean(), batch["classes"][known]
        found["objects"] = share * mask_loss(answers["objects"][known, 0], (truth > 0).float())
        coarse = truth[:, ::2, ::2]
        found["classes"] = share * F.cross_entropy(answers["classes"][known], coarse, label_smoothing=0.05)
    if body.any():
        share, points, side = body.float().mean(), batch["points"][body], answers["joints"].shape[-1]
        found["joints"] = share * joint_loss(answers["joints"][body], points[:, JOINTS])
        found["bones"] = share * F.cross_entropy(answers["bones"][body], bone_map(points, side))
    if rain.any():
        target = F.avg_pool2d(batch["clean"][rain], 2)
        found["clean"] = rain.float().mean() * (answers["clean"][rain] - target).abs().mean()
    return found


def mask_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy and Dice loss (arXiv 1606.04797) of logits (B, h, w) against a mask in [0, 1]."""
    inside = logits.sigmoid()
    overlap = (2 * (inside * mask).sum((1, 2)) + 1) / ((inside + mask).sum((1, 2)) + 1)
    return 2 * F.binary_cross_entropy_with_logits(logits, mask) + (1 - overlap).mean()


def joint_loss(logits: Tensor, points: Tensor) -> Tensor:
    """Cross-entropy of each joint's place, a softmax over (h, w), against a Gaussian about its point.

    Args:
        logits: (B, J, h, w).
        points: (B, J, 2) in units of the side, x before y.
    """
    target = heatmaps(points, logits.shape[-1]).flatten(2)
    return -(target * logits.flatten(2).log_softmax(-1)).sum(-1).mean()


def heatmaps(points: Tensor, side: int) -> Tensor:
    """Points (B, J, 2) in units of the side to Gaussians (B, J, side, side), each of sum 1."""
    x, y = offsets(points, side)
    heat = torch.exp(-(x.square()[..., None, :] + y.square()[..., None]) / (2 * SPREAD**2))
    return heat / heat.sum((2, 3), keepdim=True).clamp(min=1e-6)


def places(logits: Tensor) -> Tensor:
    """The likeliest place of each joint: logits (B, J, h, w) to (B, J, 2) in units of the side."""
    side = logits.shape[-1]
    best = logits.flatten(2).argmax(-1)
    return (torch.stack([best % side, best // side], -1) + 0.5) / side


def bone_map(points: Tensor, side: int) -> Tensor:
    """Which bone is seen where: points (B, 17, 2) in units of the side to int64 (B, side, side), 0 for
    none, 1 + bone.
    """
    points = torch.cat([points, points[:, list(skeleton.SHOULDERS)].mean(1, keepdim=True)], 1)
    found = torch.zeros(len(points), side, side, dtype=torch.long, device=points.device)
    for bone in skeleton.DRAW_ORDER:
        first, second = (points[:, end] for end in BONES[bone])
        along = (second - first)[..., None, None]  # (B, 2, 1, 1)
        x, y = offsets(first, side)
        x, y = x[:, None, :], y[:, :, None]
        t = (x * along[:, 0] + y * along[:, 1]) / along.square().sum(1).clamp(min=1e-8)
        t = t.clamp(0, 1)  # (B, side, side): where along the bone
        gap = (x - t * along[:, 0]).square() + (y - t * along[:, 1]).square()
        found[gap < SPREAD**2] = bone + 1
    return found


def offsets(points: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """From points (..., 2) to the centres of the columns and of the rows of a grid: two tensors (...,
    side).
    """
    axis = (torch.arange(side, device=points.device) + 0.5) / side
    return axis - points[..., :1], axis - points[..., 1:]


def class_scores(logits: Tensor, classes: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """(B,) each: IoU of logits (B, h, w) over 0, and the share of object pixels whose likeliest class (B,
    K, ., .) is right.
    """
    inside, objects = logits > 0, truth > 0
    iou = (inside & objects).sum((1, 2)) / (inside | objects).sum((1, 2)).clamp(min=1)
    coarse = truth[:, ::2, ::2]
    right = (classes[:, 1:].argmax(1) + 1 == coarse) & (coarse > 0)
    return {"objects": iou, "classes": right.sum((1, 2)) / (coarse > 0).sum((1, 2)).clamp(min=1)}


def pck(logits: Tensor, points: Tensor, share: float = 0.1) -> Tensor:
    """PCK of the scored joints: logits (B, J, h, w) against points (B, 17, 2), within a share of the
    joints' longer extent.
    """
    scored = [JOINTS.index(j) for j in skeleton.SCORED]
    extent = (points.amax(1) - points.amin(1)).amax(1)  # (B,)
    gaps = (places(logits)[:, scored] - points[:, skeleton.SCORED]).norm(dim=-1)
    return (gaps <= share * extent[:, None]).float().mean(1)
