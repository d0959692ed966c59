"""A teacher's predictions of the next code, as they are computed or as a cache keeps them.

Each kind gives float32 log-probabilities of a slice of its M tokens, so that the logits of all tokens are
never held at once. In 8 bits all codes of a token take about 1 KB at 1,024 codes. Larger codebooks keep the
likeliest codes and the probability of all others together.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lvmlab.model.lvm import LVM
from lvmlab.utils.device import precision

LEVELS = 255


class Predictions(Protocol):
    """A teacher's predictions on M tokens."""

    def log_probs(self, rows: slice) -> Tensor:
        """Log-probabilities of the next code, float32 (m, V); of `TopPredictions` (m, k + 1)."""
        ...

    def to(self, device: torch.device) -> "Predictions": ...


@dataclass(frozen=True)
class TeacherOutputs:
    """Predictions as a teacher computes them: its last hidden states (M, d) and its head (V, d)."""

    hidden: Tensor
    head: Tensor

    def log_probs(self, rows: slice) -> Tensor:
        return (self.hidden[rows] @ self.head.to(self.hidden.dtype).T).float().log_softmax(-1)

    def to(self, device: torch.device) -> "TeacherOutputs":
        return TeacherOutputs(self.hidden.to(device), self.head.to(device))


@dataclass(frozen=True)
class QuantizedPredictions:
    """All codes in 8 bits: levels uint8 (M, V), evenly from ``low`` (M, 1) to 0, the likeliest code's."""

    levels: Tensor
    low: Tensor

    @classmethod
    def of(cls, log_probs: Tensor) -> "QuantizedPredictions":
        log_probs = log_probs - log_probs.amax(-1, keepdim=True)
        low = log_probs.amin(-1, keepdim=True).clamp(max=-1e-3)
        return cls(((1 - log_probs / low) * LEVELS).round().to(torch.uint8), low)

    def log_probs(self, rows: slice) -> Tensor:
        low = self.low[rows]
        return (self.levels[rows].float() / LEVELS * -low + low).log_softmax(-1)

    def to(self, device: torch.device) -> "QuantizedPredictions":
        return QuantizedPredictions(self.levels.to(device), self.low.to(device))


@dataclass(frozen=True)
class TopPredictions:
    """The likeliest codes: ids (M, k), and log-probabilities (M, k + 1) of them and, last, of all others."""

    ids: Tensor
    values: Tensor

    @classmethod
    def of(cls, log_probs: Tensor, k: int) -> "TopPredictions":
        values, ids = log_probs.topk(k, -1)
        others = torch.log1p(-values.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))
        return cls(ids, torch.cat([values, others], -1))

    def log_probs(self, rows: slice) -> Tensor:
        return self.values[rows].float().log_softmax(-1)

    def to(self, device: torch.device) -> "TopPredictions":
        return TopPredictions(self.ids.to(device), self.values.to(device))


@torch.no_grad()
def teacher_outputs(teacher: LVM, inputs: Tensor) -> TeacherOutputs:
    """A teacher's predictions on the targets of sentences, in the fastest precision of its device.

    Args:
        teacher: In evaluation mode.
        inputs: (B, T), the sentences as they are read.

    Returns:
        Of M = B x (T - 1) tokens.
    """
    device = teacher.device
    with torch.autocast(device.type, torch.bfloat16, enabled=precision(device=device) == "bf16"):
        hidden = teacher.hidden(inputs.to(device))[:, :-1].flatten(0, 1)
    return TeacherOutputs(hidden, teacher.llama.lm_head.weight.detach())


def teacher_log_probs(teacher: LVM, inputs: Tensor) -> Tensor:
    """Log-probabilities (B, T - 1, V) of each next code; `teacher_outputs` holds less memory."""
    return teacher_outputs(teacher, inputs).log_probs(slice(None)).view(len(inputs), inputs.shape[1] - 1, -1)
