"""Several processes: the losses of one at the same global batch (DDP), and teacher and student sharded
(FSDP), on CPUs with gloo.
"""

import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stores import fit_lvm, write_store
from test_cli import LAUNCH

from lvmlab.data.mixture import Mixture
from lvmlab.distillation.objectives import Distillation
from lvmlab.model.config import LVM_PRESETS
from lvmlab.model.lvm import LVM
from lvmlab.training.checkpoints import read_log
from lvmlab.training.loop import TrainConfig
from lvmlab.training.recipe import LVMRecipe

pytestmark = pytest.mark.slow

SMALL = replace(LVM_PRESETS["tiny"], vocab_size=64, attention_bias=True)
RECIPE = LVMRecipe(tokens=512, phases=((1.0, 2),), mixture=Mixture("natural"))
CONFIG = TrainConfig(steps=5, lr=1e-2, warmup=1, log_every=1, save_every=2, precision="fp32", tracker="none")


def fit(store, folder, accumulation=1):
    """A distillation, so that a teacher, its predictions and a student go through the loop."""
    return fit_lvm(
        Path(store),
        folder,
        shape=SMALL,
        grid=16,
        config=replace(CONFIG, accumulation=accumulation),
        recipe=RECIPE,
        teacher=LVM.from_shape(replace(SMALL, dim=48), seed=1),
        distillation=Distillation(),
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    write_store(
        folder,
        {
            "segmentation": np.random.default_rng(0)
            .integers(0, SMALL.vocab_size, (6, 4, 2, 16))
            .astype(np.uint16)
        },
    )
    return folder


def test_two_processes_give_the_losses_of_one_at_the_same_global_batch(store, tmp_path):
    one = fit(store, tmp_path / "one", accumulation=2)
    script = tmp_path / "two.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(__file__.rpartition('/')[0])!r})\nimport test_processes as t\n"
        f"t.fit({str(store)!r}, {str(tmp_path / 'two')!r})\n"
    )
    found = subprocess.run([*LAUNCH, str(script)], capture_output=True, text=True, timeout=280)
    assert found.returncode == 0, found.stderr[-3000:]
    two = read_log(tmp_path / "two")
    assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], abs=2e-5)
    assert [r["norm"] for r in two] == pytest.approx([r["norm"] for r in one], rel=1e-3)
    assert len((tmp_path / "two" / "log.jsonl").read_text().splitlines()) == CONFIG.steps, (
        "rank 0 alone writes"
    )


SHARDED = textwrap.dedent("""
    import os, pathlib, sys, torch, torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    sys.path.insert(0, sys.argv[1])
    import test_processes as t
    from functools import partial
    from lvmlab.distillation.objectives import Distillation, distillation_loss
    from lvmlab.model.lvm import LVM
    from lvmlab.distillation.teacher import TeacherOutputs
    from lvmlab.training.checkpoints import resume, save

    dist.init_process_group("gloo")
    rank, ranks, folder = dist.get_rank(), dist.get_world_size(), pathlib.Path(sys.argv[2])
    mesh = dist.device_mesh.init_device_mesh("cpu", (ranks,))

    def sharded(lvm):
        for layer in lvm.llama.model.layers:
            fully_shard(layer, mesh=mesh)
        return fully_shard(lvm, mesh=mesh)

    student, teacher = sharded(LVM.from_shape(t.SMALL)), sharded(LVM.from_shape(t.replace(t.SMALL, dim=48), seed=1))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    first = resume(folder, student, [optimizer], {})
    for step in range(first, first + 3):
        tokens = torch.randint(t.SMALL.vocab_size, (4, 64), generator=torch.Generator().manual_seed(0)).chunk(ranks)[rank]
        with torch.no_grad():  # the whole forward goes through the sharded module, which gathers its weights for it
            predictions = teacher(tokens, tokens, loss_fn=lambda hidden, head, *_: TeacherOutputs(hidden, getattr(head, "full_tensor", lambda: head)().clone()))
        loss = student(tokens, tokens, loss_fn=partial(distillation_loss, distillation=Distillation(), predictions=predictions))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        if rank == 0:
            print("loss", mean.item() / ranks, flush=True)
    save(folder, student, [optimizer], first + 3, {}, write=rank == 0)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # an interpreter that ends while a thread of gloo's still does aborts now and then, after all is done
""")


def sharded(script, folder, processes):
    """The losses that a script prints under so many processes, which go on from the folder's checkpoint."""
    folder.mkdir(exist_ok=True)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        str(processes),
        "--rdzv_backend",
        "c10d",
        "--rdzv_endpoint",
        "localhost:0",
    ]
    found = subprocess.run(
        [*launch, str(script), __file__.rpartition("/")[0], str(folder)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return [float(line.split()[1]) for line in found.stdout.splitlines() if line.startswith("loss")]


def test_teacher_and_student_are_sharded_saved_and_loaded_across_processes(tmp_path):
    """torch's fully_shard on CPUs with gloo. Not covered: NCCL, mixed precision, offloading, Muon (it wants
    whole matrices), and accelerate's own
    FSDP, which is for accelerators."""
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    two, one = sharded(script, tmp_path / "two", 2), sharded(script, tmp_path / "one", 1)
    assert two == pytest.approx(one, abs=2e-5) and two[2] < two[0]
    # what two saved one goes on with, and the other way about
    assert sharded(script, tmp_path / "two", 1) == pytest.approx(
        sharded(script, tmp_path / "one", 2), abs=5e-5
    )
