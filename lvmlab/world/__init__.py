"""mini-world, the embedded benchmark: real photographs, objects with exact masks, bodies with keypoints, rain and blur.

Scenes are composed on the fly into pairs and sentences, and each task in `tasks/` scores its own answers. It imports
`utils/`.
"""

from lvmlab.world.sources import SPLITS, Sources, default

VERSION = "mini-world-v1"
SIZE = 64

__all__ = ["SIZE", "SPLITS", "VERSION", "Sources", "default"]
