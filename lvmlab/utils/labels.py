"""The one loader of labels. A label is no photograph: its colours carry meaning and are never mixed.

A label is a *mask* (few colours: classes, skeletons, outlines) or a *picture* (deraining, colourisation).
A mask is resized by its nearest pixel, its transparency is black, and its values 0 and 1 are black and white.
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lvmlab.utils import images
from lvmlab.utils.opening import ImageError, Source, open_picture, source_name

Kind = Literal["masks", "pictures"]
FEW = 64  # colours of a mask at most
ORIENTATION = 0x0112  # EXIF's tag


def label_pixels(source: Source, kind: Kind | None = None, turned_like: Source | None = None) -> Tensor:
    """A label as uint8 (3, H, W), before it is resized.

    Args:
        source: whatever `images.load` takes.
        kind: "masks" or "pictures"; None decides by the label's own colours.
        turned_like: the image of this label. A label without an orientation of its own takes the image's,
            where its size says that it was drawn on the unturned image.

    Raises:
        ImageError: not readable; a mask of class numbers without a palette; a mask that is all transparent
            or one colour on transparent black; an orientation that cannot be known.
    """
    name = source_name(source)
    if isinstance(source, (np.ndarray, Tensor)):
        pixels = _as_uint8(images.pixels(source))
        return _spread(pixels, name) if is_mask(pixels, kind) else pixels
    label = _decoded(source, name)
    label = ImageOps.exif_transpose(label) if turned_like is None else _turned(label, turned_like, name)
    if kind != "pictures":
        pixels = _opaque(label, "black", name)
        if is_mask(pixels, kind):
            return _spread(pixels, name)
    return _opaque(label, "white", name)


def load_label(
    source: Source, size: int, kind: Kind | None = None, turned_like: Source | None = None
) -> Tensor:
    """A label as float (3, size, size) in [0, 1]: the short side resized, then the centre cropped.

    A mask takes its nearest pixel, a picture is blended as `images.load` does it.

    Args:
        source: whatever `images.load` takes.
        size: pixels along each side.
        kind: "masks" or "pictures"; None decides by the label's own colours.
        turned_like: the image of this label.

    Raises:
        ImageError: as `label_pixels`; or the label has another shape than its image.
    """
    pixels = label_pixels(source, kind, turned_like)
    if turned_like is not None:
        check_shapes(images.pixels(turned_like).shape, pixels.shape, source_name(source))
    return images.fitted(pixels, size, nearest=is_mask(pixels, kind)).float() / 255


def check_shapes(image: tuple[int, ...], label: tuple[int, ...], name: str) -> None:
    """Raises ImageError unless a label has its image's proportions: (..., H, W) each, to a pixel."""
    (height, width), (label_height, label_width) = image[-2:], label[-2:]
    fits = abs(height * label_width - width * label_height) <= max(height, width, label_height, label_width)
    if not fits:
        raise ImageError(
            f"{name} is {label_width}x{label_height} but its picture {width}x{height}: "
            f"a label shows the same view as its picture; crop or turn one of them"
        )


def is_mask(pixels: Tensor, kind: Kind | None = None) -> bool:
    """Whether a label, uint8 (3, H, W), is a mask: by ``kind``, else by its number of colours."""
    return kind == "masks" if kind else count_colours(pixels) <= FEW


def count_colours(pixels: Tensor) -> int:
    """How many colours uint8 (3, H, W) has, up to FEW + 1."""
    image = Image.fromarray(np.ascontiguousarray(pixels.movedim(0, -1).numpy()))
    return len(image.getcolors(FEW) or range(FEW + 1))


def choose_kind(labels: Iterable[Source]) -> tuple[Kind, str]:
    """What the labels of a data set are, from a sample of them, and a sentence that says so.

    More than half of those that can be read decide.
    """
    few = total = 0
    for label in labels:
        try:
            few += _looks_like_a_mask(label)
        except ValueError:
            continue
        total += 1
    kind = "masks" if 2 * few > total else "pictures"
    return kind, f"labels are {kind}: {few} of {total} looked at have at most {FEW} colours"


def _looks_like_a_mask(source: Source) -> bool:
    if isinstance(source, (np.ndarray, Tensor)):
        return is_mask(_as_uint8(images.pixels(source)))
    name = source_name(source)
    return is_mask(_opaque(_decoded(source, name), "black", name))


def _decoded(source: Source, name: str) -> Image.Image:
    image = open_picture(source, name)
    try:
        image.load()
    except Exception as error:
        raise ImageError(f"{name} is truncated or damaged ({error}): download or export it again") from error
    return image


def _turned(label: Image.Image, image: Source, name: str) -> Image.Image:
    """The label as its image is viewed."""
    own = label.getexif().get(ORIENTATION, 1)
    if isinstance(image, (np.ndarray, Tensor)):
        return ImageOps.exif_transpose(label)
    opened = open_picture(image)
    turn = opened.getexif().get(ORIENTATION, 1)
    if own not in (0, 1) or turn not in range(2, 9):
        return ImageOps.exif_transpose(label)
    viewed = opened.size[::-1] if turn > 4 else opened.size
    if opened.size == viewed:
        raise ImageError(
            f"{name}: its picture is turned by EXIF (orientation {turn}) and the label says nothing of that, "
            f"so which way it lies is unknown; save the picture upright, without the tag"
        )
    if label.size != opened.size:
        return label
    label = label.copy()
    label.getexif()[ORIENTATION] = turn
    return ImageOps.exif_transpose(label)


def _opaque(label: Image.Image, ground: str, name: str) -> Tensor:
    """A label of any mode as uint8 (3, H, W), transparency laid over a ground."""
    if label.mode.startswith("I"):
        values = np.asarray(label)
        if 0 <= values.min() and values.max() <= 255:
            return torch.from_numpy(values.astype(np.uint8))[None].expand(3, -1, -1)
    if not label.has_transparency_data:
        return _as_uint8(images.pixels(label))
    layers = (label.convert("LA") if label.mode == "La" else label).convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", label.size, ground), layers).convert("RGB")
    low, high = layers.getextrema()[3]
    if low != high and all(least == most for least, most in flat.getextrema()):
        raise ImageError(
            f"{name} is one colour on transparent and vanishes over {ground}: give it a background"
        )
    return torch.from_numpy(np.array(flat)).permute(2, 0, 1)


def _spread(mask: Tensor, name: str) -> Tensor:
    """A grey mask of 0 and 1 as black and white.

    Raises:
        ImageError: the values are class numbers, which would all look black. 255 may mark a border.
    """
    if not (mask == mask[:1]).all():
        return mask
    values = mask[0].unique().tolist()
    if values in ([0, 1], [1]):
        return mask * 255
    numbers = [value for value in values if value != 255]
    largest = max(numbers, default=0)
    if 0 < largest < FEW and (len(numbers) > 2 or largest < 16):
        raise ImageError(
            f"{name} holds the class numbers {', '.join(map(str, values[:8]))}{', ...' * (len(values) > 8)} "
            f"and no palette, so that it is nearly black: save it with a palette, or paint its classes"
        )
    return mask


def _as_uint8(pixels: Tensor) -> Tensor:
    if pixels.dtype == torch.uint8:
        return pixels
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
