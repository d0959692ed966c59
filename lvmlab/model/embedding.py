"""DeLVM's input embedding in two factors: the tokenizer's codebook, frozen, then one learned linear layer.

At 8192 codes of 64 numbers and a width of 2048 it trains 0.13M parameters where a free embedding trains
16.8M. A plain LLaMA stores the product, which `fold` computes; `lvmlab.training.export.load_lvm` calls it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvmlab.model.lvm import LVM

_CODEBOOK, _WIDEN = "llama.model.embed_tokens.codebook", "llama.model.embed_tokens.widen.weight"


class Factored(nn.Module):
    """Ids to ``widen(codebook[ids])``.

    Args:
        codebook: (K, D), a buffer.
        width: Of the output.
        std: Standard deviation of the product at the start, as of a free embedding.
        seed: Of the linear layer.
    """

    def __init__(self, codebook: Tensor, width: int, std: float, seed: int = 0):
        super().__init__()
        self.register_buffer("codebook", codebook.detach().float().clone())
        self.widen = nn.Linear(codebook.shape[1], width, bias=False)
        with torch.no_grad():
            self.widen.weight.normal_(generator=torch.Generator().manual_seed(seed))
            self.widen.weight.mul_(std / self.weight.std())

    @property
    def weight(self) -> Tensor:
        """The product, (K, width)."""
        return self.widen(self.codebook)

    def forward(self, ids: Tensor) -> Tensor:
        return self.widen(F.embedding(ids, self.codebook))


def factor(lvm: LVM, codebook: Tensor, seed: int = 0) -> LVM:
    """Replaces a model's embedding with a factored one.

    Args:
        lvm: Changed in place.
        codebook: (K, D), K the model's vocabulary.
        seed: Of the linear layer.

    Returns:
        The model.

    Raises:
        ValueError: The codebook has another shape.
    """
    if codebook.ndim != 2 or len(codebook) != lvm.vocab_size:
        raise ValueError(
            f"the codebook has shape {tuple(codebook.shape)}: give (K, D) with K the model's vocabulary of "
            f"{lvm.vocab_size}"
        )
    lvm.llama.model.embed_tokens = Factored(
        codebook, lvm.config.hidden_size, lvm.config.initializer_range, seed
    ).to(lvm.device)
    return lvm


def fold(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's state with the product in place of the two factors; any other state as it is."""
    if _CODEBOOK not in state:
        return state
    product = {"llama.model.embed_tokens.weight": state[_CODEBOOK] @ state[_WIDEN].T}
    return {**{k: v for k, v in state.items() if k not in (_CODEBOOK, _WIDEN)}, **product}
