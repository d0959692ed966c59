"""Inpaint: fill a grey hole. Never trained. Scored by PSNR inside the hole alone."""

import numpy as np

from lvmlab.world.tasks.base import psnr
from lvmlab.world.tasks.restoration import Restoration

HOLE_SIDE = (0.25, 0.45)  # of the picture's side


class Inpaint(Restoration):
    name = "inpaint"

    def degrade(self, picture, encoding, rng):
        size = picture.shape[0]
        height, width = (round(size * s) for s in rng.uniform(*HOLE_SIDE, 2))
        top, left = rng.integers(size - height + 1), rng.integers(size - width + 1)
        hole = np.zeros((size, size), bool)
        hole[top : top + height, left : left + width] = True
        return np.where(hole[..., None], np.float32(0.5), picture), {"hole": hole}

    def score(self, answer, pair, encoding) -> dict[str, float]:
        return {"PSNR": psnr(answer, pair.label, pair.truth["hole"])}

    def floors(self, examples, query, encoding):
        around = query.image[~query.truth["hole"]].mean(0)
        constant = np.broadcast_to(np.rint(around).astype(np.uint8), query.image.shape)
        return super().floors(examples, query, encoding) | {"mean around": constant}
