"""Training a VQGAN: what is minimised, by named terms, and on which pictures.

The quantiser of the training is vector-quantize-pytorch's: an EMA codebook with a k-means start, dead codes
replaced, and the rotation trick of arXiv 2410.06424. Its codebook is exported to the plain look-up of
`lvmlab.tokenizer.vqgan.Codebook`. Finite scalar quantisation (FSQ, arXiv 2309.15505) is there for comparison,
for training and scoring only.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvmlab.tokenizer.vqgan import VQGAN, VQGANConfig
from lvmlab.training.checkpoints import load_checkpoint
from lvmlab.training.loop import TrainConfig, train
from lvmlab.training.tokenizer_losses import adversarial, edge_weight, lpips, ms_ssim, patch_discriminator
from lvmlab.utils.checks import check_fields

KINDS = ("natural", "two-colour", "skeleton", "other")  # what the ids in a pool's kinds file mean
QUANTISERS = ("vq", "fsq")
# levels a dimension for a codebook of about this size; all but the first as FSQ's paper recommends
FSQ_LEVELS = {16: (4, 4), 256: (8, 6, 5), 1024: (8, 5, 5, 5), 4096: (7, 5, 5, 5, 5), 16384: (8, 8, 8, 6, 5)}


@dataclass(frozen=True)
class TokenizerRecipe:
    """Weights of the loss's terms (0 switches one off), and settings of the quantiser.

    Args:
        l1: Weight of the absolute error of pixels.
        mse: Weight of the square error of pixels.
        edge: How much more pixels of label pictures weigh where the target's colour changes.
        gradient: Weight of the L1 distance between finite differences.
        ms_ssim: Weight of 1 - MS-SSIM.
        commitment: Weight of the distance of features to codes.
        adversarial: Weight of the hinge loss of a patch discriminator.
        lpips: Weight of LPIPS; needs torchvision's AlexNet weights.
        decay: Of the EMA codebook.
        dead_below: Codes used less often than this in a batch are replaced.
        free_batches: So many first batches are not quantised, so that k-means finds features worth
            clustering. A start from random features collapses to a few codes.
        shares: Of a batch, one for each of KINDS.

    Raises:
        ValueError: A field is out of range; the message names it.
    """

    l1: float = 1.0
    mse: float = 4.0
    edge: float = 4.0
    gradient: float = 0.5
    ms_ssim: float = 0.0
    commitment: float = 0.5
    adversarial: float = 0.0
    lpips: float = 0.0
    decay: float = 0.98
    dead_below: float = 0.4
    free_batches: int = 250
    shares: tuple[float, ...] = (0.45, 0.30, 0.22, 0.03)

    def __post_init__(self):
        object.__setattr__(self, "shares", tuple(self.shares))
        shares = len(self.shares) == len(KINDS) and min(self.shares) >= 0 < sum(self.shares)
        check_fields(
            self,
            **{
                field: (value >= 0, "0 (off) or more")
                for field, value in asdict(self).items()
                if field != "shares"
            },
            shares=(shares, f"one share of at least 0 for each of {', '.join(KINDS)}"),
        )


class Pool:
    """Pictures (N, H, W, 3) uint8 in a memory-mapped .npy file.

    Args:
        path: NAME.npy; `NAME-kinds.npy` beside it has the kind of each picture, an index of KINDS.

    Raises:
        FileNotFoundError: One of the two files is missing.
        ValueError: An array has another shape or type.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        kinds = path.with_name(f"{path.stem}-kinds.npy")
        for file in (path, kinds):
            if not file.is_file():
                raise FileNotFoundError(
                    f"{file} is missing: a pool is NAME.npy with NAME-kinds.npy beside it"
                )
        self.pictures, self.kinds = np.load(path, mmap_mode="r"), np.load(kinds)
        if self.pictures.ndim != 4 or self.pictures.shape[-1] != 3 or self.pictures.dtype != np.uint8:
            raise ValueError(
                f"{path} holds {self.pictures.dtype} {self.pictures.shape}: give uint8 (N, H, W, 3)"
            )
        if self.kinds.shape != self.pictures.shape[:1]:
            raise ValueError(
                f"{kinds} holds {self.kinds.shape}, its pool {len(self.pictures)} pictures: one kind a "
                f"picture"
            )
        self.of_kind = [np.flatnonzero(self.kinds == k) for k in range(len(KINDS))]

    def batch(self, step: int, size: int, seed: int, shares: tuple[float, ...]) -> dict[str, Tensor]:
        """Pictures drawn at random, half of them mirrored; a function of (seed, step) alone.

        Args:
            step: Of the training.
            size: Pictures of the batch, B.
            seed: Of the draws.
            shares: Of the kinds; a kind without pictures gets none.

        Returns:
            {"pictures": float (B, 3, H, W) in [0, 1], "kinds": (B,)}.
        """
        rng = np.random.default_rng((seed, step))
        shares = np.array([s if len(of) else 0.0 for s, of in zip(shares, self.of_kind, strict=True)])
        kinds = rng.choice(len(KINDS), size, p=shares / shares.sum())
        index = np.array([rng.choice(self.of_kind[k]) for k in kinds])
        flip = rng.random(size) < 0.5
        pictures = np.stack(
            [self.pictures[i][:, ::-1] if f else self.pictures[i] for i, f in zip(index, flip, strict=True)]
        )
        return {"pictures": to_float(pictures), "kinds": torch.from_numpy(kinds)}


