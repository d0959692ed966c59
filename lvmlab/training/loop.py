"""One training loop on `accelerate`, for tokenizers and language models alike.

A batch is addressed by its step alone, and every checkpoint holds model, optimiser, step and random state. So
a training that was killed at any moment resumes to the same losses.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from tqdm.auto import tqdm

from lvmlab.training.checkpoints import LOG, TrainingError, records, resume, save, start_log
from lvmlab.training.interrupts import Interrupts
from lvmlab.training.meter import Meter
from lvmlab.training.muon import Muon
from lvmlab.utils.checks import check_fields
from lvmlab.utils.device import PRECISIONS, default_device, precision
from lvmlab.utils.locks import hold

OPTIMIZERS = ("adamw", "muon")
DECAYS = ("matrices", "all")
TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow", "aim", "none")
_FREE = ("save_every", "save_seconds", "log_every", "tracker")  # fields that do not change what is computed


@dataclass(frozen=True)
class TrainConfig:
    """How to optimise.

    Args:
        steps: Optimiser steps; `warmup`, `save_every` and `log_every` count them too.
        lr: The highest learning rate; it falls to `min_lr` by a cosine.
        decay: What `weight_decay` shrinks: "matrices" (with convolutions), or "all" as in DeLVM's release.
        clip: The largest norm of the gradient; 0 means none.
        accumulation: Parts of a step on each device.
        precision: "auto", "fp32" or "bf16".
        save_every: Steps between checkpoints; `save_seconds` is the longest time between them.
        optimizer: "adamw", or "muon" (`lvmlab.training.muon`) for the matrices that a model names by
            `hidden_matrices()` and AdamW for the rest. Muon's updates have AdamW's size, so one `lr` serves
            both.
        tracker: Where the log also goes, as accelerate names it. All but TensorBoard need a package of their
            own.
    """

    steps: int
    lr: float = 1e-3
    min_lr: float = 1e-5
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    decay: str = "matrices"
    clip: float = 1.0
    accumulation: int = 1
    precision: str = "auto"
    seed: int = 0
    save_every: int = 500
    save_seconds: float = 300.0
    log_every: int = 20
    optimizer: str = "adamw"
    tracker: str = "tensorboard"

    @classmethod
    def delvm(cls, steps: int = 40_000, **changed) -> "TrainConfig":
        """As DeLVM's released configuration trains: AdamW on everything, a cosine from 1.5e-4 to its tenth, a
        warm-up of 0.56 % of the steps.
        """
        paper = {
            "lr": 1.5e-4,
            "min_lr": 1.5e-5,
            "warmup": round(0.0056 * steps),
            "betas": (0.9, 0.95),
            "weight_decay": 0.1,
            "decay": "all",
        }
        return cls(steps=steps, **{**paper, "clip": 1.0, **changed})

    def __post_init__(self):
        object.__setattr__(self, "betas", tuple(self.betas))
        check_fields(
            self,
            steps=(self.steps >= 1, "at least 1"),
            lr=(self.lr > 0, "more than 0"),
            min_lr=(0 <= self.min_lr <= self.lr, f"from 0 to lr={self.lr}"),
            warmup=(self.warmup >= 0, "0 or more"),
            weight_decay=(self.weight_decay >= 0, "0 or more"),
            clip=(self.clip >= 0, "0 (no clipping) or more"),
            betas=(len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "two numbers in [0, 1)"),
            accumulation=(self.accumulation >= 1, "at least 1"),
            precision=(self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
            save_every=(self.save_every >= 1, "at least 1"),
            save_seconds=(self.save_seconds > 0, "more than 0"),
            log_every=(self.log_every >= 1, "at least 1"),
            optimizer=(self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
            decay=(self.decay in DECAYS, f"one of {', '.join(DECAYS)}"),
            tracker=(self.tracker in TRACKERS, f"one of {', '.join(TRACKERS)}"),
        )

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then a cosine from `lr` to `min_lr`."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def train(
    model: nn.Module,
    batches: Callable[[int, int, int], Any],
    loss: Callable[[nn.Module, Any], tuple[Tensor, dict[str, float]]],
    config: TrainConfig,
    folder: str | Path,
    on_log: Callable[[dict], bool | None] | None = None,
    *,
    identity: dict | None = None,
    batch_sources: Callable[[Any], str] = lambda batch: "",
    budget_s: float | None = None,
    progress: bool = True,
) -> list[dict]:
    """Trains a model in place; resumes from the folder's checkpoint.

    Ctrl-C and SIGTERM end it after a step and its checkpoint. Precision is resolved before a checkpoint is
    compared: fp32 and bf16 give different losses, so neither resumes the other.

    Args:
        model: Of any kind; accelerate wraps it for several devices.
        batches: (step, part, parts) to one of the ``parts`` of a step's batch (accumulation x devices), a
            function of these alone. A thread calls it, one batch ahead. The same parts on one device by
            accumulation or on several devices give the same losses.
        loss: (model, batch) to (scalar, metrics). The metric "items" counts pictures or tokens and gives
            items a second.
        config: How to optimise.
        folder: Of checkpoint and log. One launch at a time writes there.
        on_log: Is called with each record before it is written. It may add fields (an evaluation) and must
            not draw from the global random state. A true answer stops the training, with a checkpoint.
        identity: What else decides the outcome (recipe, data).
        batch_sources: What a batch was made of, for the error about a loss that is not finite.
        budget_s: Stop, with a checkpoint, after so many seconds of this call.
        progress: Show a bar.

    Returns:
        The log: a record each `log_every` steps.

    Raises:
        TrainingError: The checkpoint is damaged or of another identity, or the loss is not finite.
        FolderInUse: Another launch trains in the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    bf16 = precision(config.precision) == "bf16"
    tracker = None if config.tracker == "none" else config.tracker
    # autocast is ours: an Accelerator fixes one precision for the process and leaves forward wrapped
    accelerator = Accelerator(
        mixed_precision="no", cpu=default_device().type == "cpu", log_with=tracker, project_dir=folder
    )
    with contextlib.ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(hold(folder))

        # model, optimisers, and the step to continue with
        set_seed(config.seed, device_specific=False)
        optimizers = make_optimizers(
            model, config, fused=accelerator.device.type in ("cuda", "cpu", "mps"), bf16=bf16
        )
        identity = _identity(config, bf16, identity, model)
        wrapped, *optimizers = accelerator.prepare(model, *optimizers)
        first = resume(folder, model, optimizers, identity)
        log = records(folder, before=first)
        if first >= config.steps:
            return log
        if accelerator.is_main_process:
            start_log(folder, log)

        accelerator.init_trackers("tracked")
        wrapped.train()
        meter = Meter(log)
        shown = progress and accelerator.is_main_process
        bar = stack.enter_context(tqdm(total=config.steps, initial=first, disable=not shown, mininterval=1.0))
        interrupts = stack.enter_context(Interrupts())
        feed = stack.enter_context(contextlib.closing(_ahead(batches, first, config, accelerator)))
        for step in range(first, config.steps):
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = config.lr_at(step) * group.get("lr_scale", 1.0)
            metrics = _forward_backward(wrapped, feed, loss, config, accelerator, bf16)
            if not math.isfinite(metrics["loss"]):
                raise _diverged(metrics, step, config, folder, batch_sources)
            metrics, ends = _agreed(
                accelerator, metrics, meter.ends(budget_s, config.save_seconds, interrupts.signal)
            )
            if config.clip:
                metrics["norm"] = float(accelerator.clip_grad_norm_(wrapped.parameters(), config.clip))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            # what is written: a record, a checkpoint
            meter.add(metrics["loss"], metrics.pop("items", 0) * accelerator.num_processes)
            bar.update()
            final = step + 1 == config.steps or ends["budget"] or ends["signal"]
            if step % config.log_every == 0 or final:
                record = meter.record(step, metrics, config.lr_at(step), accelerator.device)
                final = bool(on_log and on_log(record)) or final
                log.append(record)
                _write(record, folder, accelerator)
                bar.set_postfix(loss=f"{record['mean_loss']:.4f}", refresh=False)
                meter.restart()
            if (step + 1) % config.save_every == 0 or final or ends["saving"]:
                save(folder, model, optimizers, step + 1, identity, write=accelerator.is_main_process)
                accelerator.wait_for_everyone()
                meter.saved = time.perf_counter()
            if final:
                break
        accelerator.end_training()
    if ends["signal"]:
        interrupts.end(ends["signal"], step + 1, folder)
    return log


