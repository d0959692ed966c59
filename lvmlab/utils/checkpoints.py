"""Weights from a file, whatever their container, and their keys held against those that are wanted before any
is used.
"""

import json
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

State = dict[str, Tensor]


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another shape; the message names file and remedy."""


# Classes that released pickles name and the weights do not need: Lightning's callbacks in taming's files, the
# configuration in DeLVM's training
# folders, the arguments in LlamaGen's own trainings. A plain dictionary stands for each
HARMLESS = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "internlm.core.context.parallel_context.Config",
    "argparse.Namespace",
)


def read_config(path: Path) -> dict:
    """A JSON object. Raises CheckpointError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
        return found
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): it is missing or damaged; copy it again"
        ) from error


def read_pickle(path: Path):
    """What torch.save wrote, as far as it is tensors, plain containers and HARMLESS: nothing of it is run.
    Raises CheckpointError.
    """
    try:
        with torch.serialization.safe_globals([(OrderedDict, name) for name in HARMLESS]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise unsafe_pickle_error(path, error) from error
    except (OSError, ValueError, RuntimeError, EOFError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({_first(error)}): it is missing or damaged; copy it again"
        ) from error


def read_state(path: Path, *inside: str) -> State:
    """The tensors of a safetensors file or of a pickle (`read_pickle`), under the first of ``inside`` that it
    has. Raises CheckpointError.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({_first(error)}): it is missing or damaged; copy it again"
            ) from error
    found = read_pickle(path)
    key = next((key for key in inside if isinstance(found, dict) and isinstance(found.get(key), dict)), None)
    found = found[key] if key else found
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no state dict: give a file of named tensors")
    return {k: v for k, v in found.items() if isinstance(v, Tensor)}


def unsafe_pickle_error(path: str | Path, error: BaseException) -> CheckpointError:
    """What to say of a pickle that wants more than tensors, with the name of what it wants."""
    wanted = re.search(r"GLOBAL (\S+)", str(error))
    return CheckpointError(
        f"{path} wants {wanted[1] if wanted else 'more than tensors'} to be loaded, which could run code: it "
        f"is refused; give its "
        "weights alone, best as safetensors"
    )


def weights_in(folder: Path, *names: str) -> Path:
    """The first of these files that a folder holds. Raises CheckpointError that lists them."""
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(
            f"{folder / ' or '.join(names)} is missing: give the whole folder of the checkpoint"
        )
    return found


def match_keys(state: State, wanted: State, where: str | Path, theirs: Callable[[str], str] = str) -> State:
    """The state under the names of ``wanted`` as fp32. theirs: what the file calls a wanted tensor.

    Raises CheckpointError with the whole list of what is missing, unexpected, misshapen or not finite, under
    the file's names.
    """
    named = {theirs(key): key for key in wanted}
    problems = {
        "missing": sorted(named.keys() - state.keys()),
        "unexpected": sorted(state.keys() - named.keys()),
        "misshapen": [
            f"{k} {tuple(state[k].shape)} for {tuple(wanted[named[k]].shape)}"
            for k in sorted(named.keys() & state.keys())
            if state[k].shape != wanted[named[k]].shape
        ],
        "not finite": [k for k in sorted(state) if not torch.isfinite(state[k]).all()],
    }
    found = [f"{what}: {', '.join(keys)}" for what, keys in problems.items() if keys]
    if found:
        raise CheckpointError(
            f"{where} does not fit its configuration ({'; '.join(found)}): it is damaged or of another "
            f"network"
        )
    return {named[k]: v.float() for k, v in state.items()}


def positive_ints(config: dict, path: Path, *fields: str, **defaults) -> dict:
    """Positive integers of a configuration: ``fields`` that must be there, and those that have a default.
    Raises CheckpointError that names one.
    """
    found = {}
    for field, default in {**dict.fromkeys(fields), **defaults}.items():
        value = config.get(field, default)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CheckpointError(
                f"{path} says {field}={value!r}: it takes a positive integer; it is damaged or of another "
                f"kind of model"
            )
        found[field] = value
    return found


def require(good: bool, path: Path, config: dict, field: str, accepted: str) -> None:
    """Raises CheckpointError that names a field unless it is good."""
    if not good:
        raise CheckpointError(f"{path} says {field}={config.get(field)!r}: the lab knows {accepted}")


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
