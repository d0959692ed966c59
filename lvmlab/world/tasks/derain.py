"""Derain: take away streaks and veil; one weather a sentence."""

from dataclasses import astuple

from lvmlab.world import weather
from lvmlab.world.encodings import Encoding
from lvmlab.world.tasks.restoration import Restoration


class Derain(Restoration):
    name = "derain"

    def encoding(self, rng, laws, held_out=False):
        super().encoding(rng, laws, held_out)
        return Encoding("rain", options=(("rain", astuple(weather.Rain.draw(rng))),))

    def degrade(self, picture, encoding, rng):
        return weather.rain(picture, weather.Rain(*encoding.option("rain")), rng), {}
