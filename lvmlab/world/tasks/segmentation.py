"""Segmentation: every object against the photograph, in the prompt's two colours. Score: foreground IoU."""

import numpy as np

from lvmlab.world import scenes
from lvmlab.world.encodings import Encoding, two_colours
from lvmlab.world.tasks.base import Pair, Task, iou, paint, read_mask, to_uint8


class Segmentation(Task):
    name, metric, conflicting, kind = "segmentation", "IoU", True, 1

    def encoding(self, rng, laws, held_out=False):
        return two_colours(rng, laws, held_out)

    def pair(self, sources, split, laws, encoding, rng) -> Pair:
        scene = scenes.objects_scene(sources, split, laws, rng)
        mask = np.clip(np.sum(scene.masks, 0), 0, 1)
        truth = {"mask": mask} | scene.truth(sources)
        return Pair(to_uint8(scene.image), paint(mask, encoding), truth, scene.largest.family)

    def score(self, answer, pair, encoding) -> dict[str, float]:
        return {"IoU": iou(read_mask(answer, encoding), pair.truth["mask"] > 0.5)}

    def floors(self, examples, query, encoding):
        full = np.ones(query.image.shape[:2], np.float32)
        return super().floors(examples, query, encoding) | {"constant": paint(full, encoding)}

    def relabel(self, pair: Pair, encoding: Encoding) -> Pair:
        return Pair(pair.image, paint(pair.truth["mask"], encoding), pair.truth, pair.source)
