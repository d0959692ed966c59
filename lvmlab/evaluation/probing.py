"""Probes that read a class from frozen features, and their scores.

Linear probe; AIM's attentive probe (arXiv 2401.08541, section 4: one learned query attends to the places of a
picture); k-nearest neighbours. Scores are balanced accuracies, with 95 % bootstrap intervals over sources.
"""

import warnings
from collections.abc import Sequence

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
from tqdm.auto import tqdm

from lvmlab.data.labelled import Labelled
from lvmlab.evaluation.features import Features
from lvmlab.evaluation.statistics import interval, source_weights
from lvmlab.utils.device import default_device

FEW_CLASSES = 100  # up to which the linear probe is scikit-learn's
PENALTIES = (0.001, 0.01, 0.1, 1.0)  # of the linear probe: the inverse strength, chosen on val


def linear(
    train: Features, val: Features, test: Features, blocks: int | Sequence[int], seed: int = 0
) -> np.ndarray:
    """Classes by a linear probe on standardised features.

    Args:
        train: What it is fitted to.
        val: What its penalty is chosen on.
        test: What it predicts.
        blocks: A block, or several whose features are averaged.
        seed: Of a training with more than FEW_CLASSES classes.

    Returns:
        (P,), of the test pictures.
    """
    scaler = StandardScaler().fit(train.mean(blocks))
    x, x_val, x_test = (scaler.transform(part.mean(blocks)) for part in (train, val, test))
    labels = train.data.labels
    if len(train.data.classes) > FEW_CLASSES:
        head = nn.Linear(x.shape[1], len(train.data.classes))
        return fit(head, (x, x_val, x_test), labels, val.data, seed=seed, lr=3e-2, decay=1e-3)
    # stopped at 300 steps, which val judges too; products this small are slower on several threads than on
    # one
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning), threadpool_limits(1, "blas"):
        fits = [
            LogisticRegression(C=c, max_iter=300, class_weight="balanced").fit(x, labels) for c in PENALTIES
        ]
    best = max(fits, key=lambda fitted: score(fitted.predict(x_val), val.data)["score"])
    return best.predict(x_test)


def neighbours(train: Features, test: Features, blocks: int | Sequence[int], k: int = 20) -> np.ndarray:
    """Classes (P,) of ``test`` by its k nearest neighbours in ``train``: by angle, weighted by inverse
    distance.
    """
    classifier = KNeighborsClassifier(min(k, len(train.data)), weights="distance", metric="cosine")
    return classifier.fit(train.mean(blocks), train.data.labels).predict(test.mean(blocks))


