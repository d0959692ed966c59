"""How well a model predicts true tokens: cross entropy, accuracy and entropy of each, and both papers'
perplexities.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lvmlab.model.lvm import LVM


@torch.inference_mode()
def token_statistics(lvm: LVM, tokens: Tensor, last: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the model predicts of the last tokens, given all true ones before each.

    Args:
        lvm: The model.
        tokens: (B, T) int64.
        last: How many tokens at the end of each sentence.
        batch: Sentences in one pass.

    Returns:
        Cross entropy in nats, whether the token is the likeliest (0 or 1), and the entropy in nats: (B, last)
        each.
    """
    parts = []
    for part in tokens.to(lvm.device).split(batch):
        targets = part[:, -last:].long()
        hidden = lvm.hidden(part[:, :-1])[:, -last:]
        logits = lvm.llama.lm_head(hidden).float()  # (B, last, codes)
        losses = F.cross_entropy(logits.mT, targets, reduction="none")
        entropies = torch.special.entr(logits.softmax(-1)).sum(-1)
        correct = (logits.argmax(-1) == targets).float()
        parts.append((losses.cpu(), correct.cpu(), entropies.cpu()))
    losses, correct, entropies = map(torch.cat, zip(*parts, strict=True))
    return losses, correct, entropies


def answer_loss(lvm: LVM, tokens: Tensor, n: int, batch: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Cross entropy of true answers in nats a token, and the share of tokens that are the likeliest.

    Args:
        lvm: The model.
        tokens: (B, T), sentences with their answers (`lvmlab.evaluation.prompts.encode_sentences`).
        n: Tokens of an answer, the last of each sentence.
        batch: Sentences in one pass.

    Returns:
        Both of each sentence, (B,).
    """
    losses, correct, _ = token_statistics(lvm, tokens, n, batch)
    return losses.mean(1).numpy(), correct.mean(1).numpy()


def picture_losses(lvm: LVM, tokens: Tensor, n: int, batch: int = 16) -> np.ndarray:
    """Cross entropy in nats of every token but the first picture's.

    Args:
        lvm: The model.
        tokens: (B, T), T a multiple of n.
        n: Tokens of a picture.
        batch: Sentences in one pass.

    Returns:
        (B, T / n - 1, n).
    """
    losses, *_ = token_statistics(lvm, tokens, tokens.shape[1] - n, batch)
    return losses.unflatten(1, (-1, n)).numpy()


def entropy(lvm: LVM, tokens: Tensor, n: int, batch: int = 32) -> np.ndarray:
    """Entropy in nats of the prediction of each of the last n tokens (B, T): (B, n)."""
    return token_statistics(lvm, tokens, n, batch)[2].numpy()


def perplexities(losses: np.ndarray) -> dict[str, float]:
    """Both published perplexities of `answer_loss`'s cross entropies (B,).

    DeLVM's is exp of the mean over all tokens, LVM's the mean over sentences of exp.
    """
    mean = losses.mean()
    return {
        "cross entropy": float(mean),
        "perplexity (DeLVM)": float(np.exp(mean)),
        "perplexity (LVM)": float(np.exp(losses).mean()),
    }
