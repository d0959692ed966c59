"""What a training costs before it is begun: parameters, FLOPs, memory and hours, of a shape, so many tokens
and a device.

FLOPs are those of the matrix products, 2 a multiplication and addition: 6 a parameter and token of a training
    (Kaplan et al., arXiv 2001.08361),
embedding look-ups left out, and attention over half the sentence's length on average (it is causal). Hours
follow from a device's peak and the
share of it that is used; for this machine both are measured, on one layer and two, in seconds. A patch
model's tokens are its patches; the head of
its pre-training counts, for the places that it reads.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from lvmlab.model import aim as patchlm
from lvmlab.model.aim import PatchConfig, PatchLM
from lvmlab.model.config import LVM_PRESETS, LVMConfig
from lvmlab.model.loss import CHUNK
from lvmlab.model.lvm import LVM
from lvmlab.training.cpu_layers import use_fastest_layers
from lvmlab.utils.device import default_device, least_seconds, precision

PEAKS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}  # FLOPS of dense bf16, their makers' sheets
UTILISATION = (
    0.4  # of the peak, what well-run trainings of such models report (MFU; arXiv 2204.02311, table 3)
)
LAYERS = 4  # of the larger model that is timed here


@dataclass(frozen=True)
class Cost:
    """parameters; flops of the whole training, a teacher's passes included; memory in bytes of one step;
    hours on all devices together.
    """

    parameters: int
    flops: float
    memory: float
    hours: float

    def __str__(self):
        time = f"{self.hours:.2f} h" if self.hours < 48 else f"{self.hours / 24:.1f} days"
        size = f"{self.parameters / 1e6:.1f}M parameters, {self.flops:.3g} FLOPs"
        return f"{size}, {self.memory / 2**30:.1f} GiB a step, {time}"


def parameters(shape: LVMConfig | PatchConfig) -> int:
    """Of embedding, layers, last norm and head."""
    if isinstance(shape, PatchConfig):
        with torch.device("meta"):
            return sum(p.numel() for p in PatchLM(shape).parameters())
    layer = (
        4 * shape.dim**2
        + 3 * shape.dim * shape.ffn_dim
        + 2 * shape.dim
        + 4 * shape.dim * shape.attention_bias
    )
    return 2 * shape.vocab_size * shape.dim + shape.n_layers * layer + shape.dim


def forward_flops(shape: LVMConfig | PatchConfig, length: int) -> float:
    """Of one token of a sentence of ``length`` tokens, forward alone."""
    if isinstance(shape, PatchConfig):
        # the head reads only what lies outside the prefix: half of the places on average
        return (
            parameters(shape)
            + parameters(replace(shape, head_blocks=0) if shape.prefix else shape)
            + shape.n_layers * 4 * shape.dim * length / 2
        )
    matrices = (
        shape.n_layers * (4 * shape.dim**2 + 3 * shape.dim * shape.ffn_dim) + shape.dim * shape.vocab_size
    )
    return 2 * matrices + shape.n_layers * 4 * shape.dim * length / 2


def memory(shape: LVMConfig, tokens: int, *, bf16: bool = True, checkpointing: bool = False) -> float:
    """Bytes of one step on ``tokens`` tokens: weights, gradients and AdamW's two moments in fp32, and what
    the backward pass needs.

    checkpointing: only each layer's input is kept, and one layer's activations at a time.
    """
    size = 2 if bf16 else 4
    # inputs of the norms and their outputs, q, k, v, the attention's output, gate, up, their product: what
    # autograd keeps of a layer
    inner, layers = (
        (shape.ffn_dim or 4 * shape.dim, shape.n_layers)
        if isinstance(shape, PatchConfig)
        else (shape.ffn_dim, shape.n_layers)
    )
    layer = tokens * (size * (7 * shape.dim + 4 * inner) + 4 * 4 * shape.dim)
    kept = layers * tokens * 4 * shape.dim + layer if checkpointing else layers * layer
    logits = min(tokens * getattr(shape, "vocab_size", 0), CHUNK) * (
        16 if bf16 else 12
    )  # they, their softmax and their gradient
    return 16.0 * parameters(shape) + (2.0 * parameters(shape) if bf16 else 0.0) + kept + logits


def cost(
    shape: str | LVMConfig | PatchConfig,
    tokens: float,
    device: str = "here",
    *,
    length: int | None = None,
    step: int = 4096,
    devices: int = 1,
    teacher: str | LVMConfig | None = None,
    utilisation: float = UTILISATION,
) -> Cost:
    """Of a training on ``tokens`` tokens, in sentences of ``length`` (None: the shape's context), ``step``
    tokens a step and device.

    device: a name in PEAKS, or "here", which is measured. teacher: a model that reads every token too. Raises
        ValueError for unknown names.
    """
    known = LVM_PRESETS | patchlm.AIM_PRESETS
    shape, teacher = (known[s] if isinstance(s, str) and s in known else s for s in (shape, teacher))
    for given in (shape, teacher):
        if isinstance(given, str):
            raise ValueError(f"{given!r} is no shape; choose from {', '.join(known)}")
    if device == "here" and isinstance(shape, PatchConfig):
        raise ValueError(f"a patch model is not timed here: give device, one of {', '.join(PEAKS)}")
    if device != "here" and device not in PEAKS:
        raise ValueError(f"device={device!r} is not known: choose from here, {', '.join(PEAKS)}")
    length = length or (shape.grid**2 if isinstance(shape, PatchConfig) else shape.max_seq_len)
    each = 3 * forward_flops(shape, length) + (forward_flops(teacher, length) if teacher else 0)
    if device == "here":
        seconds = seconds_here(shape, length, step) + (
            seconds_here(teacher, length, step) / 3 if teacher else 0
        )
        hours = tokens / step * seconds / 3600
    else:
        hours = each * tokens / (PEAKS[device] * utilisation) / 3600
    held = memory(shape, step) + (4 * parameters(teacher) if teacher else 0)
    return Cost(parameters(shape), each * tokens, held, hours / devices)


def seconds_here(shape: LVMConfig, length: int, step: int) -> float:
    """Seconds of one training step on this machine.

    Models of one layer and of LAYERS are timed in turn; a layer costs their difference, shared out.
    """
    few, more = 1, min(LAYERS, shape.n_layers)
    steps = {n: _training_step(replace(shape, n_layers=n), length, step) for n in {few, more}}
    taken = least_seconds(steps)
    each = max(0.0, taken[more] - taken[few]) / max(1, more - few)
    return taken[more] + (shape.n_layers - more) * each


def _training_step(shape: LVMConfig, length: int, step: int) -> Callable[[], float]:
    """One step as `lvmlab.training.lvm` takes it, of a new model and random tokens."""
    device = default_device()
    bf16 = precision(device=device) == "bf16"
    lvm = LVM.from_shape(shape).to(device).train()
    use_fastest_layers(lvm.llama, bf16=bf16)
    optimizer = torch.optim.AdamW(lvm.parameters(), fused=device.type in ("cpu", "cuda"))
    tokens = torch.randint(shape.vocab_size, (max(1, step // length), length), device=device)

    def once() -> float:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = lvm(tokens, tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lvm.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return once
