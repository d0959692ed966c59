"""The published networks, restated on state dicts in plain fp64: what a loaded checkpoint must compute.

Nothing of lvmlab is imported. `w` is a state dict under the names of the format at hand.
"""

import itertools

import torch
import torch.nn.functional as F


def double(state):
    return {k: v.double() if v.is_floating_point() else v for k, v in state.items()}


# VQGANs


def conv(x, w, name, **options):
    return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **options)


def group_norm(x, w, name):
    return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)


def block(x, w, name, names):
    h = conv(F.silu(group_norm(x, w, f"{name}.norm1")), w, f"{name}.conv1", padding=1)
    h = conv(F.silu(group_norm(h, w, f"{name}.norm2")), w, f"{name}.conv2", padding=1)
    short = f"{name}.{names.shortcut}"
    return h + (conv(x, w, short) if f"{short}.weight" in w else x)


def attention(x, w, name, names):
    """One head over all places: softmax(q k' / sqrt(C)) v."""
    norm, *matrices = (f"{name}.{part}" for part in names.attention)
    h = group_norm(x, w, norm).flatten(2).transpose(1, 2)  # (B, hw, C)
    to_q, to_k, to_v, to_out = (
        lambda y, m=m: y @ w[f"{m}.weight"].flatten(1).T + w[f"{m}.bias"] for m in matrices
    )
    weights = (to_q(h) @ to_k(h).transpose(1, 2) / x.shape[1] ** 0.5).softmax(-1)
    return x + to_out(weights @ to_v(h)).transpose(1, 2).reshape(x.shape)


def level(x, w, names, one, two, lone, **where):
    """Blocks, each followed by its attention. lone: open-muse leaves out an attention that is its level's
    only one.
    """
    have = [
        j
        for j in itertools.takewhile(
            lambda j: f"{one.format(j=j, **where)}.norm1.weight" in w, itertools.count()
        )
    ]
    attend = [j for j in have if f"{two.format(j=j, **where)}.{names.attention[0]}.weight" in w]
    for j in have:
        x = block(x, w, one.format(j=j, **where), names)
        if j in attend and not (lone and len(attend) == 1):
            x = attention(x, w, two.format(j=j, **where), names)
    return x


def middle(x, w, half, names):
    first, between, second = (f"{half}.{part}" for part in names.middle)
    x = block(x, w, first, names)
    if f"{between}.{names.attention[0]}.weight" in w:
        x = attention(x, w, between, names)
    return block(x, w, second, names)


def end(x, w, half, names):
    return conv(F.silu(group_norm(x, w, f"{half}.{names.norm_out}")), w, f"{half}.conv_out", padding=1)


def count_levels(w, names):
    return next(i for i in itertools.count() if f"{names.down.format(i=i, j=0)}.norm1.weight" not in w)


def features(images, w, names, lone=False):
    """Images (B, 3, H, W) in the format's own range to what is looked up, (B, N, D)."""
    x = conv(images.double(), w, "encoder.conv_in", padding=1)
    for i in range(count_levels(w, names)):
        x = level(x, w, names, names.down, names.down_attention, lone, i=i)
        down = names.downsample.format(i=i)
        if f"{down}.weight" in w:
            x = conv(F.pad(x, (0, 1, 0, 1)), w, down, stride=2)
    x = end(middle(x, w, "encoder", names), w, "encoder", names)
    return conv(x, w, "quant_conv").flatten(2).transpose(1, 2)


def nearest(z, table, cosine=False):
    """Features (B, N, D) to the ids of their codes: nearest, or nearest once both are of length 1."""
    if cosine:
        z, table = F.normalize(z, dim=-1), F.normalize(table, dim=-1)
    return torch.cdist(z, table[None]).argmin(-1)


def tokens(images, state, names, cosine=False, lone=False):
    w = double(state)
    return nearest(features(images, w, names, lone), w["quantize.embedding.weight"], cosine)


def pictures(tokens, state, names, cosine=False, lone=False):
    """Tokens (B, N) to pictures (B, 3, H, W) in the format's own range, not clamped."""
    w = double(state)
    table, side, levels = (
        w["quantize.embedding.weight"],
        round(tokens.shape[1] ** 0.5),
        count_levels(w, names),
    )
    if cosine:
        table = F.normalize(table, dim=-1)
    z = table[tokens].transpose(1, 2).unflatten(2, (side, side))
    x = middle(conv(conv(z, w, "post_quant_conv"), w, "decoder.conv_in", padding=1), w, "decoder", names)
    for i in reversed(range(levels)):  # the lowest resolution first
        where = {"i": i, "r": levels - 1 - i}
        x = level(x, w, names, names.up, names.up_attention, lone, **where)
        up = names.upsample.format(**where)
        if f"{up}.weight" in w:
            x = conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3), w, up, padding=1)
    return end(x, w, "decoder", names)


