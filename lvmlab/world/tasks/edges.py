"""Edges: the scene's contours, white on black. Never trained. Score: F within a 64th of the side."""

import numpy as np

from lvmlab.world import scenes
from lvmlab.world.tasks.base import Pair, Task, to_uint8

SIGMA = 1.5  # of Canny's smoothing, in pixels at 64 px


def _near(mask: np.ndarray) -> np.ndarray:
    """Which pixels lie within a 64th of the side of the marked ones: bool (S, S)."""
    from scipy.ndimage import binary_dilation

    return binary_dilation(mask, np.ones((3, 3), bool), iterations=max(1, len(mask) // 64))


class Edges(Task):
    name, metric, kind = "edges", "F", 3

    def pair(self, sources, split, laws, encoding, rng) -> Pair:
        from skimage.feature import canny

        scene = scenes.objects_scene(sources, split, laws, rng)
        edges = canny(scene.image.mean(-1), sigma=SIGMA * laws.size / 64)
        label = np.repeat((_near(edges) * np.uint8(255))[..., None], 3, -1)
        truth = {"edges": edges} | scene.truth(sources)
        return Pair(to_uint8(scene.image), label, truth, scene.photograph)

    def score(self, answer, pair, encoding) -> dict[str, float]:
        """Boundary F-score: the answer's strokes thinned to lines, matched within a 64th of the side."""
        from skimage.morphology import thin

        lines, truth = thin(answer.astype(np.float32).mean(-1) > 127), pair.truth["edges"]
        if not lines.any() or not truth.any():
            return {"F": float(lines.any() == truth.any())}
        precision, recall = (
            (lines & _near(truth)).sum() / lines.sum(),
            (truth & _near(lines)).sum() / truth.sum(),
        )
        return {"F": float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0}

    def floors(self, examples, query, encoding):
        return super().floors(examples, query, encoding) | {"constant": np.full_like(query.image, 255)}
