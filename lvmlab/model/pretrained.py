"""Trained weights of an LVM on disk and on the hub: which folder a name stands for, loading it, and saving.

A folder is in `transformers`' LLaMA layout or in one of DeLVM's (`lvmlab.model.pretrained_delvm`).
"""

import contextlib
import copy
import json
import os
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.utils import logging

from lvmlab.model import pretrained_delvm
from lvmlab.model.config import LVM_PRESETS
from lvmlab.tokenizer.tokenizer import CheckpointError, fetched, is_hub_id
from lvmlab.utils import paths
from lvmlab.utils.checkpoints import unsafe_pickle_error
from lvmlab.utils.files import write_file

CONFIG, LOG, CARD = "config.json", "log.json", "README.md"


def load_llama(name: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    """The causal model of `transformers` that a name stands for.

    Args:
        name: A shipped model, a folder, or a hub id "owner/name".
        dtype: The precision it is loaded in.

    Raises:
        CheckpointError: There is no such model, or its weights do not fit its configuration.
    """
    folder = find_folder(name)
    model = pretrained_delvm.load(folder)
    return load_transformers(folder, name, dtype) if model is None else model


def save_llama(
    llama: PreTrainedModel, folder: Path, dtype: torch.dtype, log: list[dict] | None, card: str | None
) -> None:
    """Writes weights, log and card, and config.json last, each file atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving.", dir=folder) as temporary, _quiet():
        copy.deepcopy(llama).to("cpu", dtype).save_pretrained(temporary)
        *files, config = sorted(Path(temporary).iterdir(), key=lambda path: path.name == CONFIG)
        for path in (*files, config):
            with open(path, "rb") as f:
                os.fsync(f.fileno())
        for path in files:
            os.replace(path, folder / path.name)
        if log is not None:
            write_file(folder / LOG, json.dumps(log))
        if card is not None:
            write_file(folder / CARD, card)
        os.replace(config, folder / CONFIG)


def shipped() -> list[str]:
    """The names of the models that ship, the largest first."""

    def order(folder: Path) -> tuple[int, Path]:
        return -sum(weights.stat().st_size for weights in folder.glob("*.safetensors")), folder

    configs = (paths.assets() / "models").glob(f"*/{CONFIG}")
    folders = [path.parent for path in configs if _model_type(path) == "llama"]
    return [folder.name for folder in sorted(folders, key=order)]


def find_folder(name: str | Path) -> Path:
    """The folder that a name stands for; a hub id is fetched. Raises CheckpointError."""
    candidates = (Path(name), paths.assets() / "models" / str(name))
    folder = next((path for path in candidates if path.is_dir()), None)
    if folder is not None:
        _check_folder(folder, name)
        return folder
    if str(name) in LVM_PRESETS:
        raise CheckpointError(
            f"{str(name)!r} is a shape, without trained weights: LVM.from_shape({str(name)!r}) gives fresh "
            f"ones (shipped: {', '.join(shipped()) or 'none'})"
        )
    if is_hub_id(name):
        return fetched(name)
    raise CheckpointError(
        f'no model {str(name)!r}: neither a folder, a hub id "owner/name" nor a shipped model '
        f"(shipped: {', '.join(shipped()) or 'none'}); LVM.from_shape gives untrained weights"
    )


def load_transformers(folder: Path, name: str | Path, dtype: torch.dtype) -> LlamaForCausalLM:
    """A LLaMA in `transformers`' own layout; a .bin is read as tensors alone. Raises CheckpointError."""
    try:
        with _quiet():  # what it would warn of is raised below
            llama, info = LlamaForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=any(folder.glob("*.safetensors")) or None,
                output_loading_info=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                attn_implementation="sdpa",
                weights_only=True,
            )
    except Exception as error:  # transformers raises of many kinds; each is the checkpoint's fault
        chain = (error, error.__cause__, error.__context__)
        refused = next((e for e in chain if isinstance(e, pickle.UnpicklingError)), None)
        if refused:
            raise unsafe_pickle_error(name, refused) from error
        raise CheckpointError(
            f"{name} cannot be loaded ({' '.join(str(error).split())[:300]}): it is damaged or holds no "
            f"weights that can be read; copy or install it again"
        ) from error
    # every id is a code: none begins, ends or pads
    for config in (llama.config, llama.generation_config):
        config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    _check_loaded(llama, info, name)
    return llama


def _check_folder(folder: Path, name: str | Path) -> None:
    if (folder / "model_config.pt").is_file():
        return
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder / CONFIG} is missing: give a folder written by save_pretrained")
    kind = _model_type(folder / CONFIG)
    if kind == "lvmlab-vqgan":
        raise CheckpointError(f"{name} holds a tokenizer: use Tokenizer.from_pretrained")
    if kind not in ("llama", "internlm", "vit"):
        raise CheckpointError(
            f"{folder / CONFIG} describes no LLaMA (model_type {kind!r}): it is damaged or of another kind "
            f"of model"
        )


def _check_loaded(llama: LlamaForCausalLM, info: dict, name: str | Path) -> None:
    mismatched = [str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"]]
    problems = {
        "missing": info["missing_keys"],
        "unexpected": info["unexpected_keys"],
        "misshapen": mismatched,
        "not finite": [key for key, value in llama.state_dict().items() if not torch.isfinite(value).all()],
    }
    reasons = [f"{what}: {', '.join(sorted(keys))}" for what, keys in problems.items() if keys]
    if reasons:
        raise CheckpointError(
            f"{name} does not fit its {CONFIG} ({'; '.join(reasons)}): it is damaged or of another network"
        )


def _model_type(path: Path) -> str | None:
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without `transformers`' own bars and warnings."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