def _identity(config: TrainConfig, bf16: bool, more: dict | None, model: nn.Module) -> dict:
    """All that decides the outcome, as plain JSON."""
    decisive = {k: v for k, v in asdict(config).items() if k not in _FREE}
    decisive |= {"precision": "bf16" if bf16 else "fp32", "more": more or {}}
    return json.loads(json.dumps(decisive | {"parameters": sum(p.numel() for p in model.parameters())}))


def _ahead(batches: Callable, first: int, config: TrainConfig, accelerator: Accelerator) -> Iterator[Any]:
    """The batches of this process from a step on; a thread draws the next one meanwhile."""
    workers, rank = accelerator.num_processes, accelerator.process_index
    places = (
        (step, micro * workers + rank, config.accumulation * workers)
        for step in range(first, config.steps)
        for micro in range(config.accumulation)
    )
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(batches, *next(places))
        for place in places:
            batch = coming.result()
            coming = pool.submit(batches, *place)
            yield _to(batch, accelerator.device)
        yield _to(coming.result(), accelerator.device)


def _forward_backward(
    model: nn.Module,
    feed: Iterator[Any],
    loss: Callable,
    config: TrainConfig,
    accelerator: Accelerator,
    bf16: bool,
) -> dict[str, Any]:
    """Gradients of one step; returns its metrics, the mean over its parts ("items": the sum).

    Where the loss of a part is not finite it stops there, with that part under "batch".
    """
    metrics: dict[str, Any] = {}
    for micro in range(config.accumulation):
        batch = next(feed)
        last = micro == config.accumulation - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=bf16):
                value, parts = loss(model, batch)
            accelerator.backward(value / config.accumulation)
        parts = {"loss": value.item(), **parts}
        if not math.isfinite(parts["loss"]):
            return parts | {"batch": batch}
        for name, part in parts.items():
            share = 1 if name == "items" else 1 / config.accumulation
            metrics[name] = metrics.get(name, 0.0) + float(part) * share
    return metrics


