"""The demonstration: the first held-out prompts of each trained task, answered, scored and drawn."""

import json
from pathlib import Path

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
    """Answers test prompts of each trained task; draws them to answers.png and scores them in scores.json.

    Args:
        models: Models by name.
        out: The folder written to.
        prompts: How many of each task's test prompts, in their fixed order.
        image: A picture of the user's, answered first (so that a bad file costs no time) and drawn to
            yours.png.
        shown: How many prompts of each task are drawn. None draws all.

    Returns:
        What was written, then the scores as a table.
    """
    out, tokenizer = Path(out), Tokenizer.from_pretrained("mini")
    for lvm in models.values():
        lvm.check_fits(tokenizer)
    if image is not None:
        draw_own(image, models, tokenizer, out / "yours.png")

    # answers and scores, a block of pictures a task
    rows, blocks = [], []
    for name in tasks.scored(of_size(tokenizer.size).trained):
        scorer = Scorer(Job(name, prompts=prompts), tokenizer)
        answers = [{} for _ in scorer.sentences]
        for model, lvm in models.items():
            pictures = answer_pictures(lvm, tokenizer, scorer.sentences)
            rows += scorer.rows(scorer.scores(pictures), model, 0.0)
            for row, picture in zip(answers, pictures, strict=True):
                row[model.removeprefix("mini-")] = picture
        blocks.append((f"{name}: {scorer.task.metric}", scorer.sentences[:shown], answers[:shown]))

    write_file(out / "scores.json", json.dumps(rows, indent=1) + "\n")
    with atomic(out / "answers.png") as temporary:
        sheet(blocks).save(temporary, format="png")
    table = frames.scores_table(frames.scores(rows)).to_string(index=False)
    return (
        f"wrote {out / 'answers.png'}, the answers, and {out / 'scores.json'}\n"
        f"The scores of the first {prompts} test prompts of each trained task:\n{table}"
    )


def draw_own(path: str | Path, models: dict[str, LVM], tokenizer: Tokenizer, out: Path) -> None:
    """Draws each model's answer to a picture of the user's, after the examples of a segmentation prompt."""
    sentence = own_sentence(path, tokenizer)
    answers = {name: answer_pictures(lvm, tokenizer, [sentence])[0] for name, lvm in models.items()}
    with atomic(out) as temporary:
        sheet([("your picture", [sentence], [answers])], columns=1, scale=2).save(temporary, format="png")
    print(f"wrote {out}")


def own_sentence(
    path: str | Path, tokenizer: Tokenizer, task: str = "segmentation", index: int = 0
) -> Sentence:
    """A picture file as the query after the examples of a test prompt; the query has no label."""
    picture = images.to_uint8(images.load(path, tokenizer.size))
    prompt = sentences(Job(task, prompts=index + 1), of_size(tokenizer.size))[index]
    return Sentence(prompt.task, prompt.encoding, [*prompt.pairs[:-1], Pair(picture, None)])
