"""VQGAN (Esser et al. 2021, arXiv 2012.09841): one convolutional encoder, codebook and decoder for every
preset.

Parameter names are those of open-muse's VQGAN, so that the `f16-8192` checkpoint used by LVM and DeLVM loads
as it is.
`mini` is the same network with a pixel-unshuffle stem, a local encoder, attention in the decoder's middle and
a cosine look-up
(arXiv 2110.04627).
"""

from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from lvmlab.utils.checks import check_fields


@dataclass(frozen=True)
class VQGANConfig:
    """The shape of a VQGAN; `patch` is the factor of the pixel-unshuffle stem and pixel-shuffle head (1:
    none).

    local: the encoder sees each cell and a narrow margin, by 1x1 convolutions after the stem, norms over
        channels alone and no
    attention. A flat cell then has one code wherever it lies, which makes the tokens an easier language; the
    decoder sees all.
    signed: inside, pictures go from -1 to 1 (taming-transformers, LlamaGen).
    """

    resolution: int = 256
    hidden_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 4, 6)
    num_res_blocks: int = 2
    decoder_res_blocks: int = 3
    attn_resolutions: tuple[int, ...] = ()
    mid_attention: bool = False
    local: bool = False
    z_channels: int = 64
    embed_dim: int = 64
    codebook_size: int = 8192
    cosine: bool = False
    patch: int = 1
    groups: int = 32
    signed: bool = False

    def __post_init__(self):
        for field in ("channel_mult", "attn_resolutions"):  # JSON gives lists
            object.__setattr__(self, field, tuple(getattr(self, field)))
        sizes = (
            "resolution",
            "hidden_channels",
            "num_res_blocks",
            "decoder_res_blocks",
            "z_channels",
            "embed_dim",
        )
        whole = {k: getattr(self, k) for k in sizes}
        check_fields(
            self,
            **{k: (isinstance(v, int) and v > 0, "a positive integer") for k, v in whole.items()},
            codebook_size=(
                isinstance(self.codebook_size, int) and self.codebook_size > 1,
                "an integer over 1",
            ),
            patch=(self.patch in (1, 2, 4, 8), "1, 2, 4 or 8"),
            channel_mult=(
                self.channel_mult and all(isinstance(m, int) and m > 0 for m in self.channel_mult),
                "positive integers",
            ),
        )
        widths = [self.hidden_channels * m for m in (1, *self.channel_mult)]
        check_fields(
            self,
            groups=(
                self.groups > 0 and all(w % self.groups == 0 for w in widths),
                f"a divisor of every width in {widths}",
            ),
            resolution=(self.resolution % self.stride == 0, f"a multiple of {self.stride}"),
        )

    def canonical(self) -> dict:
        """The fields under the names that fingerprints hash.

        Fingerprints are older than the name ``codebook_size`` and the field ``signed``.
        """
        fields = asdict(self)
        fields["codes"] = fields.pop("codebook_size")
        if not self.signed:
            del fields["signed"]
        return fields

    @property
    def stride(self) -> int:
        """Pixels a token, along each side."""
        return self.patch * 2 ** (len(self.channel_mult) - 1)

    @property
    def grid(self) -> int:
        """Tokens along each side."""
        return self.resolution // self.stride

    @staticmethod
    def preset(name: str) -> "VQGANConfig":
        if name not in VQGAN_PRESETS:
            raise ValueError(
                f"tokenizer preset {name!r} is not known: choose from {', '.join(sorted(VQGAN_PRESETS))}"
            )
        return VQGAN_PRESETS[name]


VQGAN_PRESETS = {
    "f16-8192": VQGANConfig(),  # 256 px, 16x16 tokens, 146M parameters
    "mini": VQGANConfig(
        resolution=64,
        hidden_channels=48,
        channel_mult=(1, 2),
        num_res_blocks=1,
        decoder_res_blocks=2,
        mid_attention=True,
        local=True,
        z_channels=64,
        embed_dim=16,
        codebook_size=1024,
        cosine=True,
        patch=4,
        groups=16,
    ),
}
VQGAN_PRESETS["tiny"] = replace(
    VQGAN_PRESETS["mini"],
    resolution=16,
    hidden_channels=8,
    decoder_res_blocks=1,
    z_channels=8,
    embed_dim=4,
    codebook_size=16,
    patch=2,
    groups=4,
)  # for tests: 4x4 tokens


class VQGAN(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] to features, codes and back; `lvmlab.tokenizer.tokenizer.Tokenizer` is
    its strict face.
    """

    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Codebook(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to what is looked up in the codebook, (B, N, embed_dim), not normalised."""
        z = self.quant_conv(self.encoder(2 * images - 1 if self.config.signed else images))
        return z.flatten(2).transpose(1, 2)  # (B, D, h, w) -> (B, N, D), raster order

    def render(self, codes: Tensor) -> Tensor:
        """Codebook rows (B, N, embed_dim) to pictures (B, 3, H, W), not clamped."""
        grid = self.config.grid
        z = codes.transpose(1, 2).unflatten(2, (grid, grid))  # (B, N, D) -> (B, D, h, w)
        pictures = self.decoder(self.post_quant_conv(z))
        return (pictures + 1) / 2 if self.config.signed else pictures


