"""What a model had in mind at one place of an answer: the codes it weighed, and where it looked.

Attention is read by a second pass, since the fast kernels that answer never hold it. Rolled up over the layers as in Abnar and Zuidema,
"Quantifying attention flow in transformers" (arXiv 2005.00928, section 3): half of each layer's way is the residual's.
"""

import numpy as np
import torch
from torch import Tensor

from lvmlab.images import to_uint8
from lvmlab.lvm import LVM
from lvmlab.tokenizer import Tokenizer


@torch.inference_mode()
def attention(lvm: LVM, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Of the last position of tokens (1, T), the one that predicts the token after them, to all up to itself.

    By layer and head (layers, heads, T), and rolled up over all layers (T,); each row sums to 1. Holds layers * heads * T * T * 4 bytes.
    Raises ValueError for a bad shape, length or id.
    """
    lvm.check_tokens(tokens)
    model, before = lvm.llama.model, lvm.config._attn_implementation
    model.set_attn_implementation("eager")  # the one that keeps its weights
    try:
        kept = model(input_ids=tokens.to(lvm.device, torch.int64), use_cache=False, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(before)
    heads = torch.stack(kept)[:, 0].float().cpu()  # (layers, heads, T, T)
    rolled = torch.eye(heads.shape[-1])[-1]
    for layer in heads.mean(1).flip(0):
        rolled = (rolled + rolled @ layer) / 2
    return heads[:, :, -1], rolled


def alternatives(tokenizer: Tokenizer, answer: Tensor, place: int, log: Tensor, count: int = 8) -> tuple[Tensor, Tensor, np.ndarray]:
    """What else could stand at ``place`` of an answer (N,): the likeliest ids (k,), their probabilities (k,), patches uint8 (k, s, s, 3).

    log: the log-probabilities of all codes there, (codes,). A code means little by itself: a patch is three tokens wide, the place among its
    neighbours.
    """
    likely = log.topk(min(count, len(log)))
    written = answer.repeat(len(likely.indices), 1)  # (k, N)
    written[:, place] = likely.indices
    side, most = tokenizer.size // tokenizer.grid, tokenizer.grid - 3
    top, left = (min(max(i - 1, 0), most) * side for i in divmod(place, tokenizer.grid))
    return likely.indices, likely.values.exp(), to_uint8(tokenizer.decode(written))[:, top : top + 3 * side, left : left + 3 * side]
