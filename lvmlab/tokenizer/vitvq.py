"""A tokenizer whose cells see the whole picture: convolutions to the grid, transformer blocks over its
cells, a cosine look-up.

ViT-VQGAN (Yu et al. 2021, arXiv 2110.04627) with a convolutional stem, for `mini-v2`. Positions enter
attention as differences alone (Swin, arXiv 2103.14030), so that a cell's code means nearly the same
wherever the cell stands. A linear path leads from each cell's pixels to its features and from each code to
its patch, beside what the other cells add: the blocks learn only what the linear paths cannot say.
"""

from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lvmlab.tokenizer.vqgan import Codebook
from lvmlab.utils.checks import check_fields


@dataclass(frozen=True)
class ViTVQConfig:
    """The shape of a ViTVQ.

    stem_patch: factor of the pixel-unshuffle before the first convolution. stem: channels of its levels;
    the sides halve from one to the next, and once more before the grid. stem_blocks: residual blocks of
    each level.
    width, heads: of the transformer blocks. encoder_blocks, decoder_blocks: how many.
    head: channels of a convolutional decoder's levels, coarse to fine, from twice the grid's side on;
    without levels the decoder is linear from each cell to its patch.
    """

    resolution: int = 128
    stem_patch: int = 4
    stem: tuple[int, ...] = (48, 96)
    stem_blocks: tuple[int, ...] = (0, 1)
    width: int = 192
    heads: int = 6
    encoder_blocks: int = 4
    decoder_blocks: int = 3
    head: tuple[int, ...] = ()
    embed_dim: int = 16
    codebook_size: int = 4096
    cosine: bool = True

    def __post_init__(self):
        for field in ("stem", "stem_blocks", "head"):  # JSON gives lists
            object.__setattr__(self, field, tuple(getattr(self, field)))
        positive = (
            "resolution",
            "stem_patch",
            "width",
            "heads",
            "encoder_blocks",
            "decoder_blocks",
            "embed_dim",
        )
        whole = {k: getattr(self, k) for k in positive}
        check_fields(
            self,
            **{k: (isinstance(v, int) and v > 0, "a positive integer") for k, v in whole.items()},
            codebook_size=(
                isinstance(self.codebook_size, int) and self.codebook_size > 1,
                "an integer over 1",
            ),
            stem=(self.stem and all(isinstance(c, int) and c > 0 for c in self.stem), "positive integers"),
            stem_blocks=(
                len(self.stem_blocks) == len(self.stem),
                f"{len(self.stem)} numbers, one a level of the stem",
            ),
        )
        check_fields(
            self,
            width=(self.width % self.heads == 0, f"a multiple of heads={self.heads}"),
            resolution=(self.resolution % self.stride == 0, f"a multiple of {self.stride}"),
            head=(self.stride % 2 ** len(self.head) == 0, f"at most {self.stride.bit_length() - 1} levels"),
        )

    def canonical(self) -> dict:
        """The fields under the names that fingerprints hash."""
        return asdict(self)

    @property
    def stride(self) -> int:
        """Pixels a token, along each side."""
        return self.stem_patch * 2 ** len(self.stem)

    @property
    def grid(self) -> int:
        """Tokens along each side."""
        return self.resolution // self.stride


MINI_V2 = ViTVQConfig()
VITVQ_PRESETS = {
    "mini-v2": MINI_V2,
    "tiny-v2": replace(
        MINI_V2,
        resolution=32,
        stem_patch=2,
        stem=(8, 8),
        width=16,
        heads=2,
        encoder_blocks=1,
        decoder_blocks=1,
        embed_dim=4,
        codebook_size=16,
    ),
}


class ViTVQ(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] to features, codes and back; `lvmlab.tokenizer.Tokenizer` is its
    strict face.
    """

    def __init__(self, config: ViTVQConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Codebook(config)

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to what is looked up in the codebook, (B, N, embed_dim), not normalised."""
        return self.encoder(images)

    def render(self, codes: Tensor) -> Tensor:
        """Codebook rows (B, N, embed_dim) to pictures (B, 3, H, W), not clamped."""
        return self.decoder(codes)


