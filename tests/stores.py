"""Small token stores of known numbers, and trainings on them, for tests."""

import json
from pathlib import Path

import numpy as np

from lvmlab.data.parts import save_table

TOKENIZER = "0123456789abcdef"


def write_part(path: Path, groups: np.ndarray, *, first: int = 0) -> None:
    """Groups (G, pairs, 2, N) of one task as a part; a clip's group is one row."""
    task, count = path.name.split(".")[0], groups.shape[1]
    clip = task == "motion"
    rows = groups.reshape(len(groups) if clip else len(groups) * count, -1)
    save_table(
        path,
        rows,
        tokenizer=TOKENIZER,
        pictures=2 * count if clip else 2,
        members=len(groups),
        task=task,
        split="train",
        group="" if clip else [str(first + g) for g in range(len(groups)) for _ in range(count)],
    )


def write_store(folder: Path, tasks: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for task, groups in tasks.items():
        write_part(folder / f"{task}.000000.arrow", groups)
    meta = {
        "tokenizer": TOKENIZER,
        "tokens": 4,
        "tasks": {task: {"world": "mini-world-v1"} for task in tasks},
    }
    (folder / "store.json").write_text(json.dumps(meta))


def fit_lvm(
    store,
    folder,
    *,
    config,
    recipe,
    shape=None,
    start=None,
    codebook=None,
    factored=False,
    grid=None,
    lora=0,
    compiled=False,
    checkpointing=False,
    **options,
):
    """A training put together from its parts. store: a folder, or frozen sentences."""
    from lvmlab.model.lvm import LVM
    from lvmlab.training import preparation as prepare
    from lvmlab.training.lvm import train_lvm
    from lvmlab.training.sampler import SentenceSampler

    model = LVM.from_shape(shape, seed=config.seed) if start is None else prepare.load_start(start)
    if codebook is not None:
        prepare.start_from_codebook(model, codebook, seed=config.seed, factored=factored)
    if grid:
        prepare.start_from_grid(model, grid)
    if lora:
        prepare.add_adapters(model, lora, seed=config.seed)
    if checkpointing:
        prepare.checkpoint_activations(model)
    if compiled:
        prepare.compile_layers(model)
    batches = store
    if isinstance(store, Path):
        seed = prepare.sentence_seed(model, config.seed)
        batches = SentenceSampler(store, recipe, steps=config.steps, seed=seed)
    return train_lvm(model, batches, folder, config, progress=False, **options)