def _diverged(
    metrics: dict, step: int, config: TrainConfig, folder: Path, batch_sources: Callable[[Any], str]
) -> TrainingError:
    sources = batch_sources(metrics["batch"])
    return TrainingError(
        f"the loss is {metrics['loss']} at step {step}{f' (batch of {sources})' if sources else ''}: lower "
        f"lr (now "
        f"{config.lr}) or clip (now {config.clip}), raise warmup (now {config.warmup}), or train in fp32; "
        f"the last "
        f"checkpoint in {folder} is sound"
    )


def _agreed(
    accelerator: Accelerator, metrics: dict[str, float], ends: dict[str, int]
) -> tuple[dict[str, float], dict[str, int]]:
    """Metrics averaged over the processes, and what any of them wants to end."""
    if accelerator.num_processes == 1:
        return metrics, ends
    mine = torch.tensor([*metrics.values()], device=accelerator.device)
    wishes = accelerator.gather(torch.tensor([[*ends.values()]], device=accelerator.device))
    metrics = dict(zip(metrics, accelerator.reduce(mine, "mean").tolist(), strict=True))
    return metrics, dict(zip(ends, wishes.amax(0).tolist(), strict=True))


def _write(record: dict, folder: Path, accelerator: Accelerator) -> None:
    if accelerator.is_main_process:
        with open(folder / LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    numbers = {k: v for k, v in record.items() if isinstance(v, float)}
    accelerator.log(numbers, step=record["step"])


def make_optimizers(
    model: nn.Module, config: TrainConfig, fused: bool, bf16: bool
) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the hidden matrices where the configuration asks for it."""
    hidden = []
    if config.optimizer == "muon":
        if not hasattr(model, "hidden_matrices"):
            raise ValueError(
                f"{type(model).__name__} names no hidden_matrices() for Muon: train it with optimizer='adamw'"
            )
        hidden = [p for p in model.hidden_matrices() if p.requires_grad]
    chosen = {id(p) for p in hidden}
    trained = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {
            "params": [p for p in trained if p.ndim < 2],
            "weight_decay": config.weight_decay if config.decay == "all" else 0.0,
        },
    ]
    groups = model.param_groups(config) if hasattr(model, "param_groups") else groups
    adamw = torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=fused
    )
    dtype = torch.bfloat16 if bf16 else torch.float32
    return [
        adamw,
        *([Muon(hidden, lr=config.lr, weight_decay=config.weight_decay, dtype=dtype)] if hidden else []),
    ]


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {k: _to(v, device) for k, v in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(_to(v, device) for v in batch)
    return batch
