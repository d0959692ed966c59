"""Skeletons as pictures: drawing one in a palette, and reading the joints back from its limbs' colours.

The drawing keeps OpenPose's limbs and colours. At 256 px the paper draws joints of radius 8 and bones of 4; a
bone of a 64th of the side is below what an 8x8 grid of tokens can carry. So thirteen bones have a width of
3/64 of the side and round ends; joint discs, eyes and ears are left out. A joint is then where two bones of
known colours meet.
"""

import colorsys
import functools

import numpy as np
from PIL import Image, ImageDraw

NOSE = 0
SHOULDERS, ELBOWS, WRISTS = (5, 6), (7, 8), (9, 10)
HIPS, KNEES, ANKLES = (11, 12), (13, 14), (15, 16)
NECK = 17  # the middle of the shoulders, appended to COCO's 17
SCORED = [*ELBOWS, *WRISTS, *KNEES, *ANKLES]
DRAWN = [NOSE, *SHOULDERS, *ELBOWS, *WRISTS, *HIPS, *KNEES, *ANKLES]

# OpenPose's limb order; person's right (even COCO indices) before left
LIMBS = (
    (NECK, 6),
    (NECK, 5),
    (6, 8),
    (8, 10),
    (5, 7),
    (7, 9),
    (NECK, 12),
    (12, 14),
    (14, 16),
    (NECK, 11),
    (11, 13),
    (13, 15),
    (NECK, NOSE),
)
TURNS = 18  # colours of OpenPose's wheel


def _hue(place: float) -> tuple[int, int, int]:
    """The colour at a place of the wheel, in 0..255."""
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(place / TURNS % 1, 1, 1))


_WHEEL = tuple(_hue(place) for place in range(TURNS))
_MIRRORED = (1, 0, 4, 5, 2, 3, 9, 10, 11, 6, 7, 8, 12)
ORDERS = {  # which of the wheel's first thirteen colours each bone has
    "straight": tuple(range(13)),
    "mirrored": _MIRRORED,  # left and right exchanged
    "reversed": tuple(reversed(range(13))),
    "reversed and mirrored": tuple(reversed(_MIRRORED)),
}


def turned(turn: float, order: str = "straight") -> tuple[tuple[int, int, int], ...]:
    """A palette: the wheel turned by ``turn`` of its 18 colours, which the bones take in this order."""
    return tuple(_hue(place + turn) for place in ORDERS[order])