def to_float(pictures: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W) in [0, 1], channels last in memory."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float().div_(255)


class TrainingVQGAN(nn.Module):
    """A VQGAN with the quantiser of the training and, where the recipe asks, a discriminator.

    Args:
        config: Of the network.
        recipe: See `TokenizerRecipe`.
        quantiser: "vq", a learned codebook; or "fsq", a fixed grid of about as many codes between two linear
            maps. FSQ has no commitment loss, no k-means start, no dead codes and no export.

    Raises:
        ValueError: The quantiser is unknown, or FSQ has no levels for so many codes.
    """

    def __init__(self, config: VQGANConfig, recipe: TokenizerRecipe, quantiser: str = "vq"):
        super().__init__()
        from vector_quantize_pytorch import FSQ, VectorQuantize  # a 5 s import, for training only

        if quantiser not in QUANTISERS:
            raise ValueError(f"quantiser={quantiser!r}: choose from {', '.join(QUANTISERS)}")
        if quantiser == "fsq" and config.codebook_size not in FSQ_LEVELS:
            raise ValueError(
                f"VQGANConfig.codebook_size={config.codebook_size!r}: FSQ has levels for "
                f"{', '.join(map(str, FSQ_LEVELS))}"
            )
        self.recipe, self.config, self.quantiser = recipe, config, quantiser
        self.codebook_size = (
            config.codebook_size if quantiser == "vq" else math.prod(FSQ_LEVELS[config.codebook_size])
        )
        self.net = VQGAN(config).to(memory_format=torch.channels_last)
        self.net.quantize.requires_grad_(False)  # filled from `quantizer` by `export`
        if quantiser == "fsq":
            self.quantizer = FSQ(
                FSQ_LEVELS[config.codebook_size], dim=config.embed_dim, force_quantization_f32=False
            )  # it is fed fp32
        else:
            self.quantizer = VectorQuantize(
                dim=config.embed_dim,
                codebook_size=config.codebook_size,
                use_cosine_sim=config.cosine,
                kmeans_init=True,
                decay=recipe.decay,
                threshold_ema_dead_code=recipe.dead_below,
                commitment_weight=1.0,
            )
        self.register_buffer("seen", torch.tensor(0))  # batches
        self.discriminator = patch_discriminator() if recipe.adversarial else None
        self.perceptual = lpips() if recipe.lpips else None

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W) to the reconstruction, the tokens (B, N) and the commitment loss."""
        features = self.net.features(pictures).float()
        if self.training:
            self.seen += 1
        if self.quantiser == "fsq":
            codes, tokens = self._fsq(features)
            return self.net.render(codes), tokens, features.new_zeros(())
        if self.seen <= self.recipe.free_batches:
            codes = F.normalize(features, dim=-1) if self.config.cosine else features
            return self.net.render(codes), self.net.quantize.nearest(features), features.new_zeros(())
        with torch.autocast(features.device.type, enabled=False):
            codes, tokens, commitment = self.quantizer(features)
        return self.net.render(codes), tokens, commitment.sum()

    def _fsq(self, features: Tensor) -> tuple[Tensor, Tensor]:
        # of unit variance, as the look-up by angle sees them: what comes out of a fresh network rounds to a
        # few middle levels
        with torch.autocast(features.device.type, enabled=False):
            return self.quantizer(F.rms_norm(features.float(), features.shape[-1:]))

    @torch.no_grad()
    def round_trip(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) to the clamped reconstruction of the exported network, and the tokens (B, N)."""
        if self.quantiser == "fsq":
            codes, tokens = self._fsq(self.net.features(pictures))
            return self.net.render(codes).clamp(0, 1), tokens.long()
        net = self.export()
        tokens = net.quantize.nearest(net.features(pictures))
        return net.render(net.quantize(tokens)).clamp(0, 1), tokens

    @torch.no_grad()
    def export(self) -> VQGAN:
        """The plain network with the learned codebook. Raises ValueError for FSQ, which has none."""
        if self.quantiser != "vq":
            raise ValueError(
                f'a tokenizer with the quantiser {self.quantiser!r} cannot be exported: train with "vq"'
            )
        self.net.quantize.embedding.weight.copy_(self.quantizer.codebook)
        return self.net

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The recipe's loss and its terms.

        Args:
            model: This module as `lvmlab.training.loop.train` wrapped it.
            batch: Of `Pool.batch`.

        Returns:
            The scalar loss; and {term: value}, with "codes" (how many are in use) and "items" (pictures).
        """
        recipe, target = self.recipe, batch["pictures"]
        picture, tokens, commitment = model(target)
        picture = picture.float()
        weight = edge_weight(target, recipe.edge * (batch["kinds"] > 0))
        error = picture - target
        terms = {
            "l1": (weight * error.abs()).mean(),
            "mse": (weight * error.square()).mean(),
            "gradient": sum((picture.diff(dim=d) - target.diff(dim=d)).abs().mean() for d in (2, 3)),
            "commitment": commitment,
        }
        if recipe.ms_ssim:
            terms["ms_ssim"] = 1 - ms_ssim(picture, target)
        if recipe.adversarial:
            terms["adversarial"] = adversarial(self.discriminator, picture, target)
        if recipe.lpips:
            terms["lpips"] = self.perceptual(picture.clamp(0, 1), target)
        total = sum(getattr(recipe, name) * term for name, term in terms.items())
        metrics = {name: term.item() for name, term in terms.items()}
        return total, {**metrics, "codes": float(tokens.unique().numel()), "items": len(target)}


@torch.no_grad()
def evaluate(model: TrainingVQGAN, pool: Pool, per_kind: int = 128, batch: int = 64) -> dict[str, float]:
    """Scores of the round trip on the first pictures of each kind.

    Args:
        model: Its mode is restored.
        pool: The pictures.
        per_kind: How many of each kind.
        batch: Pictures at a time.

    Returns:
        {"psnr KIND": dB, "iou": of two-colour pictures, "code use": share of the codes in use}.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    scores, used = {}, torch.zeros(model.codebook_size, dtype=torch.bool)
    for kind, of in zip(KINDS, pool.of_kind, strict=True):
        decibels, iou = [], []
        for chunk in np.array_split(of[:per_kind], max(1, math.ceil(min(per_kind, len(of)) / batch))):
            if not len(chunk):
                continue
            target = to_float(pool.pictures[chunk]).to(device)
            picture, tokens = model.round_trip(target)
            used[tokens.cpu().unique()] = True
            decibels += psnr(picture, target).tolist()
            if kind == "two-colour":
                iou += two_colour_iou(picture, target).tolist()
        if decibels:
            scores[f"psnr {kind}"] = round(float(np.mean(decibels)), 3)
        if iou:
            scores["iou"] = round(float(np.mean(iou)), 4)
    scores["code use"] = round(used.float().mean().item(), 4)
    model.train(was_training)
    return scores


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """PSNR in dB of each pair of pictures (B, 3, H, W) in [0, 1], capped at 60: (B,)."""
    return -10 * (a - b).square().mean((1, 2, 3)).clamp(min=1e-6).log10()


