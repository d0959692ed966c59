"""Entries of the engine: a step with a teacher against one without, memory of a large step, trainings killed
and gone on with.
"""

import functools
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from bench_rows import Row, entry, interleaved, median

from lvmlab.distillation.cache import FrozenSentences, freeze_sentences, write_cache
from lvmlab.distillation.objectives import Distillation, distillation_loss
from lvmlab.distillation.teacher import teacher_outputs
from lvmlab.model.loss import cross_entropy
from lvmlab.model.lvm import LVM
from lvmlab.training.checkpoints import read_log
from lvmlab.utils.device import default_device, precision

SENTENCES, LENGTH, STEPS, KILLS = 64, 512, 10, 10
LARGE = ("300m", "2048")  # the shape and the tokens of the step whose memory is measured
STEP = """
import re, sys, torch
from lvmlab.model.lvm import LVM
lean = sys.argv[1] == "lean"
lvm, length = LVM.from_shape(sys.argv[2]).train(), int(sys.argv[3])
if lean:
    lvm.llama.gradient_checkpointing_enable({"use_reentrant": False})
optimizer = torch.optim.AdamW(lvm.parameters(), fused=True)
with torch.autocast("cpu", torch.bfloat16, enabled=lean):
    tokens = torch.randint(lvm.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    loss = lvm(tokens, tokens)
loss.backward()
optimizer.step()
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""


@entry("kd.cached")
def distilling():
    """Steps of mini-student on the same sentences: alone, from mini-teacher's cache, and from mini-teacher
    itself.
    """
    student, teacher, rng = (
        LVM.from_shape("mini-student").to(default_device()),
        LVM.from_pretrained("mini-teacher"),
        np.random.default_rng(0),
    )

    def random_sentences(step: int, part: int, parts: int) -> dict:
        tokens = torch.from_numpy(rng.integers(student.vocab_size, size=(SENTENCES, LENGTH)))
        return {
            "tokens": tokens,
            "inputs": tokens,
            "weights": torch.ones(tokens.shape),
            "tasks": ["segmentation"] * SENTENCES,
        }

    with tempfile.TemporaryDirectory() as temporary:
        folder = freeze_sentences(Path(temporary), random_sentences, SENTENCES, {})
        sources = {
            "plain": FrozenSentences(folder, 8, 0),
            "cached": FrozenSentences(folder, 8, 0, teacher=write_cache(folder, teacher, progress=False)),
        }
        optimizer = torch.optim.AdamW(student.parameters(), fused=default_device().type in ("cpu", "cuda"))
        numbers = iter(range(10**6))

        def step(side: str) -> None:
            batch = sources["cached" if side == "cached" else "plain"](next(numbers), 0, 1)
            predictions = batch.get("predictions")
            if side == "online":
                predictions = teacher_outputs(teacher, batch["inputs"])
            loss_fn = cross_entropy
            if predictions is not None:
                options = {"distillation": Distillation(), "predictions": predictions}
                loss_fn = functools.partial(distillation_loss, **options)
            with torch.autocast(default_device().type, torch.bfloat16, enabled=precision() == "bf16"):
                loss = student(batch["tokens"], batch["tokens"], batch["weights"], loss_fn=loss_fn)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        taken = {
            side: median(seconds)
            for side, seconds in interleaved(
                "kd.cached",
                {side: lambda side=side: step(side) for side in ("plain", "cached", "online")},
                STEPS,
            ).items()
        }
    kind = (
        f"seconds of a step of mini-student on 8 sentences of {LENGTH} tokens ({precision()}, fused AdamW), "
        f"median of {STEPS} taken in turn, "
        "against one alone"
    )
    yield Row(
        "kd.cached",
        taken["cached"],
        taken["plain"],
        taken["cached"] / taken["plain"],
        "s",
        1.15,
        f"with mini-teacher's predictions of all 1024 codes from its cache in 8 bits; {kind}",
        "ratio, at most",
    )
    yield Row(
        "kd.cached/online",
        taken["online"],
        taken["plain"],
        taken["online"] / taken["plain"],
        "s",
        None,
        f"with mini-teacher itself; {kind}",
    )


@entry("train.300m")
def large():
    """The peak memory of one step of the 300M shape on a sentence of 2048 tokens, in a process of its own."""
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    found = {}
    for side in ("lean", "plain"):
        more = env if side == "lean" else dict(os.environ)
        found[side] = float(
            subprocess.run(
                [sys.executable, "-c", STEP, side, *LARGE],
                check=True,
                capture_output=True,
                text=True,
                env=more,
            ).stdout
        )
    yield Row(
        "train.300m/memory",
        found["lean"],
        found["plain"],
        found["lean"] / found["plain"],
        "MB",
        None,
        f"peak resident memory of one step on {LARGE[1]} tokens: bf16 autocast, activation checkpointing and "
        f"an "
        "allocator that gives memory back, "
        "against fp32 with neither",
    )


@entry("train.resumed")
def resumed():
    """A small training killed at a random step, ten times over, and gone on with each time."""
    tests = Path(__file__).resolve().parent.parent
    sys.path.insert(0, str(tests))
    import test_train as t

    good = 0
    with tempfile.TemporaryDirectory() as temporary:
        whole = t.losses(t.run(Path(temporary) / "whole", net=t.model()))
        for kill in range(KILLS):
            folder = Path(temporary) / str(kill)
            t.killed(folder, random.randrange(6, 22))
            t.run(folder)
            good += max(abs(r["loss"] - whole[r["step"]]) for r in read_log(folder)) < 2e-6
    yield Row(
        "train.resumed",
        float(good),
        float(KILLS),
        good / KILLS,
        "trainings",
        1.0,
        f"trainings killed by SIGKILL at a random step that went on to the losses of one that was not, of "
        f"{KILLS}",
    )


__all__ = ["distilling", "large", "resumed"]
