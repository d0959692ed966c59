"""One crop and one flip for a picture and its label alike, and what a label is: a natural picture, a mask, or
bodies' joints.

DeLVM (section 3.2) grows scarce tasks by such copies. A sample is an image and its label, one image alone, or
the frames of a clip.
Parts are `torchvision.tv_tensors`: an Image is resampled smoothly, a Mask (its colours painted already) takes
its nearest pixel and
mixes no two colours. `Skeletons` are points, moved as points and drawn last: a flipped body's left is its
left again, in left's
colour. What a picture shows flips with it: rain that fell to the left falls to the right, in image and
answer.
"""

import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from lvmlab.utils.images import to_uint8
from lvmlab.world import skeleton

_DRAWING = threading.Lock()  # torchvision draws from torch's one global generator
SCALE, RATIO = (0.4, 1.0), (3 / 4, 4 / 3)  # of a copy's crop: its share of the area, its width to its height


@dataclass(frozen=True)
class Skeletons:
    """People (P, 17, 3) as COCO annotates them: x and y in pixels of a picture (height, width), visibility 0
    where unknown.

    draw: (people, size) to their label image, uint8 (size, size, 3).
    """

    people: np.ndarray
    height: int
    width: int
    draw: Callable[[np.ndarray, int], np.ndarray] = skeleton.draw_people

    def cropped(self, top: int, left: int, height: int, width: int, size: int) -> "Skeletons":
        people = self.people.astype(np.float64)
        people[..., :2] = (people[..., :2] - (left, top)) * (size / width, size / height)
        return replace(self, people=people, height=size, width=size)

    def flipped(self) -> "Skeletons":
        """Mirrored: x turned round, and left and right exchanged, since a body's left is now on the other
        side.
        """
        people = self.people[:, skeleton.SWAPPED].astype(np.float64)
        people[..., 0] = self.width - people[..., 0]
        return replace(self, people=people)


Sample = tuple[tv_tensors.Image | tv_tensors.Mask | Skeletons, ...]


def pictures(sample: Sample, size: int, name: str = "", copy: int = 0) -> np.ndarray:
    """A sample's parts at ``size``, uint8 (parts, size, size, 3).

    copy: 0 is the picture's middle square, as `images.load` has it; from 1 on the copy's own crop and flip,
        drawn from ``name``
    and ``copy`` alone, so that the same copy of the same sample is the same on every machine.
    """
    first = sample[0]
    height, width = first.shape[-2:]
    if copy:
        with _DRAWING, torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(f"{name} {copy}".encode()))
            drawn = v2.RandomResizedCrop(size, SCALE, RATIO).make_params([first])
            box, flip = [drawn[k] for k in ("top", "left", "height", "width")], bool(torch.rand(()) < 0.5)
    else:
        side = min(height, width)
        box, flip = [(height - side) // 2, (width - side) // 2, side, side], False
    return np.stack([_drawn(part, box, flip, size) for part in sample])


def _drawn(part, box: list[int], flip: bool, size: int) -> np.ndarray:
    if isinstance(part, Skeletons):
        moved = part.cropped(*box, size)
        return moved.draw((moved.flipped() if flip else moved).people, size)
    part = F.resized_crop(part, *box, [size, size])  # of a Mask by the nearest pixel
    plain = (F.horizontal_flip(part) if flip else part).as_subclass(torch.Tensor)
    return plain.movedim(0, -1).numpy() if plain.dtype == torch.uint8 else to_uint8(plain.float().clamp(0, 1))
