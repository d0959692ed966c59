"""Segmentation: every object against the photograph, in the prompt's two colours. Score: foreground IoU."""

import numpy as np

from lvmlab.world import scenes
from lvmlab.world.tasks.base import Encoding, Pair, Task, iou, paint, read_mask, to_uint8, two_colours


class Segmentation(Task):
    name, metric, trained, conflicting, kind = "segmentation", "IoU", True, True, 1

    def encoding(self, rng, held_out=False):
        return two_colours(rng, held_out)

    def pair(self, sources, split, size, encoding, rng) -> Pair:
        scene = scenes.objects_scene(sources, split, size, rng)
        mask = np.clip(np.sum(scene.masks, 0), 0, 1)
        largest = max(zip(scene.masks, scene.placed, strict=True), key=lambda item: item[0].sum())[1]
        return Pair(to_uint8(scene.image), paint(mask, encoding), {"mask": mask}, largest.sprite.family)

    def score(self, answer, pair, encoding) -> dict[str, float]:
        return {"IoU": iou(read_mask(answer, encoding), pair.truth["mask"] > 0.5)}

    def floors(self, examples, query, encoding):
        full = np.ones(query.image.shape[:2], np.float32)
        return super().floors(examples, query, encoding) | {"constant": paint(full, encoding)}

    def relabel(self, pair: Pair, encoding: Encoding) -> Pair:
        return Pair(pair.image, paint(pair.truth["mask"], encoding), pair.truth, pair.source)
