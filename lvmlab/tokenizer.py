"""`Tokenizer`: pictures to tokens and back, with every input checked before any work starts."""

import hashlib
import json
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lvmlab import paths
from lvmlab.device import default_device, precision
from lvmlab.files import atomic
from lvmlab.vqgan import VQGAN, VQGANConfig

CONFIG, WEIGHTS, LOG = "config.json", "model.safetensors", "log.json"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another shape; the message names the file and the remedy."""


class Tokenizer:
    """A VQGAN ready for use.

        tokenizer = Tokenizer.from_pretrained("mini")
        tokens = tokenizer.encode(images)      # (B, 3, H, W) in [0, 1] -> (B, N) int64, raster order
        pictures = tokenizer.decode(tokens)    # (B, N) -> (B, 3, H, W) in [0, 1]

    `precision` ("auto", "fp32", "bf16") is that of the convolutions; distances to the codes are always fp32. Answers come
    back on the device of what was given.
    """

    def __init__(self, net: VQGAN, *, device: torch.device | str | None = None, precision: str = "auto", batch_size: int = 128,
                 training: dict | None = None):
        self.config: VQGANConfig = net.config
        self.device = torch.device(device or default_device())
        self.precision = _precision(precision, self.device)
        self.batch_size = batch_size
        self.training = training or {}  # how it was trained, kept in config.json
        self.net = net.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)

    @classmethod
    def from_preset(cls, name: str, *, seed: int = 0, **options) -> "Tokenizer":
        """Fresh, untrained weights of a preset shape; the same seed gives the same weights."""
        config = VQGANConfig.preset(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(VQGAN(config), **options)

    @classmethod
    def from_pretrained(cls, name: str | Path, **options) -> "Tokenizer":
        """Trained weights: the name of a shipped model or a folder with config.json and model.safetensors.

        Raises CheckpointError. Executes no code from the checkpoint.
        """
        folder = Path(name)
        if not folder.is_dir():
            folder = paths.assets() / "models" / str(name)
        if not folder.is_dir():
            shipped = sorted(p.parent.name for p in (paths.assets() / "models").glob(f"*/{CONFIG}"))
            raise CheckpointError(f"no tokenizer {str(name)!r}: neither a folder nor a shipped model "
                                  f"(shipped: {', '.join(shipped) or 'none'}); Tokenizer.from_preset gives untrained weights")
        config, training = _read_config(folder / CONFIG)
        with torch.device("meta"):
            net = VQGAN(config)
        net.load_state_dict(read_weights(folder / WEIGHTS, net), assign=True)
        return cls(net, training=training, **options)

    def save_pretrained(self, folder: str | Path, log: list[dict] | None = None, dtype: torch.dtype = torch.float32) -> None:
        """Writes model.safetensors, log.json (with `log`) and at last config.json, each whole or not at all.

        dtype: of the weights on disk; the codebook stays fp32, so that no code moves.
        """
        folder = Path(folder)
        state = {name: v.to("cpu", torch.float32 if name.startswith("quantize.") else dtype).contiguous()
                 for name, v in self.net.state_dict().items()}
        with atomic(folder / WEIGHTS) as temporary:
            save_file(state, temporary, metadata={"format": "pt"})
        if log is not None:
            with atomic(folder / LOG) as temporary:
                temporary.write_text(json.dumps(log))
        with atomic(folder / CONFIG) as temporary:
            temporary.write_text(json.dumps({"model_type": "lvmlab-vqgan", **asdict(self.config), "training": self.training}, indent=1) + "\n")

    @property
    def size(self) -> int:
        """Pixels along each side."""
        return self.config.resolution

    @property
    def grid(self) -> int:
        """Tokens along each side."""
        return self.config.grid

    @property
    def tokens(self) -> int:
        """Tokens a picture, N."""
        return self.grid**2

    @property
    def codebook_size(self) -> int:
        return self.config.codes

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of shape and weights: equal if and only if the tokens mean the same."""
        return fingerprint(self.net, json.dumps(asdict(self.config), sort_keys=True))

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to tokens (B, N) int64. Raises ValueError for another shape or range."""
        check_images(images, self.size)
        if not len(images):
            return torch.empty(0, self.tokens, dtype=torch.int64, device=images.device)
        return torch.cat([self._encode(part) for part in images.split(self.batch_size)]).to(images.device)

    @torch.inference_mode()
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N) to pictures (B, 3, H, W), float32 in [0, 1]. Raises ValueError for another shape or ids out of range."""
        check_tokens(tokens, self.tokens, self.codebook_size)
        if not len(tokens):
            return torch.empty(0, 3, self.size, self.size, device=tokens.device)
        return torch.cat([self._decode(part) for part in tokens.split(self.batch_size)]).to(tokens.device)

    def round_trip(self, images: Tensor) -> Tensor:
        """What the tokens can carry of (B, 3, H, W): decode(encode(images))."""
        return self.decode(self.encode(images))

    def _encode(self, images: Tensor) -> Tensor:
        x = images.to(self.device, torch.float32).contiguous(memory_format=torch.channels_last)
        with self._autocast():
            features = self.net.features(x)
        return self.net.quantize.nearest(features)

    def _decode(self, tokens: Tensor) -> Tensor:
        codes = self.net.quantize(tokens.to(self.device, torch.int64))
        with self._autocast():
            pictures = self.net.render(codes)
        return pictures.float().clamp(0, 1).contiguous()

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


