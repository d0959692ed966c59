"""Decoding one token after another: a prompt is read once into a KV cache, and each step is a few fused
operations.

At these sizes a step's time goes into calling modules, not into arithmetic. `FusedDecoder` multiplies q, k
and v at once, and gate and up at once. Rotary positions are one complex multiplication: rows of q and k are
reordered so that its pairs are neighbours, which changes no attention score, and values get no rotary
embedding. The cache's memory is allocated once.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from lvmlab.model.lvm import LVM

# parameters up to which the fused weights are held beside the model's own; beyond, reading weights takes the
# time
MAX_FUSED = 600e6
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes, to sum the bits of weights


def decoder_of(lvm: LVM) -> "HFDecoder":
    """The model's decoder: the fused one where it can be, held with the model until its weights change."""
    key = weights_key(lvm)
    if getattr(lvm, "_decoder", (None,))[0] != key:
        count = sum(p.numel() for p in lvm.parameters())
        kind = FusedDecoder if count <= MAX_FUSED and _can_fuse(lvm) else HFDecoder
        object.__setattr__(lvm, "_decoder", (key, kind(lvm)))  # no part of the module's state
    return lvm._decoder[1]


def weights_key(lvm: LVM) -> tuple:
    """What is equal while the weights are: the place and the sum of the bits of each parameter.

    Parameters' version counters do not do: fused optimisers and writes to ``.data`` leave them as they are.
    The sums read every weight once, a small part of the time that reading a prompt takes.
    """
    parameters = list(lvm.parameters())
    bits = [p.detach().view(INTEGERS[p.element_size()]).sum() for p in parameters]
    return tuple(p.data_ptr() for p in parameters), tuple(torch.stack(bits).tolist())


class KVCache:
    """Keys and values of every layer, in memory that is allocated once.

    Several answers to one prompt are written side by side, token by token: first tokens of all answers, then
        second
    ones, ...

    Args:
        prompt: Of each layer (B, 2 * heads, T, head width): the prompt's keys, then its values.
        max_new_tokens: Tokens to come after the prompt, of all answers together.
    """

    def __init__(self, prompt: list[Tensor], max_new_tokens: int):
        self.prompt_length = self.length = prompt[0].shape[2]
        self.layers = [
            torch.cat([x, x.new_empty(*x.shape[:2], max_new_tokens, x.shape[3])], 2) for x in prompt
        ]

    def write(self, layer: int, new: Tensor) -> list[Tensor]:
        """Appends keys and values (B, 2 * heads, A, head width) of a step; returns all keys and values."""
        values, end = self.layers[layer], self.length + new.shape[2]
        values[:, :, self.length : end] = new
        return values[:, :, :end].chunk(2, 1)

    def position(self, answers: int) -> int:
        """The position in its sentence of the next token of each answer."""
        return self.prompt_length + (self.length - self.prompt_length) // answers

    def mask(self, ids: Tensor) -> Tensor | None:
        """Which keys each of the tokens ids (B, A) attends to: the prompt's and those of its own answer.

        Returns:
            (B, 1, A, keys) bool, or None for one answer, which attends to all.
        """
        rows, answers = ids.shape
        if answers == 1:
            return None
        steps = (self.length - self.prompt_length) // answers + 1
        own = torch.eye(answers, dtype=torch.bool, device=ids.device).repeat(1, steps)  # (A, steps * A)
        return torch.cat([own.new_ones(answers, self.prompt_length), own], 1).expand(rows, 1, -1, -1)


