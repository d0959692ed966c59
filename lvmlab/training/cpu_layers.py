"""Norms and rotary embeddings of a LLaMA in fewer passes over memory, for training on a CPU.

`transformers` writes a norm as five operations and a rotary embedding as ten, and each one reads and writes
all
activations. Here a norm is one function with its own gradient, and a rotary embedding is one complex product.
They
are used where a measurement on this machine finds them faster; a long training also tries compiled layers.
Weights, their names and the results stay the same.
"""

import functools
import os
import shutil

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from lvmlab.utils.device import least_seconds

TOKENS = 512  # that a layer is measured on
LONG = 1800  # seconds of a training from which on compiling is tried, which takes a minute


def use_fastest_layers(llama: LlamaForCausalLM, *, tokens: float = 0, bf16: bool = False) -> None:
    """Gives a LLaMA that trains on a CPU the fastest of the standard, the fused and the compiled layers.

    Compiling takes as long as hundreds of steps of a small model, so only a long training tries it.

    Args:
        llama: changed in place; on another device, or compiled already, it stays as it is.
        tokens: that it will train on.
        bf16: it trains under bf16 autocast.
    """
    config = llama.config
    if llama.device.type != "cpu" or config.model_type != "llama" or is_compiled(llama):
        return
    shape = (config.hidden_size, config.intermediate_size, config.num_attention_heads)
    taken = layer_seconds(*shape, bf16=bf16)
    if min(taken.values()) * config.num_hidden_layers * tokens / TOKENS > LONG and has_compiler():
        taken = layer_seconds(*shape, bf16=bf16, compiled=True)
    fastest = min(taken, key=taken.get)
    if fastest == "fused":
        fuse(llama)
    if fastest == "compiled":
        for layer in llama.model.layers:
            layer.compile(dynamic=False)


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which `torch.compile` needs on a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))


def is_compiled(llama: LlamaForCausalLM) -> bool:
    """Whether its layers were compiled one by one."""
    return any(layer._compiled_call_impl is not None for layer in llama.model.layers)


def fuse(module: nn.Module) -> None:
    """Exchanges the norms and attentions of a LLaMA, or of one of its layers, for the fused ones."""
    fused = {LlamaRMSNorm: FusedRMSNorm, LlamaAttention: FusedAttention}
    for part in module.modules():
        part.__class__ = fused.get(type(part), type(part))


class RMSNormFunction(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight, for x (..., d) in fp32; only x and one number a row are kept."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        rate = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # (..., 1)
        ctx.save_for_backward(x, weight, rate)
        return (x * rate).mul_(weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, rate = ctx.saved_tensors
        product = grad * x
        d_weight = product.flatten(0, -2).mT @ rate.flatten()
        along = (product @ weight).unsqueeze(-1).mul_(rate.pow(3)).div_(-x.shape[-1])
        return (grad * weight).mul_(rate).addcmul_(x, along), d_weight, None


class FusedRMSNorm(LlamaRMSNorm):
    """`LlamaRMSNorm` as one function; in other precisions than fp32 it is the standard one."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        if hidden_states.dtype != torch.float32 or self.weight.dtype != torch.float32:
            return super().forward(hidden_states)
        return RMSNormFunction.apply(hidden_states, self.weight, self.variance_epsilon)


class FusedAttention(LlamaAttention):
    """`LlamaAttention` whose queries and keys turn as complex numbers.

    The numbers of a query and of a key are laid pair by pair alike, so no score changes. A cache wants the
    standard
    order, so decoding is the standard one.
    """

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, cache=None, **kwargs):
        if cache is not None or self.config._attn_implementation != "sdpa":
            return super().forward(hidden_states, position_embeddings, attention_mask, cache=cache, **kwargs)
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        layers = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (layer(hidden_states).view(shape) for layer in layers)  # (B, T, heads, d)
        cos, sin = (x[..., None, : self.head_dim // 2].float() for x in position_embeddings)
        turn = torch.complex(cos, sin)  # (1, T, 1, d / 2)
        query, key, value = (x.transpose(1, 2) for x in (_turned(query, turn), _turned(key, turn), value))
        dropout = self.attention_dropout if self.training else 0.0
        out, _ = sdpa_attention_forward(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(out.flatten(2)), None


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """(B, T, heads, d), its halves real and imaginary parts, to the same shape laid pair by pair."""
    real, imaginary = x.float().unflatten(-1, (2, -1)).unbind(-2)
    return torch.view_as_real(torch.complex(real, imaginary) * turn).flatten(-2).to(x.dtype)


@functools.cache
def layer_seconds(
    width: int, inner: int, heads: int, *, bf16: bool = False, compiled: bool = False
) -> dict[str, float]:
    """Seconds of one layer, forward and backward on TOKENS tokens, measured once a process and shape.

    Args:
        width: of the hidden states.
        inner: of the SwiGLU.
        heads: a divisor of ``width``.
        bf16: measured under bf16 autocast.
        compiled: the compiled layer too; without it the measurement takes a fraction of a second.

    Returns:
        {"standard", "fused", and "compiled" where it was asked for: seconds}.
    """
    config = LlamaConfig(hidden_size=width, intermediate_size=inner, num_attention_heads=heads)
    config._attn_implementation = "sdpa"
    kinds = ("standard", "fused", "compiled") if compiled else ("standard", "fused")
    with torch.random.fork_rng(devices=[]):
        layers = {kind: LlamaDecoderLayer(config, 0).train() for kind in kinds}
    fuse(layers["fused"])
    if compiled:
        layers["compiled"].compile(dynamic=False)
    x = torch.randn(1, TOKENS, width, generator=torch.Generator().manual_seed(0))
    turns = LlamaRotaryEmbedding(config)(x, torch.arange(TOKENS)[None])

    def step(layer: LlamaDecoderLayer) -> None:
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            layer(x, position_embeddings=turns).sum().backward()

    return least_seconds({kind: functools.partial(step, layer) for kind, layer in layers.items()})
