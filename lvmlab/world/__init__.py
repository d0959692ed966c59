"""mini-world, the embedded benchmark: photographs, objects with masks, bodies with keypoints, rain and blur.

Scenes are composed on the fly into pairs and sentences, and each task in `tasks/` scores its own answers. It
imports `utils/`.
"""

from lvmlab.world.laws import DEFAULT, V1, V2, Laws, of_size
from lvmlab.world.sources import SPLITS, Sources, default

__all__ = ["DEFAULT", "SPLITS", "V1", "V2", "Laws", "Sources", "default", "of_size"]
