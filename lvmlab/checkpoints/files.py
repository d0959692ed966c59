"""Weights from a file, whatever their container, and their keys held against those that are wanted before any is used."""

import json
import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

State = dict[str, Tensor]


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another shape; the message names the file and the remedy."""


def read_config(path: Path) -> dict:
    """A JSON object. Raises CheckpointError."""
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
        return found
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): it is missing or damaged; copy it again") from error


def read_state(path: Path, *inside: str) -> State:
    """The tensors of a safetensors file, or of a pickle that holds tensors and plain containers alone; under the first of ``inside`` it has.

    Raises CheckpointError, for a pickle that wants more with the name of what it wanted.
    """
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise refusal(path, error) from error
    except (SafetensorError, OSError, ValueError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path} cannot be read ({str(error).splitlines()[0]}): it is missing or damaged; copy it again") from error
    key = next((key for key in inside if isinstance(found, dict) and isinstance(found.get(key), dict)), None)
    found = found[key] if key else found
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no state dict: give a file of named tensors")
    return {k: v for k, v in found.items() if isinstance(v, Tensor)}


def refusal(path: str | Path, error: BaseException) -> CheckpointError:
    """What to say of a pickle that wants more than tensors, with the name of what it wants."""
    wanted = re.search(r"GLOBAL (\S+)", str(error))
    return CheckpointError(f"{path} wants {wanted[1] if wanted else 'more than tensors'} to be loaded, which could run code: it is refused; give its "
                           "weights alone, best as safetensors")


def weights_in(folder: Path, *names: str) -> Path:
    """The first of these files that a folder holds. Raises CheckpointError that lists them."""
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{folder / ' or '.join(names)} is missing: give the whole folder of the checkpoint")
    return found


def compared(state: State, wanted: State, where: str | Path) -> State:
    """The state as fp32, its keys and shapes those of ``wanted``. Raises CheckpointError with the whole list of what differs."""
    problems = {
        "missing": sorted(wanted.keys() - state.keys()),
        "unexpected": sorted(state.keys() - wanted.keys()),
        "misshapen": [f"{k} {tuple(state[k].shape)} for {tuple(wanted[k].shape)}" for k in sorted(wanted.keys() & state.keys())
                      if state[k].shape != wanted[k].shape],
        "not finite": [k for k in sorted(state) if not torch.isfinite(state[k]).all()],
    }
    found = [f"{what}: {', '.join(keys)}" for what, keys in problems.items() if keys]
    if found:
        raise CheckpointError(f"{where} does not fit its configuration ({'; '.join(found)}): it is damaged or of another network")
    return {k: v.float() for k, v in state.items()}
