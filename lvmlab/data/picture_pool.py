"""Pools of pictures for tokenizers: the images and labels of mini-world's sentences, rendered once.

mini-world-v2's pools show trained tasks and training encodings alone: what is held out of the models is held
out of their tokenizer. `lvmlab.data.truths` draws pools with the pictures' truth.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from lvmlab.utils.digests import value_digest
from lvmlab.utils.files import atomic, write_file
from lvmlab.world import DEFAULT, V1, V2, Laws, tasks
from lvmlab.world.sentences import sentence

SHARES = {
    V1.version: {
        "segmentation": 0.24,
        "selection": 0.10,
        "pose": 0.28,
        "derain": 0.16,
        "motion": 0.08,
        "deblur": 0.02,
        "colourise": 0.03,
        "inpaint": 0.02,
        "edges": 0.07,
    },
    V2.version: {
        "segmentation": 0.20,
        "semantic": 0.18,
        "selection": 0.10,
        "category": 0.08,
        "pose": 0.26,
        "derain": 0.10,
        "motion": 0.08,
    },
}
SEED, PAIRS = 77, 4
PICTURES = 2 * PAIRS  # of a sentence


def render_pool(
    path: str | Path,
    split: str,
    count: int,
    workers: int = 2,
    progress: bool = True,
    laws: Laws = DEFAULT,
) -> Path:
    """A pool of pictures of one split, rendered where it is not there.

    Args:
        path: of NAME.npy, uint8 (N, S, S, 3); NAME-kinds.npy, uint8 (N,), is written beside it (`Task.kind`).
        split: whose sources are shown.
        count: of pictures, about.
        workers: processes that render.
        progress: whether a bar is shown.
        laws: the version of mini-world, which decides the tasks' `SHARES`, and the pictures' size.

    Returns:
        ``path``.
    """
    path = Path(path).expanduser()
    kinds_path = path.with_name(f"{path.stem}-kinds.npy")
    plan = value_digest([split, count, laws.version, laws.size, SHARES[laws.version]])
    note = path.with_suffix(".plan")
    if path.exists() and kinds_path.exists() and note.is_file() and note.read_text(encoding="utf-8") == plan:
        return path
    note.unlink(missing_ok=True)
    jobs = [
        (split, task, i, laws)
        for task, share in SHARES[laws.version].items()
        for i in range(max(1, round(share * count / PICTURES)))
    ]
    jobs = [jobs[i] for i in np.random.default_rng(0).permutation(len(jobs))]
    kinds = [[0, tasks.get(task).kind] * PAIRS for _, task, _, _ in jobs]
    shape = (len(jobs) * PICTURES, laws.size, laws.size, 3)
    with (
        ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool,
        atomic(path) as temporary,
    ):
        pictures = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
        rendered = pool.map(_render, jobs, chunksize=16)
        bar = tqdm(rendered, total=len(jobs), desc=f"render {split} pictures", disable=not progress)
        for i, drawn in enumerate(bar):
            pictures[i * PICTURES : (i + 1) * PICTURES] = drawn
        pictures.flush()
        write_file(kinds_path, np.concatenate(kinds).astype(np.uint8))
    write_file(note, plan)  # last: a pool without it is half rendered
    return path


def _render(job: tuple[str, str, int, Laws]) -> np.ndarray:
    split, task, index, laws = job
    # mini-world-v1's tokenizer saw held-out encodings, in each fifth sentence
    held_out = not laws.free_encodings and task in ("segmentation", "selection", "pose") and index % 5 == 0
    return sentence(task, split, index, laws=laws, seed=SEED, pairs=PAIRS, held_out=held_out).pictures()