class Codebook(nn.Module):
    """A table of codes; the nearest by Euclidean distance, or by angle where `cosine`. Always in fp32."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.cosine = config.cosine
        self.embedding = nn.Embedding(config.codebook_size, config.embed_dim)
        if config.cosine:
            nn.init.normal_(self.embedding.weight)
        else:
            nn.init.uniform_(self.embedding.weight, -1 / config.codebook_size, 1 / config.codebook_size)

    def table(self) -> Tensor:
        weight = self.embedding.weight.float()
        return F.normalize(weight, dim=-1) if self.cosine else weight

    def nearest(self, features: Tensor) -> Tensor:
        """Features (B, N, D) to tokens (B, N)."""
        with torch.autocast(features.device.type, enabled=False):
            z, table = features.float(), self.table()
            score = z @ table.T  # (B, N, K); the length of z does not change which angle is the smallest
            if not self.cosine:
                score = 2 * score - table.square().sum(-1)
            return score.argmax(-1)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.table())


class Encoder(nn.Module):
    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.patch = config.patch
        width, size = config.hidden_channels, config.resolution // config.patch
        # a border's cells are like any other where the border goes on as it is
        self.conv_in = nn.Conv2d(
            3 * config.patch**2, width, 3, padding=1, padding_mode="replicate" if config.local else "zeros"
        )
        self.down = nn.ModuleList()
        for i, mult in enumerate(config.channel_mult):
            level = Level(
                width, config.hidden_channels * mult, config.num_res_blocks, config, size, config.local
            )
            width = config.hidden_channels * mult
            if i < len(config.channel_mult) - 1:
                level.downsample = Downsample(width, config.local)
                size //= 2
            self.down.append(level)
        self.mid = middle(width, config, config.local)
        self.norm_out = norm(width, config.groups, config.local)
        self.conv_out = conv(width, config.z_channels, config.local)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)
        for level in self.down:
            x = level(x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)
        for layer in self.mid.values():
            x = layer(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.patch = config.patch
        width, size = config.hidden_channels * config.channel_mult[-1], config.grid
        self.conv_in = nn.Conv2d(config.z_channels, width, 3, padding=1)
        self.mid = middle(width, config)
        levels = []
        for i, mult in reversed(list(enumerate(config.channel_mult))):  # lowest resolution first
            level = Level(width, config.hidden_channels * mult, config.decoder_res_blocks, config, size)
            width = config.hidden_channels * mult
            if i > 0:
                level.upsample = Upsample(width)
                size *= 2
            levels.append(level)
        self.up = nn.ModuleList(reversed(levels))  # up.0 is the highest resolution
        self.norm_out = norm(width, config.groups)
        self.conv_out = nn.Conv2d(width, 3 * config.patch**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for layer in self.mid.values():
            x = layer(x)
        for level in reversed(self.up):
            x = level(x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return F.pixel_shuffle(x, self.patch) if self.patch > 1 else x


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention where the configuration has it at
    ``size``.
    """

    def __init__(
        self, inner: int, outer: int, count: int, config: VQGANConfig, size: int, local: bool = False
    ):
        super().__init__()
        self.block, self.attn = nn.ModuleList(), nn.ModuleList()
        for j in range(count):
            self.block.append(ResBlock(outer if j else inner, outer, config.groups, local))
            if size in config.attn_resolutions:
                self.attn.append(Attention(outer, config.groups))

    def forward(self, x: Tensor) -> Tensor:
        for j, block in enumerate(self.block):
            x = self.attn[j](block(x)) if len(self.attn) else block(x)
        return x


def middle(width: int, config: VQGANConfig, local: bool = False) -> nn.ModuleDict:
    layers = {"block_1": ResBlock(width, width, config.groups, local)}
    if config.mid_attention and not local:
        layers["attn_1"] = Attention(width, config.groups)
    layers["block_2"] = ResBlock(width, width, config.groups, local)
    return nn.ModuleDict(layers)


def norm(width: int, groups: int, local: bool = False) -> nn.Module:
    return LayerNorm2d(width) if local else nn.GroupNorm(groups, width, eps=1e-6)


def conv(inner: int, outer: int, local: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 1) if local else nn.Conv2d(inner, outer, 3, padding=1)


def zero_init(layer: nn.Conv2d) -> None:
    """A residual branch that begins at zero: with all of them loud, the first few hundred steps draw nothing
    but a mean colour.
    """
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


class ResBlock(nn.Module):
    def __init__(self, inner: int, outer: int, groups: int, local: bool = False):
        super().__init__()
        self.norm1, self.conv1 = norm(inner, groups, local), conv(inner, outer, local)
        self.norm2, self.conv2 = norm(outer, groups, local), conv(outer, outer, local)
        if inner != outer:
            self.nin_shortcut = nn.Conv2d(inner, outer, 1)
        zero_init(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """One head over all positions."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.norm = norm(width, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))
        zero_init(self.proj_out)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))  # (B, hw, C)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.proj_out(h)


class Downsample(nn.Module):
    def __init__(self, width: int, local: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)
        self.border = "replicate" if local else "constant"

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1), mode=self.border))


class Upsample(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
