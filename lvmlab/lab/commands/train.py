"""Training: `lvmlab train`, `train-tokenizer`, `train-aim`, `export` and `cost`."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from lvmlab.lab.commands.checks import check_folder, check_model, is_training
from lvmlab.lab.commands.choices import GPU, AIMPreset, Divergence, ModelPreset, Precision, TokenizerPreset

Folder = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FOLDER")]]


def train(
    folder: Folder,
    shape: ModelPreset | None = None,
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
    divergence: Divergence = "forward",
    temperature: float = 1.0,
    on_policy: float = 0.0,
    label_smoothing: float = 0.0,
    factored: bool = False,
    checkpointing: bool = False,
    compiled: bool = False,
    precision: Precision = "auto",
    accumulation: int = 1,
    tracker: str = "tensorboard",
) -> None:
    """Train an LVM, alone or from a teacher. Resumes from FOLDER after an interruption.

    Runs on many devices under `accelerate launch -m lvmlab train ...`.

    Args:
        folder: Checkpoints, the log and, without --store, mini-world's token store.
        shape: The size of a new model. The default is that of --start, else mini-student.
        store: A token store made by `lvmlab tokenize`. Without it the model learns mini-world.
        tokenizer: The store's tokenizer: a shipped one, a folder or a hub id.
        schedule: lab is Muon with a short warm-up, delvm is DeLVM's AdamW.
        steps: Optimiser steps.
        tokens: Tokens a step, on all devices together.
        pairs: Pairs in a sentence. The default is as many as the model and the store allow.
        lr: The highest learning rate. The default is the schedule's own.
        groups: How many groups of 16 pairs of each mini-world task are tokenised.
        start: Trained weights to start from: a training folder, an export, a shipped model or a hub id. With
            --store, and neither --shape nor --teacher, the default is mini-student.
        lora: The rank of adapters to train instead of all weights; 0 for none. Extra: lora.
        teacher: A trained model to learn from: a shipped one, a folder or a hub id.
        divergence: What to learn from the teacher.
        temperature: The temperature of the divergence.
        on_policy: The share of sentences whose last answer the student writes itself. Needs --teacher.
        label_smoothing: The share of the targets that is spread over all codes.
        factored: Use DeLVM's embedding of two factors.
        checkpointing: Recompute activations in the backward pass to save memory.
        compiled: Compile the layers first. Needs a C++ compiler.
        precision: auto takes bf16 where it is measured to be faster.
        accumulation: Parts of a step on each device.
        tracker: Where the log also goes: a tracker of accelerate, or none.
    """
    if store is None and shape is None and start is None:
        shape = "mini-student"
    if store is not None:
        check_folder(store)
        if not (shape or start or teacher) and tokenizer == "mini":
            start = "mini-student"
            print("starting from mini-student; --shape starts from fresh weights")
    for name in filter(None, (start, teacher, tokenizer)):
        check_model(name)

    from accelerate import PartialState

    from lvmlab.data.mixture import Mixture
    from lvmlab.data.store import Store
    from lvmlab.distillation.objectives import Distillation
    from lvmlab.model.lvm import LVM
    from lvmlab.tokenizer.tokenizer import Tokenizer
    from lvmlab.training.lvm import train_lvm
    from lvmlab.training.preparation import (
        add_adapters,
        checkpoint_activations,
        compile_layers,
        load_start,
        new_lvm,
        sentence_seed,
    )
    from lvmlab.training.recipe import LVMRecipe
    from lvmlab.training.sampler import SentenceSampler
    from lvmlab.utils.device import default_device

    config = _config(schedule, steps, lr, lora, precision, accumulation, tracker)
    state = PartialState(cpu=default_device().type == "cpu")

    # model
    tok = Tokenizer.from_pretrained(tokenizer)
    origin = load_start(start) if start else None
    lvm = origin or new_lvm(shape or "mini-student", tok, seed=config.seed, factored=factored)
    teacher_lvm = LVM.from_pretrained(teacher) if teacher else None
    if store is None:
        for model in filter(None, (origin, teacher_lvm)):
            model.check_fits(tok)
    if factored and start:
        raise ValueError("--factored starts from a codebook, at the first stage: leave --start out")
    if lora:
        add_adapters(lvm, lora, seed=config.seed)
    if checkpointing:
        checkpoint_activations(lvm)
    if compiled:
        compile_layers(lvm)

    # sentences
    if store is None:
        mixture = _tokenise_mini_world(folder / "store", tok, groups, state)
    else:
        mixture = Mixture("mixture", temperature=2.0)
    store = store or folder / "store"
    data = Store(store, copies=mixture.most_copies)
    most, available = lvm.max_seq_len // (2 * data.tokens_per_image), data.max_pairs()
    if available < most and pairs is None and state.is_main_process:
        print(f"sentences have {available} pairs: the smallest group of the store has no more")
    most = min(most, available)
    phases = ((0.6, min(4, most)), (1.0, most)) if pairs is None else ((1.0, pairs),)
    recipe = LVMRecipe(tokens=tokens, phases=phases, mixture=mixture, on_policy=on_policy)
    sampler = SentenceSampler(store, recipe, steps=steps, seed=sentence_seed(lvm, config.seed))

    # loss
    distillation = None
    if teacher or label_smoothing:
        distillation = Distillation(
            divergence if teacher else None,
            temperature=temperature if teacher else 1.0,
            label_smoothing=label_smoothing,
        )
    log = train_lvm(lvm, sampler, folder, config, distillation, teacher=teacher_lvm)
    if state.is_main_process:
        print(f"trained {folder}: {log[-1]['step'] + 1} steps, the last loss is {log[-1]['loss']:.3f} nats")
        print(f"next: lvmlab prompt a.png a-label.png --query b.png --model {folder}")


def _tokenise_mini_world(folder: Path, tokenizer, groups: int, state):
    """mini-world's trained tasks as a store in `folder`, and the mixture in which they are drawn."""
    from lvmlab.data.building import build
    from lvmlab.data.mini_world import World
    from lvmlab.data.mixture import Mixture
    from lvmlab.training.recipe import SHARES_OF
    from lvmlab.world import of_size

    laws = of_size(tokenizer.size)
    worlds = [World(task, groups, laws=laws) for task in laws.trained]
    build(folder, tokenizer, worlds, rank=state.process_index, ranks=state.num_processes)
    state.wait_for_everyone()
    return Mixture("balanced", weights=SHARES_OF[laws.version])


