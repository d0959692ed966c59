"""The failure gallery: the worst answers of each task, by its own score."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lvmlab.evaluation.prompts import Job, sentences
from lvmlab.evaluation.scoring import mean_pictures, part_path
from lvmlab.lab.plots.prompts import sheet
from lvmlab.model.lvm import LVM
from lvmlab.tokenizer.tokenizer import Tokenizer


def worst(scores: np.ndarray, sources: list[str], count: int) -> list[int]:
    """The prompts of the lowest scores, lowest first, one a source: a hard photograph must not fill the
    gallery.
    """
    places, seen = [], set()
    for index in np.argsort(scores, kind="stable"):
        if sources[index] not in seen:
            seen.add(sources[index])
            places.append(int(index))
    return places[:count]


def gallery(
    lvm: LVM, name: str, tokenizer: Tokenizer, jobs: list[Job], folder: str | Path, count: int = 4
) -> Image.Image:
    """The ``count`` worst answers of each job that `evaluate` has finished in ``folder``. Raises
    FileNotFoundError for one it has not.
    """
    blocks, fingerprint = [], lvm.fingerprint()
    for job in jobs:
        path = part_path(folder, name, fingerprint, tokenizer, job)
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} holds no answers of {name} to {job.task}: run `lvmlab evaluate` first"
            )
        part, prompts = json.loads(path.read_text(encoding="utf-8")), sentences(job)
        chosen = worst(np.array(part["scores"]), [s.pairs[-1].source for s in prompts], count)
        answers = mean_pictures(tokenizer, torch.tensor([part["tokens"][i] for i in chosen]))
        metric = part["rows"][0]["metric"]
        scored = ", ".join(f"{part['scores'][i]:.2f}" for i in chosen)
        blocks.append(
            (
                f"{job.task}: the worst of {job.prompts}, {metric} {scored}",
                [prompts[i] for i in chosen],
                [{"answer": a} for a in answers],
            )
        )
    return sheet(blocks)
