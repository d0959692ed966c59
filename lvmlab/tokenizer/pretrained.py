"""VQGANs that the field has released, as the lab's configuration and state: open-muse (and so LVM's and
DeLVM's), taming-transformers, LlamaGen,
and diffusers' VQModel.

They are one network under four spellings. What differs and no eye notices: pictures in [-1, 1] (taming,
LlamaGen) or [0, 1]; codes found by
angle and decoded as unit vectors (LlamaGen); decoder levels counted from the lowest resolution (LlamaGen,
diffusers) or from the highest.
"""

import re
from collections.abc import Callable
from pathlib import Path

import yaml

from lvmlab.tokenizer.vqgan import VQGANConfig
from lvmlab.utils.checkpoints import (
    CheckpointError,
    State,
    positive_ints,
    read_config,
    read_state,
    require,
    weights_in,
)

KINDS = "open-muse's or diffusers' folder, taming's .ckpt with its .yaml, or LlamaGen's .pt"
Found = tuple[VQGANConfig, State, Callable[[str], str]]  # the last: what the file calls a tensor of ours


def load(path: Path, resolution: int | None = None) -> Found:
    """Configuration, weights and their names of a released tokenizer. resolution: of the pictures, where its
    files do not say (None: 256).

    Raises CheckpointError for what is none of KINDS.
    """
    if path.is_dir() and not (path / "config.json").is_file():
        files = sorted(path.glob("*.ckpt")) + sorted(path.glob("*.pt"))
        if not files:
            raise CheckpointError(
                f"{path} holds no tokenizer: config.json is missing; give {KINDS}, or a folder written by "
                f"save_pretrained"
            )
        path = files[0]
    if path.is_file():
        return taming(path) if path.suffix == ".ckpt" else llamagen(path, resolution or 256)
    config = read_config(path / "config.json")
    if "num_vq_embeddings" in config or config.get("_class_name") == "VQModel":
        return diffusers(path, config, resolution or 256)
    if (
        "num_embeddings" in config
        or "quantized_embed_dim" in config
        or config.get("_class_name") == "VQGANModel"
    ):
        return open_muse(path, config)
    raise CheckpointError(
        f"{path / 'config.json'} describes no VQGAN that is known, but another kind of model: give {KINDS}"
    )


def _config(path: Path, **fields) -> VQGANConfig:
    try:
        return VQGANConfig(**fields)
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} describes no VQGAN that the lab has ({error}): it is damaged or of another network"
        ) from error


def _several(config: dict, path: Path, field: str, default: tuple[int, ...]) -> tuple[int, ...]:
    value = config.get(field, default)
    value = (
        (value,)
        if isinstance(value, int)
        else tuple(value or ())
        if isinstance(value, (list, tuple)) or value is None
        else (value,)
    )
    require(all(isinstance(v, int) and v > 0 for v in value), path, config, field, "positive integers")
    return value


def open_muse(folder: Path, config: dict) -> Found:
    """Fields that are left out take open-muse's defaults, which are not those of the released checkpoint."""
    path = folder / "config.json"
    sizes = positive_ints(
        config,
        path,
        resolution=256,
        hidden_channels=128,
        num_res_blocks=2,
        z_channels=256,
        quantized_embed_dim=256,
        num_embeddings=1024,
    )
    blocks, attention = sizes["num_res_blocks"], _several(config, path, "attn_resolutions", (16,))
    for field in (
        "decoder_res_blocks",
        "extra_mid_res_blocks",
        "decoder_hidden_channels",
        "decoder_channel_mult",
    ):
        require(config.get(field) is None, path, config, field, "none (null)")
    # open-muse passes over an attention that is the only one of its level
    require(blocks > 1 or not attention, path, config, "num_res_blocks", "2 or more where there is attention")
    shape = _config(
        path,
        resolution=sizes["resolution"],
        hidden_channels=sizes["hidden_channels"],
        num_res_blocks=blocks,
        decoder_res_blocks=blocks + 1,
        channel_mult=_several(config, path, "channel_mult", (1, 1, 2, 2, 4)),
        attn_resolutions=attention,
        mid_attention=not config.get("no_attn_mid_block", False),
        z_channels=sizes["z_channels"],
        embed_dim=sizes["quantized_embed_dim"],
        codebook_size=sizes["num_embeddings"],
    )
    return (
        shape,
        read_state(weights_in(folder, "model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")),
        str,
    )


