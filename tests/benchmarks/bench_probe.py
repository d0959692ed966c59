"""Entries of the probes: features against a plain timm loop, and AIM's probe on cached features of many
pictures.
"""

import shutil

import numpy as np
import timm
import torch
from bench_rows import Row, entry, interleaved, of_kind, rates
from torch import Tensor, nn

from lvmlab.data.labelled import Labelled
from lvmlab.evaluation import probing as probe
from lvmlab.evaluation.features import Features, TimmTrunk, extract
from lvmlab.utils.device import default_device, precision
from lvmlab.utils.images import from_uint8

MODEL, PICTURES, BATCH = "vit_tiny_patch16_224", 128, 64
MANY, PLACES, WIDTH, CLASSES, EPOCHS, HEADS = 20_000, 64, 192, 25, 20, 4


def noise(count: int, size: int, seed: int = 0) -> Labelled:
    pictures = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3)).astype(np.uint8)
    return Labelled(
        f"noise {seed}",
        size,
        lambda i: pictures[i],
        np.arange(count) % CLASSES,
        [str(i) for i in range(CLASSES)],
        np.arange(count),
    )


@entry("probe.extract")
def extraction():
    """Every block's mean features of pictures in memory, against timm's forward_intermediates in fp32; files
    and the cache's look-up included.
    """
    data, model = noise(PICTURES, 224), timm.create_model(MODEL, num_classes=0)
    trunk = TimmTrunk(model)

    def ours() -> None:
        shutil.rmtree(extract(trunk, data, batch=BATCH, progress=False).folder)

    @torch.no_grad()
    def theirs() -> list[Tensor]:
        found = []
        for first in range(0, PICTURES, BATCH):
            pictures = from_uint8(data.batch(range(first, first + BATCH))).to(default_device())
            blocks = model.forward_intermediates(trunk.normalize(pictures), intermediates_only=True)
            found.append(torch.stack([block.mean((2, 3)).cpu() for block in blocks]))
        return found

    taken = interleaved("probe.extract", {"ours": ours, "theirs": theirs}, 3)
    yield rates(
        "probe.extract",
        PICTURES / min(taken["ours"]),
        PICTURES / min(taken["theirs"]),
        "images/s",
        of_kind(bf16=1.5, fp32=1.0),
        f"means of every block of {MODEL} (fresh weights) in {precision()} against a plain loop in fp32, "
        f"{PICTURES} pictures of 224 px in "
        f"batches of {BATCH}, best of 3",
    )


class Textbook(nn.Module):
    """The same probe with a key and a value for each place."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(WIDTH, affine=False)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, bias=False, batch_first=True)
        self.query, self.linear = (
            nn.Parameter(torch.randn(1, 1, WIDTH) * 0.02),
            nn.Linear(WIDTH, CLASSES, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(x.mT).mT
        return self.linear(
            self.attention(self.query.expand(len(x), -1, -1), x, x, need_weights=False)[0][:, 0]
        )


@entry("probe.attentive")
def attentive():
    """AIM's probe trained on features of every place, against the textbook form of it, of which one epoch is
    measured.
    """
    rng = np.random.default_rng(0)
    parts = []
    for seed, count in enumerate((MANY, 500, 500)):
        features = rng.standard_normal((count, PLACES, WIDTH), dtype=np.float32).astype(np.float16)
        parts.append(Features([features.mean(1)], {0: features}, noise(count, 1, seed), None))
    taken = interleaved(
        "probe.attentive",
        {
            "ours": lambda: probe.attentive(*parts, 0, heads=HEADS, epochs=EPOCHS),
            "theirs": lambda: probe.fit(
                Textbook(),
                tuple(p.places[0].astype(np.float32) for p in parts),
                parts[0].data.labels,
                parts[1].data,
                epochs=1,
            ),
        },
        1,
        warmup=0,
    )
    ours, theirs = taken["ours"][0], EPOCHS * taken["theirs"][0]
    yield Row(
        "probe.attentive",
        ours,
        theirs,
        ours / theirs,
        "s",
        None,
        f"{EPOCHS} epochs on features of {MANY} pictures, {PLACES} places of {WIDTH} numbers, against "
        f"{EPOCHS} times one epoch of the same "
        "probe that makes a key and a value for each place",
    )


__all__ = ["attentive", "extraction"]