# Transformers


def linear(x, w, name):
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def rotated(x, interleaved=False):
    """x (B, heads, T, D) turned by position: places i and i + D/2 are a plane (half-split), or 2i and 2i + 1
    (interleaved).
    """
    length, width = x.shape[-2:]
    angle = torch.arange(length).double()[:, None] * 10000.0 ** (-torch.arange(0, width, 2).double() / width)
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., : width // 2], x[..., width // 2 :])
    a, b = a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()
    return torch.stack([a, b], -1).flatten(-2) if interleaved else torch.cat([a, b], -1)


def gelu(x, approximate):
    return (
        x
        * (
            1
            + (
                torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))
                if approximate
                else torch.erf(x / 2**0.5)
            )
        )
        / 2
    )


def logits(ids, state, heads, eps, interleaved=False, approximate=False):
    """Of a causal pre-norm transformer: RMSNorm and SwiGLU, or LayerNorm and GELU where the norms have
    biases.

    interleaved and approximate (of the GELU) are what the published ones are not.
    """
    w = double(state)
    x = w["model.embed_tokens.weight"][ids]
    length, d = x.shape[1:]
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)  # what comes later

    def norm(y, name):
        if f"{name}.bias" in w:
            return F.layer_norm(y, (d,), w[f"{name}.weight"], w[f"{name}.bias"], eps)
        return w[f"{name}.weight"] * y / (y.square().mean(-1, keepdim=True) + eps).sqrt()

    for i in itertools.takewhile(
        lambda i: f"model.layers.{i}.input_layernorm.weight" in w, itertools.count()
    ):
        layer = f"model.layers.{i}"
        h = norm(x, f"{layer}.input_layernorm")
        q, k, v = (
            linear(h, w, f"{layer}.self_attn.{part}_proj").unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in "qkv"
        )
        scores = rotated(q, interleaved) @ rotated(k, interleaved).transpose(-1, -2) / (d // heads) ** 0.5
        h = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v
        x = x + linear(h.transpose(1, 2).flatten(2), w, f"{layer}.self_attn.o_proj")
        h = norm(x, f"{layer}.post_attention_layernorm")
        if f"{layer}.mlp.fc1.weight" in w:
            h = linear(gelu(linear(h, w, f"{layer}.mlp.fc1"), approximate), w, f"{layer}.mlp.fc2")
        else:
            h = linear(
                F.silu(linear(h, w, f"{layer}.mlp.gate_proj")) * linear(h, w, f"{layer}.mlp.up_proj"),
                w,
                f"{layer}.mlp.down_proj",
            )
        x = x + h
    return linear(norm(x, "model.norm"), w, "lm_head")


def exported(parts, packed_by_head=0):
    """What DeLVM's pipeline parts are in its exported names. packed_by_head: of so many heads, were the rows
    of Wqkv packed so (they are not).
    """
    out, first = {}, 0
    for part in parts:
        part = {k.removeprefix("model."): v for k, v in part.items()}
        count = 1 + max(int(k.split(".")[1]) for k in part if k.startswith("blocks."))
        if "embedding.embed_proj.weight" in part:
            codebook = part["embedding.vq_model.quantize.embedding.weight"].double()
            out["model.embed_tokens.weight"] = codebook @ part["embedding.embed_proj.weight"].double().T
        for i in range(count):
            block, layer = f"blocks.{i}", f"model.layers.{first + i}"
            for kind in ("weight", "bias"):
                rows = part[f"{block}.mixer.Wqkv.{kind}"]
                three = rows.unflatten(0, (3, -1))
                if packed_by_head:
                    three = rows.unflatten(0, (packed_by_head, 3, -1)).transpose(0, 1).flatten(1, 2)
                for name, value in zip("qkv", three, strict=True):
                    out[f"{layer}.self_attn.{name}_proj.{kind}"] = value
                out[f"{layer}.self_attn.o_proj.{kind}"] = part[f"{block}.mixer.out_proj.{kind}"]
            for theirs, ours in {
                "mlp.w1": "mlp.gate_proj",
                "mlp.w2": "mlp.up_proj",
                "mlp.w3": "mlp.down_proj",
                "norm1": "input_layernorm",
                "norm2": "post_attention_layernorm",
            }.items():
                out[f"{layer}.{ours}.weight"] = part[f"{block}.{theirs}.weight"]
        first += count
        if "head.weight" in part:
            out |= {"model.norm.weight": part["norm.weight"], "lm_head.weight": part["head.weight"]}
    return out
