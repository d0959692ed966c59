"""The loss of next-token prediction, computed from hidden states so that not all logits are held at once.

A function of `cross_entropy`'s signature is what `lvmlab.model.lvm.LVM.forward` takes as ``loss_fn``; a
distillation loss is one (`lvmlab.distillation.objectives`).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 2**22  # logits held at a time: 16 MiB in fp32


def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross entropy in nats, in fp32.

    CHUNK logits are held at a time. Each chunk's gradients are computed together with its loss, so no logits
    are
    computed twice. On a CPU it is two to four times as fast as `torch.nn.functional.linear_cross_entropy`
    (`lvmlab bench train.loss`).

    Args:
        hidden: (M, dim), the last hidden states.
        head: (vocab_size, dim), the output matrix.
        targets: (M,) int64, the ids to predict.
        weights: (M,), of each target; the sum below is weighted by them.

    Returns:
        A scalar, the weighted sum.
    """
    slices = _slices(len(targets), len(head))
    if len(slices) == 1:
        return _weighted_sum(hidden, head, targets, weights)
    if torch.is_grad_enabled():
        return _ChunkedCrossEntropy.apply(hidden, head, targets, weights, slices)
    return sum(_weighted_sum(hidden[rows], head, targets[rows], weights[rows]) for rows in slices)


def _weighted_sum(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return (weights * F.cross_entropy(logits(hidden, head), targets, reduction="none")).sum()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The weighted sum over slices, with the gradients of hidden states and head."""

    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, slices: list[slice]):
        total = weights.new_zeros(())
        d_hidden, d_head = torch.empty_like(hidden), torch.zeros_like(head)
        for rows in slices:
            inputs = [x.detach().requires_grad_() for x in (hidden[rows], head)]
            with torch.enable_grad():
                loss = _weighted_sum(*inputs, targets[rows], weights[rows])
            d_hidden[rows], more = torch.autograd.grad(loss, inputs)
            d_head += more
            total += loss.detach()
        ctx.save_for_backward(d_hidden, d_head)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        d_hidden, d_head = ctx.saved_tensors
        return grad * d_hidden, grad * d_head, None, None, None


def logits(hidden: Tensor, head: Tensor) -> Tensor:
    """fp32 logits (M, vocab_size), in autocast's precision or else in that of the hidden states."""
    return F.linear(hidden, head.to(hidden.dtype)).float()


def in_chunks(chunk: Callable[[slice], Tensor], count: int, vocab_size: int) -> Tensor:
    """Sums ``chunk`` over rows, CHUNK logits at a time.

    Several chunks are recomputed in the backward pass, so their logits are never held together.

    Args:
        chunk: Takes a slice of the rows and returns a scalar.
        count: Number of rows.
        vocab_size: Logits of each row.
    """
    slices = _slices(count, vocab_size)
    if len(slices) == 1:
        return chunk(slices[0])
    return torch.stack([checkpoint(chunk, rows, use_reentrant=False) for rows in slices]).sum()


def _slices(count: int, vocab_size: int) -> list[slice]:
    """Rows that have CHUNK logits together."""
    size = max(1, CHUNK // vocab_size)
    return [slice(first, first + size) for first in range(0, count, size)]


def normalised_weights(weights: Tensor | None, targets: Tensor) -> Tensor:
    """The weights of a sentence's targets, summing to 1.

    Args:
        weights: (B, T), 0 or more; None weighs all targets alike.
        targets: (B, T).

    Returns:
        (B * (T - 1),): the first token of a sentence is no target.

    Raises:
        ValueError: The shape is another, or a weight is negative or not finite, or all are 0.
    """
    if weights is None:
        count = targets[:, 1:].numel()
        return torch.ones(count, device=targets.device) / count
    if not isinstance(weights, Tensor) or weights.shape != targets.shape:
        given = tuple(getattr(weights, "shape", ()))
        raise ValueError(f"weights have shape {given}: give one a token, {tuple(targets.shape)}")
    weights = weights[:, 1:].flatten().to(targets.device, torch.float32)
    total = weights.sum().item()
    if not (weights >= 0).all() or not 0 < total < float("inf"):
        raise ValueError(
            f"weights (after the first position) go from {weights.min().item():.4g} and sum to {total:.4g}: "
            "give finite ones of 0 or more, not all 0"
        )
    return weights / total
