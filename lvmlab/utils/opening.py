"""The one opener of picture files: regular files alone, formats that run no program, bounded sizes."""

import io
import os
import stat
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image
from torch import Tensor

Source = str | os.PathLike | bytes | IO[bytes] | Image.Image | np.ndarray | Tensor

# MPO opens as JPEG. EPS is left out: it runs a program
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "ICO")
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".tga", ".jp2", ".ico"),
)
MOST_BYTES = 2**31  # of a picture file


class ImageError(ValueError):
    """A picture that cannot be used: names the picture and the remedy."""


def source_name(source: Source) -> str:
    """What an error calls a picture."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    inner = getattr(source, "filename", None) or getattr(source, "name", None)
    if isinstance(inner, (str, os.PathLike)) and inner:
        return os.fspath(inner)
    return f"the picture given as {type(source).__name__}"


def read_bytes(path: str | os.PathLike, name: str | None = None) -> bytes:
    """The content of a regular file, at most 2 GiB of it.

    A pipe or a device is refused before anything is read from it: it could block for ever.

    Raises:
        ImageError: the file is missing, no regular file, too large or not readable.
    """
    path = Path(path).expanduser()
    name = name or str(path)
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist (seen from {Path.cwd()}): check the path") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name} is a folder: give one image file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name} cannot be read ({reason}): check its name and permissions") from error
    try:
        _check_regular(os.fstat(handle), name)
    except ImageError:
        os.close(handle)
        raise
    with open(handle, "rb") as file:
        return file.read()


def _check_regular(status: os.stat_result, name: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{name} is a folder: give one image file")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{name} is no regular file but a pipe, socket or device: give an image file")
    if status.st_size > MOST_BYTES:
        raise ImageError(f"{name} has {status.st_size} bytes, over {MOST_BYTES}: make it smaller")


def open_picture(source: Source, name: str | None = None) -> Image.Image:
    """A picture file opened and not yet decoded.

    Args:
        source: a path, the bytes or an open binary file of a picture, or a PIL image, which is returned.
        name: what an error calls it.

    Raises:
        ImageError: it is missing, no regular file, empty, no picture, or over PIL's limit of pixels.
    """
    name = name or source_name(source)
    if isinstance(source, Image.Image):
        return check_size(source, name)
    if isinstance(source, (str, os.PathLike)):
        source = read_bytes(source, name)
    elif hasattr(source, "read"):
        source = source.read()
    if not isinstance(source, (bytes, bytearray, memoryview)):
        raise ImageError(
            f"{name} is no picture: give a path, bytes, a file opened in binary mode, a PIL image, an array "
            f"or a tensor"
        )
    if len(source) == 0:
        raise ImageError(f"{name} is empty (0 bytes): download or export it again")
    try:
        image = Image.open(io.BytesIO(source), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name) from error
    except Exception as error:
        raise ImageError(f"{name} is no image that can be read here: convert it to PNG or JPEG") from error
    return check_size(image, name)


def check_size(image: Image.Image, name: str) -> Image.Image:
    """Returns an image that has pixels, and no more than PIL holds safe. Raises ImageError otherwise."""
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise _too_large(name, image.size)
    if not image.width or not image.height:
        raise ImageError(f"{name} has no pixels ({image.width}x{image.height}): export it again")
    return image


def _too_large(name: str, size: tuple[int, int] | None = None) -> ImageError:
    shape = f" ({size[0]}x{size[1]})" if size else ""
    return ImageError(
        f"{name} is larger than PIL holds safe{shape}, a possible decompression bomb: make it smaller, "
        "or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
    )
