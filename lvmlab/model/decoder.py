"""One token after another, fast: a prompt is read once, its keys and values kept, and each step is a few
fused operations a layer.

At these sizes a step's time goes into calling modules, not into arithmetic: here q, k and v are one product,
gate and up another, rotary positions
one complex multiplication (rows of q and k are laid so that its pairs are neighbours, which changes no score;
v is turned by nothing), a norm four
operations, and memory is set aside once.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from lvmlab.model.lvm import LVM

# parameters up to which weights are kept fused beside the model's own: beyond, reading them is what takes the
# time
FUSED = 600e6


def decoder(lvm: LVM) -> "Plain":
    """What decodes for a model: kept with it, and made anew where its weights have changed."""
    state = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in lvm.parameters())
    if getattr(lvm, "_decoder", (None,))[0] != state:
        kind = Lean if lvm.num_parameters <= FUSED and _simple(lvm) else Plain
        object.__setattr__(lvm, "_decoder", (state, kind(lvm)))  # no part of the module
    return lvm._decoder[1]


def _simple(lvm: LVM) -> bool:
    """Whether it is a LLaMA as ours are: `transformers` has others by the same name."""
    c, plain = (
        lvm.config,
        type(lvm.llama.model.layers[0].self_attn.q_proj) is nn.Linear,
    )  # adapters are no part of its weight
    return (
        plain
        and c.model_type == "llama"
        and c.num_key_value_heads == c.num_attention_heads == c.hidden_size / c.head_dim
        and c.rope_parameters["rope_type"] == "default"
        and c.hidden_act == "silu"
        and not c.mlp_bias
    )


class Plain:
    """Any causal model of `transformers`, by its own forward."""

    order: Tensor | slice = slice(None)  # how the numbers of a key are laid

    def __init__(self, lvm: LVM):
        self.model, self.head = lvm.llama.model, lvm.llama.lm_head.weight[: lvm.codebook_size]
        self.count, self.kept = (
            lvm.config.num_hidden_layers,
            self.head.dtype,
        )  # layers, and how keys and values are kept

    def prefill(self, tokens: Tensor, room: int) -> tuple["Memory", Tensor]:
        """Reads prompts (B, T), with ``room`` for so many tokens after them: their memory, and the last
        hidden states (B, 1, width).
        """
        cache = Cache(layers=[DynamicLayer() for _ in range(self.count)])
        hidden = self.model(input_ids=tokens, cache=cache, use_cache=True).last_hidden_state[:, -1:]
        return Memory(
            [
                torch.cat([layer.keys[..., self.order], layer.values], 1).to(self.kept)
                for layer in cache.layers
            ],
            room,
        ), hidden

    def step(self, ids: Tensor, place: int | Tensor, memory: "Memory", mask: Tensor | None = None) -> Tensor:
        """The hidden states (B, A, width) of tokens (B, A) that stand at ``place``, one for all or (A,);
        ``mask`` (B or 1, 1, A, keys) says what
        each sees."""
        cache = Cache(layers=[_Kept(memory, i) for i in range(self.count)])
        places = torch.as_tensor(place, device=ids.device).expand(1, ids.shape[1])
        hidden = self.model(
            input_ids=ids, cache=cache, use_cache=True, position_ids=places, attention_mask=mask
        ).last_hidden_state
        memory.filled += ids.shape[1]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Over the codes alone, fp32: unused ids of the vocabulary are never an answer."""
        return F.linear(hidden, self.head).float()


