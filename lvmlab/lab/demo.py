"""The demonstration: the first held-out prompts of each trained task, answered, scored and drawn."""

import json
from pathlib import Path

import numpy as np

from lvmlab.evaluation.prompts import Job, sentences
from lvmlab.evaluation.scoring import Scorer, answer_pictures
from lvmlab.lab import frames
from lvmlab.lab.plots.prompts import sheet
from lvmlab.model.lvm import LVM
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.utils import images
from lvmlab.utils.files import atomic, write_file
from lvmlab.world import of_size, tasks
from lvmlab.world.sentences import Sentence
from lvmlab.world.tasks import Pair


def run_demo(
    models: dict[str, LVM],
    out: str | Path,
    *,
    prompts: int = 16,
    image: str | Path | None = None,
    shown: int | None = None,
) -> str:
    """Answers ``prompts`` test prompts of each trained task; writes scores.json and answers.png to ``out``;
    the table.

    ``image``: a picture of the user's, asked about first (so that a bad file costs no time), drawn to
    yours.png.
    """
    out, tokenizer = Path(out), Tokenizer.from_pretrained("mini")
    for lvm in models.values():
        lvm.check_fits(tokenizer)
    if image is not None:
        yours(image, models, tokenizer, out / "yours.png")
    rows, blocks = [], []
    for name in tasks.scored(of_size(tokenizer.size).trained):
        scorer = Scorer(Job(name, prompts=prompts), tokenizer)
        drawn = [{} for _ in scorer.sentences]
        for model, lvm in models.items():
            pictures = answer_pictures(lvm, tokenizer, scorer.sentences)
            rows += scorer.rows(scorer.scores(pictures), model, 0.0)
            for place, picture in zip(drawn, pictures, strict=True):
                place[model.removeprefix("mini-")] = picture
        blocks.append((f"{name}: {scorer.task.metric}", scorer.sentences[:shown], drawn[:shown]))
    write_file(out / "scores.json", json.dumps(rows, indent=1) + "\n")
    with atomic(out / "answers.png") as temporary:
        sheet(blocks).save(temporary, format="png")
    table = frames.scores_table(frames.scores(rows)).to_string(index=False)
    return (
        f"The first {prompts} test prompts of each trained task:\n{table}\n"
        f"wrote {out / 'scores.json'} and {out / 'answers.png'}"
    )


def yours(path: str | Path, models: dict[str, LVM], tokenizer: Tokenizer, out: Path) -> None:
    """The user's picture after the examples of segmentation's first test prompt, as each model answers it."""
    asked = ask_yours(path, tokenizer)
    answers = {name: answer_pictures(lvm, tokenizer, [asked])[0] for name, lvm in models.items()}
    with atomic(out) as temporary:
        sheet([("your picture (no truth is known)", [asked], [answers])], columns=1, scale=2).save(
            temporary, format="png"
        )
    print(f"wrote {out}")


def ask_yours(path: str | Path, tokenizer: Tokenizer, task: str = "segmentation", index: int = 0) -> Sentence:
    """A picture file after the examples of a test prompt; its truth, which nobody knows, is left white."""
    picture = images.to_uint8(images.load(path, tokenizer.size))
    prompt = sentences(Job(task, prompts=index + 1), of_size(tokenizer.size))[index]
    return Sentence(
        prompt.task, prompt.encoding, [*prompt.pairs[:-1], Pair(picture, np.full_like(picture, 255))]
    )
