"""Entries of training steps: the loop against plain ones, its loss, its optimiser and its layers, each alone."""

import contextlib
import copy
import functools
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F
from bench_rows import COMPILER, Row, entry, interleaved, median, of_kind, rates, synchronise
from torch import Tensor
from tqdm.auto import tqdm
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from lvmlab.model.config import LVM_PRESETS
from lvmlab.model.loss import cross_entropy
from lvmlab.model.lvm import LVM
from lvmlab.training.cost import forward_flops, seconds_here
from lvmlab.training.cpu_layers import fuse, use_fastest_layers
from lvmlab.training.loop import TrainConfig, train
from lvmlab.training.muon import Muon
from lvmlab.training.recipe import SHARES, LVMRecipe, token_weights
from lvmlab.utils.device import default_device, precision
from lvmlab.world.sentences import PAIRS

TOKENS, SENTENCES, STEPS = (
    64,
    4,
    5,
)  # tokens a picture; sentences of 8 pairs a step: 4096 tokens; steps measured
PRODUCTS = (1024, 2048)  # sides of the square matrices that the peak is measured on
LOSSES = 2048  # targets of a loss that is measured alone
LR = 1e-3


class Loop:
    """A training loop of `transformers`' model as one would write it.

    plain: fp32, AdamW neither fused nor foreach. fused: fused AdamW, and bf16 where the probe says so.
        compiled: as
    fused, its layers compiled.
    """

    def __init__(self, lvm: LVM, kind: str):
        self.device = default_device()
        self.llama = copy.deepcopy(lvm.llama).to(self.device).train()
        options = {"foreach": False, "fused": False} if kind == "plain" else {"fused": True}
        self.optimizer = torch.optim.AdamW(self.llama.parameters(), lr=LR, **options)
        bf16 = kind != "plain" and precision() == "bf16"
        self.autocast = contextlib.nullcontext
        if bf16:
            self.autocast = functools.partial(torch.autocast, self.device.type, torch.bfloat16)
        for layer in self.llama.model.layers if kind == "compiled" else ():
            layer.compile(dynamic=False)

    def step(self, tokens: Tensor) -> float:
        """Seconds of one step on tokens (B, T), from host tokens to the loss on the host."""
        synchronise()
        started = time.perf_counter()
        tokens = tokens.to(self.device)
        self.optimizer.zero_grad()
        with self.autocast():
            loss = self.llama(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.llama.parameters(), 1.0)
        self.optimizer.step()
        loss.item()
        synchronise()
        return time.perf_counter() - started


def peak() -> float:
    """The most FLOPS that matrix products give here in the faster precision, measured now, within seconds."""
    dtype = torch.bfloat16 if precision() == "bf16" else torch.float32
    rates = []
    for size in PRODUCTS:
        a, b = (torch.randn(size, size, device=default_device()).to(dtype) for _ in range(2))
        taken = interleaved("peak", {"product": lambda a=a, b=b: a @ b}, 20)["product"]
        rates.append(2 * size**3 / min(taken))
    return max(rates)


def training(
    shape: str,
    limit: float | None,
    share: float | None = None,
    pairs: int = PAIRS,
    n: int = TOKENS,
    sentences: int = SENTENCES,
):
    """The rows of a shape's training step: the real loop of `lvmlab.training.loop`, which between its steps
    lets the others take theirs.
    """
    name, lvm = f"train.{shape}", LVM.from_shape(shape)
    loops = {kind: Loop(lvm, kind) for kind in ("plain", "fused", *(["compiled"] if COMPILER else []))}
    length = 2 * pairs * n
    per_step = sentences * length
    most = peak()
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

        # as train_lvm does in a long training
        use_fastest_layers(lvm.llama, tokens=COMPILER * 1e12, bf16=precision() == "bf16")
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
    best = max(loops, key=speed.get)
    found = ", ".join(f"{kind} {speed[kind]:.0f}" for kind in loops)
    yield rates(
        f"{name}/best-stock",
        speed["ours"],
        speed[best],
        "tokens/s",
        1.0,
        f"against the fastest of transformers' loops, here {best}: {found}; fused and compiled in "
        f"{precision()}",
    )
    estimate, real = seconds_here(LVM_PRESETS[shape], length, per_step), median(taken["ours"])
    yield Row(
        f"{name}/cost",
        estimate,
        real,
        max(estimate / real, real / estimate),
        "s a step",
        1.2,
        "lvmlab.training.cost's estimate of a step on this machine, from one layer and four, against that "
        "step; the ratio is of the larger to the other",
        "ratio, at most",
    )
    if share:
        flops, most = 3 * forward_flops(LVM_PRESETS[shape], length) * speed["ours"], max(most, peak())
        yield rates(
            f"{name}/peak-share",
            flops / 1e9,
            most / 1e9,
            "GFLOPS",
            share,
            f"FLOPs of the model's matrix products, attention counted, against the best {precision()} "
            f"product of square "
            f"matrices of {' and '.join(map(str, PRODUCTS))} numbers a side, before and after; over 1 is a "
            f"fault",
            "share",
        )


@entry("train.mini-student")
def train_student():
    yield from training("mini-student", of_kind(bf16=2.0, fp32=1.0))


@entry("train.mini-teacher")
def train_teacher():
    yield from training("mini-teacher", of_kind(bf16=2.0, fp32=1.0), share=0.65)


@entry("train.80m")
def train_80m():
    """One sentence of four pairs of 256 tokens."""
    yield from training("80m", of_kind(bf16=2.3, fp32=1.0), share=0.50, pairs=4, n=256, sentences=1)


@entry("train.layers")
def layers():
    """One layer, forward and backward: fused against standard, and against a compiled one where that works."""
    for i, name in enumerate(("mini-teacher", "mini-student", "80m")):
        yield layer(f"train.layers/{name}" if i else "train.layers", name)


def layer(row: str, name: str) -> Row:
    """`lvmlab.training.cpu_layers` in training's precision, on one sentence."""
    config = LVM_PRESETS[name].to_llama()
    standard = LlamaDecoderLayer(config, 0).train()
    kinds = {"fused": copy.deepcopy(standard), "standard": standard}
    fuse(kinds["fused"])
    if COMPILER:
        kinds["compiled"] = copy.deepcopy(standard)
        kinds["compiled"].compile(dynamic=False)
    x = torch.randn(1, config.max_position_embeddings, config.hidden_size)
    turns = LlamaRotaryEmbedding(config)(x, torch.arange(x.shape[1])[None])

    def step(kind: str) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision("auto", "cpu") == "bf16"):
            kinds[kind](x, position_embeddings=turns).sum().backward()

    taken = interleaved(row, {kind: functools.partial(step, kind) for kind in kinds}, STEPS)
    speed = {kind: 1 / min(seconds) for kind, seconds in taken.items()}
    others = ", ".join(f"{kind} {rate:.1f}" for kind, rate in speed.items())
    return rates(
        row,
        speed["fused"],
        speed["standard"],
        "layers/s",
        None,
        f"a layer of {name} with fused norms and rotary embedding against the standard one, forward and "
        f"backward of "
        f"{x.shape[1]} tokens on the CPU, best of {STEPS}: {others}; training takes the faster",
    )


@entry("train.loss")
def loss():
    for i, name in enumerate(("mini-student", "80m")):
        yield losses(f"train.loss/{name}" if i else "train.loss", name, LOSSES)


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
