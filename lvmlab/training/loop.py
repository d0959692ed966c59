"""One training loop on `accelerate`, for tokenizers and language models alike.

A sample is addressed by its step alone, and every checkpoint holds model, optimiser, step and random state,
so that a
training killed at any moment and started again on the same folder goes on to the same losses.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from tqdm.auto import tqdm

from lvmlab.training.muon import Muon
from lvmlab.utils.checks import check_fields
from lvmlab.utils.device import PRECISIONS, default_device, describe, precision
from lvmlab.utils.files import atomic, write_file

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
OPTIMIZERS = ("adamw", "muon")
DECAYS = ("matrices", "all")
TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow", "aim", "none")
_FREE = ("save_every", "log_every", "tracker")  # fields that do not change what is computed


class TrainingError(RuntimeError):
    """A training that cannot start or go on, with the reason and the remedy."""


@dataclass(frozen=True)
class TrainConfig:
    """How to optimise. `steps`, `warmup`, `save_every` and `log_every` count optimiser steps; `clip` 0 means
    none.

    optimizer: "adamw", or "muon" (`lvmlab.training.muon`) for the matrices a model names by
        `hidden_matrices()` and AdamW for the
    rest; its updates are scaled to AdamW's size, so that one `lr` serves both.
    decay: what weight_decay shrinks, matrices and convolutions only, or "all" as in DeLVM's release. tracker:
        where the log also goes,
    as accelerate names it; all but TensorBoard want a package of their own.
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
    on_log: Callable[[dict], None] | None = None,
    *,
    identity: dict | None = None,
    batch_sources: Callable[[Any], str] = lambda batch: "",
    budget_s: float | None = None,
    progress: bool = True,
) -> list[dict]:
    """Trains `model` in place and returns the log; resumes from `folder` where a checkpoint lies there.

    batches: (step, part, parts) -> one of the ``parts`` of a step's batch (accumulation x devices), a
        function of these alone; it is
        called in a thread, one batch ahead. The same parts on one device by accumulation or on several give
        the same losses.
    loss: (model, batch) -> (scalar, metrics). A metric named "items" counts pictures or tokens and gives
        items a second.
    on_log: called with each record before it is written; it may add fields (an evaluation) and must not draw
        from the
        global random state.
    identity: whatever else decides the outcome (recipe, data); a checkpoint of another identity or
        configuration is refused.
    budget_s: stop, with a checkpoint, after so many seconds of this call; no part of the state.
    batch_sources: what an error about a batch whose loss is not finite says of it, its sources say.
    Precision is resolved before the checkpoint is compared: fp32 and bf16 give different losses, so neither
        resumes the other.
    Raises TrainingError for a checkpoint that does not fit or cannot be read, and for a loss that is not
    finite.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    bf16 = precision(config.precision) == "bf16"
    # autocast is ours: an Accelerator fixes one precision for the whole process and leaves the model's
    # forward wrapped
    tracker = None if config.tracker == "none" else config.tracker
    accelerator = Accelerator(
        mixed_precision="no", cpu=default_device().type == "cpu", log_with=tracker, project_dir=folder
    )
    set_seed(config.seed, device_specific=False)
    optimizers = _optimizers(
        model, config, fused=accelerator.device.type in ("cuda", "cpu", "mps"), bf16=bf16
    )
    identity = json.loads(
        json.dumps(
            {
                **_decisive(config),
                "precision": "bf16" if bf16 else "fp32",
                "more": identity or {},
                "parameters": sum(p.numel() for p in model.parameters()),
            }
        )
    )
    inner = model
    model, *optimizers = accelerator.prepare(model, *optimizers)
    first = resume(folder, inner, optimizers, identity)
    log = _read_log(folder / LOG, before=first)
    if first >= config.steps:
        return log
    if accelerator.is_main_process:
        _start_log(folder, log)

    accelerator.init_trackers("tracked")
    model.train()
    workers, rank = accelerator.num_processes, accelerator.process_index
    started, items, seconds_before = time.perf_counter(), 0, log[-1]["seconds"] if log else 0.0
    bar = tqdm(
        total=config.steps,
        initial=first,
        disable=not (progress and accelerator.is_main_process),
        mininterval=1.0,
    )

    def coming(step: int, micro: int):
        return pool.submit(batches, step, micro * workers + rank, config.accumulation * workers)

    with ThreadPoolExecutor(1) as pool, bar:
        ahead = coming(first, 0)
        mark, mark_items, recent = started, 0, []
        for step in range(first, config.steps):
            lr = config.lr_at(step)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = lr * group.get("lr_scale", 1.0)
            metrics: dict[str, float] = {}
            for micro in range(config.accumulation):
                batch = _to(ahead.result(), accelerator.device)
                last = micro == config.accumulation - 1
                ahead = coming(step + 1, 0) if last else coming(step, micro + 1)
                with contextlib.nullcontext() if last else accelerator.no_sync(model):
                    with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=bf16):
                        value, parts = loss(model, batch)
                    accelerator.backward(value / config.accumulation)
                parts = {"loss": value.item(), **parts}
                if not math.isfinite(parts["loss"]):
                    raise TrainingError(
                        f"the loss is {parts['loss']} at step {step}{_of(batch_sources(batch))}: lower lr (now "
                        f"{config.lr}) or clip "
                        f"(now {config.clip}), raise warmup (now {config.warmup}), or train in fp32; the "
                        f"last checkpoint in "
                        f"{folder} is sound"
                    )
                for name, v in parts.items():
                    share = 1 if name == "items" else 1 / config.accumulation
                    metrics[name] = metrics.get(name, 0.0) + float(v) * share
            if workers > 1:  # what is logged is of the whole batch
                whole = accelerator.reduce(
                    torch.tensor([*metrics.values()], device=accelerator.device), "mean"
                )
                metrics = dict(zip(metrics, whole.tolist(), strict=True))
            if config.clip:
                metrics["norm"] = float(accelerator.clip_grad_norm_(model.parameters(), config.clip))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            recent.append(metrics["loss"])
            items += int(metrics.pop("items", 0)) * workers
            now = time.perf_counter()
            spent, final = budget_s is not None and now - started > budget_s, step + 1 == config.steps
            bar.update()
            if step % config.log_every == 0 or final or spent:
                rate = (items - mark_items) / max(now - mark, 1e-9)
                metrics["mean_loss"] = sum(recent) / len(
                    recent
                )  # of the steps since the last record: one batch's says little
                record = {
                    "step": step,
                    **{k: round(v, 6) for k, v in metrics.items()},
                    "lr": lr,
                    "items_per_second": round(rate, 1),
                    "seconds": round(seconds_before + now - started, 1),
                }
                if mark == started:  # the first record of this call
                    record["device"] = describe(accelerator.device)
                if on_log:
                    on_log(record)
                log.append(record)
                if accelerator.is_main_process:
                    with open(folder / LOG, "a") as f:
                        f.write(json.dumps(record) + "\n")
                accelerator.log({k: v for k, v in record.items() if isinstance(v, float)}, step=step)
                bar.set_postfix(loss=f"{metrics['mean_loss']:.4f}", rate=f"{rate:,.0f}/s", refresh=False)
                mark, mark_items, recent = time.perf_counter(), items, []
            if (step + 1) % config.save_every == 0 or final or spent:
                save(folder, inner, optimizers, step + 1, identity, write=accelerator.is_main_process)
                accelerator.wait_for_everyone()
            if spent:
                break
    accelerator.end_training()
    return log


def load_checkpoint(folder: str | Path) -> dict[str, Any]:
    """The latest checkpoint of a training: "model" (a state dict), "step", "identity" (the configuration),
    ...

    Executes no code from the file. Raises TrainingError where there is none or it is damaged.
    """
    state = _read(Path(folder) / CHECKPOINT)
    return {**state, "identity": json.loads(state["identity"])}


def read_log(folder: str | Path) -> list[dict]:
    """The records of a training's log up to its latest checkpoint."""
    return _read_log(Path(folder) / LOG, before=load_checkpoint(folder)["step"])


