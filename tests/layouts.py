"""Checkpoints of other projects in small, laid out exactly as their users have them, with random weights.

Written from the projects' own code and apart from `lvmlab.checkpoints`, which reads them: nothing of lvmlab
is imported, so
that one mistake is not made twice. For each format: a small configuration in its own fields, a function that
draws the
state dict under the published names and shapes, and one that writes it.
"""

import contextlib
import json
import math
import sys
import types
from collections import OrderedDict
from dataclasses import dataclass
from unittest import mock

import torch
import yaml
from safetensors.torch import save_file


def drawn(shapes, generator):
    """Random fp32 weights by name: activations stay of order 1, no bias is 0, no norm is 1."""
    state = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if name == "decoder.conv_out.bias":
            state[name] = (
                0.3 + 0.1 * noise
            )  # this, and the weight's size below, keep most of a picture within its range
        elif name.endswith(".bias"):
            state[name] = 0.2 * noise
        elif "embed_tokens" in name or "embed_proj" in name:
            state[name] = 2e-3 * noise  # small, so that the epsilon of the first norm is seen
        elif "embedding.weight" in name:
            state[name] = noise
        elif len(shape) == 1:
            state[name] = 1 + 0.2 * noise
        else:
            small = 0.4 if name == "decoder.conv_out.weight" else 1
            state[name] = small * noise / math.sqrt(math.prod(shape[1:]))
    return state


def draw(shapes_of, config, seed=0):
    return drawn(shapes_of(config), torch.Generator().manual_seed(seed))


# VQGANs: one network, four ways to name it


@dataclass(frozen=True)
class Names:
    """How a project names a VQGAN's parts; level {i} counts from the highest resolution, {r} from the lowest."""

    down: str
    down_attention: str
    downsample: str
    middle: tuple[str, str, str]  # block, attention, block
    up: str
    up_attention: str
    upsample: str
    norm_out: str
    shortcut: str
    attention: tuple[str, str, str, str, str]  # norm, query, key, value, projection
    kernel: tuple[int, ...] = (1, 1)  # of the attention's matrices


MUSE = Names(
    "encoder.down.{i}.block.{j}",
    "encoder.down.{i}.attn.{j}",
    "encoder.down.{i}.downsample.conv",
    ("mid.block_1", "mid.attn_1", "mid.block_2"),
    "decoder.up.{i}.block.{j}",
    "decoder.up.{i}.attn.{j}",
    "decoder.up.{i}.upsample.conv",
    "norm_out",
    "nin_shortcut",
    ("norm", "q", "k", "v", "proj_out"),
)
LLAMAGEN_NAMES = Names(
    "encoder.conv_blocks.{i}.res.{j}",
    "encoder.conv_blocks.{i}.attn.{j}",
    "encoder.conv_blocks.{i}.downsample.conv",
    ("mid.0", "mid.1", "mid.2"),
    "decoder.conv_blocks.{r}.res.{j}",
    "decoder.conv_blocks.{r}.attn.{j}",
    "decoder.conv_blocks.{r}.upsample.conv",
    "norm_out",
    "nin_shortcut",
    ("norm", "q", "k", "v", "proj_out"),
)
DIFFUSERS_NAMES = Names(
    "encoder.down_blocks.{i}.resnets.{j}",
    "encoder.down_blocks.{i}.attentions.{j}",
    "encoder.down_blocks.{i}.downsamplers.0.conv",
    ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    "decoder.up_blocks.{r}.resnets.{j}",
    "decoder.up_blocks.{r}.attentions.{j}",
    "decoder.up_blocks.{r}.upsamplers.0.conv",
    "conv_norm_out",
    "conv_shortcut",
    ("group_norm", "to_q", "to_k", "to_v", "to_out.0"),
    (),
)


