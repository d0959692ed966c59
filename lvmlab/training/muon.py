"""Muon (arXiv 2502.16982): momentum, orthogonalised by Newton-Schulz iterations, for hidden matrices.

`torch.optim.Muon` iterates in bf16 on every machine, one matrix at a time: on a CPU without bf16 units that
costs four times the rest of a training step. Here the precision is the training's own, and matrices of one
shape are iterated together.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steep at zero; singular values end between about 0.7 and 1.2
ITERATIONS = 5


def orthogonalise(update: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The nearest matrices whose singular values are all about 1 (Algorithm 1).

    Args:
        update: (B, m, n).
        dtype: Of the iterations.

    Returns:
        (B, m, n), in ``dtype``.
    """
    tall = update.shape[-2] > update.shape[-1]
    x = (update.mT if tall else update).to(dtype)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum and decoupled weight decay; updates have AdamW's root mean square (section 2.2).

    One learning rate then serves both optimisers.

    Args:
        params: Matrices alone.
        lr: The learning rate.
        weight_decay: Decoupled, as AdamW's.
        momentum: From 0 to 1.
        dtype: Of the iterations; bf16 where the machine is fast at it.

    Raises:
        ValueError: A parameter is no matrix.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype
        if any(p.ndim != 2 for group in self.param_groups for p in group["params"]):
            raise ValueError("Muon orthogonalises matrices: leave vectors and convolutions to AdamW")

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            # matrices of one shape are updated together
            alike = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape].append(p)
            for (rows, columns), params in alike.items():
                moments = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in params]
                torch._foreach_lerp_(moments, [p.grad for p in params], 1 - group["momentum"])
                ahead = torch._foreach_lerp([p.grad for p in params], moments, group["momentum"])
                updates = orthogonalise(torch.stack(ahead), self.dtype).to(params[0].dtype)
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(
                    params, list(updates), alpha=-0.2 * max(rows, columns) ** 0.5 * group["lr"]
                )
        return loss
