"""Rain and motion blur: what the restoration tasks undo. Strengths scale with the picture's size."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

RAIN_ANGLE = (-35.0, 35.0)  # degrees from the vertical
RAIN_DENSITY = (0.10, 0.22)  # streaks a pixel column and row, times size: see rain()
RAIN_LENGTH = (0.14, 0.32)  # of the picture's side, for the nearest layer
VEIL = (0.25, 0.5)  # share of the light that the rain's mist replaces
VEIL_GREY = (0.65, 0.9)
BLUR_LENGTH = (0.14, 0.3)  # of the picture's side
LAYERS = 3  # depths, near to far: shorter, thinner and fainter streaks


@dataclass(frozen=True)
class Rain:
    """One weather: ``angle`` in degrees, ``length`` and ``density`` by the side, the others in [0, 1]."""

    angle: float
    length: float
    density: float
    veil: float
    grey: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Rain":
        """A weather from the ranges above."""
        ranges = (RAIN_ANGLE, RAIN_LENGTH, RAIN_DENSITY, VEIL, VEIL_GREY)
        return cls(*(float(rng.uniform(low, high)) for low, high in ranges))


def rain(image: np.ndarray, weather: Rain, rng: np.random.Generator) -> np.ndarray:
    """A copy of (S, S, 3) in [0, 1] under rain: a grey veil, then bright streaks in three depths."""
    size = image.shape[0]
    out = image * (1 - weather.veil) + weather.veil * weather.grey
    for depth in range(LAYERS):
        near = 1 - depth / LAYERS
        sheet = Image.new("L", (2 * size, 2 * size))
        pen = ImageDraw.Draw(sheet)
        count = int(weather.density * 64 * 3 * (1 + depth) / 2)
        length = 2 * size * weather.length * near
        angle = np.deg2rad(weather.angle + rng.normal(0, 3))
        dx, dy = length * np.sin(angle), length * np.cos(angle)
        width = max(1, round(size / 32 * near))
        starts = rng.uniform([[-0.2], [-0.3], [0.7]], [[1.2], [1.0], [1.3]], (3, count))
        for x, y, jitter in zip(*starts, strict=True):
            x, y = 2 * size * x, 2 * size * y
            pen.line((x, y, x + dx * jitter, y + dy * jitter), fill=255, width=width)
        streaks = np.asarray(sheet.reduce(2), np.float32)[..., None] / 255
        out = out + streaks * (0.35 + 0.4 * near) * (0.95 - out)
    return np.clip(out, 0, 1)


def motion_blur(image: np.ndarray, angle: float, length: float) -> np.ndarray:
    """Average (S, S, 3) along a line of ``length`` sides at ``angle`` degrees; edges are mirrored."""
    from scipy.ndimage import shift

    size = image.shape[0]
    steps = np.linspace(-0.5, 0.5, max(2, round(length * size)))
    dy, dx = np.sin(np.deg2rad(angle)) * length * size, np.cos(np.deg2rad(angle)) * length * size
    # a channel at a time: half the time of all three at once
    channels = [
        np.mean([shift(channel, (s * dy, s * dx), order=1, mode="mirror") for s in steps], 0)
        for channel in np.moveaxis(image, -1, 0)
    ]
    return np.clip(np.stack(channels, -1), 0, 1).astype(np.float32)
