"""Selection: two or three objects of different classes; only that of the sentence's class is marked."""

import numpy as np

from lvmlab.world import scenes
from lvmlab.world.encodings import Encoding, chosen, two_colours
from lvmlab.world.tasks.base import Pair, paint, to_uint8
from lvmlab.world.tasks.segmentation import Segmentation


class Selection(Segmentation):
    name = "selection"

    def encoding(self, rng, laws, held_out=False):
        """Colours, and the rank of the chosen class among the classes (resolved in ``pair``)."""
        colours = two_colours(rng, laws, held_out)
        return Encoding(colours.name, colours.colours, (("class", float(rng.random())),))

    def pair(self, sources, split, laws, encoding, rng) -> Pair:
        (marked,) = chosen(sources.classes, (encoding.option("class"),))
        others = [k for k in sources.classes if k != marked]
        shown = [marked, *(str(k) for k in rng.choice(others, rng.integers(1, 3), replace=False))]
        order = [shown[i] for i in rng.permutation(len(shown))]
        scene = scenes.objects_scene(sources, split, laws, rng, order)
        at = order.index(marked)
        truth = {"mask": scene.masks[at], "all": np.clip(np.sum(scene.masks, 0), 0, 1), "class": marked}
        label = paint(truth["mask"], encoding)
        family = scene.placed[at].sprite.family
        return Pair(to_uint8(scene.image), label, truth | scene.truth(sources), family)

    def landmarks(self, examples, query, encoding):
        return {"all objects": paint(query.truth["all"], encoding)}
