"""Composing scenes: a crop of a photograph, cut-outs pasted over it, exact masks and keypoints beside it.

What may be drawn is in the laws (`lvmlab.world.laws`). All randomness comes from the generator handed in.
Pictures here are float32 arrays (S, S, 3) in [0, 1]; ``Pair`` holds the finished uint8 ones.
"""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from lvmlab.world.laws import Laws
from lvmlab.world.sources import Sources, Sprite

# COCO-17: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles; each left before right
MIRROR = np.array([0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15])


@dataclass(frozen=True)
class Placed:
    """A sprite at its place: ``layer`` (h, w, 4), premultiplied, with its top-left corner at ``x``, ``y``."""

    sprite: Sprite
    layer: np.ndarray
    x: int
    y: int


@dataclass
class Scene:
    """Objects over a photograph.

    ``image`` (S, S, 3) in [0, 1]; ``masks`` one visible alpha (S, S) an object, front objects cut out of
    those behind.
    """

    image: np.ndarray
    photograph: str
    placed: list[Placed] = field(default_factory=list)
    masks: list[np.ndarray] = field(default_factory=list)

    def truth(self, sources: Sources) -> dict[str, np.ndarray]:
        """``masks`` uint8 (n, S, S) and ``classes`` (n,), places in `Sources.classes`, of all objects."""
        classes = [sources.classes.index(item.sprite.klass) for item in self.placed]
        return {"masks": alphas_to_uint8(self.masks), "classes": np.array(classes)}

    @property
    def largest(self) -> Sprite:
        """The sprite of which the picture shows most."""
        return max(zip(self.masks, self.placed, strict=True), key=lambda item: item[0].sum())[1].sprite


