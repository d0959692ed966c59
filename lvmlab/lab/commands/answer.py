"""Asking models: `lvmlab demo`, `prompt` and `evaluate`."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lvmlab.lab.commands.checks import check_file, check_model, check_output, is_training

if TYPE_CHECKING:
    from lvmlab.model.lvm import LVM


def load_models(names: tuple[str, ...]) -> "dict[str, LVM]":
    """Models by name: shipped ones, exports, hub ids and training folders. All shipped ones for ()."""
    import torch

    from lvmlab.model.lvm import LVM
    from lvmlab.model.pretrained import shipped
    from lvmlab.training.export import load_lvm
    from lvmlab.utils.device import default_device, precision

    names = names or tuple(shipped())
    if not names:
        raise ValueError("no model is shipped: give --models FOLDER, or train one with `lvmlab train FOLDER`")
    dtype = torch.bfloat16 if precision() == "bf16" else torch.float32
    models = {}
    for name in names:
        if is_training(name):
            print(f"{name}: its newest checkpoint")
            models[Path(name).name] = load_lvm(name).to(default_device(), dtype)
        else:
            models[Path(name).name] = LVM.from_pretrained(name, dtype=dtype)
    return models


def demo(
    image: Path | None = None,
    out: Path = Path("runs/demo"),
    models: tuple[str, ...] = (),
    prompts: int = 16,
    shown: int | None = None,
) -> None:
    """Prompt the shipped models on held-out pictures and draw the answers.

    Writes OUT/answers.png and OUT/scores.json and prints the scores.

    Args:
        image: A picture of your own. Its segmentation is drawn to OUT/yours.png.
        out: The folder written to.
        models: Shipped models or folders. The default is all shipped models.
        prompts: How many test prompts of each task are answered.
        shown: How many of them are drawn. The default is all.
    """
    for name in models:
        check_model(name)
    if image is not None:
        check_file(image)

    from lvmlab.lab.demo import run_demo

    print(run_demo(load_models(models), out, prompts=prompts, image=image, shown=shown))
    print("next: lvmlab prompt a.png a-label.png --query b.png   # your own pictures")


def prompt(
    examples: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="IMAGE LABEL ...")]],
    query: Path,
    out: Path | None = None,
    model: str = "mini-teacher",
    tokenizer: str = "mini",
    answers: int = 4,
    greedy: bool = False,
    temperature: float = 1.0,
    seed: int = 0,
) -> None:
    """Answer a query picture after example pairs of your own pictures: IMAGE LABEL IMAGE LABEL ...

    Args:
        examples: The example pairs: pictures and labels in turn.
        query: The picture to answer.
        out: The captioned picture to write. The default is QUERY-answer.png beside the query.
        model: A shipped model, a folder of an export or of a training, or a hub id.
        tokenizer: The tokenizer the model was trained on: a shipped one or a folder.
        answers: How many answers are sampled; their mean picture is drawn first.
        greedy: Take the likeliest token each time. This gives one answer.
        temperature: The sampling temperature.
        seed: The seed of the sampling.
    """
    if len(examples) % 2 or not examples:
        raise ValueError(
            f"{len(examples)} example pictures do not make pairs: give IMAGE LABEL for each example"
        )
    out = out or query.with_name(f"{query.stem}-answer.png")
    for path in (*examples, query):
        check_file(path)
    check_output(out)
    check_model(model)
    check_model(tokenizer)

    import torch

    from lvmlab.lab.plots.prompts import captioned
    from lvmlab.model.prompting import Prompt, complete
    from lvmlab.tokenizer.tokenizer import Tokenizer
    from lvmlab.utils import images
    from lvmlab.utils.files import atomic
    from lvmlab.utils.labels import load_label

    tok = Tokenizer.from_pretrained(tokenizer)
    lvm = load_models((model,))[Path(model).name]
    pairs = tuple(
        (images.load(image, tok.size), load_label(label, tok.size, turned_like=image))
        for image, label in zip(examples[::2], examples[1::2], strict=True)
    )
    question = images.load(query, tok.size)
    options = {}
    if not greedy:
        options = {"sample": True, "answers": answers, "temperature": temperature}
        options["generator"] = torch.Generator().manual_seed(seed)
    drawn = complete(lvm, tok, Prompt(pairs, question), **options).images[0, :, 0]  # (answers, 3, S, S)

    # the mean answer first, then each sampled one
    columns = {"answer": drawn.mean(0)}
    if len(drawn) > 1:
        columns |= {f"sample {i + 1}": picture for i, picture in enumerate(drawn)}
    with atomic(out) as temporary:
        captioned(pairs, question, columns).save(temporary, format="png")
    print(f"wrote {out}" + (f": the mean of {len(drawn)} answers, then each" if len(drawn) > 1 else ""))
    print("next: lvmlab tokenize STORE FOLDER   # a store of many pairs, to train on")


def evaluate(
    models: tuple[str, ...] = (),
    out: Path = Path("runs/evaluate"),
    prompts: int = 200,
    split: Literal["test", "val"] = "test",
) -> None:
    """Score models on mini-world's fixed prompts, in every setting and condition.

    Resumes after an interruption. Writes OUT/scores.json, OUT/worst-MODEL.png and a run a model.

    Args:
        models: Shipped models or folders. The default is all shipped models.
        out: The folder written to; finished jobs are kept in OUT/parts.
        prompts: How many prompts a task. Control conditions take a quarter of them.
        split: val for tuning, test for released models.
    """
    for name in models:
        check_model(name)

    from lvmlab.evaluation.prompts import ANSWERS, Job, plan
    from lvmlab.evaluation.scoring import evaluate as score
    from lvmlab.lab import frames, runs
    from lvmlab.lab.plots.gallery import gallery
    from lvmlab.tokenizer.tokenizer import Tokenizer
    from lvmlab.utils.files import atomic, write_file
    from lvmlab.world import of_size, tasks

    # scores of all models together
    started, tokenizer = time.perf_counter(), Tokenizer.from_pretrained("mini")
    laws = of_size(tokenizer.size)
    loaded = load_models(models)
    rows = score(loaded, tokenizer, plan(prompts, split, laws), out)
    write_file(out / "scores.json", json.dumps(rows, indent=1) + "\n")
    print(f"wrote {out / 'scores.json'}")

    # tables, worst answers and the stored run of each model
    jobs = [Job(task, prompts=prompts, split=split) for task in tasks.scored(laws.trained)]
    for name, lvm in loaded.items():
        own = [row for row in rows if row["model"] == name]
        for table in (frames.scores_table, frames.settings_table):
            print(f"\n{frames.markdown(table(frames.scores(own)))}\n")
        with atomic(out / f"worst-{name}.png") as temporary:
            gallery(lvm, name, tokenizer, jobs, out).save(temporary, format="png")
        config = {
            "model": name,
            "weights": lvm.fingerprint(),
            "tokenizer": tokenizer.fingerprint,
            "prompts": prompts,
            "split": split,
            "answers": ANSWERS,
        }
        run = runs.save("evaluate", config, own, time.perf_counter() - started)
        print(f"wrote {out / f'worst-{name}.png'} and the run {run['name']}")
    print(f"next: lvmlab runs show {run['name']}")
