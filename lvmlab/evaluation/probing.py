"""What frozen features know: those of any block of any model, extracted once, and probes that read a class
from them.

Linear probe; AIM's attentive probe (arXiv 2401.08541, section 4: one learned query attends to the places of a
picture); k-nearest neighbours.
Scores are balanced accuracies, their intervals 95 % bootstraps over sources. Raw pixels and an untrained
trunk are the floors.
"""

import hashlib
import json
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torchvision.transforms import v2
from tqdm.auto import tqdm

from lvmlab.data.labelled import Labelled
from lvmlab.evaluation.statistics import source_weights
from lvmlab.model.aim import PatchLM
from lvmlab.model.lvm import LVM
from lvmlab.tokenizer.tokenizer import Tokenizer, fingerprint
from lvmlab.utils import paths
from lvmlab.utils.device import default_device, precision
from lvmlab.utils.files import write_file
from lvmlab.utils.images import from_uint8

FEW = 100  # classes up to which the linear probe is scikit-learn's
PENALTIES = (0.001, 0.01, 0.1, 1.0)  # of the linear probe: the inverse strength, chosen on val


class Trunk(Protocol):
    """A frozen model. ``blocks``: pictures (B, 3, S, S) in [0, 1] to the output of every block, (B, N, width)
    each.
    """

    name: str

    def fingerprint(self) -> str: ...
    def blocks(self, pictures: Tensor) -> list[Tensor]: ...


@dataclass
class Tokens:
    """A token LVM that reads one picture's tokens: each place has seen those before it."""

    lvm: LVM
    tokenizer: Tokenizer
    name: str = "token LVM"

    def fingerprint(self) -> str:
        return f"{self.lvm.fingerprint()}-{self.tokenizer.fingerprint}"

    def blocks(self, pictures: Tensor) -> list[Tensor]:
        tokens, found = (
            self.tokenizer.encode(pictures).clone().to(self.lvm.device),
            [],
        )  # not an inference tensor
        hooks = [
            layer.register_forward_hook(
                lambda module, given, out: found.append(out[0] if isinstance(out, tuple) else out)
            )
            for layer in self.lvm.llama.model.layers
        ]  # the list that transformers returns ends in the normed one
        try:
            self.lvm.hidden(tokens)
        finally:
            for hook in hooks:
                hook.remove()
        return found


@dataclass
class Patches:
    """A patch model, read both ways."""

    model: PatchLM
    name: str = "patch LM"

    def fingerprint(self) -> str:
        return fingerprint(self.model)

    def blocks(self, pictures: Tensor) -> list[Tensor]:
        return self.model.features(pictures.to(self.model.order.device))


