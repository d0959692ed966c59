"""Autoregression over patches of pixels (AIM, arXiv 2401.08541): shapes, pre-training loss, features of every
block.

A picture is a sequence of patches in raster order, and each predicts the next one's pixels. In pre-training a
prefix of random length is attended to in both directions and everything after it causally; for features
attention is bidirectional throughout. Parameters are named as in the release, so that its weights load as
they are. The variant ``block="llama"`` has LLaMA's layers as its trunk: second-hand reports say that DeLVM's
ImageNet model is such a one. Its code was never released, so this recipe is ours.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.layers import Mlp
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF
from transformers import LlamaConfig, LlamaModel

from lvmlab.model import pretrained_aim as aim
from lvmlab.utils import paths
from lvmlab.utils.checkpoints import match_keys, read_config, read_state, weights_in
from lvmlab.utils.checks import check_fields
from lvmlab.utils.device import default_device
from lvmlab.utils.files import atomic, write_file

KIND, CONFIG, WEIGHTS = "lvmlab-patchlm", "config.json", "model.safetensors"
EPS = 1e-6
BLOCKS = ("aim", "llama")
ORDERS = ("raster", "random")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's: what the release was trained on


@dataclass(frozen=True)
class PatchConfig:
    """The shape of a `PatchLM`.

    Attributes:
        dim: Width of the trunk.
        n_layers: Blocks of the trunk.
        n_heads: Attention heads of each block.
        patch: Pixels along each side of a patch.
        size: Pixels along each side of a picture.
        ffn_dim: Hidden width of the MLPs; None is 4 x dim.
        head_blocks: Blocks of the MLP head, which only pre-training has; 0 is one linear layer (the ablation
            of the paper's table 6).
        head_width: Width of that head.
        block: "aim" or "llama".
        order: "raster", or "random": one order, drawn once, for all pictures (section 5).
        prefix: Whether a prefix is attended to in both directions; False is plain causal attention (table 5).

    Raises:
        ValueError: A field is out of range; the message names it.
    """

    dim: int
    n_layers: int
    n_heads: int
    patch: int = 14
    size: int = 224
    ffn_dim: int | None = None
    head_blocks: int = 12
    head_width: int = 2048
    block: str = "aim"
    order: str = "raster"
    prefix: bool = True

    def __post_init__(self):
        check_fields(
            self,
            dim=(self.dim % (4 * self.n_heads) == 0, f"a multiple of 4 x n_heads={self.n_heads}"),
            n_layers=(self.n_layers >= 1, "at least 1"),
            size=(self.size % self.patch == 0, f"a multiple of patch={self.patch}"),
            head_blocks=(self.head_blocks >= 0, "0 (linear) or more"),
            block=(self.block in BLOCKS, f"one of {', '.join(BLOCKS)}"),
            order=(self.order in ORDERS, f"one of {', '.join(ORDERS)}"),
        )

    @property
    def grid(self) -> int:
        """Patches along each side of a picture."""
        return self.size // self.patch


AIM_PRESETS = {
    "aim-600m": PatchConfig(1536, 24, 12),
    "aim-1b": PatchConfig(2048, 24, 16),
    "aim-3b": PatchConfig(3072, 24, 24),
    "aim-7b": PatchConfig(4096, 32, 32),
    "aim-mini": PatchConfig(192, 8, 3, patch=8, size=64, head_blocks=4, head_width=384),
    "aim-mini-llama": PatchConfig(
        192, 8, 3, patch=8, size=64, ffn_dim=512, head_blocks=4, head_width=384, block="llama"
    ),
    "llama-80m-patch": PatchConfig(768, 12, 12, patch=16, ffn_dim=2048, block="llama"),
}


class PatchLM(nn.Module):
    """A transformer over patches.

        model = PatchLM.from_shape("aim-mini", seed=0)
        model.loss(images, generator).backward()     # images (B, 3, S, S) in [0, 1]
        model.features(images)                       # a list of (B, N, dim), one of each block

    Args:
        shape: Its configuration.
    """

    def __init__(self, shape: PatchConfig):
        super().__init__()
        self.shape, self.probe = shape, {}
        self.preprocessor = nn.ModuleDict({"patchifier": Patchifier(shape)})
        self.trunk = LlamaTrunk(shape) if shape.block == "llama" else Trunk(shape)
        self.predictor = Predictor(shape)
        order = torch.arange(shape.grid**2)
        if shape.order == "random":
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(0))
        self.register_buffer("order", order, persistent=False)

    def loss(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the normalised pixels of the next patch, outside the prefix (section 3).

        Args:
            images: (B, 3, S, S) in [0, 1].
            generator: Draws the prefixes.

        Returns:
            A scalar; 1 is the error of predicting the mean.
        """
        return self(images, self.prefixes(len(images), generator).to(images.device))

    def forward(self, images: Tensor, prefix: Tensor) -> Tensor:
        """The loss at given prefixes; `loss` draws them. DDP wraps this method.

        Args:
            images: (B, 3, S, S) in [0, 1].
            prefix: (B,), the length of each one's prefix, in patches.

        Returns:
            A scalar.
        """
        patches = self.embedded(images)[:, self.order]
        steps = torch.arange(patches.shape[1], device=patches.device)
        mask = (steps[:, None] >= steps) | (steps < prefix[:, None, None])  # (B, N, N): query, key
        hidden = self.trunk.norm(self.trunk(patches, mask[:, None])[-1])
        outside = steps[1:] >= prefix[:, None]  # (B, N - 1)
        # each place predicts the next; the head sees only those whose error counts
        predicted = self.predictor(hidden[:, :-1][outside])
        return F.mse_loss(predicted, self.targets(images)[:, self.order][:, 1:][outside])

    def features(self, images: Tensor) -> list[Tensor]:
        """The output of every block under bidirectional attention, (B, N, dim) each.

        They come without the last norm, as AIM's probe takes them. images: (B, 3, H, W) in [0, 1].
        """
        return self.trunk(self.embedded(images), None)

    def embedded(self, images: Tensor) -> Tensor:
        """Embedded patches with their positions.

        Args:
            images: (B, 3, H, W) in [0, 1], H and W multiples of the patch.

        Returns:
            (B, N, dim), in raster order.

        Raises:
            ValueError: The images have another shape.
        """
        if (
            images.ndim != 4
            or images.shape[1] != 3
            or images.shape[2] % self.shape.patch
            or images.shape[3] % self.shape.patch
        ):
            raise ValueError(
                f"images have shape {tuple(images.shape)}: give (B, 3, H, W), multiples of the patch of "
                f"{self.shape.patch} px"
            )
        height, width = (side // self.shape.patch for side in images.shape[2:])
        patches = self.preprocessor["patchifier"](TF.normalize(images, MEAN, STD))
        return patches + sincos_2d(height, width, patches.shape[2]).to(patches)

    def prefixes(self, count: int, generator: torch.Generator) -> Tensor:
        """Lengths of prefixes, (count,), uniform from 1 to all patches but one; 1 with causal attention."""
        return torch.randint(1, self.shape.grid**2 if self.shape.prefix else 2, (count,), generator=generator)

    def targets(self, images: Tensor) -> Tensor:
        """Pixels of each patch, normalised to mean 0 and variance 1: (B, N, 3 * patch^2), in raster order."""
        patches = F.unfold(images, self.shape.patch, stride=self.shape.patch).mT  # (B, N, 3 * p * p)
        mean, variance = patches.mean(2, keepdim=True), patches.var(2, keepdim=True, unbiased=False)
        return (patches - mean) / (variance + EPS).sqrt()

    @classmethod
    def from_shape(cls, shape: str | PatchConfig, seed: int = 0) -> "PatchLM":
        """Fresh weights; the same seed gives the same ones.

        Args:
            shape: A name in AIM_PRESETS or a configuration.
            seed: Of the weights.

        Raises:
            ValueError: The name is no shape.
        """
        if isinstance(shape, str) and shape not in AIM_PRESETS:
            raise ValueError(f"{shape!r} is no shape: choose from {', '.join(AIM_PRESETS)}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(AIM_PRESETS[shape] if isinstance(shape, str) else shape)

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: torch.device | str | None = None) -> "PatchLM":
        """Trained weights, in evaluation mode. No code of the checkpoint is executed.

        The release holds no pre-training head: it then starts afresh. ``probe`` is the release's own
        attentive probe where its file is there, else empty.

        Args:
            path: A shipped name, a folder of `save_pretrained`, or AIM's release (a folder or its backbone's
                file).
            device: None is CUDA, then MPS, then the CPU.

        Raises:
            CheckpointError: The weights do not fit; all missing, unexpected and misshapen keys are named.
        """
        path = next(
            (p for p in (Path(path), paths.assets() / "models" / str(path)) if p.exists()), Path(path)
        )
        own = path / CONFIG
        config = read_config(own) if own.is_file() else {}
        if config.get("model_type") == KIND:
            model = cls.from_shape(PatchConfig(**config["shape"]))
            state, probe = read_state(weights_in(path, WEIGHTS)), {}
        else:
            fields, state, probe = aim.load(path)
            model = cls.from_shape(PatchConfig(**fields))
            state |= {k: v for k, v in model.state_dict().items() if k.startswith("predictor.")}
        model.load_state_dict(match_keys(state, model.state_dict(), path))
        model.probe = probe
        return model.to(device or default_device()).eval()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
        """Writes model.safetensors and then config.json, each atomically."""
        state = {k: v.detach().to("cpu", dtype).contiguous() for k, v in self.state_dict().items()}
        with atomic(Path(folder) / WEIGHTS) as temporary:
            save_file(state, temporary, metadata={"format": "pt"})
        write_file(
            Path(folder) / CONFIG,
            json.dumps({"model_type": KIND, "shape": asdict(self.shape)}, indent=1) + "\n",
        )


def sincos_2d(height: int, width: int, channels: int) -> Tensor:
    """Fixed 2D position embeddings of sines and cosines: the first half for the column, the second for the
    row.

    Returns:
        (height * width, channels).
    """
    rate = 10_000 ** (-torch.arange(channels // 4) / (channels // 4))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [position.flatten()[:, None] * rate for position in (columns, rows)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1)


class Patchifier(nn.Module):
    """Patches to vectors: a convolution without overlap, and a norm."""

    def __init__(self, shape: PatchConfig):
        super().__init__()
        self.proj = nn.Conv2d(3, shape.dim, shape.patch, shape.patch)
        self.norm = nn.LayerNorm(shape.dim, EPS)
        nn.init.xavier_uniform_(self.proj.weight.data.flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.proj(images).flatten(2).mT)


class Block(nn.Module):
    """Pre-norm attention and GELU MLP, no biases."""

    def __init__(self, shape: PatchConfig):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(shape.dim, EPS), nn.LayerNorm(shape.dim, EPS)
        self.attn = Attention(shape.dim, shape.n_heads, qkv_bias=False, proj_bias=False)
        self.mlp = Mlp(shape.dim, shape.ffn_dim or 4 * shape.dim, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm_1(x), attn_mask=mask)
        return x + self.mlp(self.norm_2(x))


class Trunk(nn.Module):
    """AIM's transformer."""

    def __init__(self, shape: PatchConfig):
        super().__init__()
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.post_trunk_norm = nn.LayerNorm(shape.dim, EPS)

    def forward(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Every block's output. mask: (B, 1, N, N), True where a query attends to a key; None: all."""
        outputs = []
        for block in self.blocks:
            x = block(x, mask)
            outputs.append(x)
        return outputs

    def norm(self, x: Tensor) -> Tensor:
        return self.post_trunk_norm(x)


class LlamaTrunk(nn.Module):
    """LLaMA's layers; its rotary positions count along the sequence of patches, in addition to the fixed
    ones.
    """

    def __init__(self, shape: PatchConfig):
        super().__init__()
        self.llama = LlamaModel(
            LlamaConfig(
                hidden_size=shape.dim,
                num_hidden_layers=shape.n_layers,
                num_attention_heads=shape.n_heads,
                num_key_value_heads=shape.n_heads,
                intermediate_size=shape.ffn_dim or 4 * shape.dim,
                vocab_size=1,
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=None,
                attn_implementation="sdpa",
            )
        )
        del self.llama.embed_tokens

    def forward(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        mask = x.new_ones(len(x), 1, x.shape[1], x.shape[1], dtype=torch.bool) if mask is None else mask
        positions = self.llama.rotary_emb(x, torch.arange(x.shape[1], device=x.device)[None])
        outputs = []
        for layer in self.llama.layers:
            x = layer(x, attention_mask=mask, position_embeddings=positions)
            outputs.append(x)
        return outputs

    def norm(self, x: Tensor) -> Tensor:
        return self.llama.norm(x)


class Predictor(nn.Module):
    """The pre-training head (section 3.2): residual MLPs on each position alone.

    It turns features into pixels, so that the trunk need not end in pixels.
    """

    def __init__(self, shape: PatchConfig):
        super().__init__()
        width = shape.head_width if shape.head_blocks else shape.dim
        self.widen = nn.Linear(shape.dim, width) if shape.head_blocks else nn.Identity()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width, EPS), Mlp(width, width)) for _ in range(shape.head_blocks)
        )
        self.pixels = nn.Linear(width, 3 * shape.patch**2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.widen(x)
        for block in self.blocks:
            x = x + block(x)
        return self.pixels(x)