def vqgan_shapes(names, width, widths, blocks, attention, middle, z, dim, codes):
    """Shapes by name. widths: a level, from the highest resolution; attention: the levels that have it;
    middle: whether the middle does.
    """
    shapes, last = {}, len(widths) - 1

    def layer(name, outer, *inner):
        shapes.update({f"{name}.weight": (outer, *inner), f"{name}.bias": (outer,)})

    def block(name, inner, outer):
        layer(f"{name}.norm1", inner)
        layer(f"{name}.conv1", outer, inner, 3, 3)
        layer(f"{name}.norm2", outer)
        layer(f"{name}.conv2", outer, outer, 3, 3)
        if inner != outer:
            layer(f"{name}.{names.shortcut}", outer, inner, 1, 1)

    def attend(name, width):
        norm, *matrices = names.attention
        layer(f"{name}.{norm}", width)
        for matrix in matrices:
            layer(f"{name}.{matrix}", width, width, *names.kernel)

    def mid(half, width):
        first, between, second = (f"{half}.{part}" for part in names.middle)
        block(first, width, width)
        if middle:
            attend(between, width)
        block(second, width, width)

    layer("encoder.conv_in", width, 3, 3, 3)
    for i, outer in enumerate(widths):
        for j in range(blocks):
            block(names.down.format(i=i, j=j), width, outer)
            width = outer
            if i in attention:
                attend(names.down_attention.format(i=i, j=j), width)
        if i < last:
            layer(names.downsample.format(i=i), width, width, 3, 3)
    mid("encoder", width)
    layer(f"encoder.{names.norm_out}", width)
    layer("encoder.conv_out", z, width, 3, 3)

    layer("decoder.conv_in", width, z, 3, 3)
    mid("decoder", width)
    for i in reversed(range(len(widths))):
        where = {"i": i, "r": last - i}
        for j in range(blocks + 1):
            block(names.up.format(j=j, **where), width, widths[i])
            width = widths[i]
            if i in attention:
                attend(names.up_attention.format(j=j, **where), width)
        if i > 0:
            layer(names.upsample.format(**where), width, width, 3, 3)
    layer(f"decoder.{names.norm_out}", width)
    layer("decoder.conv_out", 3, width, 3, 3)

    shapes["quantize.embedding.weight"] = (codes, dim)
    layer("quant_conv", dim, z, 1, 1)
    layer("post_quant_conv", z, dim, 1, 1)
    return shapes


def levels_at(sizes, resolution, count):
    """Which of `count` levels have one of these sizes."""
    return {i for i in range(count) if resolution // 2**i in sizes}


OPEN_MUSE = {
    "attn_resolutions": [],
    "channel_mult": [1, 2, 2],
    "commitment_cost": 0.25,
    "dropout": 0.0,
    "hidden_channels": 32,
    "no_attn_mid_block": True,
    "num_channels": 3,
    "num_embeddings": 64,
    "num_res_blocks": 2,
    "quantized_embed_dim": 8,
    "resample_with_conv": True,
    "resolution": 32,
    "z_channels": 16,
}
# what a config.json that leaves a field out means
OPEN_MUSE_DEFAULTS = {
    "attn_resolutions": [16],
    "channel_mult": [1, 1, 2, 2, 4],
    "hidden_channels": 128,
    "no_attn_mid_block": False,
    "num_embeddings": 1024,
    "num_res_blocks": 2,
    "quantized_embed_dim": 256,
    "resolution": 256,
    "z_channels": 256,
}


def open_muse_shapes(config):
    c = {**OPEN_MUSE_DEFAULTS, **config}
    return vqgan_shapes(
        MUSE,
        c["hidden_channels"],
        [c["hidden_channels"] * m for m in c["channel_mult"]],
        c["num_res_blocks"],
        levels_at(c["attn_resolutions"], c["resolution"], len(c["channel_mult"])),
        not c["no_attn_mid_block"],
        c["z_channels"],
        c["quantized_embed_dim"],
        c["num_embeddings"],
    )


def write_open_muse(folder, state, config, weights="pytorch_model.bin"):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({"_class_name": "VQGANModel", "_version": "0.0.1", **config}, indent=2)
    )
    write_weights(folder / weights, state)
    return folder


