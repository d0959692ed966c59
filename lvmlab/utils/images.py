"""The strict way in and out for pictures: whatever a user has becomes a float tensor (3, H, W) in [0, 1]."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from lvmlab.utils.files import atomic
from lvmlab.utils.opening import ImageError, Source, open_picture, source_name

WRITE = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_LONGEST = 4  # times the short side: what lies farther from the centre never reaches a centre crop


def load(source: Source, size: int | None = None) -> Tensor:
    """A picture as float (3, H, W) in [0, 1], its EXIF rotation applied, transparency laid over white.

    source: a path, the bytes or an open binary file of an image; a PIL image of any mode; a numpy array (H,
        W) or
        (H, W, 1 to 4); a tensor (H, W) or (1 to 4, H, W). Arrays are bool, uint8, uint16 or float in [0, 1].
    size: resize the short side to it (bilinear, antialiased), then crop the centre: (3, size, size). DeLVM's
        and LVM's input.
    Raises ImageError for what is missing, empty, truncated, no image, over PIL's limit of pixels, NaN or out
    of range.
    """
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ImageError(
            f"size={size!r}: give a side in pixels, at least 1, or None to keep the picture's own"
        )
    found = pixels(source)
    if size is not None:
        found = fitted(found, size)
    return (found.float() / 255 if found.dtype == torch.uint8 else found.float().clamp(0, 1)).contiguous()


def pixels(source: Source, least: int | None = None) -> Tensor:
    """What `load` makes of a picture of any kind before it is resized: (3, H, W), uint8, or float in [0, 1]
    where there are more than 8 bits.

    least: a JPEG that is not decoded yet may come at a half, a quarter or an eighth of its size, the short
        side no less than this: its
    decoder then leaves out frequencies that a resize would drop, in a fraction of the time.
    """
    name = source_name(source)
    if isinstance(source, Tensor):
        return _from_array(source.detach().cpu(), name)
    if isinstance(source, np.ndarray):
        if source.dtype.kind not in "buif" or source.ndim not in (2, 3):
            raise _wrong_array(name, source.shape, source.dtype)
        array = torch.from_numpy(
            np.ascontiguousarray(source).astype(source.dtype.newbyteorder("="), copy=False)
        )
        return _from_array(array.permute(2, 0, 1) if array.ndim == 3 else array, name)
    image = open_picture(source, name)
    if image is source:
        return _decode(image, name, least)
    with image:
        return _decode(image, name, least)


def save(image: Tensor, path: str | os.PathLike) -> Path:
    """Writes float (3, H, W) in [0, 1], whole or not at all; the suffix (.png, .jpg, .webp) is the format.
    Raises ImageError.
    """
    path = Path(path).expanduser()
    form = WRITE.get(path.suffix.lower())
    if form is None:
        raise ImageError(
            f"{path}: cannot write {path.suffix or 'a name without suffix'}; use one of {', '.join(WRITE)}"
        )
    picture = to_pil(image)
    with atomic(path) as temporary:
        picture.save(temporary, format=form, **({} if form == "PNG" else {"quality": 95}))
    return path


def check(image: Tensor, name: str = "image") -> Tensor:
    """Returns `image` if it is float (..., 3, H, W), finite, in [0, 1]; raises ImageError that calls it
    `name`.
    """
    if (
        not isinstance(image, Tensor)
        or not image.is_floating_point()
        or image.ndim < 3
        or image.shape[-3] != 3
        or not image.numel()
    ):
        got = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise ImageError(
            f"{name}: expected a float tensor (..., 3, H, W), got {got}; images.load makes one of any picture"
        )
    _check_range(image, name)
    return image


def to_uint8(images: Tensor) -> np.ndarray:
    """Float (..., 3, H, W) in [0, 1] to the uint8 array (..., H, W, 3) that other libraries read. Raises
    ImageError.
    """
    return (check(images).detach() * 255).round().to(torch.uint8).movedim(-3, -1).contiguous().cpu().numpy()


def from_uint8(array: np.ndarray) -> Tensor:
    """A uint8 array (..., H, W, 3) to float (..., 3, H, W) in [0, 1]: the inverse of `to_uint8`. Raises
    ImageError.
    """
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim < 3 or array.shape[-1] != 3:
        raise ImageError(
            f"expected a uint8 array (..., H, W, 3), got {array.dtype} {array.shape}; images.load takes one "
            f"picture of any kind"
        )
    return torch.from_numpy(np.array(array)).movedim(-1, -3).float().contiguous() / 255


def to_pil(image: Tensor) -> Image.Image:
    """Float (3, H, W) in [0, 1] to an RGB PIL image. Raises ImageError."""
    if image.ndim != 3:
        raise ImageError(f"expected one picture (3, H, W), got {tuple(image.shape)}")
    return Image.fromarray(to_uint8(image))


def _decode(image: Image.Image, name: str, least: int | None = None) -> Tensor:
    """A PIL image of any mode to uint8 or float (3, H, W)."""
    try:
        if least and image.format == "JPEG" and min(image.size) > least:
            image.draft(None, [-(-side * least // min(image.size)) for side in image.size])
        image.load()
    except Exception as error:
        raise ImageError(f"{name} is truncated or damaged ({error}): download or export it again") from error
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF; the pixels are sound
        image = image.copy()
    try:
        if image.mode.startswith("I") or image.mode == "F":
            values = np.asarray(image)
            return _from_array(
                torch.from_numpy(values.astype(np.float32)), name, top=_top(image.mode, values)
            )
        if image.mode == "La":  # PIL turns premultiplied grey into LA only
            image = image.convert("LA")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(
            f"{name} has PIL mode {image.mode!r}, which does not become RGB ({error}): convert it to RGB "
            f"first"
        ) from error


def _top(mode: str, values: np.ndarray) -> int | None:
    """The value that is white: 65535 for 16 bits, the range that holds them for 32 bits, 1 for floats."""
    if mode == "F":
        return None
    return 255 if mode == "I" and values.max() <= 255 else 65535


def _from_array(array: Tensor, name: str, top: int | None = None) -> Tensor:
    """(H, W) or (1 to 4, H, W) to uint8 or float (3, H, W), values up to `top` (by the dtype if None)."""
    tops = {torch.uint8: 255, torch.uint16: 65535, torch.bool: 1}
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[0] not in (1, 2, 3, 4) or 0 in array.shape:
        raise _wrong_array(name, tuple(array.shape), array.dtype)
    if array.dtype == torch.uint8 and array.shape[0] in (1, 3):
        return array.expand(3, -1, -1)
    if not array.is_floating_point():
        if array.dtype not in tops:
            raise _wrong_array(name, tuple(array.shape), array.dtype)
        top = tops[array.dtype]
    array = array.float() / (top or 1)
    _check_range(array, name)
    if array.shape[0] in (2, 4):  # the last channel is alpha
        array = array[:-1] * array[-1:] + (1 - array[-1:])
    return array.expand(3, -1, -1)


def _check_range(array: Tensor, name: str) -> None:
    if not torch.isfinite(array).all():
        raise ImageError(f"{name} holds NaN or infinite values: repair them first (torch.nan_to_num)")
    low, high = array.min().item(), array.max().item()
    if low < -1e-5 or high > 1 + 1e-5:
        raise ImageError(
            f"{name} goes from {low:.4g} to {high:.4g}, outside [0, 1]: divide 8-bit values by 255 and "
            "16-bit by 65535, undo any mean/std, then clamp to [0, 1]"
        )


def fitted(pixels: Tensor, size: int, nearest: bool = False) -> Tensor:
    """(3, H, W) to (3, size, size): short side resized, centre cropped.

    Args:
        pixels: of any dtype.
        size: pixels along each side.
        nearest: take the nearest pixel and mix no colours, for masks.
    """
    height, width = pixels.shape[-2:]
    short = min(height, width)
    if max(height, width) > _LONGEST * short:  # a ribbon would become huge
        pixels = F.center_crop(pixels, [min(height, _LONGEST * short), min(width, _LONGEST * short)])
    mode = F.InterpolationMode.NEAREST_EXACT if nearest else F.InterpolationMode.BILINEAR
    return F.center_crop(F.resize(pixels, [size], mode, antialias=not nearest), [size, size])


def _wrong_array(name: str, shape, dtype) -> ImageError:
    return ImageError(
        f"{name} is {dtype} {tuple(shape)}: give a numpy array (H, W) or (H, W, 1 to 4) or a tensor (H, W) "
        f"or "
        "(1 to 4, H, W), of bool, uint8, uint16 or float in [0, 1]"
    )