def _config(
    schedule: str,
    steps: int,
    lr: float | None,
    lora: int,
    precision: str,
    accumulation: int,
    tracker: str,
):
    """The optimiser's configuration of a schedule."""
    from lvmlab.training.loop import TrainConfig

    shared = {"precision": precision, "accumulation": accumulation, "tracker": tracker}
    if schedule == "delvm":
        return TrainConfig.delvm(steps, **({"lr": lr} if lr else {}), **shared)
    lr = lr or 3e-3
    return TrainConfig(steps=steps, lr=lr, min_lr=lr / 30, optimizer="adamw" if lora else "muon", **shared)


def train_tokenizer(
    folder: Folder,
    steps: int | None = None,
    pictures: int | None = None,
    preset: TokenizerPreset = "mini",
    lr: float | None = None,
    start: Path | None = None,
    *,
    without: tuple[Literal["pose", "derain"], ...] = (),
    minutes: float | None = None,
) -> None:
    """Train a tokenizer on mini-world's training sources. Resumes from FOLDER after an interruption.

    Args:
        folder: Checkpoints, the log and the rendered pictures.
        steps: Optimiser steps, of 64 pictures; for mini-v2 those of its second of three stages, of 32
            pictures.
        pictures: How many pictures are rendered once and drawn from.
        preset: The size of the network.
        lr: The highest learning rate.
        start: The folder of an earlier training to start from; not for mini-v2.
        without: For mini-v2: tasks whose labels it shall not see.
        minutes: For mini-v2: stop with a checkpoint after so many.
    """
    if start is not None:
        check_folder(start)

    from lvmlab.tokenizer.vitvq import VITVQ_PRESETS

    given = {k: v for k, v in {"steps": steps, "pictures": pictures, "lr": lr}.items() if v is not None}
    if preset in VITVQ_PRESETS:
        if start is not None:
            raise ValueError(f"--start is not for {preset}: its stages start from one another")
        log = _train_vitvq(folder, preset, without, minutes, **given)
    elif without or minutes is not None:
        raise ValueError(
            f"--without and --minutes are for {', '.join(VITVQ_PRESETS)}: leave them out for {preset}"
        )
    else:
        log = _train_vqgan(folder, preset, start, **given)
    print(f"trained {folder}: {log[-1]['step'] + 1} steps")
    print(f"next: lvmlab export {folder} {folder.with_name(folder.name + '-export')}")


