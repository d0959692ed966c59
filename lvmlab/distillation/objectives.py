"""What a student learns from a teacher: every objective behind one interface.

DeLVM (section 3.3): a CE + b T^2 KL(teacher || student), the mean over tokens, a = b = T = 1. Below p is the
teacher's distribution of the
next token and q the student's, both at temperature T; a divergence is summed over the codes and multiplied by
T^2 (Hinton et al., arXiv 1503.02531),
which keeps the size of its gradient.

=============  ================================================================================
==========================================
``forward``    KL(p || q) = sum p (log p - log q)                                                DeLVM; arXiv
1503.02531
``reverse``    KL(q || p): what the teacher finds unlikely costs most                            MiniLLM,
arXiv 2306.08543; DeLVM's `inverse`
``js``         amount KL(p || m) + (1 - amount) KL(q || m), m = amount p + (1 - amount) q        GKD, arXiv
2306.13649
``skew``       KL(p || amount p + (1 - amount) q)                                                DistiLLM,
arXiv 2402.03898
``hidden``     mean square of n(W h) - n(h'), last hidden states h and h' of student and         after
FitNets, arXiv 1412.6550
               teacher, n of root mean square 1, W a learned projection
``own``        ``forward``, on answers that the student samples itself, at the tokens where      after VarKD,
arXiv 2606.06078 (its merging
               the teacher's likeliest code has at least the probability ``sure``                of ambiguous
               tokens is left out)
``smoothing``  the control, without a teacher: CE against (1 - amount) one-hot + amount / codes  arXiv
1512.00567
=============  ================================================================================
==========================================
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvmlab.model.loss import in_chunks, logits
from lvmlab.utils.checks import check_fields

AMOUNTS = {"js": 0.5, "skew": 0.1, "smoothing": 0.1}
OBJECTIVES = ("forward", "reverse", "js", "skew", "hidden", "own", "smoothing")


class Word(Protocol):
    """A teacher's word on M tokens. ``tail``: log-probabilities are of the top codes ``ids`` and, last, of
    all others together.
    """

    def part(self, rows: slice) -> "Word": ...

    def log(self) -> Tensor:
        """Log-probabilities of the next code, float32 (M, codes), or (M, k + 1) where there are ids (M, k)."""
        ...


@dataclass(frozen=True)
class Online:
    """A teacher's word as it is worked out now: its last hidden states (M, d') and its head (codes, d')."""

    hidden: Tensor
    head: Tensor

    def part(self, rows: slice) -> "Online":
        return Online(self.hidden[rows], self.head)

    def log(self) -> Tensor:
        return (self.hidden @ self.head.to(self.hidden.dtype).T).float().log_softmax(-1)


@dataclass(frozen=True)
class Objective:
    """ce x cross entropy + kd x divergence; see the module's table for ``name``, ``amount`` (None: AMOUNTS)
    and ``sure``.

    share: of the sentences whose last answer the student writes itself, where the objective is "own". Raises
        ValueError that names the field.
    """

    name: str = "forward"
    ce: float = 1.0
    kd: float = 1.0
    temperature: float = 1.0
    amount: float | None = None
    sure: float = 0.5
    share: float = 0.5

    def __post_init__(self):
        if self.amount is None and self.name in AMOUNTS:
            object.__setattr__(self, "amount", AMOUNTS[self.name])
        check_fields(
            self,
            name=(self.name in OBJECTIVES, f"one of {', '.join(OBJECTIVES)}"),
            ce=(self.ce >= 0, "0 or more"),
            kd=(self.kd >= 0, "0 or more"),
            temperature=(
                self.temperature > 0 and (self.temperature == 1 or self.name not in ("hidden", "smoothing")),
                "a number over 0; hidden and smoothing have none (1)",
            ),
            amount=(
                (self.amount is None) == (self.name not in AMOUNTS) and 0 < (self.amount or 0.5) < 1,
                f"a number between 0 and 1, to {', '.join(AMOUNTS)} alone",
            ),
            sure=(0 <= self.sure <= 1, "a probability"),
            share=(0 < self.share <= 1, "a share over 0, at most 1"),
        )

    @property
    def teacher(self) -> str:
        """What it asks of a teacher: "none", "logits" (a `lvmlab.distillation.teacher.Cache` has them), or
        "model" (hidden states, or new sentences).
        """
        return {"smoothing": "none", "hidden": "model", "own": "model"}.get(self.name, "logits")


def divergence(objective: Objective, log_p: Tensor, logits: Tensor) -> Tensor:
    """The objective's divergence of each token, (M,), in nats. log_p: the teacher's log-probabilities (M,
    codes); logits: the student's.
    """
    t, amount = objective.temperature, objective.amount
    log_p, log_q = (log_p / t).log_softmax(-1), (logits / t).log_softmax(-1)
    if objective.name == "reverse":
        found = _kl(log_q, log_p)
    elif objective.name in ("js", "skew"):
        log_m = torch.logaddexp(log_p + math.log(amount), log_q + math.log(1 - amount))
        found = _kl(log_p, log_m)
        if objective.name == "js":
            found = amount * found + (1 - amount) * _kl(log_q, log_m)
    else:
        found = _kl(log_p, log_q)
    return t * t * found


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def with_tail(log_p: Tensor, ids: Tensor, logits: Tensor) -> Tensor:
    """KL(p || q) at T = 1 of the top codes and, as one more, all others: (M,). log_p: (M, k + 1), the last of
    the others; ids: (M, k).
    """
    log_q = logits.log_softmax(-1)
    top = log_q.gather(-1, ids)
    others = torch.log1p(-top.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))
    return _kl(log_p, torch.cat([top, others], -1))