_precision = precision  # the name is also an argument above


def fingerprint(net: nn.Module, text: str = "") -> str:
    """16 hex digits of the SHA-256 of a text and a network's weights, by name and as fp32."""
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def check_images(images: Tensor, size: int) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = getattr(images, "dtype", type(images).__name__)
        raise ValueError(f"images are {kind}: give a float tensor in [0, 1] (uint8 pictures: divide by 255)")
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
        raise ValueError(f"images have shape {tuple(images.shape)}: give (B, 3, {size}, {size}); resize and crop first")
    if images.numel():
        low, high = (v.item() for v in images.aminmax())
        if not (low >= -1e-4 and high <= 1 + 1e-4):  # NaN fails as well
            raise ValueError(f"images span [{low:.4g}, {high:.4g}]: give values in [0, 1]")


def check_tokens(tokens: Tensor, count: int, codes: int) -> None:
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        kind = getattr(tokens, "dtype", type(tokens).__name__)
        raise ValueError(f"tokens are {kind}: give an integer tensor (B, {count})")
    if tokens.ndim != 2 or tokens.shape[1] != count:
        raise ValueError(f"tokens have shape {tuple(tokens.shape)}: give (B, {count})")
    if tokens.numel():
        low, high = (v.item() for v in tokens.aminmax())
        if low < 0 or high >= codes:
            raise ValueError(f"token id {low if low < 0 else high} is out of range: this tokenizer has codes 0 to {codes - 1}; "
                             "were the tokens made by another tokenizer?")


def _read_config(path: Path) -> tuple[VQGANConfig, dict]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: give a folder written by save_pretrained")
    try:
        fields = json.loads(path.read_text())
        training = fields.pop("training", {})
        if fields.pop("model_type") != "lvmlab-vqgan":
            raise ValueError("it describes no lvmlab VQGAN")
        return VQGANConfig(**fields), training
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be used ({error}): it is damaged or of another kind of model") from error


def read_weights(path: Path, net: VQGAN) -> dict[str, Tensor]:
    """The state dict in a safetensors file as fp32, its keys and shapes held against those of `net`."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: give a folder written by save_pretrained")
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): it is damaged; copy or install it again") from error
    wanted = net.state_dict()
    problems = {
        "missing": sorted(wanted.keys() - state.keys()),
        "unexpected": sorted(state.keys() - wanted.keys()),
        "misshapen": [f"{k} {tuple(state[k].shape)} for {tuple(wanted[k].shape)}" for k in sorted(wanted.keys() & state.keys())
                      if state[k].shape != wanted[k].shape],
        "not finite": [k for k in sorted(state) if not torch.isfinite(state[k]).all()],
    }
    found = [f"{what}: {', '.join(keys[:5])}{f' and {len(keys) - 5} more' if len(keys) > 5 else ''}"
             for what, keys in problems.items() if keys]
    if found:
        raise CheckpointError(f"{path} does not fit its {CONFIG} ({'; '.join(found)}): it is damaged or of another network")
    return {k: v.float() for k, v in state.items()}
