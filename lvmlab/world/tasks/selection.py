"""Selection: two or three objects of different classes, one class common to the whole sentence; only that one
is marked.
"""

import numpy as np

from lvmlab.world import scenes
from lvmlab.world.tasks.base import Encoding, Pair, paint, to_uint8, two_colours
from lvmlab.world.tasks.segmentation import Segmentation


class Selection(Segmentation):
    name = "selection"

    def encoding(self, rng, held_out=False):
        """Colours, and the rank of the chosen class among the split's classes (resolved in ``pair``)."""
        colours = two_colours(rng, held_out)
        return Encoding(colours.name, colours.colours, (("class", float(rng.random())),))

    def pair(self, sources, split, size, encoding, rng) -> Pair:
        classes = sources.classes
        chosen = classes[int(encoding.option("class") * len(classes))]
        others = [k for k in classes if k != chosen]
        shown = [chosen, *(str(k) for k in rng.choice(others, rng.integers(1, 3), replace=False))]
        scene = scenes.objects_scene(
            sources, split, size, rng, [shown[i] for i in rng.permutation(len(shown))]
        )
        index = [item.sprite.klass for item in scene.placed].index(chosen)
        truth = {"mask": scene.masks[index], "all": np.clip(np.sum(scene.masks, 0), 0, 1), "class": chosen}
        family = scene.placed[index].sprite.family
        return Pair(to_uint8(scene.image), paint(truth["mask"], encoding), truth, family)

    def floors(self, examples, query, encoding):
        return super().floors(examples, query, encoding) | {
            "all objects": paint(query.truth["all"], encoding)
        }
