"""Pose: a person's skeleton, OpenPose's colours on black by default. Score: PCK@0.1, OKS beside it."""

import numpy as np

from lvmlab.world import scenes, skeleton
from lvmlab.world.encodings import BACKGROUNDS, Encoding, free_palette
from lvmlab.world.tasks.base import Pair, Task, to_uint8


class Pose(Task):
    name, metric, kind = "pose", "PCK@0.1", 2

    def encoding(self, rng, laws, held_out=False):
        """A palette and its ground, as the laws draw them; the held-out palette is on black."""
        if laws.free_encodings and not held_out:
            return free_palette(rng)
        return self._listed(rng, held_out)

    def _listed(self, rng, held_out):
        """Seven sentences of ten are OpenPose's colours on black; others change the ground or the sides."""
        palette, ground = "openpose", "black"
        draw, other = rng.random(), str(rng.choice(("navy", "maroon")))
        if held_out:
            palette = "turned"
        elif draw > 0.85:
            palette = "mirrored"
        elif draw > 0.7:
            ground = other
        options = (("palette", palette), ("ground", BACKGROUNDS[ground]))
        return Encoding(f"{palette} on {ground}", options=options)

    def pair(self, sources, split, laws, encoding, rng) -> Pair:
        scene = scenes.body_scene(sources, split, laws, rng)
        label = self.draw(scene.keypoints, laws.size, encoding)
        return Pair(to_uint8(scene.image), label, scene.truth(sources), scene.body)

    def draw(self, keypoints, size, encoding):
        return skeleton.draw(keypoints, size, encoding.option("palette"), encoding.option("ground"))

    def read(self, answers: np.ndarray, encodings: list[Encoding]) -> np.ndarray:
        """Label images, uint8 (B, S, S, 3), to keypoints (B, 17, 2) in pixels, NaN where nothing is found."""
        from lvmlab.world import skeleton_fit

        return skeleton_fit.read(
            answers, [e.option("palette") for e in encodings], [e.option("ground") for e in encodings]
        )

    def scores(self, answers, pairs, encodings):
        truths = [(pair.truth["keypoints"], pair.truth["box"]) for pair in pairs]
        found = self.read(answers, encodings)
        return {
            "PCK@0.1": np.array([skeleton.pck(f, *t) for f, t in zip(found, truths, strict=True)]),
            "OKS": np.array([skeleton.oks(f, *t) for f, t in zip(found, truths, strict=True)]),
        }

    def floors(self, examples, query, encoding):
        # the query is no drawing of a skeleton, so copying it is no answer
        found = {"last label": examples[-1].label}
        # another task's examples show no bodies
        if all("box" in pair.truth for pair in examples):
            box = np.mean([pair.truth["box"] for pair in examples], 0)
            found["constant"] = self._mean_skeleton(box, query, encoding)
        return found

    def landmarks(self, examples, query, encoding):
        return {"mean skeleton": self._mean_skeleton(query.truth["box"], query, encoding)}

    def _mean_skeleton(self, box, query, encoding):
        points = box[:2] + skeleton.mean_skeleton() * (box[2:] - box[:2])
        return self.draw(points, query.image.shape[0], encoding)