def criterion(
    objective: Objective,
    word: Word | None = None,
    *,
    weights: Tensor | None = None,
    projection: nn.Module | None = None,
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The objective as `lvmlab.model.loss.cross_entropy` is called: (hidden (M, d), head (codes, d), targets
    (M,), weights (M,)) to a scalar.

    word: the teacher's, of the same M tokens. weights: (M,) of the divergence, None those of the cross
        entropy; tokens of weight 0 are
    left out. projection: of the student's hidden states to the teacher's width, for "hidden". Logits are held
    as `lvmlab.model.loss.in_chunks`
    says. Raises ValueError where the word does not support the objective.
    """
    check(objective, word)

    def of(hidden: Tensor, head: Tensor, targets: Tensor, ce: Tensor) -> Tensor:
        kd = ce if weights is None else weights

        def piece(rows: slice) -> Tensor:
            found, part = logits(hidden[rows], head), word.part(rows) if word else None
            smoothing = objective.amount if objective.name == "smoothing" else 0.0
            loss = (
                objective.ce
                * (
                    ce[rows]
                    * F.cross_entropy(found, targets[rows], reduction="none", label_smoothing=smoothing)
                ).sum()
            )
            if part is None or objective.teacher == "none":
                return loss
            return loss + objective.kd * (kd[rows] * said(hidden[rows], found, part)).sum()

        return in_chunks(piece, len(targets), len(head))

    def said(hidden: Tensor, ours: Tensor, part: Word) -> Tensor:
        if objective.name == "hidden":
            ours, theirs = (
                F.rms_norm(h.float(), h.shape[-1:])
                for h in (projection(hidden) if projection else hidden, part.hidden)
            )
            return (ours - theirs).square().mean(-1)
        if getattr(part, "ids", None) is not None:
            return with_tail(part.log(), part.ids, ours)
        log = part.log()
        found = divergence(objective, log, ours)
        return found * (log.amax(-1).exp() >= objective.sure) if objective.name == "own" else found

    return of


def check(objective: Objective, word: Word | None) -> None:
    """Raises ValueError, naming the objective, where a word does not support it."""
    wanted = objective.teacher
    if wanted != "none" and word is None:
        raise ValueError(
            f"{objective.name!r} needs a teacher: give a model, or sentences with a teacher's cache"
        )
    if wanted == "model" and not isinstance(word, Online):
        raise ValueError(
            f"{objective.name!r} needs the teacher itself, its cache does not do: give the model"
        )
    if getattr(word, "ids", None) is not None and (objective.name, objective.temperature) != ("forward", 1):
        raise ValueError(
            f"{objective.name!r} at temperature {objective.temperature} needs the log-probabilities of all "
            f"codes, this cache has "
            f"the top {word.ids.shape[-1]}: use 'forward' at temperature 1, or a teacher online"
        )