def _optimizers(
    model: nn.Module, config: TrainConfig, fused: bool, bf16: bool
) -> list[torch.optim.Optimizer]:
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


def _start_log(folder: Path, log: list[dict]) -> None:
    """Without what was logged after the checkpoint, and without what a kill left of one half written."""
    for stale in folder.glob(f".{CHECKPOINT}.*"):
        stale.unlink()
    write_file(folder / LOG, "".join(json.dumps(r) + "\n" for r in log))


def _of(what: str) -> str:
    return f" (batch of {what})" if what else ""


def _decisive(config: TrainConfig) -> dict:
    return {k: v for k, v in asdict(config).items() if k not in _FREE}


def save(
    folder: Path, model: nn.Module, optimizers: list, step: int, identity: dict, write: bool = True
) -> None:
    """Writes a checkpoint, whole or not at all; every process calls it, for a sharded model is gathered, and
    one writes.
    """
    weights, moments = get_state_dict(
        model, _plain(optimizers), options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if not write:
        return
    random = {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    state = {
        "model": weights,
        "optimizer": moments,
        "step": step,
        "random": random,
        "identity": json.dumps(identity),
    }
    try:
        with atomic(folder / CHECKPOINT) as temporary:
            torch.save(state, temporary)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        before = "the one of before is sound" if (folder / CHECKPOINT).exists() else "there is none of before"
        raise TrainingError(
            f"the checkpoint of step {step} cannot be written to {folder} ({error}): make room there, or "
            f"make it writable, and start "
            f"again; {before}"
        ) from error


def _read(path: Path) -> dict:
    if not path.is_file():
        raise TrainingError(f"{path} is missing: train first, or give the folder of a training")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state.keys() != {"model", "optimizer", "step", "random", "identity"}:
            raise ValueError("other keys")
        return state
    except Exception as error:
        raise TrainingError(
            f"{path} cannot be read ({type(error).__name__}): it is damaged or no checkpoint of this loop; "
            "move it away to start afresh"
        ) from error


def resume(folder: Path, model: nn.Module, optimizers: list, identity: dict) -> int:
    """Puts the folder's checkpoint into model and optimisers and returns the step to go on with; 0 where
    there is none. Raises TrainingError.
    """
    if not (folder / CHECKPOINT).exists():
        return 0
    state = load_checkpoint(folder)
    theirs = state["identity"]
    differ = [
        f"{k}: {theirs.get(k)!r} there, {identity.get(k)!r} here"
        for k in sorted(theirs | identity)
        if theirs.get(k) != identity.get(k)
    ]
    if differ:
        raise TrainingError(
            f"{folder} holds a training of another configuration ({'; '.join(differ)}): "
            "choose another folder or the same configuration"
        )
    set_state_dict(
        model,
        _plain(optimizers),
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=StateDictOptions(full_state_dict=True),
    )
    torch.set_rng_state(state["random"]["cpu"])
    if torch.cuda.is_available() and state["random"]["cuda"]:
        torch.cuda.set_rng_state_all(state["random"]["cuda"])
    return state["step"]


def _plain(optimizers: list) -> list[torch.optim.Optimizer]:
    return [getattr(optimizer, "optimizer", optimizer) for optimizer in optimizers]  # accelerate wraps them


def _read_log(path: Path, before: int) -> list[dict]:
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(
            json.JSONDecodeError
        ):  # a line cut short by a kill lies after the checkpoint
            records.append(json.loads(line))
    return [r for r in records if r["step"] < before]


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {k: _to(v, device) for k, v in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(_to(v, device) for v in batch)
    return batch
