"""Small token stores of known numbers, for tests."""

import json
from pathlib import Path

import numpy as np

from lvmlab.data.store import save_table

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
