"""The command line: `python -m lvmlab COMMAND`. Each command is a thin call of the package."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

Folder = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FOLDER")]]


def _models(names: tuple[str, ...]) -> dict:
    import torch

    from lvmlab.model.lvm import LVM, shipped
    from lvmlab.utils.device import precision

    names = names or shipped()
    if not names:
        raise ValueError(
            "no model is shipped: give --models FOLDER, or train one with `python -m lvmlab train`"
        )
    dtype = torch.bfloat16 if precision() == "bf16" else torch.float32
    return {Path(name).name: LVM.from_pretrained(name, dtype=dtype) for name in names}


def demo(
    image: Path | None = None,
    out: Path = Path("runs/demo"),
    models: tuple[str, ...] = (),
    prompts: int = 16,
    shown: int | None = None,
) -> None:
    """Prompts the shipped models on held-out pictures; prints a table, writes OUT/scores.json and
    OUT/answers.png.

    Args:
        image: a picture of your own, asked for its segmentation after the first test prompt's examples
            (OUT/yours.png).
        out: the folder written to.
        models: names of shipped models or folders; all shipped ones by default.
        prompts: how many of each task's test prompts, in their fixed order.
        shown: how many of them are drawn; all by default.
    """
    from lvmlab.lab.demo import run_demo

    print(run_demo(_models(models), out, prompts=prompts, image=image, shown=shown))


def prompt(
    examples: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="IMAGE LABEL ...")]],
    query: Path,
    out: Path = Path("runs/prompt.png"),
    model: str = "mini-teacher",
    answers: int = 4,
    greedy: bool = False,
    temperature: float = 1.0,
    seed: int = 0,
) -> None:
    """Answers a query picture after example pairs of your own pictures: IMAGE LABEL IMAGE LABEL ...

    Args:
        examples: the example pairs, pictures and labels in turn.
        query: the picture asked about.
        out: where the answer is written: the mean of the sampled ones, then (where there are several) each of
            them.
        model: name of a shipped model or a folder.
        answers: how many answers are sampled.
        greedy: take the likeliest token each time instead; one answer, nothing is sampled.
        temperature: of the sampling.
        seed: of the sampling.
    """
    import torch

    from lvmlab.model.prompting import Prompt, complete
    from lvmlab.tokenizer.tokenizer import Tokenizer
    from lvmlab.utils import images

    if len(examples) % 2 or not examples:
        raise ValueError(
            f"{len(examples)} example pictures do not make pairs: give IMAGE LABEL for each example"
        )
    tokenizer = Tokenizer.from_pretrained("mini")
    lvm = _models((model,))[Path(model).name]
    loaded = [images.load(p, tokenizer.size) for p in examples]
    asked = Prompt(tuple(zip(loaded[::2], loaded[1::2], strict=True)), images.load(query, tokenizer.size))
    options = (
        {}
        if greedy
        else {
            "sample": True,
            "answers": answers,
            "temperature": temperature,
            "generator": torch.Generator().manual_seed(seed),
        }
    )
    drawn = complete(lvm, tokenizer, asked, **options).images[0, :, 0]  # (answers, 3, S, S)
    images.save(torch.cat([drawn.mean(0), *(drawn if len(drawn) > 1 else ())], -1), out)
    print(f"wrote {out}" + (f": the mean of {len(drawn)} answers, then each" if len(drawn) > 1 else ""))


def evaluate(
    models: tuple[str, ...] = (),
    out: Path = Path("runs/evaluate"),
    prompts: int = 200,
    split: Literal["test", "val"] = "test",
) -> None:
    """Scores models on mini-world's fixed prompts in every setting and condition; goes on where it was
    stopped.

    Args:
        models: names of shipped models or folders; all shipped ones by default.
        out: rows go to OUT/scores.json, each finished job to OUT/parts, the worst answers to
            OUT/worst-MODEL.png.
        prompts: how many prompts a task (a quarter of them for 1 to 7 examples and the control conditions).
        split: tune on val; test is for released models.
    """
    import time

    from lvmlab.evaluation.scoring import ANSWERS, Job, plan
    from lvmlab.evaluation.scoring import evaluate as score
    from lvmlab.lab import runs
    from lvmlab.lab.plots.gallery import gallery
    from lvmlab.lab.plots.scores import table
    from lvmlab.lab.plots.tables import scores_markdown, settings_markdown
    from lvmlab.tokenizer.tokenizer import Tokenizer
    from lvmlab.utils.files import atomic, write_file
    from lvmlab.world import tasks

    started, chosen, tokenizer = time.perf_counter(), _models(models), Tokenizer.from_pretrained("mini")
    jobs = plan(prompts, split)
    rows = score(chosen, tokenizer, jobs, out)
    write_file(out / "scores.json", json.dumps(rows, indent=1) + "\n")
    print(table(rows))
    print(f"wrote {out / 'scores.json'}")
    for name, lvm in chosen.items():
        mine = [r for r in rows if r["model"] == name]
        print(f"\n{scores_markdown(mine)}\n\n{settings_markdown(mine)}\n")
        with atomic(out / f"worst-{name}.png") as temporary:
            gallery(
                lvm, name, tokenizer, [Job(task, prompts=prompts, split=split) for task in tasks.TRAINED], out
            ).save(temporary, format="png")
        config = {
            "model": name,
            "weights": lvm.fingerprint(),
            "tokenizer": tokenizer.fingerprint,
            "prompts": prompts,
            "split": split,
            "answers": ANSWERS,
        }
        kept = runs.keep("evaluate", config, mine, time.perf_counter() - started)
        print(f"wrote {out / f'worst-{name}.png'} and the run {kept['name']}")


def train_tokenizer(
    folder: Folder,
    steps: int = 3600,
    pictures: int = 20000,
    preset: str = "mini",
    lr: float = 1e-3,
    start: Path | None = None,
) -> None:
    """Trains a tokenizer on mini-world's training sources; resumes from FOLDER. Export it with
    lvmlab.training.tokenizer.export_tokenizer.

    Args:
        folder: checkpoints, log and the rendered pictures go here.
        steps: of 64 pictures.
        pictures: how many are rendered once and drawn from.
        preset: the network's shape.
        lr: the highest learning rate.
        start: the folder of an earlier training to go on from.
    """
    from lvmlab.data.picture_pool import render_pool
    from lvmlab.training.loop import TrainConfig
    from lvmlab.training.tokenizer import train_tokenizer as fit

    counts = {"train": pictures, "val": max(200, pictures // 20)}
    pools = {
        split: render_pool(folder / f"pictures-{split}.npy", split, count) for split, count in counts.items()
    }
    fit(
        pools["train"],
        folder,
        preset=preset,
        config=TrainConfig(steps=steps, lr=lr, weight_decay=0.05),
        val_pool=pools["val"],
        start=start,
    )


def train(
    folder: Folder,
    shape: str | None = None,
    *,
    store: Path | None = None,
    tokenizer: str = "mini",
    schedule: Literal["lab", "delvm"] = "lab",
    steps: int = 6000,
    tokens: int = 4096,
    pairs: int | None = None,
    lr: float | None = None,
    groups: int = 1200,
    start: str | None = None,
    lora: int = 0,
    teacher: str | None = None,
    objective: str = "forward",
    temperature: float = 1.0,
    factored: bool = False,
    checkpointing: bool = False,
    compiled: bool = False,
    precision: str = "auto",
    accumulation: int = 1,
    tracker: str = "tensorboard",
) -> None:
    """Trains an LVM, alone or from a teacher; resumes from FOLDER; under `accelerate launch` on many devices.
    Export it with lvm_train.export_lvm.

    Args:
        folder: checkpoints, log and, without --store, mini-world's token store go here.
        shape: the LLaMA's shape: that of --start, else mini-student.
        store: a token store made by `lvmlab tokenize`; its tasks are drawn by the square root of their rows.
        tokenizer: of the store: a shipped name, a folder or a hub id.
        schedule: Muon with a short warm-up, or DeLVM's AdamW.
        steps: of the optimiser.
        tokens: a step, on all devices together.
        pairs: in a sentence; as many as the shape's context holds by default.
        lr: the highest learning rate; the schedule's own by default.
        groups: of mini-world's pairs, 16 each, tokenised for each task.
        start: what to go on from: the folder of an earlier training, or a pretrained model (a shipped name, a
            folder, a hub id), DeLVM's and LVM's
            among them.
        lora: rank of the adapters to train in the place of all weights; 0 for none. Extra: lora.
        teacher: a trained model to learn from: a shipped name, a folder or a hub id.
        objective: what to learn from it, see lvmlab.distillation.objectives.
        temperature: of the objective.
        factored: an embedding of two factors, as DeLVM's.
        checkpointing: work activations out again in the backward pass, to save memory.
        compiled: compile the layers first: faster after a minute, where there is a C++ compiler.
        precision: auto, fp32 or bf16.
        accumulation: parts of a step on each device.
        tracker: where the log goes besides.
    """
    from accelerate import PartialState

    from lvmlab.data.mini_world import World
    from lvmlab.data.mixture import Mixture
    from lvmlab.data.store import build
    from lvmlab.distillation.objectives import Objective
    from lvmlab.model.config import LVM_PRESETS
    from lvmlab.model.lvm import LVM
    from lvmlab.tokenizer.tokenizer import Tokenizer
    from lvmlab.training.loop import TrainConfig
    from lvmlab.training.lvm import LVMRecipe, load_start, train_lvm
    from lvmlab.utils.device import default_device
    from lvmlab.world import tasks

    shape = shape or (None if start else "mini-student")
    if shape is not None and shape not in LVM_PRESETS:
        raise ValueError(f"{shape!r} is no shape: choose from {', '.join(LVM_PRESETS)}")
    origin = load_start(start) if start else None
    state = PartialState(cpu=default_device().type == "cpu")
    speaker, master = Tokenizer.from_pretrained(tokenizer), LVM.from_pretrained(teacher) if teacher else None
    kept = {"precision": precision, "accumulation": accumulation, "tracker": tracker}
    own = {"lr": lr or 3e-3, "min_lr": (lr or 3e-3) / 30, "optimizer": "adamw" if lora else "muon"}
    config = (
        TrainConfig(steps=steps, **own, **kept)
        if schedule == "lab"
        else TrainConfig.delvm(steps, **({"lr": lr} if lr else {}), **kept)
    )
    most = (origin.max_seq_len if start else LVM_PRESETS[shape].max_seq_len) // (2 * speaker.tokens_per_image)
    recipe = LVMRecipe(
        tokens=tokens,
        phases=((0.6, min(4, most)), (1.0, most)) if pairs is None else ((1.0, pairs),),
        mixture=Mixture("balanced", temperature=2.0) if store else LVMRecipe.mixture,
    )
    if store is None:
        build(
            folder / "store",
            speaker,
            [World(task, groups) for task in tasks.TRAINED],
            rank=state.process_index,
            ranks=state.num_processes,
        )
        state.wait_for_everyone()
    train_lvm(
        store or folder / "store",
        folder,
        shape=shape,
        config=config,
        recipe=recipe,
        tokens_per_image=speaker.tokens_per_image,
        start=origin,
        lora=lora,
        codebook=None if start else speaker.net.quantize.table().cpu(),
        teacher=master,
        objective=Objective(objective, temperature=temperature)
        if master or objective == "smoothing"
        else None,
        factored=factored,
        checkpointing=checkpointing,
        compiled=compiled,
    )


def tokenize(
    folder: Folder,
    root: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="ROOT")]],
    reader: Literal[
        "pairs", "coco-pose", "sa1b", "rain13k", "gopro", "clips", "images", "pascal5i", "datasets"
    ] = "pairs",
    *,
    task: str | None = None,
    annotations: Path | None = None,
    split: str | None = None,
    fold: int = 0,
    tokenizer: str = "mini",
    copies: int = 0,
    tolerate: float = 0.01,
    parquet: Path | None = None,
    image: str = "image",
    label: str | None = None,
) -> None:
    """Tokenises a data set into the store FOLDER; goes on where it was stopped; under `accelerate launch`
    each process does its own parts.

    Args:
        folder: of the store.
        root: of the data set, in its own layout (see lvmlab.data.readers); with the reader datasets, what
            datasets.load_dataset takes.
        reader: which data set it is; pairs is any folder of paired images, datasets any data set with image
            columns.
        task: its name in the store; the reader's own by default.
        annotations: COCO's json.
        split: a name for it, and for images and pascal5i the part that is read.
        fold: of Pascal-5i, 0 to 3.
        tokenizer: a shipped name, a folder or a hub id.
        copies: augmented copies beside each row.
        tolerate: the share of broken members that is passed over.
        parquet: also write the store's parts as Parquet files to this folder.
        image: with the reader datasets, the column of pictures.
        label: and that of labels; without it the rows are single pictures.
    """
    from accelerate import PartialState

    from lvmlab.data import readers as ds
    from lvmlab.data.store import Store, build, export_parquet
    from lvmlab.tokenizer.tokenizer import Tokenizer
    from lvmlab.utils.device import default_device

    if reader == "coco-pose" and annotations is None:
        raise ValueError("coco-pose needs --annotations person_keypoints_....json")
    named = {"split": split} if split else {}
    found = {
        "pairs": lambda: ds.paired_folder(root, **named),
        "coco-pose": lambda: ds.coco_pose(root, annotations, **named),
        "sa1b": lambda: ds.sa1b(root, **named),
        "rain13k": lambda: ds.rain13k(root, **named),
        "gopro": lambda: ds.gopro(root, **named),
        "clips": lambda: ds.clips(root, **named),
        "images": lambda: ds.image_folder(root, **named),
        "pascal5i": lambda: ds.pascal5i(root, fold, **named),
        "datasets": lambda: ds.huggingface(ds.loaded(root, split or "train"), image, label, **named),
    }[reader]()
    found.task = task or found.task
    state, speaker = PartialState(cpu=default_device().type == "cpu"), Tokenizer.from_pretrained(tokenizer)
    build(
        folder,
        speaker,
        [found],
        copies=copies,
        tolerate=tolerate,
        rank=state.process_index,
        ranks=state.num_processes,
        progress=state.is_main_process,
    )
    print(f"process {state.process_index}: {found.report}")
    state.wait_for_everyone()
    if state.is_main_process:
        print(
            f"{folder} holds "
            + ", ".join(f"{count} rows of {name}" for name, count in Store(folder).counts().items())
        )
        if parquet:
            print(f"wrote {len(export_parquet(folder, parquet))} files to {parquet}")


def cost(
    shape: tyro.conf.Positional[str] = "300m",
    tokens: float = 1e9,
    device: str = "here",
    devices: int = 1,
    teacher: str | None = None,
    step: int = 4096,
    utilisation: float = 0.4,
) -> None:
    """Estimates a training's parameters, FLOPs, memory and hours.

    Args:
        shape: the LLaMA's shape.
        tokens: of the whole training.
        device: a GPU's name (see lvmlab.training.cost.PEAKS), or here: one layer and two are timed.
        devices: how many of them.
        teacher: a shape that reads every token too.
        step: tokens a step and device.
        utilisation: of the GPU's peak.
    """
    from lvmlab.training.cost import cost as estimate

    print(
        estimate(shape, tokens, device, devices=devices, teacher=teacher, step=step, utilisation=utilisation)
    )


def runs(
    action: tyro.conf.Positional[Literal["list", "show", "recompute", "promote", "prune"]] = "list",
    name: tyro.conf.Positional[str] = "",
) -> None:
    """Lists, shows, computes again, promotes to the shipped ones, or prunes stored runs.

    Args:
        action: what to do.
        name: of the run, for show, recompute and promote; an unambiguous beginning will do.
    """
    from lvmlab.lab import runs as store

    if action == "list":
        for row in store.listing():
            print(
                f"{row['name']:40} {row['where']:8} {row['seconds']:>9.1f} s  {row['bytes'] / 1024:7.1f} KiB "
                f" commit {row['commit']}"
            )
    elif action == "show":
        print(json.dumps(store.load(name), indent=1))
    elif action == "recompute":
        from lvmlab.lab import studies

        found = store.recompute(name, studies.of(store.load(name)["study"]).compute)
        print(
            f"computed {found['name']} in {found['seconds']:.0f} s; `runs promote {found['name']}` ships it"
        )
    elif action == "promote":
        print(f"wrote {store.promote(name)}")
    else:
        print(f"removed {len(store.prune())} runs from the cache")


def bench(names: tuple[str, ...] = ()) -> None:
    """Measures speeds against the named alternatives; prints a table and writes runs/bench.json (in a
    checkout).

    Args:
        names: entries to run; all by default.
    """
    folder = Path(__file__).resolve().parent.parent / "tests" / "benchmarks"
    if not (folder / "bench.py").is_file():
        raise ValueError(
            "the benchmarks are in a checkout's tests/benchmarks, which an installed wheel does not hold: "
            "clone the repository"
        )
    sys.path.insert(0, str(folder))
    import bench as entries

    entries.run(names or None)


def main() -> None:
    commands = {
        f.__name__.replace("_", "-"): f
        for f in (demo, prompt, evaluate, tokenize, train_tokenizer, train, cost, runs, bench)
    }
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands, prog="lvmlab", description="A workbench for autoregressive large vision models."
        )
    except (ValueError, FileNotFoundError, RuntimeError, ModuleNotFoundError) as error:
        sys.exit(f"lvmlab: {error}")


if __name__ == "__main__":
    main()
