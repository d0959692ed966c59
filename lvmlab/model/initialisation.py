"""Two starts for a fresh LVM that shorten its training: from the tokenizer's codebook, and from the pictures'
grid.
"""

import itertools
import math

import torch
from torch import Tensor

from lvmlab.model.lvm import LVM


@torch.no_grad()
def init_from_codebook(lvm: LVM, codebook: Tensor, seed: int = 0) -> LVM:
    """Sets embedding and head to random projections of the codebook: codes that look alike start alike.

    DeLVM's release goes further: its embedding stays the frozen codebook, followed by one linear layer
    (`lvmlab.model.embedding`).

    Args:
        lvm: A fresh model; it is changed in place.
        codebook: (K, D), K at most the vocabulary.
        seed: Of the projections.

    Returns:
        The model.

    Raises:
        ValueError: The codebook has another shape.
    """
    if codebook.ndim != 2 or len(codebook) > lvm.vocab_size:
        shape = tuple(codebook.shape)
        raise ValueError(f"the codebook has shape {shape}: give (K, D) with K of at most {lvm.vocab_size}")
    generator = torch.Generator().manual_seed(seed)
    centred = (codebook - codebook.mean(0)).float().cpu()
    for layer in (lvm.llama.model.embed_tokens, lvm.llama.lm_head):
        rows = centred @ torch.randn(codebook.shape[1], layer.weight.shape[1], generator=generator)
        layer.weight[: len(rows)] = rows * (layer.weight.std().cpu() / rows.std())
    return lvm


@torch.no_grad()
def init_from_grid(lvm: LVM, tokens_per_image: int) -> LVM:
    """Sets the q and k biases so that attention heads start with a preference for fixed distances.

    Pictures are grids of tokens in raster order. The first head of a layer prefers the place about to be
    written in the picture before; the last head stays free. The others take, in turn, the neighbours of that
    place (below and right first: that place was read before them and knows nothing of them), the token above,
    the last token and the same place two pictures before. Training can unlearn the preference. Left to
    chance, finding these distances takes most of a short training.

    Args:
        lvm: A fresh model with attention biases; it is changed in place.
        tokens_per_image: A square number.

    Returns:
        The model.

    Raises:
        ValueError: The model has no attention biases.
    """
    if not lvm.config.attention_bias:
        raise ValueError(
            f"a model of shape {lvm.shape!r} has no q and k biases to start from: give a shape with "
            f"attention_bias=True"
        )
    n_heads = lvm.config.num_attention_heads
    half = lvm.config.hidden_size // n_heads // 2
    side = math.isqrt(tokens_per_image)
    # radians a token, the fastest frequency first
    theta = lvm.config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)

    # q and k of lengths a and phases 0 and theta * d score sum(a^2 cos(theta * (distance - d))): greatest at
    # d. Fast frequencies make the peak sharp; the slow ones are left to what the tokens are
    length = torch.zeros(half)
    length[: int(0.6 * half)] = 2.0**0.5
    length[: half // 4] = 8.0**0.5

    # distances back to the place to be written, in the picture before, and to its neighbours
    here, above = tokens_per_image - 1, side - 1
    neighbours = (here - side, here - 1, above, here - side - 1, here + side, 0, here - side + 1)
    others = itertools.cycle((*neighbours, here + tokens_per_image))

    for layer in lvm.llama.model.layers:
        q, k = layer.self_attn.q_proj.bias, layer.self_attn.k_proj.bias
        for head in range(max(1, n_heads - 1)):
            distance = next(others) if head else here
            first = 2 * half * head
            middle, last = first + half, first + 2 * half
            q[first:middle] = length
            k[first:middle] = length * (theta * distance).cos()
            k[middle:last] = length * (theta * distance).sin()
    return lvm
