"""`Tokenizer`: pictures to tokens and back, with every input checked before any work starts."""

import hashlib
import json
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lvmlab.tokenizer import pretrained as vqgans
from lvmlab.tokenizer.vitvq import VITVQ_PRESETS, ViTVQ, ViTVQConfig
from lvmlab.tokenizer.vqgan import VQGAN, VQGAN_PRESETS, VQGANConfig
from lvmlab.utils import paths
from lvmlab.utils.checkpoints import CheckpointError, match_keys, read_config, read_state, weights_in
from lvmlab.utils.device import default_device, precision
from lvmlab.utils.files import atomic, write_file

CONFIG, WEIGHTS, LOG = "config.json", "model.safetensors", "log.json"
PRESETS = {**VQGAN_PRESETS, **VITVQ_PRESETS}
NETWORKS = {
    "lvmlab-vqgan": (VQGANConfig, VQGAN),
    "lvmlab-vitvq": (ViTVQConfig, ViTVQ),
}  # by config.json's model_type


class Tokenizer:
    """A VQGAN or a ViTVQ ready for use.

        tokenizer = Tokenizer.from_pretrained("mini")
        tokens = tokenizer.encode(images)      # (B, 3, H, W) in [0, 1] -> (B, N) int64, raster order
        pictures = tokenizer.decode(tokens)    # (B, N) -> (B, 3, H, W) in [0, 1]

    `precision` ("auto", "fp32", "bf16") is that of the convolutions; distances to the codes are always fp32.
    Answers come
    back on the device of what was given.
    """

    def __init__(
        self,
        net: VQGAN | ViTVQ,
        *,
        device: torch.device | str | None = None,
        precision: str = "auto",
        batch_size: int = 128,
        training: dict | None = None,
    ):
        self.config: VQGANConfig | ViTVQConfig = net.config
        self.device = torch.device(device or default_device())
        self.precision = _precision(precision, self.device)
        self.batch_size = batch_size
        self.training = training or {}  # how it was trained, kept in config.json
        self.net = net.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)

    @classmethod
    def from_preset(cls, name: str, *, seed: int = 0, **options) -> "Tokenizer":
        """Fresh, untrained weights of a preset shape; the same seed gives the same weights."""
        shape = preset(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(network(shape), **options)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, resolution: int | None = None, **options) -> "Tokenizer":
        """Trained weights: the name of a shipped model, a folder, a file or a hub id "owner/name"; ours, or
        of a kind in `checkpoints.vqgans`.

        resolution: of the pictures, for files that do not say (LlamaGen's, aMUSEd's; None: 256). Raises
            CheckpointError. Executes no code
        from the checkpoint.
        """
        path = _find(name)
        training, config = {}, read_config(path / CONFIG) if (path / CONFIG).is_file() else {}
        if config.get("model_type") in NETWORKS:
            shape, training = _shape(path / CONFIG, config)
            state, theirs = read_state(weights_in(path, WEIGHTS)), str
        else:
            shape, state, theirs = vqgans.load(path, resolution)
        with torch.device("meta"):
            net = network(shape)
        net.load_state_dict(match_keys(state, net.state_dict(), path, theirs), assign=True)
        return cls(net, training=training, **options)

    def save_pretrained(
        self, folder: str | Path, log: list[dict] | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        """Writes model.safetensors, log.json (with `log`) and at last config.json, each whole or not at all.

        dtype: of the weights on disk; the codebook stays fp32, so that no code moves.
        """
        folder = Path(folder)
        state = {
            name: v.to("cpu", torch.float32 if name.startswith("quantize.") else dtype).contiguous()
            for name, v in self.net.state_dict().items()
        }
        with atomic(folder / WEIGHTS) as temporary:
            save_file(state, temporary, metadata={"format": "pt"})
        if log is not None:
            write_file(folder / LOG, json.dumps(log))
        kind = next(k for k, (shape, _) in NETWORKS.items() if isinstance(self.config, shape))
        config = {"model_type": kind, **asdict(self.config), "training": self.training}
        write_file(folder / CONFIG, json.dumps(config, indent=1) + "\n")

    @property
    def size(self) -> int:
        """Pixels along each side."""
        return self.config.resolution

    @property
    def grid(self) -> int:
        """Tokens along each side."""
        return self.config.grid

    @property
    def tokens_per_image(self) -> int:
        """Tokens a picture, N."""
        return self.grid**2

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of shape and weights: equal where the tokens mean the same."""
        return fingerprint(self.net, json.dumps(self.config.canonical(), sort_keys=True))

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to tokens (B, N) int64. Raises ValueError for another shape or range."""
        check_images(images, self.size)
        if not len(images):
            return torch.empty(0, self.tokens_per_image, dtype=torch.int64, device=images.device)
        return torch.cat([self._encode(part) for part in images.split(self.batch_size)]).to(images.device)

    @torch.inference_mode()
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N) to pictures (B, 3, H, W), float32 in [0, 1]. Raises ValueError for another shape or
        ids out of range.
        """
        check_tokens(tokens, self.tokens_per_image, self.codebook_size)
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
        raise ValueError(
            f"images have shape {tuple(images.shape)}: give (B, 3, {size}, {size}); resize and crop first"
        )
    if images.numel():
        low, high = (v.item() for v in images.aminmax())
        if not (low >= -1e-4 and high <= 1 + 1e-4):  # NaN fails as well
            raise ValueError(f"images span [{low:.4g}, {high:.4g}]: give values in [0, 1]")


def check_tokens(tokens: Tensor, count: int | str, codes: int, what: str = "tokenizer has codes") -> None:
    """Raises ValueError unless tokens are integers (B, count) in range; a count that is a name is any number
    from 1 on.
    """
    if (
        not isinstance(tokens, Tensor)
        or tokens.is_floating_point()
        or tokens.is_complex()
        or tokens.dtype == torch.bool
    ):
        kind = getattr(tokens, "dtype", type(tokens).__name__)
        raise ValueError(f"tokens are {kind}: give an integer tensor (B, {count})")
    if tokens.ndim != 2 or isinstance(count, int) and tokens.shape[1] != count:
        raise ValueError(f"tokens have shape {tuple(tokens.shape)}: give (B, {count})")
    if tokens.numel():
        low, high = (v.item() for v in tokens.aminmax())
        if low < 0 or high >= codes:
            raise ValueError(
                f"token id {low if low < 0 else high} is out of range: this {what} 0 to {codes - 1}; "
                "were the tokens made by another tokenizer?"
            )


def _find(name: str | Path) -> Path:
    """The folder or file that a name stands for; a hub id is fetched."""
    found = next((p for p in (Path(name), paths.assets() / "models" / str(name)) if p.exists()), None)
    if found is not None:
        return found
    if is_hub_id(name):
        return fetched(name)
    shipped = sorted(p.parent.name for p in (paths.assets() / "models").glob(f"*/{CONFIG}"))
    raise CheckpointError(
        f"no tokenizer {str(name)!r}: neither a folder nor a shipped model "
        f"(shipped: {', '.join(shipped) or 'none'}); Tokenizer.from_preset gives untrained weights"
    )


def is_hub_id(name: str | Path) -> bool:
    """Whether a name could be "owner/name"."""
    return isinstance(name, str) and name.count("/") == 1 and not name.startswith((".", "/", "~"))


def fetched(name: str) -> Path:
    """The folder that a hub id's files are fetched to. Raises CheckpointError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(
            snapshot_download(
                name, allow_patterns=["*.json", "*.safetensors", "*.bin", "*.ckpt", "*.pt", "*.yaml"]
            )
        )
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise CheckpointError(
            f"{name} is no folder here and cannot be fetched ({str(error).strip().splitlines()[0]}): check "
            f"the id and the "
            "connection, or give a folder"
        ) from error


def preset(name: str) -> VQGANConfig | ViTVQConfig:
    """The shape of this name. Raises ValueError that lists the known ones."""
    if name not in PRESETS:
        raise ValueError(f"tokenizer preset {name!r} is not known: choose from {', '.join(sorted(PRESETS))}")
    return PRESETS[name]


def network(shape: VQGANConfig | ViTVQConfig) -> VQGAN | ViTVQ:
    """A fresh network of a shape."""
    return next(net for kind, net in NETWORKS.values() if isinstance(shape, kind))(shape)


def _shape(path: Path, config: dict) -> tuple[VQGANConfig | ViTVQConfig, dict]:
    kind, _ = NETWORKS[config["model_type"]]
    fields = {k: v for k, v in config.items() if k not in ("model_type", "training")}
    if "codes" in fields:  # the name of this field in older folders
        fields["codebook_size"] = fields.pop("codes")
    try:
        return kind(**fields), config.get("training", {})
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be used ({error}): it is damaged or of another kind of model"
        ) from error
