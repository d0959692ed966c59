"""Colourise: give a grey picture its colours back. Never trained. Scored by PSNR of chroma (Cb, Cr of JPEG's
YCbCr).
"""

import numpy as np
from PIL import Image

from lvmlab.world.tasks.base import psnr
from lvmlab.world.tasks.restoration import Restoration


def chroma(picture: np.ndarray) -> np.ndarray:
    """(S, S, 3) uint8 RGB to its (S, S, 2) chroma."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).convert("YCbCr"))[..., 1:]


class Colourise(Restoration):
    name = "colourise"

    def degrade(self, picture, encoding, rng):
        red, green, blue = np.moveaxis(picture, -1, 0)
        # spelled out: how a matrix product rounds differs between processors, and the frozen sets are the
        # same bytes on all
        grey = red * np.float32(0.299) + green * np.float32(0.587) + blue * np.float32(0.114)
        return np.repeat(grey[..., None], 3, -1), {}

    def score(self, answer, pair, encoding) -> dict[str, float]:
        return {"PSNR": psnr(chroma(answer), chroma(pair.label))}
