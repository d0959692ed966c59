"""What a model looked at when it wrote a token, and what else it could have written there."""

import torch
from numpy import ndarray
from torch import Tensor

from lvmlab.model.lvm import LVM
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.utils import images


@torch.inference_mode()
def attention(lvm: LVM, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Where the last position attends to, the one that predicts the next token.

    It takes a second pass, since the fast kernels that answer never hold attention, and layers * heads * T *
    T * 4 bytes.

    Args:
        lvm: The model.
        tokens: (1, T) int64.

    Returns:
        Attention by layer and head (layers, heads, T), and its `rollout` over all layers (T,). Each row sums
        to 1.

    Raises:
        ValueError: A bad shape, length or id.
    """
    lvm.check_tokens(tokens)
    model, before = lvm.llama.model, lvm.config._attn_implementation
    model.set_attn_implementation("eager")  # the one that returns its weights
    try:
        outputs = model(input_ids=tokens.to(lvm.device, torch.int64), use_cache=False, output_attentions=True)
    finally:
        model.set_attn_implementation(before)
    weights = torch.stack(outputs.attentions)[:, 0].float().cpu()  # (layers, heads, T, T)
    return weights[:, :, -1], rollout(weights.mean(1))


def rollout(weights: Tensor) -> Tensor:
    """Attention rollout of the last position over all layers (Abnar and Zuidema, arXiv 2005.00928, section
    3).

    Half of each layer's input is the residual's.

    Args:
        weights: (layers, T, T), the mean over heads.

    Returns:
        (T,), summing to 1.
    """
    rolled = torch.eye(weights.shape[-1])[-1]
    for layer in weights.flip(0):
        rolled = (rolled + rolled @ layer) / 2
    return rolled


def alternatives(
    tokenizer: Tokenizer, answer: Tensor, place: int, log_probs: Tensor, count: int = 8
) -> tuple[Tensor, Tensor, ndarray]:
    """The likeliest codes at one place of an answer, drawn where they would stand.

    A code means little by itself: a patch is three tokens wide, the place among its neighbours.

    Args:
        tokenizer: The answer's.
        answer: (N,) int64.
        place: Index of the token, in raster order.
        log_probs: (codes,), of all codes at that place.
        count: Codes to show.

    Returns:
        Ids (k,), their probabilities (k,), and patches uint8 (k, s, s, 3).
    """
    likeliest = log_probs.topk(min(count, len(log_probs)))
    answers = answer.repeat(len(likeliest.indices), 1)  # (k, N)
    answers[:, place] = likeliest.indices
    pictures = images.to_uint8(tokenizer.decode(answers))
    cell, last = tokenizer.size // tokenizer.grid, tokenizer.grid - 3
    top, left = (min(max(i - 1, 0), last) * cell for i in divmod(place, tokenizer.grid))
    patches = pictures[:, top : top + 3 * cell, left : left + 3 * cell]
    return likeliest.indices, likeliest.values.exp(), patches