def write_weights(path, state):
    if path.suffix == ".safetensors":
        save_file(state, path, metadata={"format": "pt"})
    else:
        torch.save(state, path)


TAMING = {
    "embed_dim": 8,
    "n_embed": 64,
    "ddconfig": {
        "double_z": False,
        "z_channels": 16,
        "resolution": 32,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 2, 2],
        "num_res_blocks": 2,
        "attn_resolutions": [8],
        "dropout": 0.0,
    },
}


def taming_shapes(config):
    """Without the loss's. Its middle always has attention."""
    d = config["ddconfig"]
    return vqgan_shapes(
        MUSE,
        d["ch"],
        [d["ch"] * m for m in d["ch_mult"]],
        d["num_res_blocks"],
        levels_at(d["attn_resolutions"], d["resolution"], len(d["ch_mult"])),
        True,
        d["z_channels"],
        config["embed_dim"],
        config["n_embed"],
    )


def write_taming(folder, state, config, callbacks=False):
    """`last.ckpt` of Lightning with `config.yaml` beside it; callbacks: with the class that Lightning keys
    its callbacks by.
    """
    folder.mkdir(parents=True)
    loss = {
        "loss.perceptual_loss.scaling_layer.shift": torch.zeros(1, 3, 1, 1),
        "loss.perceptual_loss.net.slice1.0.weight": torch.ones(64, 3, 3, 3),
        "loss.perceptual_loss.lin0.model.1.weight": torch.ones(1, 64, 1, 1),
        "loss.discriminator.main.0.weight": torch.ones(64, 3, 4, 4),
        "loss.discriminator.main.3.num_batches_tracked": torch.tensor(5),
    }
    lightning = {
        "epoch": 3,
        "global_step": 900,
        "pytorch-lightning_version": "1.0.8",
        "callbacks": {},
        "lr_schedulers": [],
        "optimizer_states": [
            {
                "state": {0: {"step": 900, "exp_avg": torch.zeros(3)}},
                "param_groups": [{"lr": 4.5e-6, "params": [0]}],
            }
        ],
    }
    with pretended("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint") as kind:
        if callbacks:
            lightning["callbacks"][kind] = {
                "best_model_score": torch.tensor(0.5),
                "best_model_path": "last.ckpt",
            }
        torch.save({**lightning, "state_dict": OrderedDict(state | loss)}, folder / "last.ckpt")
    model = {
        "base_learning_rate": 4.5e-6,
        "target": "taming.models.vqgan.VQModel",
        "params": {
            **config,
            "lossconfig": {
                "target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
                "params": {"disc_start": 250001},
            },
        },
    }
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"model": model, "data": {"target": "main.DataModuleFromConfig"}})
    )
    return folder


@contextlib.contextmanager
def pretended(name, base=object):
    """A class of a package that is not installed here, for as long as something is pickled."""
    home, _, kind = name.rpartition(".")
    parts = home.split(".")
    modules = {
        ".".join(parts[: i + 1]): types.ModuleType(".".join(parts[: i + 1])) for i in range(len(parts))
    }
    made = type(kind, (base,), {"__module__": home})
    setattr(modules[home], kind, made)
    with mock.patch.dict(sys.modules, modules):
        yield made


# the published one: ch 128, ch_mult 1, 1, 2, 2, 4, z 256, 16384 codes of dimension 8
LLAMAGEN = {
    "ch": 32,
    "ch_mult": [1, 2, 2],
    "num_res_blocks": 2,
    "z_channels": 16,
    "codebook_size": 64,
    "codebook_embed_dim": 8,
}


def llamagen_shapes(config):
    """Attention in the lowest level and in the middle; `codebook_used` is a record of training."""
    c = config
    shapes = vqgan_shapes(
        LLAMAGEN_NAMES,
        c["ch"],
        [c["ch"] * m for m in c["ch_mult"]],
        c["num_res_blocks"],
        {len(c["ch_mult"]) - 1},
        True,
        c["z_channels"],
        c["codebook_embed_dim"],
        c["codebook_size"],
    )
    return {**shapes, "quantize.codebook_used": (65536,)}


