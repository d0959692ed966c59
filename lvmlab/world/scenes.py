"""Composing scenes: a crop of a photograph, cut-outs pasted over it, exact masks and keypoints beside it.

The law of the world (frozen in ``mini-world-v1``): background crop 30 to 90 % of the photograph's short side,
one to four
objects of 4 to 25 % of the picture's area each, body height 40 to 90 % of the picture. All randomness comes
from the
generator handed in. Pictures here are float32 arrays (S, S, 3) in [0, 1]; ``Pair`` holds the finished uint8
ones.
"""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from lvmlab.world.sources import Sources, Sprite

CROP = (0.3, 0.9)
OBJECT_AREA = (0.04, 0.25)
BODY_HEIGHT = (0.4, 0.9)
MAX_HIDDEN = 0.25  # no object may lose more than this share of its pixels to objects in front of it

# COCO-17: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles; each left before right
MIRROR = np.array([0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15])


@dataclass(frozen=True)
class Placed:
    """A sprite at its place: ``layer`` (h, w, 4) premultiplied float32 with its top-left corner at ``x``,
    ``y``.
    """

    sprite: Sprite
    layer: np.ndarray
    x: int
    y: int

    def alpha(self, size: int, x: int | None = None, y: int | None = None) -> np.ndarray:
        """This sprite's alpha on the whole canvas: (size, size) float32 in [0, 1]."""
        canvas = np.zeros((size, size, 4), np.float32)
        paste(canvas, self.layer, self.x if x is None else x, self.y if y is None else y)
        return canvas[..., 3]


@dataclass
class Scene:
    """``image`` (S, S, 3) in [0, 1]; ``masks`` one visible alpha (S, S) an object, front objects cut out of
    those behind.
    """

    image: np.ndarray
    photograph: str
    placed: list[Placed] = field(default_factory=list)
    masks: list[np.ndarray] = field(default_factory=list)


