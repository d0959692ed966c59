"""VQGANs that the field has released, as the lab's configuration and state: open-muse (and so LVM's and DeLVM's), taming-transformers, LlamaGen,
and diffusers' VQModel.

They are one network under four spellings. What differs and no eye notices: pictures in [-1, 1] (taming, LlamaGen) or [0, 1]; codes found by
angle and decoded as unit vectors (LlamaGen); decoder levels counted from the lowest resolution (LlamaGen, diffusers) or from the highest.
"""

import re
from pathlib import Path

import yaml

from lvmlab.checkpoints.files import CheckpointError, State, read_config, read_state, weights_in
from lvmlab.vqgan import VQGANConfig

KINDS = "open-muse's or diffusers' folder, taming's .ckpt with its .yaml, or LlamaGen's .pt"


def find(path: Path, resolution: int | None = None) -> tuple[VQGANConfig, State]:
    """Configuration and renamed weights of a released tokenizer. resolution: of the pictures, where its files do not say (None: 256).

    Raises CheckpointError for what is none of KINDS.
    """
    if path.is_file():
        return taming(path, None) if path.suffix == ".ckpt" else llamagen(path, resolution or 256)
    if (path / "config.json").is_file():
        config = read_config(path / "config.json")
        if "num_vq_embeddings" in config:
            return diffusers(path, config, resolution or 256)
        if "num_embeddings" in config or "quantized_embed_dim" in config:
            return open_muse(path, config)
        raise CheckpointError(f"{path / 'config.json'} describes no VQGAN that is known, but another kind of model: give {KINDS}")
    for pattern, read in (("*.ckpt", lambda p: taming(p, None)), ("*.pt", lambda p: llamagen(p, resolution or 256))):
        files = sorted(path.glob(pattern))
        if files:
            return read(files[0])
    raise CheckpointError(f"{path} holds no tokenizer: config.json is missing; give {KINDS}, or a folder written by save_pretrained")


def open_muse(folder: Path, config: dict) -> tuple[VQGANConfig, State]:
    """Fields that are left out take open-muse's defaults, which are not those of the released checkpoint."""
    blocks = config.get("num_res_blocks", 2)
    shape = VQGANConfig(
        resolution=config.get("resolution", 256), hidden_channels=config.get("hidden_channels", 128),
        channel_mult=tuple(config.get("channel_mult", (1, 1, 2, 2, 4))), num_res_blocks=blocks, decoder_res_blocks=blocks + 1,
        attn_resolutions=_several(config.get("attn_resolutions", (16,))), mid_attention=not config.get("no_attn_mid_block", False),
        z_channels=config.get("z_channels", 256), embed_dim=config.get("quantized_embed_dim", 256), codes=config.get("num_embeddings", 1024))
    return shape, read_state(weights_in(folder, "model.safetensors", "pytorch_model.bin"))


def taming(path: Path, config: Path | None) -> tuple[VQGANConfig, State]:
    """A Lightning checkpoint with its yaml beside it."""
    config = config or next((p for suffix in ("*.yaml", "*.yml") for p in sorted(path.parent.glob(suffix))), None)
    if config is None:
        raise CheckpointError(f"{path} needs its configuration: put the .yaml that it was trained with beside it")
    try:
        fields = yaml.safe_load(config.read_text())["model"]["params"]
        net = fields["ddconfig"]
        blocks = net["num_res_blocks"]
        shape = VQGANConfig(
            resolution=net["resolution"], hidden_channels=net["ch"], channel_mult=tuple(net["ch_mult"]), num_res_blocks=blocks,
            decoder_res_blocks=blocks + 1, attn_resolutions=_several(net["attn_resolutions"]), mid_attention=True, z_channels=net["z_channels"],
            embed_dim=fields["embed_dim"], codes=fields["n_embed"], signed=True)
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise CheckpointError(f"{config} describes no taming VQGAN ({type(error).__name__}: {error}): give the yaml it was trained with") from error
    return shape, {k: v for k, v in read_state(path, "state_dict").items() if not k.startswith("loss.")}


