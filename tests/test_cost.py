"""Costs held to what torch counts and measures."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lvmlab.model.config import LVM_PRESETS, LVMConfig
from lvmlab.model.lvm import LVM
from lvmlab.training import cost

MEDIUM = LVMConfig(256, 6, 4, 704, max_seq_len=1024, vocab_size=1024, attention_bias=True)
PEAK = """
import re, sys, torch
from lvmlab.model.config import LVMConfig
from lvmlab.model.lvm import LVM
lvm = LVM.from_shape(LVMConfig(256, 6, 4, 704, attention_bias=True))
optimizer = torch.optim.AdamW(lvm.parameters(), fused=True)
tokens = torch.randint(1024, (int(sys.argv[1]), 1024))
for _ in range(2):
    with torch.autocast("cpu", torch.bfloat16, enabled=sys.argv[2] == "bf16"):
        loss = lvm(tokens, tokens)
    loss.backward()
    optimizer.step()
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]))  # ru_maxrss begins at what the parent had
"""


@pytest.mark.parametrize("shape", [*LVM_PRESETS.values(), MEDIUM], ids=[*LVM_PRESETS, "medium"])
def test_parameters_are_counted(shape):
    with torch.device("meta"):
        from transformers import LlamaForCausalLM

        llama = LlamaForCausalLM(shape.to_llama())
    assert cost.parameters(shape) == sum(p.numel() for p in llama.parameters())


def test_the_family_has_the_published_sizes():
    assert [
        round(cost.parameters(LVM_PRESETS[name]) / 1e6) for name in ("80m", "300m", "1b")
    ] == pytest.approx([80, 300, 1150], rel=0.06)


def test_flops_are_those_torch_counts():
    lvm, tokens = LVM.from_shape(MEDIUM), torch.randint(1024, (2, 512))
    attention = MEDIUM.n_layers * 4 * MEDIUM.dim * 512 / 2  # which torch does not count on a CPU
    with FlopCounterMode(display=False) as counter:
        logits = lvm(tokens)
    assert cost.forward_flops(MEDIUM, 512) - attention == pytest.approx(
        counter.get_total_flops() / tokens.numel(), rel=0.01
    )
    with FlopCounterMode(display=False) as counter:
        logits.sum().backward()
    assert 2 * (cost.forward_flops(MEDIUM, 512) - attention) == pytest.approx(
        counter.get_total_flops() / tokens.numel(), rel=0.05
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fp32", "bf16"])
def test_memory_is_within_a_fifth_of_what_is_measured(mode):
    def peak(sentences):  # glibc told to give back what is freed: left alone it keeps half as much again
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        found = subprocess.run(
            [sys.executable, "-c", PEAK, str(sentences), mode],
            capture_output=True,
            text=True,
            check=True,
            env=env,
        )
        return int(found.stdout)

    measured = peak(7) - peak(
        2
    )  # what five sentences more take: activations alone, whatever the libraries take
    estimate = cost.memory(MEDIUM, 7 * 1024, bf16=mode == "bf16") - cost.memory(
        MEDIUM, 2 * 1024, bf16=mode == "bf16"
    )
    assert estimate == pytest.approx(measured, rel=0.2)


def test_hours_follow_from_the_device_and_a_teacher_adds_its_passes():
    one = cost.cost("300m", 1e9, "A100", length=2048)
    assert one.hours == pytest.approx(
        3 * cost.forward_flops(LVM_PRESETS["300m"], 2048) * 1e9 / (312e12 * 0.4) / 3600
    )
    taught = cost.cost("300m", 1e9, "A100", length=2048, teacher="1b")
    assert taught.flops / one.flops == pytest.approx(
        1 + cost.forward_flops(LVM_PRESETS["1b"], 2048) / 3 / cost.forward_flops(LVM_PRESETS["300m"], 2048)
    )
    assert cost.cost("300m", 1e9, "A100", devices=8).hours == pytest.approx(
        cost.cost("300m", 1e9, "A100").hours / 8
    )
    assert (
        "299.5M parameters" in str(one)
        and str(one).endswith(" h")
        and str(cost.cost("1b", 1e12, "A100")).endswith(" days")
    )
    for given in ({"shape": "2b"}, {"shape": "80m", "device": "V100"}):
        with pytest.raises(ValueError, match="choose from"):
            cost.cost(**given, tokens=1.0)


def test_here_is_measured_by_the_layer():
    small = replace(MEDIUM, n_layers=2)
    assert cost.cost(small, 1e6, length=256, step=1024).hours > 0