class _Kept(DynamicLayer):
    """A layer of a `Memory` as transformers writes to it."""

    def __init__(self, memory: "Memory", layer: int):
        super().__init__()
        self.memory, self.layer, self.is_initialized = memory, layer, True
        self.keys, self.values = memory.store[layer][:, :, : memory.filled].chunk(2, 1)

    def update(self, keys: Tensor, values: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        self.keys, self.values = self.memory.write(self.layer, torch.cat([keys, values], 1))
        return self.keys, self.values


class Lean(Plain):
    """A LLaMA's weights as its decode step uses them, in the model's own precision."""

    def __init__(self, lvm: LVM):
        super().__init__(lvm)
        model, config, width = lvm.llama.model, lvm.config, lvm.config.hidden_size
        self.kept = (
            torch.float32 if lvm.device.type == "cpu" else self.kept
        )  # its kernel for bf16 takes several times as long for one query
        self.heads, self.half = config.num_attention_heads, width // config.num_attention_heads // 2
        rate = config.rope_parameters["rope_theta"] ** (
            -torch.arange(self.half, device=lvm.device) / self.half
        )
        angle = torch.arange(lvm.max_seq_len, device=lvm.device)[:, None, None, None] * rate
        turns = torch.polar(torch.ones_like(angle), angle)
        self.turns = torch.cat(
            [turns, turns, torch.ones_like(turns)], 1
        )  # (context, q and k and v, 1, head width / 2)
        self.order = (
            torch.arange(2 * self.half, device=lvm.device).view(2, -1).T.flatten()
        )  # the halves' pairs as neighbours
        rows = (torch.arange(self.heads, device=lvm.device)[:, None] * 2 * self.half + self.order).flatten()
        # x / sqrt(mean(x^2) + eps) is sqrt(width) x / hypot(|x|, sqrt(width eps)): the first factor goes into
        # the norm's weight
        self.root, self.least = (
            math.sqrt(width),
            torch.tensor(math.sqrt(config.rms_norm_eps * width), device=lvm.device),
        )
        self.layers = [self._layer(layer, rows) for layer in model.layers]
        self.norm, self.embedding, self.across = (
            model.norm.weight * self.root,
            model.embed_tokens.weight,
            _across(self.head),
        )

    def _layer(self, layer, rows: Tensor) -> tuple[Tensor, ...]:
        a, m = layer.self_attn, layer.mlp
        q, k, v, o = (
            torch.zeros_like(p.weight[:, 0]) if p.bias is None else p.bias
            for p in (a.q_proj, a.k_proj, a.v_proj, a.o_proj)
        )
        qkv = torch.cat([a.q_proj.weight[rows], a.k_proj.weight[rows], a.v_proj.weight])
        return (
            layer.input_layernorm.weight * self.root,
            _across(qkv),
            torch.cat([q[rows], k[rows], v]),
            a.o_proj.weight.t(),
            o,
            layer.post_attention_layernorm.weight * self.root,
            _across(torch.cat([m.gate_proj.weight, m.up_proj.weight])),
            m.down_proj.weight.t(),
        )

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return x / torch.hypot(length, self.least).to(x.dtype) * weight

    def step(self, ids: Tensor, place: int | Tensor, memory: "Memory", mask: Tensor | None = None) -> Tensor:
        (batch, answers), turn, x = (
            ids.shape,
            self.turns[place],
            self.embedding[ids.flatten()],
        )  # x: (B * A, width)
        for layer, (norm_1, qkv, bias, out, out_bias, norm_2, gate_up, down) in enumerate(self.layers):
            parts = (
                torch.addmm(bias, self._normed(x, norm_1), qkv)
                .float()
                .view(batch, answers, 3, self.heads, self.half, 2)
            )
            parts = (
                torch.view_as_real(torch.view_as_complex(parts) * turn)
                .view(batch, answers, 3 * self.heads, -1)
                .to(self.kept)
                .transpose(1, 2)
            )
            keys, values = memory.write(layer, parts[:, self.heads :])
            seen = F.scaled_dot_product_attention(
                parts[:, : self.heads], keys, values, mask
            )  # (B, heads, A, head width)
            x = torch.addmm(x + out_bias, seen.transpose(1, 2).reshape(batch * answers, -1).to(x.dtype), out)
            gate, up = (self._normed(x, norm_2) @ gate_up).chunk(2, -1)
            x = torch.addmm(x, F.silu(gate) * up, down)
        memory.filled += answers
        return self._normed(x, self.norm).view(batch, answers, -1)

    def logits(self, hidden: Tensor) -> Tensor:
        return (hidden @ self.across).float()


def _across(weight: Tensor) -> Tensor:
    """A wide matrix as it is multiplied by, (in, out): in fp32 a CPU does so a third faster, for one row,
    where it lies so, in bf16 slower.
    """
    return weight.t().contiguous() if weight.dtype == torch.float32 else weight.t()


class Memory:
    """Keys, then values, of every layer, in memory set aside once: (B, 2 * heads, T + room, head width).
    ``filled``: so many places are taken.
    """

    def __init__(self, read: list[Tensor], room: int):
        self.length = self.filled = read[0].shape[2]
        self.store = [torch.cat([x, x.new_empty(*x.shape[:2], room, x.shape[3])], 2) for x in read]

    def write(self, layer: int, new: Tensor) -> list[Tensor]:
        """Keys and values of a step (B, 2 * heads, A, head width), and then all there are: both."""
        store, until = self.store[layer], self.filled + new.shape[2]
        store[:, :, self.filled : until] = new
        return store[:, :, :until].chunk(2, 1)

    def rewind(self) -> None:
        """Forgets everything after the prompt, which need not be read again."""
        self.filled = self.length