def background(sources: Sources, split: str, laws: Laws, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """A square crop of a photograph of this split, (size, size, 3), and the photograph's name."""
    photograph = sources.pick("photographs", split, rng)
    width, height = photograph.image.size
    short = min(width, height)
    smallest = 0 if laws.enlarged else min(1, laws.size / short)
    low, high = (max(share, smallest) for share in laws.crop)
    side = rng.uniform(low, high) * short
    left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    box = (left, top, left + side, top + side)
    crop = photograph.image.resize((laws.size, laws.size), Image.BILINEAR, box=box)
    if rng.random() < 0.5:
        crop = crop.transpose(Image.FLIP_LEFT_RIGHT)
    return np.asarray(crop, np.float32) / 255, photograph.name


def paste(canvas: np.ndarray, layer: np.ndarray, x: int, y: int) -> None:
    """Composite a premultiplied layer (h, w, 4) over ``canvas`` (S, S, 3) in place, cut off at its sides."""
    region, part = _overlap(canvas, layer, x, y)
    region *= 1 - part[..., 3:]
    region += part[..., :3]


def _overlap(canvas: np.ndarray, layer: np.ndarray, x: int, y: int) -> tuple[np.ndarray, np.ndarray]:
    """Views of the canvas and of the layer where the two overlap."""
    size = canvas.shape[0]
    top, left = max(0, y), max(0, x)
    bottom, right = max(top, min(size, y + layer.shape[0])), max(left, min(size, x + layer.shape[1]))
    return canvas[top:bottom, left:right], layer[top - y : bottom - y, left - x : right - x]


def visible(placed: list[Placed], size: int, max_hidden: float = 1.0) -> list[np.ndarray] | None:
    """What is seen of each of ``placed``, back to front: its alpha (size, size) without what hides it.

    None where one of them loses more than ``max_hidden`` of itself.
    """
    front, masks = np.zeros((size, size), np.float32), []
    for item in reversed(placed):
        covered, own = _overlap(front, item.layer[..., 3], item.x, item.y)
        seen = own * (1 - covered)
        if seen.sum() < (1 - max_hidden) * own.sum():
            return None
        covered += seen
        masks.append(on_canvas(seen, max(0, item.x), max(0, item.y), size))
    return masks[::-1]


def on_canvas(alpha: np.ndarray, x: int, y: int, size: int) -> np.ndarray:
    """An alpha (h, w) with its top-left corner at ``x``, ``y``, on the whole canvas: (size, size)."""
    canvas = np.zeros((size, size), np.float32)
    region, part = _overlap(canvas, alpha, x, y)
    region[:] = part
    return canvas


def alphas_to_uint8(alphas: list[np.ndarray]) -> np.ndarray:
    """Alphas (S, S) in [0, 1] as one array uint8 (n, S, S) in 0..255."""
    return np.rint(np.stack(alphas) * 255).astype(np.uint8)


def place(
    sprite: Sprite, laws: Laws, area: float, rng: np.random.Generator, rotation: float = 20.0
) -> np.ndarray:
    """The sprite flipped, rotated by up to ``rotation`` degrees, scaled to this share of the picture."""
    image = sprite.image
    if rng.random() < 0.5:
        image = image.transpose(Image.FLIP_LEFT_RIGHT)
    scale = np.sqrt(area * laws.size * laws.size / sprite.area)
    width, height = (max(1, round(side * scale)) for side in image.size)
    angle = rng.uniform(-rotation, rotation)
    image = image.resize((width, height), Image.BILINEAR)
    image = image.rotate(angle, Image.Resampling[laws.rotation_filter], expand=True)
    layer = np.asarray(image, np.float32) / 255
    rows, columns = (np.flatnonzero(layer[..., 3].max(axis) > 0.02) for axis in (1, 0))
    return layer[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def arrange(scene: Scene, sprites: list[Sprite], laws: Laws, rng: np.random.Generator) -> Scene:
    """Paste ``sprites`` over the scene, back to front, inside the frame, none hidden unlawfully.

    Ten layouts are tried; if each hides too much, the objects are drawn again, smaller: the law's lower bound
    on area always admits a layout.

    Raises:
        RuntimeError: names the sprites for which no layout is found.
    """
    smallest, high = laws.object_area
    for attempt in range(200):
        if attempt % 10 == 0:
            layers = [place(sprite, laws, rng.uniform(smallest, high), rng) for sprite in sprites]
            high = max(smallest, 0.9 * high)
        free = [(laws.size - layer.shape[1], laws.size - layer.shape[0]) for layer in layers]
        if min(map(min, free)) < 0:
            continue
        corners = [(int(rng.integers(x + 1)), int(rng.integers(y + 1))) for x, y in free]
        placed = [Placed(*item, *corner) for *item, corner in zip(sprites, layers, corners, strict=True)]
        masks = visible(placed, laws.size, laws.max_hidden)
        if masks is not None:
            break
    else:
        names = [sprite.name for sprite in sprites]
        raise RuntimeError(f"no layout of {names} hides less than {laws.max_hidden:.0%} of each object")
    for item in placed:
        paste(scene.image, item.layer, item.x, item.y)
    return Scene(scene.image, scene.photograph, placed, masks)


def objects_scene(
    sources: Sources, split: str, laws: Laws, rng: np.random.Generator, classes: list[str] | None = None
) -> Scene:
    """Objects over a photograph: of any class, as many as the law says, or one of each of ``classes``."""
    image, name = background(sources, split, laws, rng)
    if classes is None:
        fewest, most = laws.objects
        sprites = [sources.pick("objects", split, rng) for _ in range(rng.integers(fewest, most + 1))]
    else:
        sprites = [sources.pick_of_class(k, split, rng) for k in classes]
    return arrange(Scene(image, name), sprites, laws, rng)


@dataclass
class BodyScene:
    """A person over a photograph.

    ``image`` (S, S, 3) in [0, 1]; ``keypoints`` (17, 2) in pixels of the picture; ``visible`` (17,); ``box``
    (x0, y0, x1, y1); ``mask`` the body's alpha (S, S).
    """

    image: np.ndarray
    photograph: str
    body: str
    keypoints: np.ndarray
    visible: np.ndarray
    box: np.ndarray
    mask: np.ndarray

    def truth(self, sources: Sources) -> dict[str, np.ndarray]:
        """As `Scene.truth`, the body's class being the one after all objects' classes; and the skeleton."""
        found = {"keypoints": self.keypoints, "visible": self.visible, "box": self.box}
        return found | {"masks": alphas_to_uint8([self.mask]), "classes": np.array([len(sources.classes)])}


def body_scene(sources: Sources, split: str, laws: Laws, rng: np.random.Generator) -> BodyScene:
    """One body of this split, inside the frame and of lawful height (less where it is wider than high)."""
    image, name = background(sources, split, laws, rng)
    sprite = sources.pick("bodies", split, rng)
    sheet, keypoints, visible = sprite.image, sprite.keypoints.copy(), sprite.visible
    if rng.random() < 0.5:
        sheet = sheet.transpose(Image.FLIP_LEFT_RIGHT)
        keypoints[:, 0] = sheet.width - keypoints[:, 0]
        keypoints, visible = keypoints[MIRROR], visible[MIRROR]
    low, high = laws.body_height
    scale = min(rng.uniform(low, high) * laws.size / sheet.height, high * laws.size / sheet.width)
    width, height = (max(1, round(side * scale)) for side in sheet.size)
    layer = np.asarray(sheet.resize((width, height), Image.BILINEAR), np.float32) / 255
    x, y = int(rng.integers(laws.size - width + 1)), int(rng.integers(laws.size - height + 1))
    paste(image, layer, x, y)
    return BodyScene(
        image=image,
        photograph=name,
        body=sprite.family,
        keypoints=keypoints * (width / sheet.width, height / sheet.height) + (x, y),
        visible=visible,
        box=np.array([x, y, x + width, y + height], np.float64),
        mask=on_canvas(layer[..., 3], x, y, laws.size),
    )
