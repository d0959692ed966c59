"""Training a VQGAN: what is minimised, by named terms, and on which pictures.

The quantiser of the training is vector-quantize-pytorch's (EMA codebook, k-means start, dead codes replaced,
rotation
trick of arXiv 2410.06424); its codebook is exported to the plain look-up of
`lvmlab.tokenizer.vqgan.Codebook`. For comparison there
is finite scalar quantisation as well (FSQ, arXiv 2309.15505), for training and scoring only.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.tokenizer.vqgan import VQGAN, VQGANConfig
from lvmlab.training.checkpoints import TrainingError, load_checkpoint, read_log
from lvmlab.training.loop import TrainConfig, train
from lvmlab.utils.checks import check_fields
from lvmlab.utils.files import write_file

KINDS = ("natural", "two-colour", "skeleton", "other")  # what the ids in a pool's kinds file mean
QUANTISERS = ("vq", "fsq")
# levels a dimension for a codebook of about this size; all but the first as FSQ's paper recommends
FSQ_LEVELS = {16: (4, 4), 256: (8, 6, 5), 1024: (8, 5, 5, 5), 4096: (7, 5, 5, 5, 5), 16384: (8, 8, 8, 6, 5)}


@dataclass(frozen=True)
class TokenizerRecipe:
    """Weights of the loss's terms (0 switches one off) and the quantiser's settings.

    l1, mse: pixel terms; `edge` weighs pixels of label pictures more by the local contrast of the target.
    gradient: L1 between finite differences; ms_ssim: 1 - MS-SSIM (structural terms).
    commitment: features to codes. adversarial: hinge loss of a patch discriminator. lpips: needs
        torchvision's AlexNet weights.
    free_batches: so many first batches are not quantised, so that k-means finds features worth clustering (a
        start from
    random features collapses to a few codes). decay, dead_below: of the EMA codebook, in uses a batch.
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
    """Pictures (N, H, W, 3) uint8 in a memory-mapped .npy file, with the kind of each in `NAME-kinds.npy`
    beside it.
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
        """`size` pictures drawn with the given share a kind, a function of (seed, step) alone; half are
        mirrored.
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
    """A VQGAN with the training quantiser and, where the recipe asks, a discriminator.

    quantiser: "vq", a learned codebook, or "fsq", a fixed grid of about as many codes between two linear
        maps; FSQ has no
    commitment loss, no k-means start, no dead codes to replace and no export.
    """

    def __init__(self, config: VQGANConfig, recipe: TokenizerRecipe, quantiser: str = "vq"):
        super().__init__()
        from vector_quantize_pytorch import FSQ, VectorQuantize  # a 5 s import, for training only

        if quantiser not in QUANTISERS:
            raise ValueError(f"quantiser={quantiser!r}: choose from {', '.join(QUANTISERS)}")
        if quantiser == "fsq" and config.codebook_size not in FSQ_LEVELS:
            raise ValueError(
                f"VQGANConfig.codebook_size={config.codebook_size!r}: FSQ has levels for {', '.join(map(str, FSQ_LEVELS))}"
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
        """(B, 3, H, W) to the clamped reconstruction, as the exported network gives it, and the tokens (B,
        N).
        """
        if self.quantiser == "fsq":
            codes, tokens = self._fsq(self.net.features(pictures))
            return self.net.render(codes).clamp(0, 1), tokens.long()
        net = self.export()
        tokens = net.quantize.nearest(net.features(pictures))
        return net.render(net.quantize(tokens)).clamp(0, 1), tokens

    @torch.no_grad()
    def export(self) -> VQGAN:
        """The plain network, with the learned codebook in it. Raises ValueError for FSQ, which has none."""
        if self.quantiser != "vq":
            raise ValueError(
                f'a tokenizer with the quantiser {self.quantiser!r} cannot be exported: train with "vq"'
            )
        self.net.quantize.embedding.weight.copy_(self.quantizer.codebook)
        return self.net

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The recipe's loss for `lvmlab.training.loop.train`; `model` is this module as the loop wrapped it."""
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


def edge_weight(target: Tensor, strength: Tensor) -> Tensor:
    """(B, 1, H, W), of mean 1 in each picture: 1 + strength where the target's colour changes within one
    pixel.
    """
    high = F.max_pool2d(target, 3, 1, 1)
    contrast = (high + F.max_pool2d(-target, 3, 1, 1)).amax(1, keepdim=True)  # (B, 1, H, W)
    weight = 1 + strength.view(-1, 1, 1, 1) * (contrast / contrast.amax((2, 3), keepdim=True).clamp(min=0.1))
    return weight


def ms_ssim(picture: Tensor, target: Tensor) -> Tensor:
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as measure

    return measure(
        picture.clamp(0, 1),
        target,
        data_range=1.0,
        kernel_size=5,
        sigma=1.0,
        betas=(0.2, 0.3, 0.5),
        normalize="relu",
    )


def patch_discriminator() -> nn.Sequential:
    """PatchGAN (Isola et al. 2017): one verdict for each patch."""
    layers: list[nn.Module] = []
    for inner, outer in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inner, outer, 4, stride=2, padding=1), nn.GroupNorm(8, outer), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(128, 1, 3, padding=1))