def write_llamagen(file, **parts):
    """parts: state dicts under `model`, `ema` or both."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(parts, file)
    return file


# sample_size is not the pictures': the released one says 32 too and takes 256 and 512
DIFFUSERS = {
    "act_fn": "silu",
    "block_out_channels": [32, 64, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "force_upcast": False,
    "in_channels": 3,
    "latent_channels": 16,
    "layers_per_block": 2,
    "lookup_from_codebook": True,
    "mid_block_add_attention": False,
    "norm_num_groups": 32,
    "norm_type": "group",
    "num_vq_embeddings": 64,
    "out_channels": 3,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "vq_embed_dim": 8,
}


def diffusers_shapes(config):
    """Left out, `mid_block_add_attention` is true and `vq_embed_dim` is that of the latents."""
    c = config
    return vqgan_shapes(
        DIFFUSERS_NAMES,
        c["block_out_channels"][0],
        c["block_out_channels"],
        c["layers_per_block"],
        set(),
        c.get("mid_block_add_attention", True),
        c["latent_channels"],
        c.get("vq_embed_dim") or c["latent_channels"],
        c["num_vq_embeddings"],
    )


def write_diffusers_vq(folder, state, config):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({"_class_name": "VQModel", "_diffusers_version": "0.25.0.dev0", **config}, indent=2)
    )
    save_file(state, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return folder


# Transformers

# as its converter writes it: ids of sentence begin, end and padding are left out because there are none
DELVM = {
    "architectures": ["InternLMForCausalLM"],
    "auto_map": {"AutoModel": "modeling_internlm.InternLMForCausalLM"},
    "bias": True,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "model_type": "internlm",
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.31.0",
    "use_cache": True,
    "vocab_size": 48,
}
VIT = {k: v for k, v in DELVM.items() if k != "rms_norm_eps"} | {
    "auto_map": {"AutoModel": "modeling_vit.InternLMForCausalLM"},
    "hidden_act": "gelu",
    "mlp_bias": False,
    "model_type": "vit",
    "norm_eps": 1e-6,
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "model_type": "llama",
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.31.0",
    "use_cache": True,
    "vocab_size": 8292,
}


def transformer_shapes(config):
    """Of all three, without the rotary frequencies."""
    d, inner, vit = config["hidden_size"], config["intermediate_size"], config["model_type"] == "vit"
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], d)}

    def norm(name):
        shapes.update({f"{name}.weight": (d,), **({f"{name}.bias": (d,)} if vit else {})})

    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"{layer}.self_attn.{part}.weight"] = (d, d)
            if config.get("bias"):
                shapes[f"{layer}.self_attn.{part}.bias"] = (d,)
        for part, shape in (
            {"fc1": (inner, d), "fc2": (d, inner)}.items()
            if vit
            else {"gate_proj": (inner, d), "up_proj": (inner, d), "down_proj": (d, inner)}.items()
        ):
            shapes[f"{layer}.mlp.{part}.weight"] = shape
            if config.get("mlp_bias"):
                shapes[f"{layer}.mlp.{part}.bias"] = shape[:1]
        norm(f"{layer}.input_layernorm")
        norm(f"{layer}.post_attention_layernorm")
    norm("model.norm")
    shapes["lm_head.weight"] = (config["vocab_size"], d)
    return shapes


def with_frequencies(state, config):
    """With each layer's rotary frequencies, as transformers' models kept them until 2023."""
    half = config["hidden_size"] // config["num_attention_heads"] // 2
    frequencies = 10000.0 ** (-torch.arange(half) / half)
    return state | {
        f"model.layers.{i}.self_attn.rotary_emb.inv_freq": frequencies.clone()
        for i in range(config["num_hidden_layers"])
    }


def write_transformer(folder, state, config, weights="pytorch_model.bin", shards=1):
    """DeLVM's two flavours and LVM's LLaMA; more than one shard: with the index that names each weight's."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    if weights.endswith(".bin"):
        state = with_frequencies(state, config)
    if shards == 1:
        write_weights(folder / weights, state)
        return folder
    stem, _, suffix = weights.rpartition(".")
    names = sorted(state)
    home = {
        name: f"{stem}-{i * shards // len(names) + 1:05d}-of-{shards:05d}.{suffix}"
        for i, name in enumerate(names)
    }
    for file in sorted(set(home.values())):
        write_weights(folder / file, {name: state[name] for name in names if home[name] == file})
    size = sum(v.numel() * v.element_size() for v in state.values())
    (folder / f"{weights}.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": home})
    )
    return folder


