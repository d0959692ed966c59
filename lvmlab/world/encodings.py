"""Encodings: how a sentence draws its labels, and the ways of drawing them that no training shows.

Training draws label colours from the whole of colour space and palettes by turning and permuting OpenPose's
wheel, but for the held-out places *and their neighbourhood*: hues near the held-out sector on a foreground,
colours near the held-out grounds, turns near the held-out palette's. A held-out encoding is then new and not
only rare.
"""

import colorsys
import math
from dataclasses import dataclass

import numpy as np

from lvmlab.world import skeleton
from lvmlab.world.laws import Laws

Colour = tuple[int, int, int]

HELD_OUT_BACKGROUNDS = {"teal": (0, 110, 110), "sand": (225, 200, 140)}
HELD_OUT_HUES = (0.40, 0.60)  # green-cyan to azure
NEAR_HUES = (0.35, 0.65)  # never on a foreground in training
NEAR_BACKGROUNDS = 0.25  # RGB distance to a held-out ground below which training draws no colour
NEAR_TURNS = (6.0, 8.0)  # of 18: training turns no palette so; the held-out one is turned by 7
MIN_DISTANCE = 0.5  # between two colours of a label, Euclidean in RGB with channels in [0, 1]

# mini-world-v1's training draws from these alone
BACKGROUNDS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "pink": (255, 182, 203),
    "navy": (16, 24, 110),
    "maroon": (110, 16, 24),
}


@dataclass(frozen=True)
class Encoding:
    """How a sentence draws its labels.

    ``colours`` in 0..255, foregrounds first and the background last, where the task has them; ``options``
    what else the task draws once a sentence.
    """

    name: str = "natural"
    colours: tuple[Colour, ...] | None = None
    options: tuple[tuple[str, object], ...] = ()

    def option(self, key: str):
        return dict(self.options)[key]

    def swapped(self) -> "Encoding":
        """Foreground and background exchanged: the conflicting prompt."""
        return Encoding(f"{self.name} swapped", self.colours[::-1], self.options)


def two_colours(rng: np.random.Generator, laws: Laws, held_out: bool = False) -> Encoding:
    """A foreground and a background: held-out ones, or as the laws draw those of training."""
    if laws.free_encodings and not held_out:
        return free_colours(rng, 1)
    return _listed_colours(rng, HELD_OUT_BACKGROUNDS if held_out else BACKGROUNDS, held_out)


def free_colours(rng: np.random.Generator, foregrounds: int) -> Encoding:
    """``foregrounds`` colours and a background, any that training may show, each distinct from the others."""
    colours: list[Colour] = []
    while len(colours) <= foregrounds:
        colour = tuple(int(c) for c in rng.integers(256, size=3))
        apart = all(distance(colour, other) >= MIN_DISTANCE for other in colours)
        if apart and not near_held_out(colour, foreground=len(colours) < foregrounds):
            colours.append(colour)
    names = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in colours]
    return Encoding(f"{', '.join(names[:-1])} on {names[-1]}", tuple(colours))


def near_held_out(colour: Colour, foreground: bool) -> bool:
    """Whether a label colour is held out of training or a neighbour of one that is."""
    low, high = NEAR_HUES
    hue = colorsys.rgb_to_hsv(*(c / 255 for c in colour))[0]
    gaps = [distance(colour, ground) for ground in HELD_OUT_BACKGROUNDS.values()]
    return min(gaps) < NEAR_BACKGROUNDS or (foreground and low <= hue <= high)


def distance(a: Colour, b: Colour) -> float:
    """Euclidean, channels in [0, 1]."""
    return math.dist(a, b) / 255


def _listed_colours(rng: np.random.Generator, backgrounds: dict[str, Colour], held_out: bool) -> Encoding:
    """A saturated hue on a named background, exchanged in three sentences of ten."""
    low, high = HELD_OUT_HUES
    while True:
        hue = rng.uniform(low, high) if held_out else (high + rng.uniform(0, 1 - (high - low))) % 1
        rgb = colorsys.hsv_to_rgb(hue, rng.uniform(0.75, 1), rng.uniform(0.75, 1))
        name = str(rng.choice(sorted(backgrounds)))
        pair = (tuple(round(255 * c) for c in rgb), backgrounds[name])
        if distance(*pair) >= MIN_DISTANCE:
            break
    if rng.random() < 0.3:
        return Encoding(f"{name} on hue {hue:.2f}", pair[::-1])
    return Encoding(f"hue {hue:.2f} on {name}", pair)


def free_palette(rng: np.random.Generator) -> Encoding:
    """OpenPose's wheel turned and permuted, on black in half of the sentences, else on a distinct ground."""
    low, high = NEAR_TURNS
    turn = (high + rng.uniform(0, skeleton.TURNS - (high - low))) % skeleton.TURNS
    order = str(rng.choice(list(skeleton.ORDERS)))
    palette = skeleton.turned(turn, order)
    ground = (0, 0, 0)
    if rng.random() < 0.5:
        while True:
            ground = tuple(int(c) for c in rng.integers(256, size=3))
            apart = min(distance(ground, colour) for colour in palette) >= MIN_DISTANCE
            if apart and not near_held_out(ground, foreground=False):
                break
    r, g, b = ground
    name = f"{order} palette turned by {turn:.1f} on #{r:02x}{g:02x}{b:02x}"
    return Encoding(name, options=(("palette", palette), ("ground", ground)))


def chosen(classes: list[str], draws: tuple[float, ...]) -> list[str]:
    """As many different classes as there are ``draws`` in [0, 1)."""
    left = list(classes)
    return [left.pop(int(draw * len(left))) for draw in draws]