def llamagen(path: Path, resolution: int) -> tuple[VQGANConfig, State]:
    """The shapes are read off the tensors; the file says nothing of the resolution."""
    state = {k: v for k, v in read_state(path, "ema", "model", "state_dict").items() if k != "quantize.codebook_used"}
    needed = ("encoder.conv_in.weight", "encoder.conv_out.weight", "quantize.embedding.weight")
    if any(key not in state for key in needed):
        raise CheckpointError(f"{path} holds no LlamaGen tokenizer (missing: {', '.join(k for k in needed if k not in state)}): give {KINDS}")
    levels, width = _count(state, "encoder.conv_blocks.{}."), state["encoder.conv_in.weight"].shape[0]
    widths = [state.get(f"encoder.conv_blocks.{i}.res.0.conv1.weight", state[needed[0]]).shape[0] for i in range(levels)]
    shape = VQGANConfig(
        resolution=resolution, hidden_channels=width, channel_mult=tuple(w // width for w in widths),
        num_res_blocks=_count(state, "encoder.conv_blocks.0.res.{}."), decoder_res_blocks=_count(state, "decoder.conv_blocks.0.res.{}."),
        attn_resolutions=(resolution // 2 ** (levels - 1),), mid_attention=True, z_channels=state[needed[1]].shape[0],
        embed_dim=state[needed[2]].shape[1], codes=state[needed[2]].shape[0], cosine=True, signed=True)
    return shape, {_llamagen(key, levels): value for key, value in state.items()}


def _llamagen(key: str, levels: int) -> str:
    key = re.sub(r"encoder\.conv_blocks\.(\d+)", r"encoder.down.\1", key)
    key = re.sub(r"decoder\.conv_blocks\.(\d+)", lambda m: f"decoder.up.{levels - 1 - int(m[1])}", key)  # counted from the lowest resolution
    key = re.sub(r"\.mid\.(\d)", lambda m: ".mid." + ("block_1", "attn_1", "block_2")[min(int(m[1]), 2)], key)
    return key.replace(".res.", ".block.")


def diffusers(folder: Path, config: dict, resolution: int) -> tuple[VQGANConfig, State]:
    """aMUSEd's: pictures in [0, 1], as its pipeline has them."""
    widths, blocks = config["block_out_channels"], config.get("layers_per_block", 1)
    levels, attention = len(widths), config.get("mid_block_add_attention", True)
    shape = VQGANConfig(
        resolution=resolution, hidden_channels=widths[0], channel_mult=tuple(w // widths[0] for w in widths), num_res_blocks=blocks,
        decoder_res_blocks=blocks + 1, mid_attention=attention, z_channels=config["latent_channels"],
        embed_dim=config.get("vq_embed_dim") or config["latent_channels"], codes=config["num_vq_embeddings"],
        groups=config.get("norm_num_groups", 32))
    state = read_state(weights_in(folder, "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"))
    return shape, {_diffusers(k, levels): v[:, :, None, None] if re.search(r"\.to_(q|k|v|out\.0)\.weight", k) else v for k, v in state.items()}


def _diffusers(key: str, levels: int) -> str:
    key = re.sub(r"down_blocks\.(\d+)", r"down.\1", key)
    key = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key).replace("mid_block.attentions.0", "mid.attn_1")
    key = re.sub(r"(down|up)samplers\.0\.conv", r"\1sample.conv", key)
    for theirs, ours in ((".resnets.", ".block."), ("conv_shortcut", "nin_shortcut"), ("group_norm", "norm"), ("to_out.0", "proj_out"), ("to_q", "q"),
                         ("to_k", "k"), ("to_v", "v"), ("conv_norm_out", "norm_out")):  # fmt: skip
        key = key.replace(theirs, ours)
    return key


def _several(value) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _count(state: State, pattern: str) -> int:
    """How many numbers from 0 on stand at the braces of some key."""
    count = 0
    while any(key.startswith(pattern.format(count)) for key in state):
        count += 1
    return count