# the `model` part of a training configuration, as it is once the run has begun
TRAINING = {
    "checkpoint": 0,
    "num_attention_heads": 2,
    "embed_split_hidden": True,
    "vocab_size": 48,
    "embed_grad_scale": 1,
    "parallel_output": True,
    "hidden_size": 32,
    "num_layers": 3,
    "mlp_ratio": 8 / 3,
    "apply_post_layer_norm": False,
    "dtype": torch.float16,
    "norm_type": "rmsnorm",
    "layer_norm_epsilon": 1e-5,
    "use_flash_attn": True,
    "num_chunks": 1,
    "lvm_config": {
        "enable": True,
        "embedding_cfg": {"vq_model_path": "/cache/vqgan", "embedding_dim": 32, "freeze_vq_model": True},
    },
}
# the tokenizer inside has more levels than a part has layers: only blocks count as layers
TRAINING_VQGAN = {**OPEN_MUSE, "channel_mult": [1] * 5, "num_res_blocks": 1, "num_embeddings": 48}


def training_shapes(config, parts=(2, 1), prefix="model."):
    """One dict of shapes a pipeline part, which holds so many layers and counts them from 0."""
    d = config["hidden_size"]
    inner = math.ceil(d * config["mlp_ratio"] / 256) * 256
    found = []
    for p, layers in enumerate(parts):
        shapes = {}
        if p == 0:
            shapes |= {f"embedding.vq_model.{k}": v for k, v in open_muse_shapes(TRAINING_VQGAN).items()}
            shapes["embedding.embed_proj.weight"] = (d, TRAINING_VQGAN["quantized_embed_dim"])
        for i in range(layers):
            block = f"blocks.{i}"
            shapes |= {
                f"{block}.mixer.Wqkv.weight": (3 * d, d),
                f"{block}.mixer.Wqkv.bias": (3 * d,),
                f"{block}.mixer.out_proj.weight": (d, d),
                f"{block}.mixer.out_proj.bias": (d,),
                f"{block}.norm1.weight": (d,),
                f"{block}.norm2.weight": (d,),
                f"{block}.mlp.w1.weight": (inner, d),
                f"{block}.mlp.w2.weight": (inner, d),
                f"{block}.mlp.w3.weight": (d, inner),
            }
        if p == len(parts) - 1:
            shapes |= {"norm.weight": (d,), "head.weight": (config["vocab_size"], d)}
        found.append({prefix + name: shape for name, shape in shapes.items()})
    return found


def draw_training(config, parts=(2, 1), prefix="model.", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [drawn(shapes, generator) for shapes in training_shapes(config, parts, prefix)]


def write_delvm_training(folder, states, config, wrapped=False):
    """wrapped: the configuration is an object of the trainer's dict class, as the trainer writes it, and not
    a dict.
    """
    folder.mkdir(parents=True)
    with pretended("internlm.core.context.parallel_context.Config", dict) as kind:

        def wrap(value):
            return (
                kind({k: wrap(v) for k, v in value.items()}) if wrapped and isinstance(value, dict) else value
            )

        torch.save(wrap(config), folder / "model_config.pt")
    for p, state in enumerate(states):
        torch.save(state, folder / f"model_tp0_pp{p}.pt")
        (folder / f"topo_tp0_pp{p}.json").write_text("{}")
        torch.save({"base_optim_states": {}}, folder / f"optimizer_tp0_pp{p}_zo0.pt")
    torch.save({"step_count": 40000}, folder / "context.pt")
    return folder
