"""Muon: its matrices are orthogonalised, its steps are torch's, in whatever precision."""

import pytest
import torch

from lvmlab.training.muon import Muon, orthogonalise

SHAPES = [(24, 24), (40, 24), (24, 40), (24, 24)]


@pytest.mark.parametrize("shape", [(2, 24, 40), (2, 40, 24)])
def test_singular_values_are_about_one(shape):
    found = orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    values = torch.linalg.svdvals(found)
    assert found.shape == shape and values.min() > 0.5 and values.max() < 1.3


def test_the_directions_stay():
    update = torch.randn(1, 24, 40, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(update, full_matrices=False)
    nearest, found = u @ v, orthogonalise(update)
    assert (nearest * found).sum() / nearest.norm() / found.norm() > 0.97


def test_a_matrix_of_zeros_stays_one():
    assert (orthogonalise(torch.zeros(1, 4, 6)) == 0).all()


def test_steps_are_those_of_torch():
    """torch.optim.Muon iterates in bf16, so they agree to its precision."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) * 0.05 for shape in SHAPES]
    mine, theirs = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    optimizers = [
        Muon(mine, lr=0.01, weight_decay=0.2),
        torch.optim.Muon(theirs, lr=0.01, weight_decay=0.2, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(3):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b, p in zip(mine, theirs, start, strict=True):
        assert (a - b).norm() < 0.02 * (a - p).norm()


def test_a_parameter_without_a_gradient_stays():
    p = torch.nn.Parameter(torch.ones(4, 6))
    Muon([p], lr=0.1).step()
    assert (p == 1).all()


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.nn.Parameter(torch.ones(4))], lr=0.1)
