"""`LVM`: a LLaMA over visual tokens (LVM, arXiv 2312.00785; DeLVM, arXiv 2402.04841), every input checked
before any work.
"""

import contextlib
import copy
import itertools
import json
import math
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from lvmlab.model import pretrained as llamas
from lvmlab.model.config import LVM_PRESETS, LVMConfig
from lvmlab.tokenizer.tokenizer import (
    CheckpointError,
    Tokenizer,
    check_tokens,
    fetched,
    fingerprint,
    is_hub_id,
)
from lvmlab.utils import paths
from lvmlab.utils.checkpoints import unsafe_pickle_error
from lvmlab.utils.device import default_device
from lvmlab.utils.files import write_file

CONFIG, LOG, CARD = "config.json", "log.json", "README.md"
CHUNK = 2**22  # logits held at a time: 16 MiB in fp32
UNUSED = (8292, 8192)  # LVM's vocabulary, and how many of it are codes


class LVM(nn.Module):
    """A `transformers.LlamaForCausalLM` (at `.llama`) whose words are a tokenizer's codes and nothing else.

        lvm = LVM.from_shape("mini-student", seed=0)     # fresh weights
        lvm = LVM.from_pretrained(folder)                # trained ones
        lvm.loss(tokens).backward()                      # tokens (B, T) int64

    There is no BOS, EOS or padding: a sentence is its pictures' tokens, and the first token is context only.
    """

    def __init__(self, llama: LlamaForCausalLM):
        super().__init__()
        self.llama = llama

    @classmethod
    def from_shape(cls, shape: str | LVMConfig, seed: int = 0, vocab_size: int | None = None) -> "LVM":
        """Fresh, untrained fp32 weights on the CPU; the same seed gives the same weights.

        shape: a name in LVM_PRESETS or a LVMConfig of your own. vocab_size: size of the tokenizer's codebook
            (None: the shape's own).
        Raises ValueError for an unknown name.
        """
        name = shape if isinstance(shape, str) else None
        if name is not None:
            if name not in LVM_PRESETS:
                trained = name in shipped() or Path(name).is_dir() or "/" in name
                remedy = (
                    f"it names trained weights: use LVM.from_pretrained({name!r})"
                    if trained
                    else f"choose from {', '.join(LVM_PRESETS)}"
                )
                raise ValueError(f"{name!r} is no shape; {remedy}")
            shape = LVM_PRESETS[name]
        if vocab_size is not None:
            shape = replace(shape, vocab_size=vocab_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(LlamaForCausalLM(shape.to_llama(lvm_shape=name)))

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        codebook_size: int | None = None,
    ) -> "LVM":
        """Trained weights: the name of a shipped model, a folder, or a hub id "owner/name", in
        `transformers`' LLaMA layout or DeLVM's.

        device: None is CUDA, then MPS, then CPU. codebook_size: how many of the vocabulary are codes, where some ids
            are unused (None: LVM's 8192 of
        8292, else all). Raises CheckpointError, naming missing and unexpected keys. Executes no code from the
        checkpoint.
        """
        source = _find(name)
        llama = llamas.load(source)
        if llama is None:
            llama = _plain(source, name, dtype)
        if codebook_size is None and llama.config.vocab_size == UNUSED[0]:
            codebook_size = UNUSED[1]
        if codebook_size is not None:
            llama.config.tokenizer_codes = codebook_size
        return cls(llama.to(device or default_device(), dtype)).eval()

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        tokenizer_fingerprint: str | None = None,
        log: list[dict] | None = None,
        card: str | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """Writes safetensors, log.json (with `log`), README.md (with `card`) and at last config.json, each
        whole or not at all.

        The folder loads in plain `transformers`. tokenizer_fingerprint: of the tokenizer it was trained on;
        kept in config.json.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if tokenizer_fingerprint is not None:
            self.config.tokenizer_fingerprint = tokenizer_fingerprint
        with tempfile.TemporaryDirectory(prefix=".saving.", dir=folder) as temporary, _quiet():
            copy.deepcopy(self.llama).to("cpu", dtype).save_pretrained(temporary)
            files = sorted(Path(temporary).iterdir(), key=lambda path: path.name == CONFIG)
            for path in files:
                with open(path, "rb") as f:
                    os.fsync(f.fileno())
            for path in files[:-1]:
                os.replace(path, folder / path.name)
            for name, text in ((LOG, None if log is None else json.dumps(log)), (CARD, card)):
                if text is not None:
                    write_file(folder / name, text)
            os.replace(files[-1], folder / CONFIG)

    def save_delvm(self, folder: str | Path) -> None:
        """Writes the model in DeLVM's exported layout. Raises ValueError for a model that is no LLaMA."""
        llamas.save_delvm(self.llama, Path(folder))

    @torch.no_grad()
    def start_from_codebook(self, codebook: Tensor, seed: int = 0) -> "LVM":
        """Starts embedding and head as random projections of a tokenizer's codes (K, D): codes that look
        alike then start alike.

        DeLVM's release goes further: its embedding stays the frozen codebook, followed by one linear layer.
        Returns self.
        """
        if codebook.ndim != 2 or len(codebook) > self.vocab_size:
            raise ValueError(
                f"the codebook has shape {tuple(codebook.shape)}: give (K, D) with K of at most {self.vocab_size}"
            )
        generator = torch.Generator().manual_seed(seed)
        centred = (codebook - codebook.mean(0)).float().cpu()
        for layer in (self.llama.model.embed_tokens, self.llama.lm_head):
            rows = centred @ torch.randn(codebook.shape[1], layer.weight.shape[1], generator=generator)
            layer.weight[: len(rows)] = rows * (layer.weight.std().cpu() / rows.std())
        return self

    @torch.no_grad()
    def start_from_grid(self, tokens: int) -> "LVM":
        """Starts all heads but each layer's last looking at fixed distances, by their q and k biases:
        pictures are grids of ``tokens``.

        The first looks at the place that is about to be written, in the picture before; the others at its
        neighbours there (those
        below and to the right first: that place itself was read before them, so it knows nothing of them), at
            the token above,
        at the last one, and two pictures before. What a head looks at can be unlearned; left to chance,
        finding these
        distances takes most of a short training. Only shapes with biases (DeLVM's have them) can do so:
        ValueError for
        others. Returns self.
        """
        if not self.config.attention_bias:
            raise ValueError(
                f"a model of shape {self.shape!r} has no q and k biases to start from: give a shape with "
                f"attention_bias=True"
            )
        width, heads = self.config.hidden_size, self.config.num_attention_heads
        n, side = width // heads // 2, math.isqrt(tokens)
        theta = self.config.rope_parameters["rope_theta"] ** (
            -torch.arange(n) / n
        )  # radians a token, fastest first
        # q and k of lengths a and phases 0 and theta * d score sum(a^2 cos(theta * (distance - d))): greatest
        # at d. Fast
        # frequencies make the peak sharp; the slow ones are left to what the tokens are
        length = torch.zeros(n)
        length[: int(0.6 * n)], length[: n // 4] = 2.0**0.5, 8.0**0.5
        here, above = tokens - 1, side - 1
        others = itertools.cycle(
            (here - side, here - 1, above, here - side - 1, here + side, 0, here - side + 1, here + tokens)
        )
        for layer in self.llama.model.layers:
            q, k = layer.self_attn.q_proj.bias, layer.self_attn.k_proj.bias
            for head in range(max(1, heads - 1)):
                distance = next(others) if head else here
                first = 2 * n * head
                q[first : first + n] = length
                k[first : first + n], k[first + n : first + 2 * n] = (
                    length * (theta * distance).cos(),
                    length * (theta * distance).sin(),
                )
        return self

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The matrices between hidden activations: what Muon may orthogonalise, so neither embedding nor
        head.
        """
        return [p for p in self.llama.model.layers.parameters() if p.ndim == 2]

    @property
    def config(self) -> LlamaConfig:
        return self.llama.config

    @property
    def shape(self) -> str | None:
        """The name of the shape it was made from, None if it had none."""
        return getattr(self.config, "lvm_shape", None)

    @property
    def max_seq_len(self) -> int:
        """The longest sentence, in tokens."""
        return self.config.max_position_embeddings

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def codebook_size(self) -> int:
        """Ids below this are codes; the rest of the vocabulary, if any, is never an answer."""
        return getattr(self.config, "tokenizer_codes", None) or self.vocab_size

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """Of the tokenizer it was trained on, where that is known."""
        return getattr(self.config, "tokenizer_fingerprint", None)

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    @property
    def device(self) -> torch.device:
        return self.llama.lm_head.weight.device

    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of the weights: what a stored result was measured on."""
        return fingerprint(self)

    def check_fits(self, tokenizer: Tokenizer) -> None:
        """Raises ValueError if this model does not speak the tokenizer's codes."""
        if tokenizer.codebook_size != self.codebook_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.codebook_size} codes but the model speaks {self.codebook_size}: give "
                f"the tokenizer "
                f"it was trained on, or LVM.from_shape(..., vocab_size={tokenizer.codebook_size})"
            )
        if self.tokenizer_fingerprint not in (None, tokenizer.fingerprint):
            raise ValueError(
                f"the model was trained on the tokens of another tokenizer ({self.tokenizer_fingerprint}, "
                f"this one is "
                f"{tokenizer.fingerprint}): the same ids mean other things; give the tokenizer it was "
                f"trained on"
            )
        if self.max_seq_len < 2 * tokenizer.tokens_per_image:
            raise ValueError(
                f"the model's context of {self.max_seq_len} tokens does not hold two pictures of "
                f"{tokenizer.tokens_per_image} tokens: "
                "give a tokenizer of fewer tokens or a model of a longer context"
            )

    def check_tokens(self, tokens: Tensor, least: int = 1) -> None:
        """Raises ValueError unless tokens are integers (B, T) in the vocabulary with `least` <= T <= context."""
        check_tokens(tokens, "T", self.vocab_size, "model has ids")
        if not tokens.numel() or tokens.shape[1] < least:
            raise ValueError(
                f"tokens have shape {tuple(tokens.shape)}: give (B, T) with B of at least 1 and T of at "
                f"least {least}"
            )
        if tokens.shape[1] > self.max_seq_len:
            raise ValueError(
                f"sentences of {tokens.shape[1]} tokens are longer than the model's context of "
                f"{self.max_seq_len}: "
                "give fewer pictures or a model of a longer context"
            )

    def hidden(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) to what the head reads, (B, T, width). Raises ValueError for a bad shape, length or
        id.
        """
        self.check_tokens(tokens)
        return self.llama.model(input_ids=tokens.to(torch.int64), use_cache=False).last_hidden_state

    def forward(
        self,
        tokens: Tensor,
        weights: Tensor | None = None,
        *,
        read: Tensor | None = None,
        criterion: Callable[..., Tensor] | None = None,
    ) -> Tensor:
        """Tokens (B, T) to logits (B, T, vocab), those at t for token t + 1; with a criterion, what it makes
        of them.

        criterion: as `cross_entropy` is, of hidden states (M, d), the head (vocab, d), targets (M,) and
            weights (M,). Where the module is
        wrapped (DDP), call it with criterion=cross_entropy in place of `loss`.
        """
        if criterion is None:
            return self.llama.lm_head(self.hidden(tokens if read is None else read))
        self.check_tokens(tokens, least=2)
        if read is not None and read.shape != tokens.shape:
            raise ValueError(
                f"read has shape {tuple(read.shape)}: give one token for each of {tuple(tokens.shape)}"
            )
        weights = _checked(torch.ones(tokens.shape) if weights is None else weights, tokens)
        targets = tokens[:, 1:].flatten().to(torch.int64)
        hidden = self.hidden(tokens if read is None else read)[:, :-1].flatten(
            0, 1
        )  # (B, T, d) -> (B * (T - 1), d)
        return criterion(hidden, self.llama.lm_head.weight, targets, weights)

    def loss(self, tokens: Tensor, weights: Tensor | None = None, *, read: Tensor | None = None) -> Tensor:
        """Mean cross entropy of the next token in nats, a scalar; logits are held as `in_chunks` says.

        tokens: (B, T), T of at least 2. weights: (B, T), 0 or more, for a weighted mean; the weight at t
            belongs to the
        target token t. The first token is no target, for nothing comes before it; every other one is, code 0
        included
        (in DeLVM's release it is not). read: (B, T), what the model reads where that is not what it is to
        write (a training with
        disturbed inputs). Raises ValueError for a bad shape, length, id or weight.
        """
        return self(tokens, weights, read=read, criterion=cross_entropy)


def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Of targets (M,) under the logits of hidden (M, d) by head (vocab, d): the sum under weights (M,).
    Always fp32; see `in_chunks`.

    Two to four times as fast on a CPU as `torch.nn.functional.linear_cross_entropy` (`lvmlab bench
    train.loss`).
    """

    def piece(rows: slice) -> Tensor:
        return (
            weights[rows] * F.cross_entropy(logits(hidden[rows], head), targets[rows], reduction="none")
        ).sum()

    return in_chunks(piece, len(targets), len(head))


def logits(hidden: Tensor, head: Tensor) -> Tensor:
    """fp32, of a product in the precision of autocast, or else of the hidden states."""
    return F.linear(hidden, head.to(hidden.dtype)).float()


def in_chunks(piece: Callable[[slice], Tensor], count: int, codes: int) -> Tensor:
    """The sum of what ``piece`` makes of tokens, CHUNK logits at a time; several pieces are worked out again
    in the backward pass, and never held.
    """
    size = max(1, CHUNK // codes)
    parts = [slice(first, first + size) for first in range(0, count, size)]
    return torch.stack(
        [piece(rows) if len(parts) == 1 else checkpoint(piece, rows, use_reentrant=False) for rows in parts]
    ).sum()


def _checked(weights: Tensor, tokens: Tensor) -> Tensor:
    """Weights (B, T) of the targets, flat and summing to 1."""
    if not isinstance(weights, Tensor) or weights.shape != tokens.shape:
        raise ValueError(
            f"weights have shape {tuple(getattr(weights, 'shape', ()))}: give one a token, "
            f"{tuple(tokens.shape)}"
        )
    weights = weights[:, 1:].flatten().to(tokens.device, torch.float32)
    total = weights.sum().item()
    if not (weights >= 0).all() or not 0 < total < float("inf"):
        raise ValueError(
            f"weights (after the first position) go from {weights.min().item():.4g} and sum to {total:.4g}: "
            "give finite ones of 0 or more, not all 0"
        )
    return weights / total


def shipped() -> list[str]:
    """The names of the models that ship, the largest first."""
    found = [p for p in (paths.assets() / "models").glob(f"*/{CONFIG}") if _model_type(p) == "llama"]
    return [
        p.parent.name
        for p in sorted(
            found, key=lambda p: (-sum(w.stat().st_size for w in p.parent.glob("*.safetensors")), p)
        )
    ]


def _model_type(path: Path) -> str | None:
    try:
        return json.loads(path.read_text()).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None


def _plain(folder: Path, name: str | Path, dtype: torch.dtype) -> LlamaForCausalLM:
    """A LLaMA in `transformers`' own layout; a .bin is read as tensors alone."""
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
        if refused := next(
            (e for e in (error, error.__cause__, error.__context__) if isinstance(e, pickle.UnpicklingError)),
            None,
        ):
            raise unsafe_pickle_error(name, refused) from error
        raise CheckpointError(
            f"{name} cannot be loaded ({' '.join(str(error).split())[:300]}): it is damaged or holds no "
            f"weights that can be read; "
            "copy or install it again"
        ) from error
    for config in (llama.config, llama.generation_config):  # every id is a code: none begins, ends or pads
        config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    problems = {
        "missing": info["missing_keys"],
        "unexpected": info["unexpected_keys"],
        "misshapen": [str(k[0] if isinstance(k, tuple) else k) for k in info["mismatched_keys"]],
        "not finite": [k for k, v in llama.state_dict().items() if not torch.isfinite(v).all()],
    }
    found = [f"{what}: {', '.join(sorted(keys))}" for what, keys in problems.items() if keys]
    if found:
        raise CheckpointError(
            f"{name} does not fit its {CONFIG} ({'; '.join(found)}): it is damaged or of another network"
        )
    return llama


def _find(name: str | Path) -> Path:
    """The folder that `name` stands for; a hub id is fetched."""
    folder = next((p for p in (Path(name), paths.assets() / "models" / str(name)) if p.is_dir()), None)
    if folder is not None:
        if (folder / "model_config.pt").is_file():
            return folder
        if not (folder / CONFIG).is_file():
            raise CheckpointError(f"{folder / CONFIG} is missing: give a folder written by save_pretrained")
        kind = _model_type(folder / CONFIG)
        if kind in ("lvmlab-vqgan", "lvmlab-vitvq"):
            raise CheckpointError(f"{name} holds a tokenizer: use Tokenizer.from_pretrained")
        if kind not in ("llama", "internlm", "vit"):
            raise CheckpointError(
                f"{folder / CONFIG} describes no LLaMA (model_type {kind!r}): it is damaged or of another "
                f"kind of model"
            )
        return folder
    if str(name) in LVM_PRESETS:
        raise CheckpointError(
            f"{str(name)!r} is a shape, without trained weights: LVM.from_shape({str(name)!r}) gives fresh "
            f"ones "
            f"(shipped: {', '.join(shipped()) or 'none'})"
        )
    if is_hub_id(name):
        return fetched(name)
    raise CheckpointError(
        f'no model {str(name)!r}: neither a folder, a hub id "owner/name" nor a shipped model '
        f"(shipped: {', '.join(shipped()) or 'none'}); LVM.from_shape gives untrained weights"
    )


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
