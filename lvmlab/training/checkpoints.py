"""Checkpoints of a training: complete or not there, and with a digest of what they hold.

A checkpoint holds model, optimiser, step, random state and the training's identity (all that decides its
outcome). It resumes the same training alone: another configuration, flipped bytes, values that are not finite
and steps beyond the last are refused by name. The log beside it has one JSON record a line.
"""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from lvmlab.utils.files import atomic, write_file

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
KEYS = {"model", "optimizer", "step", "random", "identity", "digest"}


class TrainingError(RuntimeError):
    """A training that cannot start or continue, with the reason and the remedy."""


def load_checkpoint(folder: str | Path) -> dict[str, Any]:
    """The latest checkpoint of a training. No code from the file is run.

    Args:
        folder: Of the training.

    Returns:
        "model" and "optimizer" (state dicts on the CPU), "step" (how many were made), "random", "digest" and
        "identity" (the configuration; under "more" what the kind of training adds).

    Raises:
        TrainingError: There is none, or it is damaged; the message says what is wrong.
    """
    path = Path(folder) / CHECKPOINT
    if not path.is_file():
        raise TrainingError(f"{path} is missing: train first, or give the folder of a training")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state.keys() != KEYS:
            raise ValueError("other keys")
        if state["digest"] != digest({k: v for k, v in state.items() if k != "digest"}):
            raise ValueError("its content does not match its digest")
        state["identity"] = json.loads(state["identity"])
    except Exception as error:
        raise TrainingError(
            f"{path} cannot be read ({type(error).__name__}: {_first_line(error)}): it is damaged or no "
            f"checkpoint "
            "of this loop; move it away to start afresh"
        ) from error
    _check_values(path, state)
    return state


def _check_values(path: Path, state: dict[str, Any]) -> None:
    """Raises TrainingError for steps and weights that no training writes."""
    step, steps = state["step"], state["identity"].get("steps")
    wrong = [
        name
        for name, value in state["model"].items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    problems = [f"weights that are not finite ({', '.join(wrong)})"] if wrong else []
    if not isinstance(step, int) or not 0 <= step <= (steps or step):
        problems.append(f"step {step!r} of {steps}")
    if problems:
        raise TrainingError(
            f"{path} holds {' and '.join(problems)}: it is damaged; move it away to start afresh"
        )


def digest(value: Any) -> str:
    """SHA-256 of tensors and plain values in containers, as hex digits."""
    sha = hashlib.sha256()

    def update(value: Any) -> None:
        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous()
            sha.update(f"{value.dtype} {tuple(value.shape)}".encode())
            sha.update(value.reshape(-1).view(torch.uint8).numpy())
        elif isinstance(value, dict):
            update(list(value.items()))
        elif isinstance(value, list | tuple):
            sha.update(f"[{len(value)}".encode())
            for item in value:
                update(item)
        else:
            sha.update(repr(value).encode())

    update(value)
    return sha.hexdigest()


def save(
    folder: Path, model: nn.Module, optimizers: list, step: int, identity: dict, write: bool = True
) -> None:
    """Writes a checkpoint, complete or not at all.

    Args:
        folder: Of the training.
        model: As it was before accelerate wrapped it.
        optimizers: As accelerate wrapped them, or plain.
        step: How many steps were made.
        identity: All that decides the outcome.
        write: Every process calls it, because a sharded model is gathered; one of them writes.

    Raises:
        TrainingError: The folder cannot be written.
    """
    weights, moments = get_state_dict(
        model, _unwrapped(optimizers), options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if not write:
        return
    random = {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    state = {"model": dict(weights), "optimizer": moments, "step": step, "random": random}
    state["identity"] = json.dumps(identity)
    state["digest"] = digest(state)
    try:
        with atomic(folder / CHECKPOINT) as temporary:
            torch.save(state, temporary)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        before = "the one of before is sound" if (folder / CHECKPOINT).exists() else "there is none of before"
        raise TrainingError(
            f"the checkpoint of step {step} cannot be written to {folder} ({error}): make room there, or "
            f"make it "
            f"writable, and start again; {before}"
        ) from error


def resume(folder: Path, model: nn.Module, optimizers: list, identity: dict) -> int:
    """Puts the folder's checkpoint into model and optimisers.

    Returns:
        The step to continue with; 0 where there is no checkpoint.

    Raises:
        TrainingError: The checkpoint is damaged or of another training; the message lists what differs.
    """
    if not (folder / CHECKPOINT).exists():
        return 0
    state = load_checkpoint(folder)
    stored = state["identity"]
    differ = [
        f"{k}: {stored.get(k)!r} there, {identity.get(k)!r} here"
        for k in sorted(stored | identity)
        if stored.get(k) != identity.get(k)
    ]
    if differ:
        raise TrainingError(
            f"{folder} holds a training of another configuration ({'; '.join(differ)}): "
            "choose another folder or the same configuration"
        )
    set_state_dict(
        model,
        _unwrapped(optimizers),
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=StateDictOptions(full_state_dict=True),
    )
    torch.set_rng_state(state["random"]["cpu"])
    if torch.cuda.is_available() and state["random"]["cuda"]:
        torch.cuda.set_rng_state_all(state["random"]["cuda"])
    return state["step"]


def _unwrapped(optimizers: list) -> list[torch.optim.Optimizer]:
    return [getattr(optimizer, "optimizer", optimizer) for optimizer in optimizers]  # accelerate wraps them


def read_log(folder: str | Path) -> list[dict]:
    """The records of a training's log up to its latest checkpoint."""
    return records(Path(folder), before=load_checkpoint(folder)["step"])


def records(folder: Path, before: int) -> list[dict]:
    """The records of the log of the first ``before`` steps; a line that a kill cut short is left out."""
    if not (folder / LOG).exists():
        return []
    rows = []
    for line in (folder / LOG).read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return [row for row in rows if row["step"] < before]


def start_log(folder: Path, log: list[dict]) -> None:
    """Writes the log without what followed the checkpoint, and removes what a kill left half written."""
    for stale in folder.glob(f".{CHECKPOINT}.*"):
        stale.unlink()
    write_file(folder / LOG, "".join(json.dumps(row) + "\n" for row in log))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
