"""One token after another, fast: a prompt is read once, its keys and values kept, and each step is a few fused operations a layer.

At these sizes a step's time goes into calling modules, not into arithmetic: here q, k and v are one product, gate and up another, rotary positions
one complex multiplication (rows of q and k are laid so that its pairs are neighbours, which changes no score), and memory is set aside once.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from lvmlab.lvm import LVM

FUSED = 600e6  # parameters up to which weights are kept fused beside the model's own: beyond, reading them is what takes the time


def decoder(lvm: LVM) -> "Plain":
    """What decodes for a model: kept with it, and made anew where its weights have changed."""
    state = tuple((p.data_ptr(), p._version) for p in lvm.parameters())
    if getattr(lvm, "_decoder", (None,))[0] != state:
        plain = type(lvm.llama.model.layers[0].self_attn.q_proj) is nn.Linear  # adapters are no part of its weight
        kind = Lean if plain and lvm.config.model_type == "llama" and lvm.num_parameters <= FUSED else Plain
        object.__setattr__(lvm, "_decoder", (state, kind(lvm)))  # no part of the module
    return lvm._decoder[1]


class Plain:
    """Any causal model of `transformers`, by its own forward."""

    order: Tensor | slice = slice(None)  # how the numbers of a key are laid

    def __init__(self, lvm: LVM):
        self.model, self.head = lvm.llama.model, lvm.llama.lm_head.weight[: lvm.codes]
        self.count = lvm.config.num_hidden_layers

    def prefill(self, tokens: Tensor, room: int) -> tuple["Memory", Tensor]:
        """Reads prompts (B, T), with ``room`` for so many tokens after them: their memory, and the last hidden states (B, 1, width)."""
        cache = Cache(layers=[DynamicLayer() for _ in range(self.count)])
        hidden = self.model(input_ids=tokens, cache=cache, use_cache=True).last_hidden_state[:, -1:]
        return Memory([(layer.keys[..., self.order], layer.values) for layer in cache.layers], room), hidden

    def step(self, ids: Tensor, place: int | Tensor, memory: "Memory", mask: Tensor | None = None) -> Tensor:
        """The hidden states (B, A, width) of tokens (B, A) that stand at ``place``, one for all or (A,); ``mask`` (B or 1, 1, A, keys) says what
        each sees."""
        cache = Cache(layers=[_Kept(memory, i) for i in range(self.count)])
        places = torch.as_tensor(place, device=ids.device).expand(1, ids.shape[1])
        hidden = self.model(input_ids=ids, cache=cache, use_cache=True, position_ids=places, attention_mask=mask).last_hidden_state
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
        self.keys, self.values = (store[:, :, : memory.filled] for store in memory.store[layer])

    def update(self, keys: Tensor, values: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        self.keys, self.values = self.memory.write(self.layer, keys, values)
        return self.keys, self.values


class Lean(Plain):
    """A LLaMA's weights as its decode step uses them, in the model's own precision."""

    def __init__(self, lvm: LVM):
        super().__init__(lvm)
        model, config = lvm.llama.model, lvm.config
        self.heads, self.eps = config.num_attention_heads, config.rms_norm_eps
        self.half = config.hidden_size // self.heads // 2
        rate = config.rope_parameters["rope_theta"] ** (-torch.arange(self.half, device=lvm.device) / self.half)
        angle = torch.arange(lvm.context, device=lvm.device)[:, None] * rate
        self.turns = torch.polar(torch.ones_like(angle), angle)  # (context, head width / 2)
        self.order = torch.arange(2 * self.half, device=lvm.device).view(2, -1).T.flatten()  # the halves' pairs as neighbours
        rows = (torch.arange(self.heads, device=lvm.device)[:, None] * 2 * self.half + self.order).flatten()
        self.layers = [self._layer(layer, rows) for layer in model.layers]
        self.norm, self.embedding = model.norm.weight, model.embed_tokens.weight

    def _layer(self, layer, rows: Tensor) -> tuple[Tensor | None, ...]:
        a, m = layer.self_attn, layer.mlp
        bias = None if a.q_proj.bias is None else torch.cat([a.q_proj.bias[rows], a.k_proj.bias[rows], a.v_proj.bias])
        qkv = torch.cat([a.q_proj.weight[rows], a.k_proj.weight[rows], a.v_proj.weight])
        return (layer.input_layernorm.weight, qkv, bias, a.o_proj.weight, a.o_proj.bias, layer.post_attention_layernorm.weight,
                torch.cat([m.gate_proj.weight, m.up_proj.weight]), m.down_proj.weight)  # fmt: skip

    def step(self, ids: Tensor, place: int | Tensor, memory: "Memory", mask: Tensor | None = None) -> Tensor:
        x, width, turn = F.embedding(ids, self.embedding), self.norm.shape[0], self.turns[place].unsqueeze(-2)  # (1 or A, 1, head width / 2)
        batch, answers = ids.shape
        for layer, (norm_1, qkv, bias, out, out_bias, norm_2, gate_up, down) in enumerate(self.layers):
            parts = F.linear(F.rms_norm(x, (width,), norm_1, self.eps), qkv, bias).view(batch, answers, 3 * self.heads, -1)
            turned = parts[:, :, : 2 * self.heads].float().unflatten(3, (-1, 2))
            turned = torch.view_as_real(torch.view_as_complex(turned) * turn).flatten(3).to(x.dtype)  # q and k
            q, k = turned.transpose(1, 2).split(self.heads, 1)
            keys, values = memory.write(layer, k, parts[:, :, 2 * self.heads :].transpose(1, 2))
            seen = F.scaled_dot_product_attention(q, keys, values, mask)  # (B, heads, A, head width)
            x = x + F.linear(seen.transpose(1, 2).flatten(2), out, out_bias)
            gate, up = F.linear(F.rms_norm(x, (width,), norm_2, self.eps), gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, down)
        memory.filled += answers
        return F.rms_norm(x, (width,), self.norm, self.eps)


class Memory:
    """Keys and values of every layer, in memory set aside once: (B, heads, T + room, head width). ``filled``: so many places are taken."""

    def __init__(self, read: list[tuple[Tensor, Tensor]], room: int):
        self.length = self.filled = read[0][0].shape[2]
        self.store = [tuple(torch.cat([x, x.new_empty(*x.shape[:2], room, x.shape[3])], 2) for x in pair) for pair in read]

    def write(self, layer: int, *new: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a step, and then all there are."""
        until = self.filled + new[0].shape[2]
        for store, x in zip(self.store[layer], new, strict=True):
            store[:, :, self.filled : until] = x
        return tuple(store[:, :, :until] for store in self.store[layer])

    def rewind(self) -> None:
        """Forgets everything after the prompt, which need not be read again."""
        self.filled = self.length
