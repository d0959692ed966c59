"""Reading skeletons by fitting: the thirteen joints whose drawing looks most like the answer.

A tokenizer of 64 tokens keeps where a bone lies better than which of two neighbouring hues it had, so pixels
alone are a poor witness. Here all bones of a skeleton are drawn softly, differentiably, and moved until the
drawing matches.
"""

import numpy as np
import torch
from torch import Tensor

from lvmlab.world import skeleton

SEARCH, STEPS = 16, 44  # Adam's steps from every start, then from the best one
RATE = 0.025  # Adam's, in sides
SIDE = 32  # pixels a side at which the drawing is compared
SOFT = 0.7 / 64  # softness of a bone's edge
DRAWN = list(skeleton.DRAWN)


def read(
    pictures: np.ndarray, palettes: list[str | tuple], backgrounds: list[tuple[int, int, int]]
) -> np.ndarray:
    """Label images to keypoints. Deterministic.

    Each fit starts at the direct reading, at the mean skeleton on the drawing's box, and at that skeleton
    seen from behind; the closest drawing wins.

    Args:
        pictures: uint8 (B, S, S, 3).
        palettes: of each, by name or as thirteen colours in 0..255.
        backgrounds: of each, in 0..255.

    Returns:
        (B, 17, 2) in pixels; NaN for eyes and ears and for empty pictures.
    """
    size = pictures.shape[1]
    target = torch.from_numpy(pictures.astype(np.float32) / 255)  # (B, S, S, 3)
    colours = torch.tensor(np.stack([skeleton.colours_of(p) for p in palettes])).float() / 255  # (B, 13, 3)
    ground = torch.tensor(backgrounds).float() / 255  # (B, 3)
    starts, empty = [], []
    for picture, palette, background in zip(pictures, palettes, backgrounds, strict=True):
        start, nothing = _starts(picture, palette, background)
        starts.append(start)
        empty.append(nothing)
    start = torch.from_numpy(np.stack(starts, 1)).float()  # (3, B, 13, 2)
    target = torch.nn.functional.interpolate(target.movedim(-1, 1), (SIDE, SIDE), mode="area")
    target = target.flatten(2).transpose(1, 2)  # (B, P, 3)
    tries = [fit(points, target, colours, ground, SEARCH, RATE) for points in start]
    error = torch.stack([e for _, e in tries])  # (3, B)
    best = torch.stack([points for points, _ in tries])[
        error.argmin(0), torch.arange(len(pictures))
    ]  # (B, 13, 2)
    best, _ = fit(best, target, colours, ground, STEPS, RATE / 2)
    found = np.full((len(pictures), 17, 2), np.nan)
    found[:, DRAWN] = best.numpy() * size
    found[np.array(empty)] = np.nan
    return found


def _starts(picture: np.ndarray, palette: str | tuple, background) -> tuple[np.ndarray, bool]:
    """Three starting skeletons (3, 13, 2) in units of the side, and whether the picture shows nothing."""
    size = picture.shape[0]
    ys, xs = np.nonzero(np.abs(picture.astype(np.float32) - background).max(-1) > 60)
    if len(xs) < 6:
        return np.full((3, len(DRAWN), 2), 0.5), True
    low, high = np.array([np.percentile(v, (1, 99)) for v in (xs, ys)]).T / size
    mean = skeleton.mean_skeleton()[DRAWN]
    boxed = low + mean * (high - low)
    behind = low + (mean * (-1, 1) + (1, 0)) * (high - low)
    direct = skeleton.read(picture, palette, background)[DRAWN] / size
    return np.stack([np.where(np.isfinite(direct), direct, boxed), boxed, behind]), False


def fit(
    points: Tensor, target: Tensor, colours: Tensor, ground: Tensor, steps: int, rate: float
) -> tuple[Tensor, Tensor]:
    """Joints (B, 13, 2) moved by Adam until their drawing matches ``target`` (B, P, 3), and errors (B,)."""
    points = points.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([points], lr=rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - 0.9 * step / steps)
        error = (render(points, colours, ground) - target).square().mean((1, 2))
        optimizer.zero_grad()
        error.sum().backward()
        points.grad /= (
            points.grad.abs().amax((1, 2), keepdim=True).clamp(min=1e-12)
        )  # each picture at its own pace
        optimizer.step()
    with torch.no_grad():
        return points.detach(), (render(points, colours, ground) - target).square().mean((1, 2))


def render(points: Tensor, colours: Tensor, ground: Tensor) -> Tensor:
    """A soft drawing of joints (B, 13, 2) in units of the side: (B, SIDE * SIDE, 3)."""
    at = {joint: points[:, i] for i, joint in enumerate(DRAWN)}
    at[skeleton.NECK] = (at[5] + at[6]) / 2
    order = list(reversed(skeleton.DRAW_ORDER))  # front to back
    limbs = [skeleton.LIMBS[limb] for limb in order]
    a, b = (torch.stack([at[limb[end]] for limb in limbs], 1) for end in (0, 1))  # (B, 13, 2)
    axis = (torch.arange(SIDE) + 0.5) / SIDE
    x, y = (axis - a[..., i, None] for i in (0, 1))  # (B, 13, SIDE): from the bone's first end
    along = b - a
    step = along / along.square().sum(-1, keepdim=True).clamp(min=1e-8)
    # rows and columns apart until here: a grid of points costs six times as much
    t = ((x * step[..., 0, None])[:, :, None] + (y * step[..., 1, None])[..., None]).clamp(
        0, 1
    )  # (B, 13, SIDE, SIDE)
    across = x[:, :, None] - t * along[..., 0, None, None]
    down = y[..., None] - t * along[..., 1, None, None]
    inside = (skeleton.WIDTH / 2 - (across.square() + down.square()).clamp(min=1e-10).sqrt()).flatten(
        2
    ) / SOFT  # (B, 13, P)
    clear = torch.nn.functional.logsigmoid(-inside)
    through = clear.cumsum(1)  # log of what this bone and all in front of it let through
    weight = torch.sigmoid(inside) * (through - clear).exp()
    return weight.transpose(1, 2) @ colours[:, order] + through[:, -1, :, None].exp() * ground[:, None]