def _train_vqgan(
    folder: Path, preset: str, start: Path | None, steps=3600, pictures=20_000, lr=1e-3
) -> list[dict]:
    from lvmlab.data.picture_pool import render_pool
    from lvmlab.tokenizer.tokenizer import preset as shape_of
    from lvmlab.training.loop import TrainConfig
    from lvmlab.training.tokenizer import train_tokenizer as fit
    from lvmlab.world import of_size

    laws = of_size(shape_of(preset).resolution)
    counts = {"train": pictures, "val": max(200, pictures // 20)}
    pools = {
        split: render_pool(folder / f"pictures-{split}.npy", split, count, laws=laws)
        for split, count in counts.items()
    }
    config = TrainConfig(steps=steps, lr=lr, weight_decay=0.05)
    return fit(pools["train"], folder, preset=preset, config=config, val_pool=pools["val"], start=start)


def _train_vitvq(
    folder: Path,
    preset: str,
    without: tuple[str, ...],
    minutes: float | None,
    steps=None,
    pictures=None,
    lr=None,
) -> list[dict]:
    from dataclasses import replace

    from lvmlab.data.truths import Plan, open_pool
    from lvmlab.tokenizer.vitvq import VITVQ_PRESETS
    from lvmlab.training.vitvq import Recipe, train_stages

    recipe = Recipe().without(*without)
    if steps is not None:  # the other stages keep their share
        share = {stage: getattr(recipe, stage) / recipe.codes for stage in ("continuous", "codes", "decoder")}
        recipe = replace(recipe, **{stage: max(1, round(steps * s)) for stage, s in share.items()})
    recipe = replace(recipe, lr=lr or recipe.lr)
    count = pictures or Plan().pictures
    laws = replace(Plan().laws, size=VITVQ_PRESETS[preset].resolution)
    plans = {
        s: Plan(split=s, pictures=n, laws=laws) for s, n in (("train", count), ("val", max(400, count // 20)))
    }
    pools = {split: open_pool(folder / f"pool-{split}", plan) for split, plan in plans.items()}
    budget = None if minutes is None else 60 * minutes
    return train_stages(folder, pools["train"], pools["val"], preset, recipe, budget_s=budget)


def train_aim(
    folder: Folder,
    data: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DATA")]],
    start: Path | None = None,
    shape: AIMPreset = "aim-mini",
    batch: int = 64,
    steps: int = 1000,
    lr: float = 1e-3,
    accumulation: int = 1,
    seed: int = 0,
) -> None:
    """Pre-train AIM on pictures, or fine-tune it to classes with --start. Resumes from FOLDER.

    Args:
        folder: Checkpoints and the log.
        data: objects (mini-world's), fashion (Debian's dataset-fashion-mnist), a folder that holds
            train/CLASS/*, or what datasets.load_dataset takes.
        start: The pre-training to fine-tune: its folder, or AIM's release.
        shape: The size of a new model.
        batch: Pictures a step, on all devices together.
        steps: Optimiser steps.
        lr: The highest learning rate.
        accumulation: Parts of a step on each device.
        seed: The seed of weights and pictures.
    """
    if start is not None:
        check_model(start)

    from lvmlab.data import labelled
    from lvmlab.model.aim import AIM_PRESETS
    from lvmlab.training import aim
    from lvmlab.training.loop import TrainConfig

    config = TrainConfig(
        steps=steps,
        lr=lr,
        min_lr=lr / 100,
        warmup=steps // 20,
        weight_decay=0.05,
        accumulation=accumulation,
        seed=seed,
    )
    if start:
        model = aim.load_patchlm(start)
        pictures = labelled.find(data, "train", model.shape.size)
        aim.finetune(model, pictures, folder, config=config, batch=batch)
        print(f"fine-tuned {folder}: lvmlab.training.aim.load_classifier reads it")
    else:
        pictures = labelled.find(data, "train", AIM_PRESETS[shape].size)
        aim.pretrain(pictures, folder, shape=shape, config=config, batch=batch)
        print(f"pre-trained {folder}\nnext: lvmlab train-aim {folder}-tuned {data} --start {folder}")


def export(folder: Folder, out: tyro.conf.Positional[Path | None] = None) -> None:
    """Write the newest checkpoint of a training as a folder that plain `transformers` loads.

    Args:
        folder: The training of an LVM or of a tokenizer.
        out: The folder to write. The default is FOLDER-export.
    """
    check_folder(folder)
    out = out or folder.with_name(f"{folder.name}-export")
    if (folder / "codes").is_dir():  # the second of the stages in which mini-v2 is trained
        from lvmlab.data.truths import TruthPool
        from lvmlab.training.vitvq_export import export_vitvq

        tokenizer = export_vitvq(folder, out, TruthPool(folder / "pool-val"))
        print(f"wrote {out}: a tokenizer of {tokenizer.codebook_size} codes")
        print(f"next: lvmlab perception {out}")
        return
    if not is_training(folder):
        raise FileNotFoundError(f"{folder} holds no checkpoint: train it first with `lvmlab train {folder}`")

    from lvmlab.training.checkpoints import load_checkpoint
    from lvmlab.training.export import export_lvm
    from lvmlab.training.tokenizer_export import export_tokenizer

    more = load_checkpoint(folder)["identity"]["more"]
    if "network" in more:  # only a tokenizer's training records one
        tokenizer = export_tokenizer(folder, out)
        print(f"wrote {out}: a tokenizer of {tokenizer.codebook_size} codes")
        print(f"next: lvmlab tokenize STORE FOLDER --tokenizer {out}")
    else:
        lvm = export_lvm(folder, out)
        print(f"wrote {out}: an LVM of {lvm.num_parameters / 1e6:.2f} million parameters")
        print(f"next: transformers.LlamaForCausalLM.from_pretrained({str(out)!r})")


def cost(
    shape: tyro.conf.Positional[ModelPreset | AIMPreset] = "300m",
    tokens: float = 1e9,
    device: GPU = "here",
    devices: int = 1,
    teacher: ModelPreset | None = None,
    step: int = 4096,
    utilisation: float = 0.4,
) -> None:
    """Estimate a training's parameters, FLOPs, memory and hours.

    Args:
        shape: The size of the model.
        tokens: Tokens of the complete training.
        device: A GPU. here times one layer and two on this machine.
        devices: How many of them.
        teacher: The size of a teacher that reads every token too.
        step: Tokens a step and device.
        utilisation: The share of the GPU's peak that is reached.
    """
    from lvmlab.training import cost as costs

    print(
        costs.cost(
            shape, tokens, device, devices=devices, teacher=teacher, step=step, utilisation=utilisation
        )
    )
