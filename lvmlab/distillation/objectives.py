"""What a student learns from a teacher: `divergence(student_logits, teacher_log_probs)` and the loss around
it.

DeLVM (arXiv 2402.04841, section 3.3) minimises a CE + b T^2 KL(teacher || student), the mean over tokens,
with a = b = T = 1. Below p is the teacher's distribution of the next code and q the student's, both at
temperature T. A divergence is summed over the codes and multiplied by T^2 (arXiv 1503.02531), so that its
gradient keeps its size.

===========  ====================================================  ======================================
``forward``  KL(p || q) = sum p (log p - log q)                    DeLVM; arXiv 1503.02531
``reverse``  KL(q || p): costs most where the teacher gives        MiniLLM, arXiv 2306.08543; DeLVM's
             little probability                                    `inverse`
``js``       alpha KL(p || m) + (1 - alpha) KL(q || m),            GKD, arXiv 2306.13649
             m = alpha p + (1 - alpha) q
``skew``     KL(p || alpha p + (1 - alpha) q)                      DistiLLM, arXiv 2402.03898
===========  ====================================================  ======================================

Answers that the student writes itself are an option of the sampler (`LVMRecipe.on_policy`), not a divergence.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lvmlab.distillation.teacher import Predictions, TopPredictions
from lvmlab.model.loss import in_chunks, logits
from lvmlab.utils.checks import check_fields

DIVERGENCES = ("forward", "reverse", "js", "skew")
ALPHAS = {"js": 0.5, "skew": 0.1}
Divergence = Callable[[Tensor, Tensor], Tensor]


def divergence(
    student_logits: Tensor,
    teacher_log_probs: Tensor,
    name: str = "forward",
    *,
    temperature: float = 1.0,
    alpha: float | None = None,
) -> Tensor:
    """How far a student is from a teacher at each token, in nats.

    Args:
        student_logits: (M, V), of any scale that softmax takes.
        teacher_log_probs: (M, V), of the same codes.
        name: One of DIVERGENCES; see the table above.
        temperature: Over 0; both distributions are softened by it.
        alpha: Between 0 and 1, for "js" and "skew". None: ALPHAS.

    Returns:
        (M,), T^2 times the divergence.
    """
    alpha = ALPHAS.get(name) if alpha is None else alpha
    log_p = (teacher_log_probs / temperature).log_softmax(-1)
    log_q = (student_logits / temperature).log_softmax(-1)
    if name == "forward":
        nats = _kl(log_p, log_q)
    elif name == "reverse":
        nats = _kl(log_q, log_p)
    else:
        log_m = torch.logaddexp(log_p + math.log(alpha), log_q + math.log(1 - alpha))
        nats = _kl(log_p, log_m)
        if name == "js":
            nats = alpha * nats + (1 - alpha) * _kl(log_q, log_m)
    return temperature**2 * nats


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


@dataclass(frozen=True)
class Distillation:
    """The loss of a distillation: ce x cross entropy + kd x divergence, the weighted mean over tokens.

    Args:
        divergence: A name in DIVERGENCES; or a callable (student_logits (M, V), teacher_log_probs (M, V)) to
            the loss of each token (M,); or None, without a teacher.
        ce: Weight of the cross entropy, 0 or more.
        kd: Weight of the divergence, 0 or more.
        temperature: Over 0, of the named divergences.
        alpha: Between 0 and 1, of "js" and "skew". None: ALPHAS.
        min_confidence: The divergence counts only where the teacher's likeliest code has this probability
            (after VarKD, arXiv 2606.06078; its merging of ambiguous tokens is left out).
        label_smoothing: The control without a teacher, CE against (1 - s) one-hot + s / V (arXiv 1512.00567).

    Raises:
        ValueError: A field is out of range; the message names it.
    """

    divergence: str | Divergence | None = "forward"
    ce: float = 1.0
    kd: float = 1.0
    temperature: float = 1.0
    alpha: float | None = None
    min_confidence: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self):
        if self.alpha is None and self.divergence in ALPHAS:
            object.__setattr__(self, "alpha", ALPHAS[self.divergence])
        named = self.divergence in DIVERGENCES
        check_fields(
            self,
            divergence=(
                named or self.divergence is None or callable(self.divergence),
                f"one of {', '.join(DIVERGENCES)}, a callable, or None",
            ),
            ce=(self.ce >= 0, "0 or more"),
            kd=(self.kd >= 0, "0 or more"),
            temperature=(
                self.temperature > 0 and (named or self.temperature == 1),
                "a number over 0, to a named divergence alone",
            ),
            alpha=(
                (self.alpha is None) == (self.divergence not in ALPHAS) and 0 < (self.alpha or 0.5) < 1,
                f"a number between 0 and 1, to {', '.join(ALPHAS)} alone",
            ),
            min_confidence=(0 <= self.min_confidence <= 1, "a probability"),
            label_smoothing=(0 <= self.label_smoothing < 1, "a share below 1"),
        )

    def __call__(self, student_logits: Tensor, teacher_log_probs: Tensor) -> Tensor:
        """The divergence of each token (M,), 0 where the teacher is not confident enough."""
        if callable(self.divergence):
            nats = self.divergence(student_logits, teacher_log_probs)
        else:
            options = {"temperature": self.temperature, "alpha": self.alpha}
            nats = divergence(student_logits, teacher_log_probs, self.divergence, **options)
        return nats * (teacher_log_probs.amax(-1).exp() >= self.min_confidence)

    @property
    def accepts_top(self) -> bool:
        """Whether predictions of the likeliest codes alone are enough: the others matter little to forward
        KL.
        """
        return self.divergence == "forward" and self.temperature == 1 and self.min_confidence == 0

    @property
    def identity(self) -> dict:
        """The fields as plain JSON, a callable by its name."""
        fields = asdict(self)
        if callable(self.divergence):
            name = getattr(self.divergence, "__qualname__", type(self.divergence).__qualname__)
            fields["divergence"] = f"{self.divergence.__module__}.{name}"
        return fields


def distillation_loss(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    distillation: Distillation,
    predictions: Predictions | None = None,
    kd_weights: Tensor | None = None,
) -> Tensor:
    """The loss of a step, called as `lvmlab.model.loss.cross_entropy` is; logits are computed in chunks.

    Args:
        hidden: (M, d), the student's last hidden states.
        head: (V, d).
        targets: (M,), the true codes.
        weights: (M,), of the cross entropy; they sum to 1. Tokens of weight 0 are left out.
        distillation: What is minimised.
        predictions: The teacher's, of the same M tokens.
        kd_weights: (M,), of the divergence. None: ``weights``.

    Returns:
        A scalar.

    Raises:
        ValueError: The predictions do not support the divergence.
    """
    check_predictions(distillation, predictions)
    kd_weights = weights if kd_weights is None else kd_weights

    def chunk(rows: slice) -> Tensor:
        student_logits = logits(hidden[rows], head)
        ce = F.cross_entropy(
            student_logits, targets[rows], reduction="none", label_smoothing=distillation.label_smoothing
        )
        loss = distillation.ce * (weights[rows] * ce).sum()
        if distillation.divergence is None:
            return loss
        if isinstance(predictions, TopPredictions):
            student_logits = group_codes(student_logits, predictions.ids[rows])
        kd = distillation(student_logits, predictions.log_probs(rows))
        return loss + distillation.kd * (kd_weights[rows] * kd).sum()

    return in_chunks(chunk, len(targets), len(head))


def group_codes(student_logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities of the codes ``ids`` (M, k) and, last, of all other codes together: (M, k + 1)."""
    top = student_logits.log_softmax(-1).gather(-1, ids)
    others = torch.log1p(-top.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))
    return torch.cat([top, others], -1)


def check_predictions(distillation: Distillation, predictions: Predictions | None) -> None:
    """Raises ValueError, naming the divergence, where a teacher's predictions do not support it."""
    name = distillation.divergence
    if name is not None and predictions is None:
        raise ValueError(f"{name!r} needs a teacher: give a model, or sentences with a teacher's cache")
    if isinstance(predictions, TopPredictions) and not distillation.accepts_top and name is not None:
        raise ValueError(
            f"{name!r} at temperature {distillation.temperature} needs the log-probabilities of all codes, "
            f"this "
            f"cache has the likeliest {predictions.ids.shape[-1]}: use 'forward' at temperature 1, or give "
            f"the "
            "teacher itself"
        )