class Cells(nn.Module):
    """Transformer blocks over the cells of a grid (B, N, width); attention knows the difference of two cells'
    places.
    """

    def __init__(self, grid: int, width: int, heads: int, count: int):
        super().__init__()
        self.grid = grid
        self.place = nn.Parameter(torch.zeros(heads, 2 * grid - 1, 2 * grid - 1))
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True) for _ in range(count))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        cells = torch.arange(self.grid**2, device=x.device)
        row, column = cells // self.grid, cells % self.grid
        down, across = (v[:, None] - v[None] + self.grid - 1 for v in (row, column))  # (N, N)
        bias = self.place[None, :, down, across]  # (1, heads, N, N)
        for block in self.blocks:
            x = block(x, attn_mask=bias)
        return self.norm(x)


class ResBlock(nn.Module):
    """Two 3x3 convolutions; the branch begins at zero. Borders go on as they are, so that a flat border
    cell is like any other.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm2d(width), LayerNorm2d(width)
        self.conv1, self.conv2 = conv(width, width), conv(width, width)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


def conv(inner: int, outer: int) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 3, padding=1, padding_mode="replicate")


class Encoder(nn.Module):
    """Images (B, 3, H, W) in [0, 1] to features (B, N, embed_dim) in raster order."""

    def __init__(self, config: ViTVQConfig):
        super().__init__()
        self.patch, self.stride = config.stem_patch, config.stride
        widths = (*config.stem, config.width)
        self.conv_in = conv(3 * config.stem_patch**2, config.stem[0])
        self.levels = nn.ModuleList(
            nn.Sequential(*(ResBlock(w) for _ in range(n)))
            for w, n in zip(config.stem, config.stem_blocks, strict=True)
        )
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 2, stride=2) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.pixels = nn.Linear(3 * config.stride**2, config.width)
        self.cells = Cells(config.grid, config.width, config.heads, config.encoder_blocks)
        self.out = nn.Linear(config.width, config.embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        x = images - 0.5
        own = F.pixel_unshuffle(x, self.stride).flatten(2).transpose(1, 2)  # (B, N, 3 * stride^2)
        x = self.conv_in(F.pixel_unshuffle(x, self.patch))
        for level, down in zip(self.levels, self.down, strict=True):
            x = down(F.silu(level(x)))
        x = x.flatten(2).transpose(1, 2) + self.pixels(own)  # (B, width, h, w) -> (B, N, width)
        return self.out(self.cells(x))


class Decoder(nn.Module):
    """Codes (B, N, embed_dim) to pictures (B, 3, H, W); with levels of a head, convolutions add what
    patches alone cannot draw.
    """

    def __init__(self, config: ViTVQConfig):
        super().__init__()
        self.grid, self.stride = config.grid, config.stride
        self.enter = nn.Linear(config.embed_dim, config.width)
        self.cells = Cells(config.grid, config.width, config.heads, config.decoder_blocks)
        self.linear, self.out = (nn.Linear(w, 3 * config.stride**2) for w in (config.embed_dim, config.width))
        self.head = Head(config) if config.head else None

    def forward(self, codes: Tensor) -> Tensor:
        x = self.cells(self.enter(codes))
        picture = F.pixel_shuffle(self._planes(self.out(x) + self.linear(codes)), self.stride)
        return picture if self.head is None else picture + self.head(self._planes(x), picture)

    def _planes(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).unflatten(2, (self.grid, self.grid))  # (B, N, C) -> (B, C, h, w)


class Head(nn.Module):
    """What to add to a picture (B, 3, H, W), from the cells' features (B, width, h, w) and the picture
    itself; 0 at first.
    """

    def __init__(self, config: ViTVQConfig):
        super().__init__()
        widths = (config.width, *config.head)
        self.patch = config.stride // 2 ** len(config.head)
        self.up = nn.ModuleList(nn.Conv2d(a, 4 * b, 1) for a, b in zip(widths, widths[1:], strict=False))
        self.picture = nn.Conv2d(3 * self.patch**2, widths[-1], 1)
        self.levels = nn.ModuleList(ResBlock(b) for b in config.head)
        self.norm, self.out = LayerNorm2d(widths[-1]), conv(widths[-1], 3 * self.patch**2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, picture: Tensor) -> Tensor:
        last = len(self.levels) - 1
        for i, (up, level) in enumerate(zip(self.up, self.levels, strict=True)):
            x = F.pixel_shuffle(up(x), 2)
            x = level(x + self.picture(F.pixel_unshuffle(picture, self.patch)) if i == last else x)
        return F.pixel_shuffle(self.out(F.silu(self.norm(x))), self.patch)
