"""Entries of the networks: encoding pictures, and training steps, against plain loops of the same networks."""

import contextlib
import copy
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F
from bench_rows import Row, entry, interleaved, median, rates, synchronise
from torch import Tensor
from tqdm.auto import tqdm

from lvmlab.evaluation.prompts import Job, encode_sentences
from lvmlab.evaluation.scoring import Scorer, answer_tokens, mean_pictures
from lvmlab.model.config import LVM_PRESETS
from lvmlab.model.generation import complete_tokens
from lvmlab.model.loss import cross_entropy
from lvmlab.model.lvm import LVM
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.tokenizer.vqgan import VQGAN
from lvmlab.training.cost import forward_flops, seconds_here
from lvmlab.training.cpu_layers import use_fastest_layers
from lvmlab.training.loop import TrainConfig, train
from lvmlab.training.muon import Muon
from lvmlab.training.recipe import SHARES, LVMRecipe, token_weights
from lvmlab.utils import paths
from lvmlab.utils.device import default_device, precision
from lvmlab.utils.images import from_uint8
from lvmlab.world import tasks
from lvmlab.world.sentences import PAIRS, sentence

TOKENS, SENTENCES, STEPS = (
    64,
    4,
    5,
)  # tokens a picture; sentences of 8 pairs a step: 4096 tokens; steps measured
PICTURES, PROMPTS = 256, 50  # encoded for the speed and the share of equal tokens; answered for the skill
LR = 1e-3


def plain_encode(net: VQGAN, images: Tensor, batch: int, tuned: bool = False) -> Tensor:
    """Pictures to tokens as one would write it: fp32, NCHW, the nearest code by `torch.cdist`.

    tuned: with what torch offers, channels-last, inference mode, and bf16 autocast where the probe says it
        pays.
    """
    device, found = default_device(), []
    layout = torch.channels_last if tuned else torch.contiguous_format
    bf16 = tuned and precision() == "bf16"
    with (
        torch.inference_mode() if tuned else torch.no_grad(),
        torch.autocast(device.type, torch.bfloat16, enabled=bf16),
    ):
        table = net.quantize.embedding.weight
        table = F.normalize(table, dim=-1) if net.config.cosine else table
        for part in images.split(batch):
            z = net.quant_conv(net.encoder(part.to(device).contiguous(memory_format=layout)))
            z = z.permute(0, 2, 3, 1).flatten(1, 2).float()  # (B, D, h, w) -> (B, N, D)
            z = F.normalize(z, dim=-1) if net.config.cosine else z
            found.append(torch.cdist(z.flatten(0, 1), table).argmin(-1).view(len(part), -1))
    return torch.cat(found).to(images.device)


def encoding(
    name: str, tokenizer: Tokenizer, plain: VQGAN, images: Tensor, batch: int, repeats: int, of: str
):
    """The two rows of a tokenizer's speed."""
    calls = {
        "ours": lambda: tokenizer.encode(images),
        "plain": lambda: plain_encode(plain, images, batch),
        "stock": lambda: plain_encode(
            tokenizer.net, images, batch, tuned=True
        ),  # the weights lie channels-last there
    }
    speed = {side: len(images) / min(taken) for side, taken in interleaved(name, calls, repeats).items()}
    kind = f"{of}, {len(images)} pictures of {tokenizer.size} px in batches of {batch}, best of {repeats}"
    yield rates(
        name,
        speed["ours"],
        speed["plain"],
        "images/s",
        1.8,
        f"Tokenizer.encode in {tokenizer.precision} against the same network in fp32, NCHW, torch.cdist; "
        f"{kind}",
    )
    best = max(("plain", "stock"), key=speed.get)
    setting = {
        "plain": "the plain loop, fp32 and NCHW",
        "stock": f"channels-last, inference mode, {precision()}, torch.cdist",
    }[best]
    yield rates(
        f"{name}/best-stock",
        speed["ours"],
        speed[best],
        "images/s",
        None,
        f"against the faster of the plain loop and channels-last in {precision()} (the probe's choice), both "
        f"eager; here: {setting}",
    )


def plain_copy(tokenizer: Tokenizer) -> VQGAN:
    return copy.deepcopy(tokenizer.net).to(memory_format=torch.contiguous_format)


