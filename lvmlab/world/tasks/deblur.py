"""Deblur: undo motion blur; one motion a sentence. Never trained."""

from lvmlab.world import weather
from lvmlab.world.encodings import Encoding
from lvmlab.world.tasks.restoration import Restoration


class Deblur(Restoration):
    name = "deblur"

    def encoding(self, rng, laws, held_out=False):
        super().encoding(rng, laws, held_out)
        blur = (float(rng.uniform(0, 180)), float(rng.uniform(*weather.BLUR_LENGTH)))
        return Encoding("blur", options=(("blur", blur),))

    def degrade(self, picture, encoding, rng):
        return weather.motion_blur(picture, *encoding.option("blur")), {}