def background(sources: Sources, split: str, size: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """A square crop of a photograph of this split, (size, size, 3), and the photograph's name."""
    photograph = sources.pick("photographs", split, rng)
    width, height = photograph.image.size
    side = rng.uniform(*CROP) * min(width, height)
    left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    crop = photograph.image.resize((size, size), Image.BILINEAR, box=(left, top, left + side, top + side))
    if rng.random() < 0.5:
        crop = crop.transpose(Image.FLIP_LEFT_RIGHT)
    return np.asarray(crop, np.float32) / 255, photograph.name


def paste(canvas: np.ndarray, layer: np.ndarray, x: int, y: int) -> None:
    """Composite a premultiplied (h, w, 4) layer over ``canvas`` (S, S, 3 or 4) in place; what lies outside is
    cut off.
    """
    size = canvas.shape[0]
    top, left, bottom, right = (
        max(0, y),
        max(0, x),
        min(size, y + layer.shape[0]),
        min(size, x + layer.shape[1]),
    )
    if top >= bottom or left >= right:
        return
    part = layer[top - y : bottom - y, left - x : right - x]
    region = canvas[top:bottom, left:right]
    region *= 1 - part[..., 3:]
    region += part[..., : canvas.shape[2]]


def place(
    sprite: Sprite, size: int, area: float, rng: np.random.Generator, rotation: float = 20.0
) -> np.ndarray:
    """The sprite flipped, rotated by up to ``rotation`` degrees and scaled to ``area`` of the picture: (h, w,
    4).
    """
    image = sprite.image
    if rng.random() < 0.5:
        image = image.transpose(Image.FLIP_LEFT_RIGHT)
    scale = np.sqrt(area * size * size / sprite.area)
    width, height = (max(1, round(side * scale)) for side in image.size)
    angle = rng.uniform(-rotation, rotation)
    image = image.resize((width, height), Image.BILINEAR)
    layer = np.asarray(image.rotate(angle, Image.BICUBIC, expand=True), np.float32) / 255
    rows, columns = (np.flatnonzero(layer[..., 3].max(axis) > 0.02) for axis in (1, 0))
    return layer[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def arrange(
    scene: Scene, sprites: list[Sprite], size: int, rng: np.random.Generator, area=OBJECT_AREA
) -> Scene:
    """Paste ``sprites`` over the scene, back to front, inside the frame, none hidden by more than
    ``MAX_HIDDEN``.

    Ten layouts are tried; if each hides too much, the objects are drawn again, smaller: the law's lower bound
    on area
    always admits a layout.
    """
    high = area[1]
    for attempt in range(200):
        if attempt % 10 == 0:
            layers = [place(sprite, size, rng.uniform(area[0], high), rng) for sprite in sprites]
            high = max(area[0], 0.9 * high)
        free = [(size - layer.shape[1], size - layer.shape[0]) for layer in layers]
        if min(map(min, free)) < 0:
            continue
        corners = [(int(rng.integers(x + 1)), int(rng.integers(y + 1))) for x, y in free]
        placed = [Placed(*item, *corner) for *item, corner in zip(sprites, layers, corners, strict=True)]
        masks = visible_masks(placed, size)
        if masks is not None:
            break
    else:
        raise RuntimeError(
            f"no layout of {[s.name for s in sprites]} hides less than {MAX_HIDDEN:.0%} of each object"
        )
    for item in placed:
        paste(scene.image, item.layer, item.x, item.y)
    return Scene(scene.image, scene.photograph, placed, masks)


def visible_masks(placed: list[Placed], size: int) -> list[np.ndarray] | None:
    """The visible alpha of each object, or None where one of them is hidden by more than ``MAX_HIDDEN``."""
    masks, front = [], np.zeros((size, size), np.float32)
    for item in reversed(placed):
        alpha = item.alpha(size)
        seen = alpha * (1 - front)
        if seen.sum() < (1 - MAX_HIDDEN) * alpha.sum():
            return None
        masks.append(seen)
        front = front + alpha * (1 - front)
    return masks[::-1]


def objects_scene(
    sources: Sources, split: str, size: int, rng: np.random.Generator, classes: list[str] | None = None
) -> Scene:
    """One to four objects of any class over a photograph; or exactly one object of each of ``classes``."""
    image, name = background(sources, split, size, rng)
    if classes is None:
        sprites = [sources.pick("objects", split, rng) for _ in range(rng.integers(1, 5))]
    else:
        sprites = [sources.pick_of_class(k, split, rng) for k in classes]
    return arrange(Scene(image, name), sprites, size, rng)


@dataclass
class BodyScene:
    """A person over a photograph: ``keypoints`` (17, 2) in pixels of the picture, ``box`` (x0, y0, x1, y1),
    ``visible`` (17,).
    """

    image: np.ndarray
    photograph: str
    body: str
    keypoints: np.ndarray
    visible: np.ndarray
    box: np.ndarray


def body_scene(sources: Sources, split: str, size: int, rng: np.random.Generator) -> BodyScene:
    """One body of this split, whole inside the frame, 40 to 90 % of the picture high (less only where it is
    wider than high).
    """
    image, name = background(sources, split, size, rng)
    sprite = sources.pick("bodies", split, rng)
    sheet, keypoints, visible = sprite.image, sprite.keypoints.copy(), sprite.visible
    if rng.random() < 0.5:
        sheet = sheet.transpose(Image.FLIP_LEFT_RIGHT)
        keypoints[:, 0] = sheet.width - keypoints[:, 0]
        keypoints, visible = keypoints[MIRROR], visible[MIRROR]
    scale = min(rng.uniform(*BODY_HEIGHT) * size / sheet.height, BODY_HEIGHT[1] * size / sheet.width)
    width, height = (max(1, round(side * scale)) for side in sheet.size)
    layer = np.asarray(sheet.resize((width, height), Image.BILINEAR), np.float32) / 255
    x, y = int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))
    paste(image, layer, x, y)
    scaled = keypoints * (width / sheet.width, height / sheet.height) + (x, y)
    return BodyScene(
        image, name, sprite.family, scaled, visible, np.array([x, y, x + width, y + height], np.float64)
    )