def held_out_pictures(count: int) -> Tensor:
    """Test pictures of the trained tasks in turn, images and labels alike: float (count, 3, 64, 64)."""
    sentences = -(-count // (2 * PAIRS))
    found = [
        sentence(tasks.TRAINED[i % len(tasks.TRAINED)], "test", i // len(tasks.TRAINED)).pictures()
        for i in range(sentences)
    ]
    return from_uint8(np.concatenate(found)[:count])


@entry("tokenizer.encode.mini")
def encode_mini():
    name, trained = "tokenizer.encode.mini", (paths.assets() / "models" / "mini" / "config.json").is_file()
    tokenizer = Tokenizer.from_pretrained("mini") if trained else Tokenizer.from_preset("mini")
    plain, images = plain_copy(tokenizer), held_out_pictures(PICTURES)
    of = (
        "the shipped weights, test pictures" if trained else "fresh weights (none are shipped), test pictures"
    )
    yield from encoding(name, tokenizer, plain, images, tokenizer.batch_size, 7, of)
    if not trained:
        return
    equal = (
        (tokenizer.encode(images) == plain_encode(plain, images, tokenizer.batch_size)).float().mean().item()
    )
    yield rates(
        f"{name}/equal",
        equal,
        1.0,
        "share",
        0.94,
        f"share of tokens that Tokenizer.encode in {tokenizer.precision} has as the plain fp32 loop has "
        f"them, {len(images)} test pictures",
    )
    shipped = [
        m
        for m in ("mini-teacher", "mini-student")
        if (paths.assets() / "models" / m / "config.json").is_file()
    ]
    if shipped:
        yield skill(f"{name}/skill", shipped[0], tokenizer)


def skill(name: str, model: str, tokenizer: Tokenizer) -> Row:
    """What the precision of the prompts' tokens does to a model's skill."""
    lvm, fp32 = LVM.from_pretrained(model), Tokenizer.from_pretrained("mini", precision="fp32")
    scorer = Scorer(Job("segmentation", prompts=PROMPTS, split="val"), fp32)
    skills = {}
    for which, speaker in (("auto", tokenizer), ("fp32", fp32)):
        tokens = encode_sentences(speaker, scorer.sentences)
        answers = torch.cat([*answer_tokens(lvm, tokens, speaker.tokens_per_image)])
        pictures = mean_pictures(fp32, answers)
        skills[which] = scorer.rows(scorer.scores(pictures), model, 0.0)[0]["skill"]
    ours, theirs = (float("nan") if v is None else v for v in skills.values())
    what = (
        f"{model}'s skill at segmentation, {PROMPTS} validation prompts encoded in {tokenizer.precision} "
        f"(auto) against fp32; the ratio is the "
        f"absolute difference, the limit an upper "
        f"one{' (auto is fp32 here: nothing is compared)' if tokenizer.precision == 'fp32' else ''}"
    )
    return Row(name, ours, theirs, abs(ours - theirs), "skill", 0.01, what, "ratio, at most")


@entry("tokenizer.encode.f16-8192")
def encode_f16():
    tokenizer, batch = Tokenizer.from_preset("f16-8192"), 2
    images = torch.rand(batch, 3, tokenizer.size, tokenizer.size, generator=torch.Generator().manual_seed(0))
    yield from encoding(
        "tokenizer.encode.f16-8192",
        tokenizer,
        plain_copy(tokenizer),
        images,
        batch,
        2,
        "fresh weights, noise",
    )


class Loop:
    """A training loop of `transformers`' model as one would write it; with `tuned`, bf16 where the probe says
    so and fused AdamW.
    """

    def __init__(self, lvm: LVM, tuned: bool):
        self.device = default_device()
        self.llama = copy.deepcopy(lvm.llama).to(self.device).train()
        options = {"fused": True} if tuned else {"foreach": False, "fused": False}
        self.optimizer = torch.optim.AdamW(self.llama.parameters(), lr=LR, **options)
        bf16 = tuned and precision() == "bf16"
        self.autocast = (
            (lambda: torch.autocast(self.device.type, torch.bfloat16)) if bf16 else contextlib.nullcontext
        )

    def step(self, tokens: Tensor) -> float:
        """Seconds of one step on tokens (B, T), from host tokens to the loss on the host."""
        synchronise()
        started = time.perf_counter()
        tokens = tokens.to(self.device)
        self.optimizer.zero_grad()
        with self.autocast():
            loss = self.llama(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.llama.parameters(), 1.0)
        self.optimizer.step()
        loss.item()
        synchronise()
        return time.perf_counter() - started


def peak() -> float:
    """The most FLOPS of a bf16 matrix product that this machine gives, measured now."""
    a, b = (torch.randn(2048, 2048, device=default_device()).bfloat16() for _ in range(2))
    return 2 * 2048**3 / min(interleaved("peak", {"peak": lambda: a @ b}, 10)["peak"])


def training(
    shape: str,
    limit: float = 2.0,
    share: float | None = None,
    pairs: int = PAIRS,
    n: int = TOKENS,
    sentences: int = SENTENCES,
    sides: tuple[str, ...] = ("plain", "stock"),
):
    """The rows of a shape's training step: the real loop of `lvmlab.training.loop`, which between its steps
    lets the others take theirs.
    """
    name, lvm = f"train.{shape}", LVM.from_shape(shape)
    loops = {side: Loop(lvm, tuned=side == "stock") for side in sides}
    length = 2 * pairs * n
    per_step = sentences * length
    taken: dict[str, list[float]] = {side: [] for side in ("ours", *loops)}

    def batch(step: int, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        rng = np.random.default_rng(step)
        names = [
            str(name)
            for name in rng.choice(
                list(SHARES), sentences, p=np.array(list(SHARES.values())) / sum(SHARES.values())
            )
        ]
        tokens = torch.from_numpy(rng.integers(lvm.vocab_size, size=(sentences, length)))
        return {
            "tokens": tokens,
            "weights": token_weights(names, pairs, n, LVMRecipe(), {name: 2 for name in names}),
        }

    def loss(model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:  # as in `train_lvm`
        return model(batch["tokens"], batch["tokens"], batch["weights"]), {
            "items": float(batch["tokens"].numel())
        }

    with tempfile.TemporaryDirectory() as folder, tqdm(total=1 + STEPS, desc=name, leave=False) as bar:

        def others(record: dict) -> None:  # the loop's clock stands still meanwhile
            found = {"ours": per_step / record["items_per_second"]}
            found |= {side: loop.step(batch(record["step"])["tokens"]) for side, loop in loops.items()}
            if record["step"] > 0:  # the first is the warm-up
                for side, seconds in found.items():
                    taken[side].append(seconds)
            bar.update()

        use_fastest_layers(lvm.llama, bf16=precision() == "bf16")  # as train_lvm does
        config = TrainConfig(steps=1 + STEPS, lr=LR, log_every=1, save_every=10**6, tracker="none")
        train(lvm, batch, loss, config, folder, on_log=others, progress=False)

    speed = {side: per_step / median(seconds) for side, seconds in taken.items()}
    kind = f"random tokens, sentences of {pairs} pairs, {per_step} tokens a step, median of {STEPS} steps taken in turn"
    yield rates(
        name,
        speed["ours"],
        speed["plain"],
        "tokens/s",
        limit,
        f"the loop of lvmlab.training.loop itself (weighted loss, {precision()}, fused AdamW, clipping; its "
        f"own items a second, without log and "
        f"checkpoint) against transformers' loss in fp32, AdamW neither fused nor foreach, clipping; {kind}",
    )
    stock = "bf16 autocast" if precision() == "bf16" else "fp32 (the probe: bf16 is slower here)"
    best = max(loops, key=speed.get)
    yield rates(
        f"{name}/best-stock",
        speed["ours"],
        speed[best],
        "tokens/s",
        None,
        f"against transformers' loss in {stock} with fused AdamW, "
        f"eager{'' if best == 'stock' else '; the plain loop was faster and counts'}",
    )
    estimate, real = seconds_here(LVM_PRESETS[shape], length, per_step), median(taken["ours"])
    yield Row(
        f"{name}/cost",
        estimate,
        real,
        max(estimate / real, real / estimate),
        "s a step",
        1.2,
        "lvmlab.training.cost's estimate of a step on this machine, from one layer and two, against that "
        "step; the ratio is of the larger to the other",
        "ratio, at most",
    )
    if share:
        flops, most = 3 * forward_flops(LVM_PRESETS[shape], length) * speed["ours"], peak()
        yield rates(
            f"{name}/peak-share",
            flops / 1e9,
            most / 1e9,
            "GFLOPS",
            share,
            "FLOPs of the model's matrix products, attention counted, against a bf16 product of 2048 x 2048 "
            "matrices measured after it",
        )


@entry("train.mini-student")
def train_student():
    yield from training("mini-student")


@entry("train.mini-teacher")
def train_teacher():
    yield from training("mini-teacher", share=0.42)


@entry("train.80m")
def train_80m():
    """One sentence of four pairs of 256 tokens."""
    yield from training("80m", limit=2.3, share=0.50, pairs=4, n=256, sentences=1)


@entry("train.loss")
def loss():
    for i, name in enumerate(("mini-student", "80m")):
        yield losses(f"train.loss/{name}" if i else "train.loss", name, 2048)


def losses(row: str, name: str, tokens: int) -> Row:
    """The weighted loss from hidden states on, forward and backward, in bf16 where that is faster."""
    shape, device, rng = LVM_PRESETS[name], default_device(), torch.Generator().manual_seed(0)
    hidden, head = (
        torch.randn(rows, shape.dim, generator=rng).to(device).requires_grad_()
        for rows in (tokens, shape.vocab_size)
    )
    targets, weights = (
        torch.randint(shape.vocab_size, (tokens,), generator=rng).to(device),
        torch.full((tokens,), 1 / tokens, device=device),
    )
    dtype = torch.bfloat16 if precision() == "bf16" else torch.float32

    def ours():
        with torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16):
            cross_entropy(hidden, head, targets, weights).backward()

    def theirs():
        each = F.linear_cross_entropy(
            hidden.to(dtype),
            head.to(dtype),
            targets,
            reduction="none",
            options=torch.nn.LinearCrossEntropyOptions(),
        )
        (each.float() * weights).sum().backward()

    taken = interleaved(row, {"ours": ours, "torch": theirs}, STEPS)
    return rates(
        row,
        1 / median(taken["ours"]),
        1 / median(taken["torch"]),
        "losses/s",
        None,
        f"lvmlab.model.loss.cross_entropy against torch's linear_cross_entropy in chunks, {tokens} tokens at "
        f"the width and codes of {name}, "
        f"{str(dtype)[6:]}, forward and backward, median of {STEPS}",
    )


@entry("train.muon")
def muon():
    """The optimiser's step alone, on the matrices of mini-teacher and in the precision that training would
    take.
    """
    found = {}
    for side in ("ours", "torch"):
        matrices = [
            p.detach().clone().to(default_device()).requires_grad_()
            for p in LVM.from_shape("mini-teacher").hidden_matrices()
        ]
        for i, p in enumerate(matrices):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).to(p.device)
        dtype = torch.bfloat16 if precision() == "bf16" else torch.float32
        found[side] = (
            Muon(matrices, LR, dtype=dtype)
            if side == "ours"
            else torch.optim.Muon(matrices, LR, adjust_lr_fn="match_rms_adamw")
        )
    taken = interleaved("train.muon", {side: optimizer.step for side, optimizer in found.items()}, STEPS)
    yield rates(
        "train.muon",
        1 / median(taken["ours"]),
        1 / median(taken["torch"]),
        "steps/s",
        1.0,
        f"lvmlab.training.muon, matrices of one shape together in {precision()}, against torch.optim.Muon, "
        f"one by one in bf16; median of {STEPS}",
    )


@entry("complete.answers")
def answers():
    """Eight sampled answers to each prompt: one prefill and one step a token, against `generate` on every
    answer by itself.
    """
    lvm, drawn, prompts = LVM.from_shape("mini-teacher").to(default_device()).eval(), 8, 16
    tokens = torch.randint(
        lvm.vocab_size, (prompts, 7 * TOKENS), generator=torch.Generator().manual_seed(0)
    ).to(default_device())
    options = {
        "do_sample": True,
        "top_k": 0,
        "num_return_sequences": drawn,
        "max_new_tokens": TOKENS,
        "pad_token_id": 0,
    }
    calls = {
        "ours": lambda: complete_tokens(
            lvm, tokens, TOKENS, sample=True, answers=drawn, generator=torch.Generator().manual_seed(0)
        ),
        "generate": lambda: lvm.llama.generate(tokens, attention_mask=torch.ones_like(tokens), **options),
    }
    rate = {
        side: prompts * drawn * TOKENS / min(taken)
        for side, taken in interleaved("complete.answers", calls, 3).items()
    }
    yield rates(
        "complete.answers",
        rate["ours"],
        rate["generate"],
        "tokens/s",
        1.0,
        f"complete_tokens against transformers' generate(num_return_sequences={drawn}), fresh weights of "
        f"mini-teacher in fp32, {prompts} "
        f"prompts of {tokens.shape[1]} tokens, {drawn} answers of {TOKENS} tokens each, best of 3",
    )
