"""Training a ViTVQ in three stages: without codes, with codes, and at last a stronger decoder over frozen
codes.

Encoder and codes first learn what must be kept, from pictures and from an auxiliary decoder's truths; the
decoder then learns detail (SeQ-GAN, arXiv 2212.03185, section 3). The quantiser of the training is
vector-quantize-pytorch's.
"""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvmlab.data.truths import IMAGES, KINDS, UNKNOWN, TruthPool
from lvmlab.tokenizer.vitvq import VITVQ_PRESETS, ViTVQ, ViTVQConfig
from lvmlab.training import auxiliary
from lvmlab.training.checkpoints import CHECKPOINT, load_checkpoint
from lvmlab.training.loop import TrainConfig, train
from lvmlab.training.tokenizer import edge_weight, psnr, two_colour_iou
from lvmlab.utils.checks import check_fields
from lvmlab.world import sources

STAGES = ("continuous", "codes", "decoder")


@dataclass(frozen=True)
class Recipe:
    """What is minimised, on which pictures, and for how long.

    Args:
        l1, mse, gradient, edge: weights of the picture's terms, as in `training.tokenizer.Recipe`.
        objects, classes, joints, bones, clean: weights of the auxiliary decoder's terms; 0 trains without
            a truth.
        commitment: weight of the distance of features to codes.
        decay, dead_below: of the EMA codebook, in uses a batch.
        shares: of `data.truths.KINDS` in a batch.
        jitter: how far the images' brightness and colour go.
        batch: pictures a step.
        lr: the highest learning rate.
        continuous, codes, decoder: steps of the stages.
        head: channels of the convolutions that the last stage adds to the decoder.
    """

    l1: float = 1.0
    mse: float = 4.0
    gradient: float = 0.5
    edge: float = 4.0
    objects: float = 1.0
    classes: float = 1.0
    joints: float = 1.0
    bones: float = 3.0
    clean: float = 2.0
    commitment: float = 0.5
    decay: float = 0.98
    dead_below: float = 0.1
    shares: tuple[float, ...] = (0.30, 0.07, 0.20, 0.17, 0.06, 0.20)
    jitter: float = 0.2
    batch: int = 32
    lr: float = 1.5e-3
    continuous: int = 480
    codes: int = 6000
    decoder: int = 3000
    head: tuple[int, ...] = (96, 48)

    def __post_init__(self):
        for field in ("shares", "head"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        shares = len(self.shares) == len(KINDS) and min(self.shares) >= 0 < sum(self.shares)
        listed = ("shares", "head")
        check_fields(
            self,
            **{
                field: (value >= 0, "0 (off) or more")
                for field, value in asdict(self).items()
                if field not in listed
            },
            shares=(shares, f"one share of at least 0 for each of {', '.join(KINDS)}"),
        )

    def without(self, *tasks: str) -> "Recipe":
        """The same recipe without what the labels of pose or derain teach."""
        known = {"pose": {"joints": 0.0, "bones": 0.0}, "derain": {"clean": 0.0}}
        if not set(tasks) <= set(known):
            raise ValueError(f"without={tasks!r}: choose from {', '.join(known)}")
        changed = {k: v for task in tasks for k, v in known[task].items()}
        if "pose" in tasks:
            changed["shares"] = tuple(
                0.0 if k == "skeleton" else s for k, s in zip(KINDS, self.shares, strict=True)
            )
        return replace(self, **changed)

    def schedule(self, stage: str, **options) -> TrainConfig:
        """How the loop optimises a stage."""
        high, low = {"continuous": (1.0, 0.6), "codes": (0.8, 0.02), "decoder": (0.7, 0.02)}[stage]
        steps = getattr(self, stage)
        return TrainConfig(
            steps=steps,
            lr=high * self.lr,
            min_lr=low * self.lr,
            warmup=min(60, steps // 4),
            weight_decay=0.05,
            **options,
        )


class TrainingViTVQ(nn.Module):
    """A ViTVQ with the training quantiser and the auxiliary decoder.

    stage: "continuous" leaves features on the sphere unquantised; "decoder" trains nothing but the decoder.
    """

    def __init__(self, config: ViTVQConfig, recipe: Recipe, stage: str = "codes"):
        super().__init__()
        from vector_quantize_pytorch import VectorQuantize  # a 5 s import, for training only

        if stage not in STAGES:
            raise ValueError(f"stage={stage!r}: choose from {', '.join(STAGES)}")
        self.config, self.recipe, self.stage = config, recipe, stage
        self.net = ViTVQ(config).to(memory_format=torch.channels_last)
        self.auxiliary = auxiliary.AuxiliaryDecoder(config, len(sources.default().classes))
        self.quantizer = VectorQuantize(
            dim=config.embed_dim,
            codebook_size=config.codebook_size,
            use_cosine_sim=config.cosine,
            kmeans_init=True,
            decay=recipe.decay,
            threshold_ema_dead_code=recipe.dead_below,
            commitment_weight=1.0,
        )
        self.net.quantize.requires_grad_(False)  # filled from `quantizer` by `export`
        if stage == "decoder":
            self.requires_grad_(False)
            self.net.decoder.requires_grad_(True)

    def forward(self, pictures: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        """(B, 3, H, W) to the reconstruction, the auxiliary maps, the tokens (B, N) and the commitment
        loss.
        """
        if self.stage == "decoder":
            with torch.no_grad():
                tokens = nearest(self.quantizer, self.net.features(pictures))
                codes = self.quantizer.codebook[tokens]
            return self.net.render(codes), {}, tokens, codes.new_zeros(())
        features = self.net.features(pictures).float()
        if self.stage == "continuous":
            codes, tokens, commitment = F.normalize(features, dim=-1), None, features.new_zeros(())
        else:
            with torch.autocast(features.device.type, enabled=False):
                codes, tokens, commitment = self.quantizer(features)
        return self.net.render(codes), self.auxiliary(codes), tokens, commitment.sum()

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The recipe's loss for `training.loop.train`; `model` is this module as the loop wrapped it."""
        recipe, target = self.recipe, batch["pictures"]
        picture, maps, tokens, commitment = model(target)
        picture = picture.float()
        label = batch["kinds"] >= len(IMAGES)
        weight = torch.ones_like(target[:, :1])
        weight[label] = edge_weight(
            target[label], torch.full_like(label[label], recipe.edge, dtype=target.dtype)
        )
        error = picture - target
        found = {
            "l1": (weight * error.abs()).mean(),
            "mse": (weight * error.square()).mean(),
            "gradient": sum((picture.diff(dim=d) - target.diff(dim=d)).abs().mean() for d in (2, 3)),
            "commitment": commitment,
        }
        if maps:
            found |= auxiliary.terms({name: m.float() for name, m in maps.items()}, batch)
        total = sum(getattr(recipe, name) * term for name, term in found.items())
        metrics = {name: found[name].item() if name in found else 0.0 for name in (*found, *auxiliary.TERMS)}
        used = float(tokens.unique().numel()) if tokens is not None else 0.0
        return total, {**metrics, "codes": used, "items": len(target)}

    @torch.no_grad()
    def start_codes(self, batches: list[Tensor]) -> None:
        """Fills the codebook by k-means over the features of pictures [(B, 3, H, W), ...]: many more than
        one batch's.
        """
        self.eval()
        features = torch.cat([self.net.features(b) for b in batches])
        self.train()
        self.quantizer(features.flatten(0, 1)[None])

    @torch.no_grad()
    def export(self) -> ViTVQ:
        """The plain network, with the learned codebook in it."""
        self.net.quantize.embedding.weight.copy_(self.quantizer.codebook)
        return self.net


def nearest(quantizer: nn.Module, features: Tensor) -> Tensor:
    """Tokens (B, N) of features (B, N, D): the codes at the smallest angle."""
    return (features.float() @ quantizer.codebook.T).argmax(-1)


def train_stages(
    folder: str | Path,
    pool: TruthPool,
    val: TruthPool,
    preset: str | ViTVQConfig = "mini-v2",
    recipe: Recipe = Recipe(),
    *,
    seed: int = 0,
    eval_every: int = 250,
    budget_s: float | None = None,
    progress: bool = True,
    **options,
) -> list[dict]:
    """Trains the three stages, each in a folder of its own that resumes, and returns the last stage's log.

    Args:
        folder: gets the folders continuous/, codes/ and decoder/; each keeps its checkpoint.
        pool: what is learned from.
        val: what the log's scores are from.
        preset: the network's name or shape.
        recipe: what is minimised and for how long.
        seed: of weights and batches.
        eval_every: steps between scores.
        budget_s: stops, with a checkpoint, after so many seconds of this call.
        progress: whether to show bars.
        options: of `TrainConfig` (save_every, log_every, precision, tracker).
    """
    started, log = time.perf_counter(), []
    for stage in STAGES:
        left = None if budget_s is None else budget_s - (time.perf_counter() - started)
        if left is not None and left <= 0:
            break
        log = train_stage(
            folder,
            stage,
            pool,
            val,
            preset,
            recipe,
            seed=seed,
            eval_every=eval_every,
            budget_s=left,
            progress=progress,
            **options,
        )
        if log[-1]["step"] + 1 < getattr(recipe, stage):
            break
    return log


def train_stage(
    folder: str | Path,
    stage: str,
    pool: TruthPool,
    val: TruthPool,
    preset: str | ViTVQConfig,
    recipe: Recipe,
    *,
    seed: int,
    eval_every: int,
    budget_s: float | None,
    progress: bool,
    **options,
) -> list[dict]:
    """One stage of `train_stages`, from the checkpoint of the stage before it."""
    shape, here = _shape(preset, recipe, stage), Path(folder) / stage
    if pool.pictures.shape[1] != shape.resolution:
        raise ValueError(
            f"{pool.folder} holds pictures of {pool.pictures.shape[1]} px: the tokenizer takes "
            f"{shape.resolution} px"
        )
    config = recipe.schedule(stage, seed=seed, **options)
    torch.manual_seed(seed)
    model = TrainingViTVQ(shape, recipe, stage)

    def batches(step: int, part: int, parts: int) -> dict[str, Tensor]:
        return pool.batch(
            step * parts + part, recipe.batch, seed + STAGES.index(stage), recipe.shares, recipe.jitter
        )

    if stage != STAGES[0] and not (here / CHECKPOINT).exists():
        before = STAGES[STAGES.index(stage) - 1]
        state = load_checkpoint(Path(folder) / before)["model"]
        model.load_state_dict(state, strict=stage != "decoder")  # the last stage's head is fresh
        if stage == "codes":
            needed = (
                8 * shape.codebook_size // (recipe.batch * shape.grid**2) + 1
            )  # batches: eight features a code
            model.start_codes([batches(10**9 + i, 0, 1)["pictures"] for i in range(needed)])

    def scored(record: dict) -> None:
        if record["step"] % eval_every == 0 or record["step"] == config.steps - 1:
            record["val"] = evaluate(model, val)

    identity = {"network": asdict(shape), "recipe": asdict(recipe), "stage": stage, "pool": pool.plan}
    return train(
        model,
        batches,
        model.loss,
        config,
        here,
        scored,
        identity=identity,
        budget_s=budget_s,
        progress=progress,
    )


def _shape(preset: str | ViTVQConfig, recipe: Recipe, stage: str) -> ViTVQConfig:
    if isinstance(preset, str):
        if preset not in VITVQ_PRESETS:
            raise ValueError(
                f"tokenizer preset {preset!r} is not known: choose from {', '.join(sorted(VITVQ_PRESETS))}"
            )
        preset = VITVQ_PRESETS[preset]
    return replace(preset, head=recipe.head) if stage == "decoder" else preset


@torch.no_grad()
def evaluate(model: TrainingViTVQ, pool: TruthPool, per_kind: int = 128, batch: int = 32) -> dict[str, float]:
    """Scores on the first pictures of each kind.

    PSNR (dB) of every kind, of images at half the size as well ("psnr natural 64": without rain); IoU of
    two-colour labels; the auxiliary decoder's IoU of masks, accuracy of object pixels' classes, PCK@0.1 of
    joints and PSNR of clean pictures; the share of codes in use.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    sums: dict[str, list[Tensor]] = {}
    used = torch.zeros(model.config.codebook_size, dtype=torch.bool)
    for kind, of in zip(KINDS, pool.of_kind, strict=True):
        for part in np.array_split(of[:per_kind], max(1, len(of[:per_kind]) // batch)):
            if not len(part):
                continue
            found = {name: values.to(device) for name, values in pool.take(part).items()}
            picture, maps, tokens, _ = model(found["pictures"])
            if tokens is not None:
                used[tokens.unique().cpu()] = True
            for name, values in _scores(kind, picture.clamp(0, 1), maps, found).items():
                sums.setdefault(name, []).append(values)
    model.train(training)
    scores = {name: round(torch.cat(values).mean().item(), 4) for name, values in sums.items()}
    return {**scores, "code use": round(used.float().mean().item(), 4)}


def _scores(
    kind: str, picture: Tensor, maps: dict[str, Tensor], batch: dict[str, Tensor]
) -> dict[str, Tensor]:
    target = batch["pictures"]
    found = {f"psnr {kind}": psnr(picture, target)}
    if kind in IMAGES:
        halved = psnr(F.avg_pool2d(picture, 2), F.avg_pool2d(target, 2))
        found[f"psnr {kind} halved"] = halved
        found |= {} if kind == "rain" else {f"psnr natural {target.shape[-1] // 2}": halved}
    if kind == "two-colour":
        found["iou"] = two_colour_iou(picture, target)
    known = batch["classes"][:, 0, 0] != UNKNOWN
    if maps and known.any():
        truth = batch["classes"][known]
        found |= auxiliary.class_scores(maps["objects"][known, 0], maps["classes"][known], truth)
    if maps and kind == "body":
        found["pck"] = auxiliary.pck(maps["joints"], batch["points"])
    if maps and kind == "rain":
        found["psnr clean"] = psnr(maps["clean"].clamp(0, 1), F.avg_pool2d(batch["clean"], 2))
    return found


def load_stage(folder: str | Path, stage: str) -> TrainingViTVQ:
    """The module of a stage's latest checkpoint. Raises TrainingError without one."""
    checkpoint = load_checkpoint(Path(folder) / stage)
    more = checkpoint["identity"]["more"]
    model = TrainingViTVQ(ViTVQConfig(**more["network"]), Recipe(**more["recipe"]), more["stage"])
    model.load_state_dict(checkpoint["model"])
    return model.eval()