def attentive(
    train: Features,
    val: Features,
    test: Features,
    blocks: int | Sequence[int],
    *,
    heads: int = 4,
    epochs: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> tuple[np.ndarray, "Attentive"]:
    """Classes by AIM's attentive probe on the average of blocks.

    Args:
        train: What it is trained on.
        val: What its best epoch is chosen on.
        test: What it predicts.
        blocks: Blocks extracted at every place.
        heads: Of the probe.
        epochs: Of its training.
        seed: Of its weights and the order of pictures.
        progress: Whether a bar is shown.

    Returns:
        Classes (P,) of the test pictures, and the probe.

    Raises:
        ValueError: A block was extracted as its mean alone.
    """
    blocks = [blocks] if isinstance(blocks, int) else list(blocks)
    missing = [block for block in blocks if block not in train.places]
    if missing:
        raise ValueError(f"blocks {missing} were kept as means alone: extract them with places={blocks}")
    features = tuple(
        np.mean([part.places[block] for block in blocks], 0, dtype=np.float32) for part in (train, val, test)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Attentive(features[0].shape[2], len(train.data.classes), heads)
    labels = train.data.labels
    return fit(head, features, labels, val.data, epochs=epochs, seed=seed, progress=progress), head


class Attentive(nn.Module):
    """AIM's attentive probe.

    Features are normalised by BatchNorm without affine; one learned query attends to the places by keys and
    values without biases. Parameters are named as in the release, so that ``load_state_dict`` takes its
    files.

    Args:
        width: Of the features.
        classes: Number of classes.
        heads: Attention heads.
    """

    def __init__(self, width: int, classes: int, heads: int):
        super().__init__()
        self.heads = heads
        self.bn = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.linear = nn.Linear(width, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) to logits (B, classes).

        There is one query, so q (W_k x) is (q W_k) x, and the mean of W_v x is W_v of the mean: no key or
        value of a place is ever computed.
        """
        x = self._normed(x)
        pooled = torch.einsum("bhn,bnw->bhw", self._attend(x), x)
        values = torch.einsum("bhw,hdw->bhd", pooled, self.v.weight.unflatten(0, (self.heads, -1)))
        return self.linear(values.flatten(1))

    def attention(self, x: Tensor) -> Tensor:
        """Where the query attends to: (B, heads, N), each row summing to 1."""
        return self._attend(self._normed(x))

    def _normed(self, x: Tensor) -> Tensor:
        return self.bn(x.flatten(0, 1)).view_as(x)

    def _attend(self, x: Tensor) -> Tensor:
        keys = self.k.weight.unflatten(0, (self.heads, -1))
        query = self.cls_token.view(self.heads, 1, -1) @ keys  # (heads, 1, width)
        scores = torch.einsum("bnw,hw->bhn", x, query[:, 0])
        return (scores / (x.shape[2] // self.heads) ** 0.5).softmax(-1)


def score(predicted: np.ndarray, data: Labelled, seed: int = 0) -> dict[str, float]:
    """Balanced accuracy with its 95 % interval: score, low, high. Arguments as of `balanced_accuracies`."""
    values = balanced_accuracies(predicted, data, seed)
    low, high = map(float, interval(values))
    return {"score": float(values[0]), "low": low, "high": high}


def balanced_accuracies(predicted: np.ndarray, data: Labelled, seed: int = 0) -> np.ndarray:
    """Balanced accuracy, the mean of the classes' recalls: as it is, then resampled.

    Args:
        predicted: (P,), or (trainings, P).
        data: The pictures; sources are drawn with replacement, and of several trainings those too.
        seed: Two models that predict the same pictures are resampled alike, so their differences are paired.

    Returns:
        (1 + `lvmlab.evaluation.statistics.RESAMPLES`,).
    """
    correct = (np.atleast_2d(predicted) == data.labels).astype(float)  # (trainings, P)
    pictures = source_weights(data.sources, seed)
    trainings = source_weights(np.arange(len(correct)), seed + 1)
    recalls = []
    for label in np.unique(data.labels):
        weights = pictures[:, data.labels == label]
        hits = (weights @ correct[:, data.labels == label].T * trainings).sum(1)
        counts = weights.sum(1) * len(correct)
        recalls.append(hits / np.where(counts > 0, counts, np.nan))
    return np.nanmean(recalls, 0)


def confusion(predicted: np.ndarray, data: Labelled) -> np.ndarray:
    """(classes, classes): the share of each class's pictures that is predicted as each class."""
    return confusion_matrix(data.labels, predicted, labels=range(len(data.classes)), normalize="true")


def fit(
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
    """Trains a head by AdamW with a cosine schedule, keeps its best epoch on val, and predicts the test
    pictures.

    Args:
        head: Features to logits; it is trained in place.
        features: Of train, val and test.
        labels: Of train, (P,).
        val: The val pictures.
        epochs: Passes over train.
        batch: Pictures in one step.
        lr: Highest learning rate.
        decay: Weight decay.
        seed: Of the order of pictures.
        progress: Whether a bar is shown.

    Returns:
        Classes (P,) of the test pictures.
    """
    device = default_device()
    x, x_val, x_test = (torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in features)
    y, head = torch.from_numpy(labels).long().to(device), head.to(device)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * -(-len(x) // batch))
    best, best_state = -1.0, {}
    for _ in tqdm(range(epochs), desc="probe", disable=not progress):
        head.train()
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            if len(rows) < 2:  # batch norm takes no single picture
                continue
            F.cross_entropy(head(x[rows]), y[rows], label_smoothing=0.1).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        accuracy = score(_predict(head, x_val), val)["score"]
        if accuracy > best:
            best, best_state = accuracy, {name: value.clone() for name, value in head.state_dict().items()}
    head.load_state_dict(best_state)
    return _predict(head, x_test)


@torch.no_grad()
def _predict(head: nn.Module, x: Tensor, batch: int = 1024) -> np.ndarray:
    head.eval()
    return torch.cat([head(part).argmax(-1) for part in x.split(batch)]).cpu().numpy()