class HFDecoder:
    """Decodes with the model's own forward: any causal model of `transformers`."""

    key_order: Tensor | slice = slice(None)  # the order of a key's channels in the cache

    def __init__(self, lvm: LVM):
        self.model = lvm.llama.model
        self.head = lvm.llama.lm_head.weight[: lvm.codebook_size]
        self.n_layers = lvm.config.num_hidden_layers
        self.cache_dtype = self.head.dtype

    def prefill(self, tokens: Tensor, max_new_tokens: int) -> tuple[KVCache, Tensor]:
        """Reads prompts.

        Args:
            tokens: (B, T) int64.
            max_new_tokens: Tokens to come, of all answers together.

        Returns:
            The cache, and the logits (B, 1, codes) of the token after each prompt.
        """
        cache = Cache(layers=[DynamicLayer() for _ in range(self.n_layers)])
        hidden = self.model(input_ids=tokens, cache=cache, use_cache=True).last_hidden_state[:, -1:]
        prompt = [
            torch.cat([layer.keys[..., self.key_order], layer.values], 1).to(self.cache_dtype)
            for layer in cache.layers
        ]
        return KVCache(prompt, max_new_tokens), self.logits(hidden)

    def step(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Appends one token to each answer; the logits (B, A, codes) of the next. ids: (B, A) int64."""
        layers = Cache(layers=[_CacheLayer(cache, i) for i in range(self.n_layers)])
        position = torch.as_tensor(cache.position(ids.shape[1]), device=ids.device).expand(1, ids.shape[1])
        hidden = self.model(
            input_ids=ids, cache=layers, use_cache=True, position_ids=position, attention_mask=cache.mask(ids)
        ).last_hidden_state
        cache.length += ids.shape[1]
        return self.logits(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Over the codes alone, in fp32: unused ids of the vocabulary are never an answer."""
        return F.linear(hidden, self.head).float()


class FusedDecoder(HFDecoder):
    """Decodes a LLaMA with fused copies of its weights, in the model's own precision."""

    def __init__(self, lvm: LVM):
        super().__init__(lvm)
        model, config, device = lvm.llama.model, lvm.config, self.head.device
        if device.type == "cpu":  # its attention in bf16 takes several times as long for one query
            self.cache_dtype = torch.float32
        self.n_heads = config.num_attention_heads
        self.half = config.hidden_size // self.n_heads // 2

        # rotary angles of every position, for q and k; values are multiplied by 1
        rate = config.rope_parameters["rope_theta"] ** (-torch.arange(self.half, device=device) / self.half)
        angle = torch.arange(lvm.max_seq_len, device=device)[:, None, None, None] * rate
        rotation = torch.polar(torch.ones_like(angle), angle)
        unit = torch.ones_like(rotation)
        self.rotation = torch.cat([rotation, rotation, unit], 1)  # (max_seq_len, q k v, 1, half)

        # transformers rotates channel i with channel i + half: here the two become neighbours
        self.key_order = torch.arange(2 * self.half, device=device).view(2, -1).T.flatten()
        heads = torch.arange(self.n_heads, device=device)[:, None] * 2 * self.half
        rows = (heads + self.key_order).flatten()

        # x / sqrt(mean(x^2) + eps) is sqrt(dim) x / hypot(|x|, sqrt(dim eps)): the first factor goes into the
        # weight
        self.root = math.sqrt(config.hidden_size)
        self.floor = torch.tensor(math.sqrt(config.rms_norm_eps * config.hidden_size), device=device)

        self.layers = [self._fuse(layer, rows) for layer in model.layers]
        self.norm = model.norm.weight * self.root
        self.embedding = model.embed_tokens.weight
        self.output = _transposed(self.head)

    def _fuse(self, layer: nn.Module, rows: Tensor) -> tuple[Tensor, ...]:
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        q, k, v, out = (torch.zeros_like(p.weight[:, 0]) if p.bias is None else p.bias for p in projections)
        qkv = torch.cat(
            [attention.q_proj.weight[rows], attention.k_proj.weight[rows], attention.v_proj.weight]
        )
        return (
            layer.input_layernorm.weight * self.root,
            _transposed(qkv),
            torch.cat([q[rows], k[rows], v]),
            attention.o_proj.weight.t(),
            out,
            layer.post_attention_layernorm.weight * self.root,
            _transposed(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])),
            mlp.down_proj.weight.t(),
        )

    def step(self, ids: Tensor, cache: KVCache) -> Tensor:
        batch, answers = ids.shape
        rotation, mask = self.rotation[cache.position(answers)], cache.mask(ids)
        x = self.embedding[ids.flatten()]  # (B * A, dim)
        for i, (norm_1, qkv, bias, out, out_bias, norm_2, gate_up, down) in enumerate(self.layers):
            # q, k and v of the new tokens, rotated to their position
            parts = torch.addmm(bias, self._normed(x, norm_1), qkv).float()
            parts = parts.view(batch, answers, 3, self.n_heads, self.half, 2)
            parts = torch.view_as_real(torch.view_as_complex(parts) * rotation)
            parts = parts.view(batch, answers, 3 * self.n_heads, -1).to(self.cache_dtype).transpose(1, 2)

            # attention, (B, heads, A, head width)
            keys, values = cache.write(i, parts[:, self.n_heads :])
            attended = F.scaled_dot_product_attention(parts[:, : self.n_heads], keys, values, mask)
            attended = attended.transpose(1, 2).reshape(batch * answers, -1).to(x.dtype)
            x = torch.addmm(x + out_bias, attended, out)

            # SwiGLU
            gate, up = (self._normed(x, norm_2) @ gate_up).chunk(2, -1)
            x = torch.addmm(x, F.silu(gate) * up, down)
        cache.length += answers
        return self.logits(self._normed(x, self.norm).view(batch, answers, -1))

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return x / torch.hypot(length, self.floor).to(x.dtype) * weight

    def logits(self, hidden: Tensor) -> Tensor:
        return (hidden @ self.output).float()


class _CacheLayer(DynamicLayer):
    """A layer of a `KVCache` as `transformers` writes to it."""

    def __init__(self, cache: KVCache, layer: int):
        super().__init__()
        self.cache, self.layer, self.is_initialized = cache, layer, True
        self.keys, self.values = cache.layers[layer][:, :, : cache.length].chunk(2, 1)

    def update(self, keys: Tensor, values: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        self.keys, self.values = self.cache.write(self.layer, torch.cat([keys, values], 1))
        return self.keys, self.values


def _can_fuse(lvm: LVM) -> bool:
    """Whether it is a LLaMA as ours are: `transformers` has others by the same name."""
    config = lvm.config
    plain = (
        type(lvm.llama.model.layers[0].self_attn.q_proj) is nn.Linear
    )  # adapters are no part of its weight
    return (
        plain
        and config.model_type == "llama"
        and config.num_key_value_heads == config.num_attention_heads == config.hidden_size / config.head_dim
        and config.rope_parameters["rope_type"] == "default"
        and config.hidden_act == "silu"
        and not config.mlp_bias
    )


def _transposed(weight: Tensor) -> Tensor:
    """A wide matrix as (in, out). In fp32 a CPU multiplies one row by it a third faster where it is laid out
    so in memory, in bf16 slower.
    """
    return weight.t().contiguous() if weight.dtype == torch.float32 else weight.t()
