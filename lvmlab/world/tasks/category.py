"""Category: two pictures of one class, which is the sentence's.

These are LVM's category sentences (arXiv 2312.00785).
It is trained on, so that a model learns what the objects of a class share, and not scored: any other picture
of the class is a right answer.
"""

from lvmlab.world import scenes
from lvmlab.world.encodings import Encoding, chosen
from lvmlab.world.tasks.base import Pair, Task, to_uint8


class Category(Task):
    name = "category"

    def encoding(self, rng, laws, held_out=False):
        super().encoding(rng, laws, held_out)
        return Encoding("category", options=(("class", float(rng.random())),))

    def pair(self, sources, split, laws, encoding, rng) -> Pair:
        shown = chosen(sources.classes, (encoding.option("class"),))
        image = scenes.objects_scene(sources, split, laws, rng, shown)
        label = scenes.objects_scene(sources, split, laws, rng, shown)
        truth = image.truth(sources) | {"label masks": label.truth(sources)["masks"]}
        return Pair(to_uint8(image.image), to_uint8(label.image), truth, image.largest.family)
