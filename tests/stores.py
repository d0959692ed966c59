"""Small token stores of known numbers, for tests."""

import json
from pathlib import Path

import numpy as np

from lvmlab.store import save_table

TOKENIZER = "0123456789abcdef"


def write_part(path: Path, groups: np.ndarray, *, copies: int = 0, first: int = 0) -> None:
    """Groups (G, pairs, 2, N) of one task as a part; a clip's group is one row. ``copies`` repeats every row, called copies."""
    task = path.name.split(".")[0]
    clip = task == "motion"
    rows = groups.reshape(len(groups), 1, -1) if clip else groups.reshape(*groups.shape[:2], -1)
    where = [(g, r, c) for g in range(len(rows)) for r in range(rows.shape[1]) for c in range(copies + 1)]
    texts = {"task": [task] * len(where), "source": [f"s{g}.{r}" for g, r, _ in where], "split": ["train"] * len(where),
             "group": ["" if clip else str(first + g) for g, _, _ in where], "augmentation": [f"copy {c}" if c else "" for _, _, c in where]}
    meta = {"tokenizer": TOKENIZER, "pictures": str(2 * groups.shape[1] if clip else 2), "members": str(len(groups))}
    save_table(path, np.stack([rows[g, r] for g, r, _ in where]), texts, meta)


def write_store(folder: Path, tasks: dict[str, np.ndarray], **options) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for task, groups in tasks.items():
        write_part(folder / f"{task}.000000.arrow", groups, **options)
    meta = {"tokenizer": TOKENIZER, "tokens": 4, "tasks": {task: {"world": "mini-world-v1"} for task in tasks}}
    (folder / "store.json").write_text(json.dumps(meta))