PALETTES = {
    "openpose": turned(0),
    "mirrored": turned(0, "mirrored"),
    "turned": turned(7),  # held out of the LVM's training
}
WIDTH = 3 / 64  # of a bone, relative to the picture's side
# COCO's per-keypoint constants for object keypoint similarity
SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
SWAPPED = [0, *(i + (1 if i % 2 else -1) for i in range(1, 17))]  # left (odd) and right (even) exchanged
# OpenPose's seventeen bones in its order, and its eighteen joints as COCO numbers them; bone i and joint i
# have colour i of the wheel
_OPENPOSE_BONES = (*LIMBS, (NOSE, 2), (2, 4), (NOSE, 1), (1, 3))
_OPENPOSE_JOINTS = (NOSE, NECK, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
DRAW_ORDER = (6, 9, 0, 1, 12, 7, 8, 10, 11, 2, 3, 4, 5)  # trunk first, arms last: hands lie over the body
_CHAINS = ((2, 3, 0), (4, 5, 1), (7, 8, 6), (10, 11, 9))  # upper bone, lower bone, the trunk bone above both


def colours_of(palette: str | tuple) -> np.ndarray:
    """The thirteen bones' colours, (13, 3) in 0..255, of a palette or of the one of this name."""
    return np.array(PALETTES[palette] if isinstance(palette, str) else palette)


def draw(
    keypoints: np.ndarray, size: int, palette: str | tuple, background: tuple[int, int, int]
) -> np.ndarray:
    """Keypoints (17, 2) in pixels to a label image, uint8 (size, size, 3), four times supersampled."""
    fine = 4
    canvas = Image.new("RGB", (fine * size, fine * size), tuple(background))
    pen = ImageDraw.Draw(canvas)
    points = np.vstack([keypoints, keypoints[list(SHOULDERS)].mean(0)]) * fine
    radius, colours = WIDTH * size * fine / 2, colours_of(palette).tolist()
    for limb in DRAW_ORDER:
        (x0, y0), (x1, y1) = (points[end] for end in LIMBS[limb])
        colour = tuple(colours[limb])
        pen.line((x0, y0, x1, y1), fill=colour, width=round(2 * radius))
        for x, y in ((x0, y0), (x1, y1)):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return np.asarray(canvas.reduce(fine))


def draw_people(people: np.ndarray, size: int) -> np.ndarray:
    """People as DeLVM paints COCO: OpenPose's bones and joints on black.

    Bones are 4 wide and joints of radius 8 at 256 px, in proportion at other sizes.

    Args:
        people: (P, 17, 3), x, y and visibility; what is not visible (0) is left out.
        size: pixels a side.

    Returns:
        uint8 (size, size, 3).
    """
    fine = 2
    canvas = Image.new("RGB", (fine * size, fine * size))
    pen, unit = ImageDraw.Draw(canvas), fine * size / 256
    for person in people:
        shown = np.append(person[:, 2] > 0, (person[list(SHOULDERS), 2] > 0).all())
        points = np.vstack([person[:, :2], person[list(SHOULDERS), :2].mean(0)]) * fine
        for colour, (a, b) in zip(_WHEEL, _OPENPOSE_BONES, strict=False):
            if shown[a] and shown[b]:
                pen.line((*points[a], *points[b]), fill=colour, width=max(1, round(4 * unit)))
        for colour, joint in zip(_WHEEL, _OPENPOSE_JOINTS, strict=True):
            if shown[joint]:
                (x, y), r = points[joint], 8 * unit
                pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    return np.asarray(canvas.reduce(fine))


def read(picture: np.ndarray, palette: str | tuple, background: tuple[int, int, int]) -> np.ndarray:
    """A label image, uint8 (S, S, 3), to keypoints (17, 2) in pixels; NaN where nothing of a joint's bones is
    found.

    Each pixel off the background goes to the bone whose colour lies in the same direction from the
    background; a bone is
    the principal axis of its pixels; a joint is where the nearest ends of its two bones meet, or the free
    end.
    """
    size = picture.shape[0]
    ground = np.asarray(background, np.float32)
    offset = picture.astype(np.float32) - ground
    colours = colours_of(palette).astype(np.float32) - ground
    strength = np.linalg.norm(offset, axis=-1)
    alike = offset @ colours.T / (strength[..., None] * np.linalg.norm(colours, axis=-1) + 1e-6)
    nearest = alike.argmax(-1)
    marked = (strength > 0.35 * np.linalg.norm(colours, axis=-1)[nearest]) & (alike.max(-1) > 0.85)
    ends = [_segment(marked & (nearest == limb), size) for limb in range(len(LIMBS))]
    points = np.full((18, 2), np.nan)
    for upper, lower, trunk in _CHAINS:
        root, middle = LIMBS[upper]
        points[root], points[middle], points[LIMBS[lower][1]] = _chain(ends[upper], ends[lower], ends[trunk])
    shoulders = points[list(SHOULDERS)]
    neck = np.nanmean(shoulders, 0) if np.isfinite(shoulders).any() else None
    if ends[12] is not None:
        points[NOSE] = _far(ends[12], neck)
    return points[:17]


def _segment(mask: np.ndarray, size: int) -> np.ndarray | None:
    """The two ends (2, 2) of the bone drawn by these pixels, or None where there are too few."""
    from scipy.ndimage import label

    parts, count = label(mask, np.ones((3, 3)))
    if not count:
        return None
    sizes = np.bincount(parts.ravel())[1:]
    kept = np.isin(parts, 1 + np.flatnonzero(sizes >= max(2, 0.3 * sizes.max())))
    ys, xs = np.nonzero(kept)
    if len(xs) < 3:
        return None
    points = np.stack([xs, ys], 1) + 0.5
    centre = points.mean(0)
    axis = np.linalg.svd(points - centre, full_matrices=False)[2][0]
    along = (points - centre) @ axis
    # the round ends reach half a width beyond the joints
    low, high = np.percentile(along, 3), np.percentile(along, 97)
    trim = min(WIDTH * size / 2 - 0.5, (high - low) / 2)
    return np.stack([centre + (low + trim) * axis, centre + (high - trim) * axis])


def _far(ends: np.ndarray, anchor: np.ndarray | None) -> np.ndarray:
    if anchor is None:
        return ends.mean(0)
    return ends[np.linalg.norm(ends - anchor, axis=1).argmax()]


def _chain(upper, lower, trunk):
    """Root, middle and tip of a limb from the ends of its bones, any of which may be missing."""
    nothing = np.full(2, np.nan)
    anchor = trunk.mean(0) if trunk is not None else None
    if upper is None and lower is None:
        return nothing, nothing, nothing
    if lower is None:
        middle = _far(upper, anchor)
        return upper.sum(0) - middle, middle, middle
    if upper is None:
        tip = _far(lower, anchor)
        middle = lower.sum(0) - tip
        return middle, middle, tip
    gaps = np.linalg.norm(upper[:, None] - lower[None], axis=-1)
    i, j = np.unravel_index(gaps.argmin(), gaps.shape)
    return upper[1 - i], (upper[i] + lower[j]) / 2, lower[1 - j]


def pck(found: np.ndarray, truth: np.ndarray, box: np.ndarray, share: float = 0.1) -> float:
    """Share of elbows, wrists, knees and ankles found within ``share`` of the body box's longer side."""
    limit = share * max(box[2] - box[0], box[3] - box[1])
    gaps = np.linalg.norm(found[SCORED] - truth[SCORED], axis=1)
    return float((np.nan_to_num(gaps, nan=np.inf) <= limit).mean())


def oks(found: np.ndarray, truth: np.ndarray, box: np.ndarray) -> float:
    """COCO's object keypoint similarity over the thirteen joints that are drawn; the box's area stands for
    the body's.
    """
    squared = ((found[DRAWN] - truth[DRAWN]) ** 2).sum(1)
    area = (box[2] - box[0]) * (box[3] - box[1])
    return float(np.nan_to_num(np.exp(-squared / (2 * area * (2 * SIGMAS[DRAWN]) ** 2)), nan=0.0).mean())


@functools.cache
def mean_skeleton() -> np.ndarray:
    """The mean of the training bodies' keypoints, (17, 2) relative to the body box in [0, 1]."""
    from lvmlab.world.sources import default

    return np.mean([s.keypoints / s.image.size for s in default().all("bodies", "train")], 0)
