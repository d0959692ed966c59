"""Shared by the tasks whose label is a photograph: a scene, its degraded copy, and PSNR against the scene."""

import numpy as np
from PIL import Image, ImageFilter

from lvmlab.world import scenes
from lvmlab.world.tasks.base import Pair, Task, psnr, ssim, to_uint8


def median(picture: np.ndarray) -> np.ndarray:
    """A 3x3 median filter, channel by channel."""
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.MedianFilter(3)))


class Restoration(Task):
    """``degrade`` is all that a task adds. Scored by PSNR in dB and by SSIM; a source is a photograph."""

    metric = "PSNR"

    def degrade(self, picture: np.ndarray, encoding, rng) -> tuple[np.ndarray, dict]:
        """(S, S, 3) in [0, 1] to its degraded copy and what the score needs to know."""
        raise NotImplementedError

    def pair(self, sources, split, laws, encoding, rng) -> Pair:
        scene = scenes.objects_scene(sources, split, laws, rng)
        degraded, truth = self.degrade(scene.image, encoding, rng)
        truth = truth | scene.truth(sources)
        return Pair(to_uint8(degraded), to_uint8(scene.image), truth, scene.photograph)

    def score(self, answer, pair, encoding) -> dict[str, float]:
        return {"PSNR": psnr(answer, pair.label), "SSIM": ssim(answer, pair.label)}

    def floors(self, examples, query, encoding):
        mean = np.mean([pair.label.reshape(-1, 3).mean(0) for pair in examples], 0)
        constant = np.broadcast_to(np.rint(mean).astype(np.uint8), query.image.shape)
        return super().floors(examples, query, encoding) | {
            "constant": constant,
            "median": median(query.image),
        }
