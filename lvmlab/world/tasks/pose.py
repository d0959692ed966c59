"""Pose: a person's skeleton, OpenPose's colours on black by default. Score: PCK@0.1, OKS beside it."""

import numpy as np

from lvmlab.world import scenes, skeleton
from lvmlab.world.tasks.base import BACKGROUNDS, Encoding, Pair, Task, to_uint8

_OTHERS = ("navy", "maroon")  # dark enough for every bone's colour to stand out


class Pose(Task):
    name, metric, trained, kind = "pose", "PCK@0.1", True, 2

    def encoding(self, rng, held_out=False):
        """Seven sentences of ten are OpenPose's colours on black; the rest another ground or left and right
        exchanged.
        """
        palette, ground = "openpose", "black"
        draw, other = rng.random(), str(rng.choice(_OTHERS))
        if held_out:
            palette = "turned"
        elif draw > 0.85:
            palette = "mirrored"
        elif draw > 0.7:
            ground = other
        return Encoding(
            f"{palette} on {ground}", options=(("palette", palette), ("ground", BACKGROUNDS[ground]))
        )

    def pair(self, sources, split, size, encoding, rng) -> Pair:
        scene = scenes.body_scene(sources, split, size, rng)
        label = self.draw(scene.keypoints, size, encoding)
        return Pair(
            to_uint8(scene.image), label, {"keypoints": scene.keypoints, "box": scene.box}, scene.body
        )

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
        size, mean = query.image.shape[0], skeleton.mean_skeleton()
        box = query.truth["box"]
        found = {  # the query is no drawing of a skeleton, so copying it is no answer
            "last label": examples[-1].label,
            "mean skeleton": self.draw(box[:2] + mean * (box[2:] - box[:2]), size, encoding),
        }
        if all("box" in pair.truth for pair in examples):  # another task's examples show no bodies
            boxes = np.mean([pair.truth["box"] for pair in examples], 0)
            found["constant"] = self.draw(boxes[:2] + mean * (boxes[2:] - boxes[:2]), size, encoding)
        return found