def adversarial(discriminator: nn.Module, picture: Tensor, target: Tensor) -> Tensor:
    """Hinge losses of both players in one sum: each is built so that only its own player receives gradients."""
    real, fake = discriminator(target), discriminator(picture.detach())
    judge = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
    fool = -torch.func.functional_call(discriminator, frozen, (picture,)).mean()
    return judge + fool


def lpips() -> nn.Module:
    weights = Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth"
    if not weights.is_file():
        raise FileNotFoundError(
            f"TokenizerRecipe.lpips needs AlexNet's weights at {weights}: put torchvision's file there or set lpips=0"
        )
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity("alex", normalize=True).requires_grad_(False)


@torch.no_grad()
def evaluate(model: TrainingVQGAN, pool: Pool, per_kind: int = 128, batch: int = 64) -> dict[str, float]:
    """PSNR (dB) for each kind, two-colour IoU and the share of codes in use, on the first pictures of each
    kind.
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
    """Trains a tokenizer on a pool of pictures and returns the log; resumes from `folder`. See
    `lvmlab.training.loop.train`.

    quantiser: "vq" or "fsq", see `TrainingVQGAN`. on_log: called with each record, its "val" in it where
        there is one.
    start: the folder of an earlier training whose weights and codebook this one goes on from, with a fresh
        optimiser.
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


def load_training(folder: str | Path) -> TrainingVQGAN:
    """The module of a training's latest checkpoint, whatever its quantiser. Raises TrainingError without one."""
    checkpoint = load_checkpoint(folder)
    more = checkpoint["identity"]["more"]
    model = TrainingVQGAN(
        VQGANConfig(**more["network"]), TokenizerRecipe(**more["recipe"]), more.get("quantiser", "vq")
    )
    model.load_state_dict(checkpoint["model"])
    return model.eval()


def export_tokenizer(
    folder: str | Path,
    out: str | Path,
    val_pool: str | Path | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Tokenizer:
    """The latest checkpoint of a training folder as a pretrained tokenizer in `out`: weights, configuration,
    log, card.

    With `val_pool` the exported weights, as rounded on disk, are scored again. Raises TrainingError without a
    checkpoint.
    """
    checkpoint, log, model = load_checkpoint(folder), read_log(folder), load_training(folder)
    if model.seen <= model.recipe.free_batches:
        raise TrainingError(
            f"{folder} is at batch {int(model.seen)} and its codebook begins after "
            f"{model.recipe.free_batches}: train on first"
        )
    training = {**checkpoint["identity"], "step": checkpoint["step"]}
    Tokenizer(model.export(), device="cpu", training=training).save_pretrained(out, log=log, dtype=dtype)
    tokenizer = Tokenizer.from_pretrained(out, device="cpu")
    if val_pool:
        model.net.load_state_dict(tokenizer.net.state_dict())
        model.quantizer.codebook = tokenizer.net.quantize.embedding.weight.detach()
        training["val"] = evaluate(model, Pool(val_pool))
        Tokenizer(model.net, device="cpu", training=training).save_pretrained(out, log=log, dtype=dtype)
        tokenizer = Tokenizer.from_pretrained(out, device="cpu")
    write_file(Path(out) / "README.md", model_card(tokenizer, log))
    return tokenizer


def model_card(tokenizer: Tokenizer, log: list[dict]) -> str:
    """What a user of the weights has to know, in Markdown."""
    c, t = tokenizer.config, tokenizer.training
    scores = t.get("val") or next((r["val"] for r in reversed(log) if "val" in r), {})
    return (
        (Path(__file__).parent / "cards" / "tokenizer.md")
        .read_text(encoding="utf-8")
        .format(
            c=c,
            t=t,
            millions=sum(p.numel() for p in tokenizer.net.parameters()) / 1e6,
            look_up="cosine" if c.cosine else "Euclidean",
            tokens=c.grid**2,
            fingerprint=tokenizer.fingerprint,
            minutes=log[-1]["seconds"] / 60 if log else 0,
            rows="\n".join(f"| {name} | {value} |" for name, value in scores.items()),
        )
    )
