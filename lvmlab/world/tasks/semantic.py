"""Semantic segmentation: each class of a sentence in a colour of its own, as the prompt shows. Score: mIoU.

A sentence has two or three classes, and every picture shows one object of each.
"""

import numpy as np

from lvmlab.world import scenes
from lvmlab.world.encodings import Encoding, chosen, free_colours
from lvmlab.world.tasks.base import Pair, Task, iou, paint, read_regions, to_uint8


class Semantic(Task):
    name, metric, kind = "semantic", "mIoU", 1

    def encoding(self, rng, laws, held_out=False):
        """A colour for each class and the ground's, and the classes' ranks (resolved in ``pair``)."""
        super().encoding(rng, laws, held_out)
        count = int(rng.integers(2, 4))
        colours = free_colours(rng, count)
        ranks = tuple(float(rank) for rank in rng.random(count))
        return Encoding(colours.name, colours.colours, (("classes", ranks),))

    def pair(self, sources, split, laws, encoding, rng) -> Pair:
        classes = chosen(sources.classes, encoding.option("classes"))
        order = rng.permutation(len(classes))
        scene = scenes.objects_scene(sources, split, laws, rng, [classes[i] for i in order])
        places = np.argsort(order)  # of the classes among the objects, which are in order from back to front
        truth = {name: values[places] for name, values in scene.truth(sources).items()}
        label = paint(np.stack(scene.masks)[places], encoding)
        return Pair(to_uint8(scene.image), label, truth, scene.largest.family)

    def score(self, answer, pair, encoding) -> dict[str, float]:
        """The mean of the IoUs of the classes and of the ground."""
        masks = pair.truth["masks"] > 127
        found = read_regions(answer, encoding)
        shares = [iou(found == place, mask) for place, mask in enumerate([*masks, ~masks.any(0)])]
        return {"mIoU": float(np.mean(shares))}

    def floors(self, examples, query, encoding):
        ground = np.broadcast_to(np.uint8(encoding.colours[-1]), query.image.shape)
        return super().floors(examples, query, encoding) | {"constant": ground}

    def landmarks(self, examples, query, encoding):
        masks = query.truth["masks"] / np.float32(255)
        masks[0], masks[1:] = masks.sum(0).clip(0, 1), 0
        return {"all objects as one class": paint(masks, encoding)}
