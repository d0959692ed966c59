"""Motion: objects bounce over a still photograph; the next frame is the answer.

A sentence is one clip, two frames a pair.
"""

import numpy as np

from lvmlab.world import scenes
from lvmlab.world.tasks.base import Pair, to_uint8
from lvmlab.world.tasks.restoration import Restoration

SPEED = (0.12, 0.26)  # of the picture's side, a frame
AREA = (0.08, 0.25)  # larger than the law's lower bound, so that standing still is a poor answer


class Motion(Restoration):
    name, sequence = "motion", True

    def pair(self, sources, split, laws, encoding, rng) -> Pair:
        return self.sentence(sources, split, laws, encoding, 1, rng)[0]

    def sentence(self, sources, split, laws, encoding, pairs, rng) -> list[Pair]:
        size = laws.size
        image, name = scenes.background(sources, split, laws, rng)
        bounced, classes = [], []
        for _ in range(rng.integers(1, 4)):
            sprite = sources.pick("objects", split, rng)
            layer = scenes.place(sprite, laws, rng.uniform(*AREA), rng)
            free = np.maximum([size - layer.shape[1], size - layer.shape[0]], 1)
            angle = rng.uniform(0, 2 * np.pi)
            speed = rng.uniform(*SPEED) * size * np.array([np.cos(angle), np.sin(angle)])
            bounced.append((sprite, layer, free, rng.uniform(0, free), speed))
            classes.append(sources.classes.index(sprite.klass))
        frames, masks = [], []
        for step in range(2 * pairs):
            frame, placed = image.copy(), []
            for sprite, layer, free, start, speed in bounced:
                # reflection at both walls: a triangle wave of period 2 * free
                x, y = (int(round(p)) for p in free - np.abs((start + step * speed) % (2 * free) - free))
                scenes.paste(frame, layer, x, y)
                placed.append(scenes.Placed(sprite, layer, x, y))
            frames.append(to_uint8(frame))
            masks.append(scenes.alphas_to_uint8(scenes.visible(placed, size)))
        truths = [
            {"masks": masks[i], "label masks": masks[i + 1], "classes": np.array(classes)}
            for i in range(0, 2 * pairs, 2)
        ]
        return [Pair(frames[2 * i], frames[2 * i + 1], truth, name) for i, truth in enumerate(truths)]
