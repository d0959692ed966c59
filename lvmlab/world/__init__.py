"""mini-world: real photographs, objects with exact masks, bodies with keypoints, rain and blur; composed on the fly."""

from lvmlab.world.sources import SPLITS, Sources, default

VERSION = "mini-world-v1"
SIZE = 64

__all__ = ["SIZE", "SPLITS", "VERSION", "Sources", "default"]