def two_colour_iou(picture: Tensor, target: Tensor) -> Tensor:
    """(B,): IoU of the rarer of each target's two colours, pixels of both pictures going to the nearer
    colour.
    """
    flat = target.flatten(2)  # (B, 3, HW)
    first = flat.median(2, keepdim=True).values  # the commoner colour
    far = (flat - first).abs().sum(1).argmax(1)  # (B,)
    second = flat.gather(2, far.view(-1, 1, 1).expand(-1, 3, 1))

    def mask(x: Tensor) -> Tensor:
        x = x.flatten(2)
        return (x - second).square().sum(1) < (x - first).square().sum(1)

    truth, answer = mask(target), mask(picture)
    return (truth & answer).sum(1) / (truth | answer).sum(1).clamp(min=1)


def train_tokenizer(
    pool: str | Path,
    folder: str | Path,
    *,
    preset: str | VQGANConfig = "mini",
    recipe: TokenizerRecipe = TokenizerRecipe(),
    config: TrainConfig,
    batch: int = 64,
    val_pool: str | Path | None = None,
    eval_every: int = 500,
    start: str | Path | None = None,
    budget_s: float | None = None,
    progress: bool = True,
    quantiser: str = "vq",
    on_log: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Trains a tokenizer on a pool of pictures; resumes from the folder's checkpoint.

    Args:
        pool: Training pictures, see `Pool`.
        folder: Of checkpoint and log.
        preset: A name in VQGAN_PRESETS, or a configuration of the network.
        recipe: What is minimised.
        config: How to optimise.
        batch: Pictures a step.
        val_pool: Pictures that are scored each ``eval_every`` steps and at the end.
        eval_every: Steps between scores.
        start: The folder of an earlier training whose weights and codebook this one starts from, with a fresh
            optimiser.
        budget_s: Stop, with a checkpoint, after so many seconds of this call.
        progress: Show a bar.
        quantiser: "vq" or "fsq", see `TrainingVQGAN`.
        on_log: Is called with each record, after its "val" scores.

    Returns:
        The log.

    Raises:
        ValueError: The pool's pictures have another size than the network takes.
        TrainingError: See `lvmlab.training.loop.train`.
    """
    shape = VQGANConfig.preset(preset) if isinstance(preset, str) else preset
    data, val = Pool(pool), Pool(val_pool) if val_pool else None
    if data.pictures.shape[1:3] != (shape.resolution, shape.resolution):
        raise ValueError(
            f"{pool} holds pictures of {data.pictures.shape[1:3]}: the tokenizer takes {shape.resolution} px"
        )
    torch.manual_seed(config.seed)
    model = TrainingVQGAN(shape, recipe, quantiser)
    if start:
        model.load_state_dict(load_checkpoint(start)["model"])

    def log(record: dict) -> None:
        if val and (record["step"] % eval_every == 0 or record["step"] == config.steps - 1):
            record["val"] = evaluate(model, val)
        if on_log:
            on_log(record)

    identity = {
        "network": asdict(shape),
        "recipe": asdict(recipe),
        "batch": batch,
        "pictures": len(data.pictures),
        **({"quantiser": quantiser} if quantiser != "vq" else {}),
        **({"start": str(Path(start).name)} if start else {}),
    }

    def batches(step: int, part: int, parts: int) -> dict[str, Tensor]:
        return data.batch(step * parts + part, batch, config.seed, recipe.shares)

    return train(
        model,
        batches,
        model.loss,
        config,
        folder,
        log,
        identity=identity,
        budget_s=budget_s,
        progress=progress,
    )
