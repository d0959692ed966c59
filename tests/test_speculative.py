"""A draft changes how fast an answer comes, and nothing else."""

import pytest
import torch

from lvmlab.model.lvm import LVM, Shape
from lvmlab.model.prompting import complete_tokens
from lvmlab.model.speculative import speculate


def model(seed, vocab=16, scale=8.0):
    """Untrained, its weights enlarged so that answers depend on the prompt."""
    lvm = LVM.from_shape(Shape(32, 2, 2, 64, context=256, vocab=vocab), seed=seed)
    with torch.no_grad():
        for p in lvm.parameters():
            if p.ndim > 1:
                p.mul_(scale)
    return lvm


def prompt(seed=0, vocab=16):
    return torch.randint(0, vocab, (1, 48), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fused", [True, False], ids=["lean", "plain"])
@pytest.mark.parametrize("ahead", [1, 4])
def test_greedy_answers_are_the_large_models_own(ahead, fused, monkeypatch):
    from lvmlab.model import decoder as decode

    if not fused:
        monkeypatch.setattr(decode, "FUSED", 0)
    large, small, rates = model(3), model(4), []
    for seed in range(3):
        found, rate = speculate(large, small, prompt(seed), 24, ahead=ahead)
        assert torch.equal(found, complete_tokens(large, prompt(seed), 24).tokens[0, 0])
        rates.append(rate)
    assert 0 <= max(rates) < 1
    own, rate = speculate(large, large, prompt(), 24, ahead=ahead)
    assert rate == 1 and torch.equal(own, complete_tokens(large, prompt(), 24).tokens[0, 0])


def test_samples_follow_the_large_models_distribution_whatever_is_drafted():
    large, small, draws, temperature = model(3, 3, 3.0), model(9, 3, 5.0), 700, 0.8
    tokens, expected = torch.zeros(1, 5, dtype=torch.int64), torch.zeros(3, 3, 3)
    with torch.no_grad():
        law = lambda *ids: (
            large(torch.cat([tokens, torch.tensor([ids], dtype=torch.int64)], 1))[0, -1] / temperature
        ).softmax(-1)  # noqa: E731
        drafts = (small(tokens)[0, -1] / temperature).softmax(-1)
        for i in range(3):
            for j in range(3):
                expected[i, j] = law()[i] * law(i)[j] * law(i, j)
    assert (drafts - law()).abs().max() > 0.1, "the draft must be wrong for this to show anything"
    generator = torch.Generator().manual_seed(0)
    found = torch.stack(
        [
            speculate(
                large, small, tokens, 3, ahead=2, sample=True, temperature=temperature, generator=generator
            )[0]
            for _ in range(draws)
        ]
    )
    counts = (found * torch.tensor([9, 3, 1])).sum(1).bincount(minlength=27)
    chi_squared = ((counts - draws * expected.flatten()) ** 2 / (draws * expected.flatten())).sum()
    assert chi_squared < 55.5, "of 26 degrees of freedom, passed in 999 of 1000 cases where all is right"


def test_it_fills_the_context_and_refuses_what_it_cannot_do():
    large, small = model(3), model(4)
    tokens = prompt().repeat(1, 5)  # 240 of 256
    assert torch.equal(
        speculate(large, small, tokens, 16, ahead=9)[0], complete_tokens(large, tokens, 16).tokens[0, 0]
    )
    assert speculate(large, small, tokens, 1)[0].shape == (1,)
    for other in (dict(draft=model(4, vocab=5)), dict(tokens=tokens.repeat(2, 1)), dict(ahead=0)):
        with pytest.raises(ValueError, match="give one prompt"):
            speculate(**{"lvm": large, "draft": small, "tokens": tokens, "n": 4} | other)
    with pytest.raises(ValueError, match="sample=True"):
        speculate(large, small, tokens, 4, generator=torch.Generator())
