"""Features of labelled pictures: the output of every block of a frozen model, extracted once and cached.

Raw pixels and an untrained trunk are the floors that a probe (`lvmlab.evaluation.probing`) is compared with.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2
from tqdm.auto import tqdm

from lvmlab.data.labelled import Labelled
from lvmlab.model.aim import PatchLM
from lvmlab.model.lvm import LVM
from lvmlab.tokenizer.tokenizer import Tokenizer, fingerprint
from lvmlab.utils import paths
from lvmlab.utils.device import default_device, precision
from lvmlab.utils.files import write_file
from lvmlab.utils.images import from_uint8


class Trunk(Protocol):
    """A frozen model whose features are probed."""

    name: str

    def fingerprint(self) -> str:
        """Of everything that decides its features."""
        ...

    def blocks(self, pictures: Tensor) -> list[Tensor]:
        """The output of every block, (P, N, width) each, of pictures (P, 3, S, S) in [0, 1]."""
        ...


@dataclass(frozen=True)
class Features:
    """Features of P pictures.

    Attributes:
        means: Of each block (P, width): averaged over places.
        places: Of the blocks they were extracted for (P, N, width): at every place.
        data: The pictures.
        folder: Where they are cached.
    """

    means: list[np.ndarray]
    places: dict[int, np.ndarray]
    data: Labelled
    folder: Path

    def mean(self, blocks: int | Sequence[int]) -> np.ndarray:
        """(P, width) fp32 of a block, or of the average of several."""
        blocks = [blocks] if isinstance(blocks, int) else blocks
        return np.mean([self.means[block] for block in blocks], 0, dtype=np.float32)


@torch.inference_mode()
def extract(
    trunk: Trunk, data: Labelled, *, places: Sequence[int] | str = (), batch: int = 64, progress: bool = True
) -> Features:
    """Features of every picture, in the fastest precision; a second call reads them from the cache folder.

    Args:
        trunk: The model.
        data: The pictures.
        places: Blocks whose features are stored at every place, for the attentive probe; "all" is every
            block. For the average of several blocks, name each.
        batch: Pictures in one pass.
        progress: Whether a bar is shown.
    """
    labels = int(np.abs(data.labels).sum())
    key = [
        trunk.fingerprint(),
        data.name,
        data.digest(),
        data.size,
        len(data),
        labels,
        *sorted(map(str, places)),
        precision(),
    ]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    folder = paths.cache() / "features" / digest
    if not (folder / "done.json").is_file():
        _write(folder, trunk, data, places, batch, progress)
    count = json.loads((folder / "done.json").read_text(encoding="utf-8"))["blocks"]

    def array(name: str) -> np.ndarray:
        return np.load(folder / f"{name}.npy", mmap_mode="r")

    chosen = range(count) if places == "all" else places
    means = [array(f"mean-{block}") for block in range(count)]
    return Features(means, {block: array(f"places-{block}") for block in chosen}, data, folder)


def _write(
    folder: Path, trunk: Trunk, data: Labelled, places: Sequence[int] | str, batch: int, progress: bool
) -> None:
    """Extracts features into a folder; done.json is written last."""
    parts: dict[str, list[Tensor]] = defaultdict(list)
    device = default_device()
    for first in tqdm(range(0, len(data), batch), desc=f"features of {trunk.name}", disable=not progress):
        pictures = from_uint8(data.batch(range(first, min(first + batch, len(data)))))
        with torch.autocast(device.type, torch.bfloat16, enabled=precision() == "bf16"):
            outputs = trunk.blocks(pictures)
        for block, features in enumerate(outputs):
            parts[f"mean-{block}"].append(features.float().mean(1).half().cpu())
            if places == "all" or block in places:
                parts[f"places-{block}"].append(features.half().cpu())
    for name, part in parts.items():
        write_file(folder / f"{name}.npy", torch.cat(part).numpy())
    done = {"blocks": len(outputs), "trunk": trunk.name, "data": data.name}
    write_file(folder / "done.json", json.dumps(done))


@dataclass
class LVMTrunk:
    """A token LVM that reads one picture's tokens; each place attends to those before it."""

    lvm: LVM
    tokenizer: Tokenizer
    name: str = "token LVM"

    def fingerprint(self) -> str:
        return f"{self.lvm.fingerprint()}-{self.tokenizer.fingerprint}"

    def blocks(self, pictures: Tensor) -> list[Tensor]:
        tokens = self.tokenizer.encode(pictures).clone().to(self.lvm.device)  # not an inference tensor
        outputs = []

        def record(module, inputs, output) -> None:
            outputs.append(output[0] if isinstance(output, tuple) else output)

        # the list of hidden states that transformers returns ends in the normed one
        hooks = [layer.register_forward_hook(record) for layer in self.lvm.llama.model.layers]
        try:
            self.lvm.hidden(tokens)
        finally:
            for hook in hooks:
                hook.remove()
        return outputs


@dataclass
class PatchTrunk:
    """A patch model under bidirectional attention."""

    model: PatchLM
    name: str = "patch LM"

    def fingerprint(self) -> str:
        return fingerprint(self.model)

    def blocks(self, pictures: Tensor) -> list[Tensor]:
        return self.model.features(pictures.to(self.model.order.device))


@dataclass
class TimmTrunk:
    """Any model of `timm.create_model` that returns intermediate features.

    Pictures are normalised as the model's own data configuration says.
    """

    model: nn.Module
    name: str = "timm"
    normalize: v2.Normalize = field(init=False)

    def __post_init__(self):
        from timm.data import resolve_model_data_config

        data = resolve_model_data_config(self.model)
        self.model = self.model.to(default_device()).eval()
        self.normalize = v2.Normalize(data["mean"], data["std"])

    def fingerprint(self) -> str:
        return fingerprint(self.model)

    def blocks(self, pictures: Tensor) -> list[Tensor]:
        pictures = self.normalize(pictures.to(default_device()))
        maps = self.model.forward_intermediates(pictures, intermediates_only=True, output_fmt="NCHW")
        return [x.flatten(2).mT for x in maps]


@dataclass
class PixelTrunk:
    """No model: the pixels themselves, a floor.

    Attributes:
        patch: Pixels along each side of a place; None makes the picture one place.
    """

    patch: int | None = None
    name: str = "pixels"

    def fingerprint(self) -> str:
        return f"pixels {self.patch}"

    def blocks(self, pictures: Tensor) -> list[Tensor]:
        if self.patch is None:
            return [pictures.flatten(1)[:, None]]
        return [F.unfold(pictures, self.patch, stride=self.patch).mT]
