"""How far a reader walks to follow one call: `python tests/walks.py` prints a row for each walk.

A walk visits the package's functions in the order in which they are first called. A return is a step into a
file that the walk has already left. Fewer files and fewer returns are easier to read.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import lvmlab
from lvmlab import LVM, Prompt, Tokenizer, complete

PACKAGE = str(Path(lvmlab.__file__).parent)


def walk(call: Callable[[], object]) -> dict[str, int]:
    """Files, functions and returns of one call."""
    functions: dict[tuple[str, str, int], None] = {}

    def visit(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<"):
            functions.setdefault((code.co_filename, code.co_qualname, code.co_firstlineno))

    sys.setprofile(visit)
    try:
        call()
    finally:
        sys.setprofile(None)
    files = [file for file, *_ in functions]
    left, returns = set(), 0
    for before, now in zip(files, files[1:], strict=False):
        if now != before:
            left.add(before)
            returns += now in left
    return {"files": len(set(files)), "functions": len(functions), "returns": returns}


def one_answer() -> Callable[[], object]:
    """`complete` on one prompt of three examples."""
    tokenizer, lvm = Tokenizer.from_preset("tiny"), LVM.from_shape("tiny", vocab_size=16)
    pictures = torch.rand(7, 3, 16, 16)
    prompt = Prompt([(pictures[i], pictures[i + 1]) for i in (0, 2, 4)], pictures[6])
    return lambda: complete(lvm, tokenizer, prompt)


def one_training_step() -> Callable[[], object]:
    """`train_lvm` for one step on a small store."""
    from stores import write_store

    from lvmlab.data.mixture import Mixture
    from lvmlab.training.loop import TrainConfig
    from lvmlab.training.lvm import train_lvm
    from lvmlab.training.recipe import LVMRecipe
    from lvmlab.training.sampler import SentenceSampler

    folder = Path(tempfile.mkdtemp())
    write_store(folder / "store", {"segmentation": np.full((8, 8, 2, 4), 5, np.uint16)})
    config = TrainConfig(steps=1, precision="fp32", tracker="none")
    mixture = Mixture("balanced", weights={"segmentation": 1.0})
    recipe = LVMRecipe(tokens=64, phases=((1.0, 4),), mixture=mixture)
    sampler = SentenceSampler(folder / "store", recipe, steps=1, seed=0)
    lvm = LVM.from_shape("tiny")
    return lambda: train_lvm(lvm, sampler, folder / "training", config, progress=False)


def one_score() -> Callable[[], object]:
    """One row of an evaluation: segmentation, two prompts of mini-world."""
    from lvmlab.evaluation.prompts import Job
    from lvmlab.evaluation.scoring import evaluate

    tokenizer = Tokenizer.from_pretrained("mini")
    lvm = LVM.from_shape("tiny", vocab_size=tokenizer.codebook_size)
    lvm.config.max_position_embeddings = 1024
    job = Job("segmentation", prompts=2, split="val")
    return lambda: evaluate({"tiny": lvm}, tokenizer, [job], progress=False)


WALKS = {"one answer": one_answer, "one training step": one_training_step, "one score": one_score}


def main() -> None:
    print(f"{'walk':20}{'files':>8}{'functions':>12}{'returns':>10}")
    for name, prepare in WALKS.items():
        counts = walk(prepare())
        print(f"{name:20}{counts['files']:8}{counts['functions']:12}{counts['returns']:10}")


if __name__ == "__main__":
    main()