@dataclass
class Timm:
    """Any model of `timm.create_model` that gives its intermediate features; pictures as its own data
    configuration has them.
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
        found = self.model.forward_intermediates(
            self.normalize(pictures.to(default_device())), intermediates_only=True, output_fmt="NCHW"
        )
        return [x.flatten(2).mT for x in found]


@dataclass
class Pixels:
    """No model: the pixels themselves, the floor. patch: None for all at once, or by patches of so many
    pixels a side, as places.
    """

    patch: int | None = None
    name: str = "pixels"

    def fingerprint(self) -> str:
        return f"pixels {self.patch}"

    def blocks(self, pictures: Tensor) -> list[Tensor]:
        return [
            F.unfold(pictures, self.patch, stride=self.patch).mT
            if self.patch
            else pictures.flatten(1)[:, None]
        ]


@dataclass(frozen=True)
class Extracted:
    """Features of P pictures: ``means`` (blocks, P, width), over places; ``places`` {block: (P, N, width)} of
    those asked for; their folder.
    """

    means: list[np.ndarray]
    places: dict[int, np.ndarray]
    data: Labelled
    folder: Path

    def mean(self, blocks: int | Sequence[int]) -> np.ndarray:
        """(P, width) fp32 of a block, or of the average of several."""
        return np.mean(
            [self.means[b] for b in ([blocks] if isinstance(blocks, int) else blocks)], 0, dtype=np.float32
        )


@torch.inference_mode()
def extract(
    trunk: Trunk, data: Labelled, *, places: Sequence[int] | str = (), batch: int = 64, progress: bool = True
) -> Extracted:
    """Features of every picture in the fastest precision, kept in the cache folder by fingerprint: a second
    call reads them.

    places: blocks whose features are kept at every place, for the attentive probe ("all": every one); the
        average of several is asked for as several.
    """
    of = [data.name, data.size, len(data), int(np.abs(data.labels).sum()), *sorted(map(str, places))]
    folder = (
        paths.cache()
        / "features"
        / hashlib.sha256(json.dumps([trunk.fingerprint(), *of, precision()]).encode()).hexdigest()[:16]
    )
    if not (folder / "done.json").is_file():
        parts: dict[str, list[Tensor]] = defaultdict(list)
        device = default_device()
        for first in tqdm(range(0, len(data), batch), desc=f"features of {trunk.name}", disable=not progress):
            pictures = from_uint8(data.batch(range(first, min(first + batch, len(data)))))
            with torch.autocast(device.type, torch.bfloat16, enabled=precision() == "bf16"):
                found = trunk.blocks(pictures)
            for block, features in enumerate(found):
                parts[f"mean-{block}"].append(features.float().mean(1).half().cpu())
                if places == "all" or block in places:
                    parts[f"places-{block}"].append(features.half().cpu())
        for name, part in parts.items():
            write_file(folder / f"{name}.npy", torch.cat(part).numpy())
        write_file(
            folder / "done.json", json.dumps({"blocks": len(found), "trunk": trunk.name, "data": data.name})
        )
    blocks = range(json.loads((folder / "done.json").read_text(encoding="utf-8"))["blocks"])
    means = [np.load(folder / f"mean-{b}.npy", mmap_mode="r") for b in blocks]
    return Extracted(
        means,
        {
            b: np.load(folder / f"places-{b}.npy", mmap_mode="r")
            for b in (blocks if places == "all" else places)
        },
        data,
        folder,
    )


def resampled(predicted: np.ndarray, data: Labelled, seed: int = 0) -> np.ndarray:
    """Balanced accuracy, the mean of the classes' recalls: as it is, then with sources (and, of several,
    trainings) drawn again: (1 + resamples,).

    predicted: (P,), or (trainings, P). Two models asked the same pictures are drawn alike: differences are
        paired.
    """
    right = (np.atleast_2d(predicted) == data.labels).astype(float)
    weights, times, recalls = (
        source_weights(data.sources, seed),
        source_weights(np.arange(len(right)), seed + 1),
        [],
    )
    for label in np.unique(data.labels):
        of = weights[:, data.labels == label]
        found = (of @ right[:, data.labels == label].T * times).sum(1)
        recalls.append(found / np.where(of.sum(1) > 0, of.sum(1) * len(right), np.nan))
    return np.nanmean(recalls, 0)


def score(predicted: np.ndarray, data: Labelled, seed: int = 0) -> dict[str, float]:
    """{score, low, high}: of `resampled`, with its 95 % interval."""
    found = resampled(predicted, data, seed)
    return {
        "score": float(found[0]),
        **dict(zip(("low", "high"), map(float, np.percentile(found[1:], (2.5, 97.5))), strict=True)),
    }


def confusion(predicted: np.ndarray, data: Labelled) -> np.ndarray:
    """(classes, classes): of each class the share that is taken for each."""
    return confusion_matrix(data.labels, predicted, labels=range(len(data.classes)), normalize="true")


def linear(
    train: Extracted, val: Extracted, test: Extracted, blocks: int | Sequence[int], seed: int = 0
) -> np.ndarray:
    """The classes of ``test`` by a linear probe on standardised features, its penalty chosen on val: (P,).
    seed: of more classes than FEW alone.
    """
    scaler = StandardScaler().fit(train.mean(blocks))
    x, v, t = (scaler.transform(e.mean(blocks)) for e in (train, val, test))
    if len(train.data.classes) <= FEW:
        # cut short at 300 steps, which val judges too; products so small are slower on several threads than
        # on one
        with (
            warnings.catch_warnings(action="ignore", category=ConvergenceWarning),
            threadpool_limits(1, "blas"),
        ):
            fits = [
                LogisticRegression(C=c, max_iter=300, class_weight="balanced").fit(x, train.data.labels)
                for c in PENALTIES
            ]
        return max(fits, key=lambda fit: score(fit.predict(v), val.data)["score"]).predict(t)
    head = nn.Linear(x.shape[1], len(train.data.classes))
    return _fitted(head, (x, v, t), train.data.labels, val.data, seed=seed, lr=3e-2, decay=1e-3)


def neighbours(train: Extracted, test: Extracted, blocks: int | Sequence[int], k: int = 20) -> np.ndarray:
    """The classes of ``test`` by the ``k`` nearest of train, by angle, the nearer the more: (P,)."""
    fit = KNeighborsClassifier(min(k, len(train.data)), weights="distance", metric="cosine").fit(
        train.mean(blocks), train.data.labels
    )
    return fit.predict(test.mean(blocks))


class Attentive(nn.Module):
    """AIM's probe; parameters are named as its release names them, so that ``load_state_dict`` takes its
    files.

    Features are normalised by BatchNorm without affine; one learned query attends to the places by keys and
    values without biases.
    """

    def __init__(self, width: int, classes: int, heads: int):
        super().__init__()
        self.heads = heads
        self.bn = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.k, self.v = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.linear = nn.Linear(width, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) to logits (B, classes).

        The query is one, so q (W_k x) is (q W_k) x, and the mean of W_v x is W_v of the mean: no key or value
        of a place is ever made.
        """
        x = self._normed(x)
        seen = torch.einsum("bhn,bnw->bhw", self._looks(x), x)
        return self.linear(
            torch.einsum("bhw,hdw->bhd", seen, self.v.weight.unflatten(0, (self.heads, -1))).flatten(1)
        )

    def attention(self, x: Tensor) -> Tensor:
        """Where the query looks: (B, heads, N), sums of 1."""
        return self._looks(self._normed(x))

    def _normed(self, x: Tensor) -> Tensor:
        return self.bn(x.flatten(0, 1)).view_as(x)

    def _looks(self, x: Tensor) -> Tensor:
        query = self.cls_token.view(self.heads, 1, -1) @ self.k.weight.unflatten(
            0, (self.heads, -1)
        )  # (heads, 1, width)
        return (torch.einsum("bnw,hw->bhn", x, query[:, 0]) / (x.shape[2] // self.heads) ** 0.5).softmax(-1)


def attentive(
    train: Extracted,
    val: Extracted,
    test: Extracted,
    blocks: int | Sequence[int],
    *,
    heads: int = 4,
    epochs: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> tuple[np.ndarray, Attentive]:
    """The classes of ``test`` by AIM's probe on the average of blocks, and the probe. Blocks must have been
    kept at every place.
    """
    blocks = [blocks] if isinstance(blocks, int) else list(blocks)
    missing = [b for b in blocks if b not in train.places]
    if missing:
        raise ValueError(f"blocks {missing} were kept as means alone: extract them with places={blocks}")
    x, v, t = (np.mean([e.places[b] for b in blocks], 0, dtype=np.float32) for e in (train, val, test))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Attentive(x.shape[2], len(train.data.classes), heads)
    return _fitted(
        head, (x, v, t), train.data.labels, val.data, epochs=epochs, seed=seed, progress=progress
    ), head


def _fitted(
    head: nn.Module,
    features: tuple[np.ndarray, ...],
    labels: np.ndarray,
    val: Labelled,
    *,
    epochs: int = 20,
    batch: int = 128,
    lr: float = 2e-3,
    decay: float = 0.1,
    seed: int = 0,
    progress: bool = False,
) -> np.ndarray:
    """Trains a head by AdamW with a cosine, keeps the best epoch on val, and answers for the last features."""
    device = default_device()
    x, v, t = (torch.from_numpy(np.ascontiguousarray(f)).to(device) for f in features)
    y, head, rng = (
        torch.from_numpy(labels).long().to(device),
        head.to(device),
        torch.Generator().manual_seed(seed),
    )
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * -(-len(x) // batch))
    best, kept = -1.0, {}
    for _ in tqdm(range(epochs), desc="probe", disable=not progress):
        head.train()
        for rows in torch.randperm(len(x), generator=rng).split(batch):
            if len(rows) < 2:  # batch norm takes no single picture
                continue
            F.cross_entropy(head(x[rows]), y[rows], label_smoothing=0.1).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        found = score(_answers(head, v), val)["score"]
        if found > best:
            best, kept = found, {k: p.clone() for k, p in head.state_dict().items()}
    head.load_state_dict(kept)
    return _answers(head, t)


@torch.no_grad()
def _answers(head: nn.Module, x: Tensor, batch: int = 1024) -> np.ndarray:
    head.eval()
    return torch.cat([head(part).argmax(-1) for part in x.split(batch)]).cpu().numpy()