def taming(path: Path) -> Found:
    """A Lightning checkpoint with its yaml: of the same name, the only one beside it, or in the run's configs
    folder.
    """
    beside = [p for suffix in ("*.yaml", "*.yml") for p in sorted(path.parent.glob(suffix))]
    run = [
        p
        for suffix in ("model.yaml", "*project.yaml", "*.yaml")
        for p in sorted((path.parent.parent / "configs").glob(suffix))
    ]
    config = next(
        iter([p for p in beside if p.stem == path.stem] or (beside if len(beside) == 1 else run)), None
    )
    if config is None:
        raise CheckpointError(
            f"{path} needs its configuration: put the .yaml that it was trained with beside it, under its "
            f"name"
        )
    try:
        params = yaml.safe_load(config.read_text(encoding="utf-8"))["model"]["params"]
        net = dict(params["ddconfig"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{config} describes no taming VQGAN ({type(error).__name__}: {error}): give the yaml it was "
            f"trained with"
        ) from error
    sizes = positive_ints(net, config, "resolution", "ch", "num_res_blocks", "z_channels") | positive_ints(
        params, config, "embed_dim", "n_embed"
    )
    shape = _config(
        config,
        resolution=sizes["resolution"],
        hidden_channels=sizes["ch"],
        channel_mult=_several(net, config, "ch_mult", ()),
        num_res_blocks=sizes["num_res_blocks"],
        decoder_res_blocks=sizes["num_res_blocks"] + 1,
        mid_attention=True,
        z_channels=sizes["z_channels"],
        attn_resolutions=_several(net, config, "attn_resolutions", ()),
        embed_dim=sizes["embed_dim"],
        codebook_size=sizes["n_embed"],
        signed=True,
    )
    return shape, {k: v for k, v in read_state(path, "state_dict").items() if not k.startswith("loss.")}, str


def llamagen(path: Path, resolution: int) -> Found:
    """The shapes are read off the tensors; the file says nothing of the resolution."""
    state = {
        k: v
        for k, v in read_state(path, "ema", "model", "state_dict").items()
        if k != "quantize.codebook_used"
    }
    needed = ("encoder.conv_in.weight", "encoder.conv_out.weight", "quantize.embedding.weight")
    if any(key not in state or state[key].ndim < 2 for key in needed):
        raise CheckpointError(
            f"{path} holds no LlamaGen tokenizer (missing: "
            f"{', '.join(k for k in needed if k not in state)}): give {KINDS}"
        )
    levels, width = _count(state, "encoder.conv_blocks.{}."), state[needed[0]].shape[0]
    widths = [
        state.get(f"encoder.conv_blocks.{i}.res.0.conv1.weight", state[needed[0]]).shape[0]
        for i in range(levels)
    ]
    shape = _config(
        path,
        resolution=resolution,
        hidden_channels=width,
        channel_mult=tuple(w // width for w in widths),
        num_res_blocks=_count(state, "encoder.conv_blocks.0.res.{}."),
        decoder_res_blocks=_count(state, "decoder.conv_blocks.0.res.{}."),
        attn_resolutions=(resolution // 2 ** max(0, levels - 1),),
        mid_attention=True,
        z_channels=state[needed[1]].shape[0],
        embed_dim=state[needed[2]].shape[1],
        codebook_size=state[needed[2]].shape[0],
        cosine=True,
        signed=True,
    )

    def theirs(key: str) -> str:
        key = re.sub(r"encoder\.down\.(\d+)", r"encoder.conv_blocks.\1", key)
        key = re.sub(
            r"decoder\.up\.(\d+)", lambda m: f"decoder.conv_blocks.{levels - 1 - int(m[1])}", key
        )  # counted from the lowest resolution
        key = key.replace(".block.", ".res.")
        return re.sub(
            r"\.mid\.(block_1|attn_1|block_2)",
            lambda m: f".mid.{('block_1', 'attn_1', 'block_2').index(m[1])}",
            key,
        )

    return shape, state, theirs


def diffusers(folder: Path, config: dict, resolution: int) -> Found:
    """aMUSEd's: pictures in [0, 1], as its pipeline has them, whose size its configuration does not say."""
    path = folder / "config.json"
    sizes = positive_ints(
        config, path, "latent_channels", "num_vq_embeddings", layers_per_block=1, norm_num_groups=32
    )
    sizes |= positive_ints(config, path, vq_embed_dim=sizes["latent_channels"])
    widths, blocks = _several(config, path, "block_out_channels", (64,)), sizes["layers_per_block"]
    require(config.get("act_fn", "silu") in ("silu", "swish"), path, config, "act_fn", "silu")
    shape = _config(
        path,
        resolution=resolution,
        hidden_channels=widths[0],
        channel_mult=tuple(w // widths[0] for w in widths),
        num_res_blocks=blocks,
        decoder_res_blocks=blocks + 1,
        mid_attention=config.get("mid_block_add_attention", True),
        z_channels=sizes["latent_channels"],
        embed_dim=sizes["vq_embed_dim"],
        codebook_size=sizes["num_vq_embeddings"],
        groups=sizes["norm_num_groups"],
    )
    state = read_state(
        weights_in(folder, "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
    )
    state = {
        k: v[:, :, None, None] if re.search(r"\.to_(q|k|v|out\.0)\.weight", k) and v.ndim == 2 else v
        for k, v in state.items()
    }
    levels = len(widths)

    def theirs(key: str) -> str:
        key = re.sub(r"\.down\.(\d+)", r".down_blocks.\1", key)
        key = re.sub(r"\.up\.(\d+)", lambda m: f".up_blocks.{levels - 1 - int(m[1])}", key)
        key = re.sub(r"(down|up)sample\.conv", r"\1samplers.0.conv", key)
        key = re.sub(r"\.mid\.block_(\d)", lambda m: f".mid_block.resnets.{int(m[1]) - 1}", key)
        key = re.sub(
            r"\.mid\.attn_1\.(norm|q|k|v|proj_out)",
            lambda m: f".mid_block.attentions.0.{_ATTENTION[m[1]]}",
            key,
        )
        return (
            key.replace(".block.", ".resnets.")
            .replace("nin_shortcut", "conv_shortcut")
            .replace("norm_out", "conv_norm_out")
        )

    return shape, state, theirs


_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def _count(state: State, pattern: str) -> int:
    """How many numbers from 0 on stand at the braces of some key."""
    count = 0
    while any(key.startswith(pattern.format(count)) for key in state):
        count += 1
    return count
