"""Causal attention as products of blocks, for training on a CPU.

A query sees no key after it. Of four blocks of queries the first sees one block of keys, the last all four:
five eighths of the whole product.
The probabilities are kept for the backward pass, which up to LONGEST tokens is faster on a CPU than the fused
kernel that works them
out again; at 1024 tokens it was no faster, and takes more memory.
"""

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lvmlab.utils.device import default_device

BLOCKS, LONGEST = 4, 512
NAME = "causal_blocks"


def causal_blocks(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options,
) -> tuple[Tensor, None]:
    """As `transformers` calls attention: query, key, value (B, heads, T, d) to (B, T, heads, d). With a mask,
    or other lengths: SDPA.
    """
    if attention_mask is not None or dropout or query.shape != key.shape or query.shape[2] > LONGEST:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options
        )
    scale, until, found = scaling or query.shape[-1] ** -0.5, 0, []
    for rows in query.split(-(-query.shape[2] // BLOCKS), 2):
        first, until = until, until + rows.shape[2]
        scores = rows @ key[:, :, :until].mT * scale  # (B, heads, rows, until)
        later = torch.ones(rows.shape[2], until, dtype=torch.bool, device=query.device).triu(1 + first)
        found.append(
            scores.masked_fill(later, -torch.inf).softmax(-1, dtype=torch.float32).to(value.dtype)
            @ value[:, :, :until]
        )
    return torch.cat(found, 2).transpose(1, 2).contiguous(), None


def by_blocks(llama: nn.Module) -> None:
    """Lets a `LlamaForCausalLM` that trains on a CPU attend by blocks; elsewhere it keeps its fused kernel."""
    if default_device().type == "cpu":
        llama.set_attn_implementation(NAME)


AttentionInterface.register(NAME, causal_blocks)
