"""`LVM`: a LLaMA that predicts the next visual token (LVM, arXiv 2312.00785; DeLVM, arXiv 2402.04841)."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from lvmlab.model import pretrained, pretrained_delvm
from lvmlab.model.config import LVM_PRESETS, LVMConfig
from lvmlab.model.loss import cross_entropy, normalised_weights
from lvmlab.tokenizer.tokenizer import Tokenizer, check_tokens, fingerprint
from lvmlab.utils.device import default_device

UNUSED_IDS = (8292, 8192)  # the size of LVM's vocabulary, and how many of it are codes


class LVM(nn.Module):
    """A `transformers.LlamaForCausalLM` whose vocabulary is a tokenizer's codebook.

        lvm = LVM.from_shape("mini-student", seed=0)     # fresh weights
        lvm = LVM.from_pretrained(folder)                # trained ones
        logits = lvm(tokens)                             # tokens (B, T) to (B, T, vocab_size)
        lvm(tokens, tokens).backward()                   # the loss

    There is no BOS, EOS or padding: a sentence is its pictures' tokens, and the first token is context only.

    Args:
        llama: Any causal model of `transformers`; it stays at `.llama`.
    """

    def __init__(self, llama: LlamaForCausalLM):
        super().__init__()
        self.llama = llama
        self.preparation: dict = {}  # what made it a training's start, see `lvmlab.training.preparation`

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        loss_fn: Callable[..., Tensor] = cross_entropy,
    ) -> Tensor:
        """Logits without targets, the loss with them.

        Args:
            inputs: (B, T) int64, the tokens the model reads.
            targets: (B, T) int64, the sentences to predict; usually the inputs themselves. The target at t is
                predicted from the inputs before t. The first one is skipped, for nothing comes before it.
                Code 0 is a target like any other (in DeLVM's release it is not).
            weights: (B, T), 0 or more, of the targets; None weighs them alike.
            loss_fn: Of hidden states (M, dim), the head (vocab_size, dim), targets (M,) and weights (M,) that
                sum to 1; see `lvmlab.model.loss`.

        Returns:
            (B, T, vocab_size) logits, those at t for the token at t + 1; or the loss, a scalar, in nats a
            token.

        Raises:
            ValueError: A bad shape, length, id or weight.
        """
        if targets is None:
            return self.llama.lm_head(self.hidden(inputs))
        self._check_targets(inputs, targets)
        weights = normalised_weights(weights, targets)
        hidden = self.hidden(inputs)[:, :-1].flatten(0, 1)  # (B, T, dim) -> (B * (T - 1), dim)
        targets = targets[:, 1:].flatten().to(torch.int64)
        return loss_fn(hidden, self.llama.lm_head.weight, targets, weights)

    def hidden(self, tokens: Tensor) -> Tensor:
        """The last hidden states (B, T, dim) of tokens (B, T). Raises ValueError for a bad shape, length or
        id.
        """
        self.check_tokens(tokens)
        return self.llama.model(input_ids=tokens.to(torch.int64), use_cache=False).last_hidden_state

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The matrices between hidden activations, which Muon orthogonalises: neither embedding nor head."""
        return [p for p in self.llama.model.layers.parameters() if p.ndim == 2]

    @classmethod
    def from_shape(cls, shape: str | LVMConfig, seed: int = 0, vocab_size: int | None = None) -> "LVM":
        """Fresh, untrained fp32 weights on the CPU.

        Args:
            shape: A name in LVM_PRESETS or a configuration.
            seed: The same seed gives the same weights.
            vocab_size: Size of the tokenizer's codebook; None keeps the shape's own.

        Raises:
            ValueError: The name is no shape.
        """
        name = shape if isinstance(shape, str) else None
        if name is not None:
            shape = _preset(name)
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
        """Trained weights, in evaluation mode. No code of the checkpoint is executed.

        Args:
            name: A shipped model, a folder, or a hub id "owner/name", in `transformers`' LLaMA layout or
                DeLVM's.
            device: None is CUDA, then MPS, then the CPU.
            dtype: Precision of the weights.
            codebook_size: How many ids of the vocabulary are codes, where some are unused. None: 8192 of
                LVM's 8292, else all.

        Raises:
            CheckpointError: There is no such model, or its weights do not fit; missing and unexpected keys
                are named.
        """
        llama = pretrained.load_llama(name, dtype)
        if codebook_size is None and llama.config.vocab_size == UNUSED_IDS[0]:
            codebook_size = UNUSED_IDS[1]
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
        """Writes a folder that also loads in plain `transformers`; config.json comes last, each file
        atomically.

        Args:
            folder: Made where it is missing.
            tokenizer_fingerprint: Of the tokenizer it was trained on, stored in config.json.
            log: Records of the training, for log.json.
            card: Text of README.md.
            dtype: Precision of the stored weights.
        """
        if tokenizer_fingerprint is not None:
            self.config.tokenizer_fingerprint = tokenizer_fingerprint
        pretrained.save_llama(self.llama, Path(folder), dtype, log, card)

    def save_delvm(self, folder: str | Path) -> None:
        """Writes the model in DeLVM's exported layout. Raises ValueError for a model that is no LLaMA."""
        pretrained_delvm.save_delvm(self.llama, Path(folder))

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
        """Raises ValueError unless the model's ids are this tokenizer's codes and two pictures fit its
        context.
        """
        size, tokens = tokenizer.codebook_size, tokenizer.tokens_per_image
        if size != self.codebook_size:
            raise ValueError(
                f"the tokenizer has {size} codes but the model speaks {self.codebook_size}: give the "
                f"tokenizer it was trained on, or LVM.from_shape(..., vocab_size={size})"
            )
        expected = self.tokenizer_fingerprint
        if expected is not None and expected != tokenizer.fingerprint:
            raise ValueError(
                f"the model was trained on the tokens of another tokenizer ({expected}, this one is "
                f"{tokenizer.fingerprint}): the same ids mean other things; give the tokenizer it was "
                f"trained on"
            )
        if self.max_seq_len < 2 * tokens:
            raise ValueError(
                f"the model's context of {self.max_seq_len} tokens does not hold two pictures of {tokens} "
                "tokens: give a tokenizer of fewer tokens or a model of a longer context"
            )

    def check_tokens(self, tokens: Tensor) -> None:
        """Raises ValueError unless tokens are integers (B, T) in the vocabulary, 1 <= T <= max_seq_len."""
        check_tokens(tokens, "T", self.vocab_size, "model has ids")
        if not tokens.numel():
            raise ValueError(f"tokens have shape {tuple(tokens.shape)}: give (B, T), both of at least 1")
        if tokens.shape[1] > self.max_seq_len:
            raise ValueError(
                f"sentences of {tokens.shape[1]} tokens are longer than the model's context of "
                f"{self.max_seq_len}: give fewer pictures or a model of a longer context"
            )

    def check_room(self, length: int, n: int, what: str) -> None:
        """Raises ValueError, naming ``what``, where n tokens after ``length`` go beyond the context."""
        if length + n > self.max_seq_len:
            raise ValueError(
                f"{what}: {length + n} tokens, more than the model's context of {self.max_seq_len}; give "
                f"fewer examples or ask for fewer pictures"
            )

    def _check_targets(self, inputs: Tensor, targets: Tensor) -> None:
        self.check_tokens(targets)
        if targets.shape != inputs.shape or targets.shape[1] < 2:
            raise ValueError(
                f"targets have shape {tuple(targets.shape)}, inputs {tuple(inputs.shape)}: give both the "
                f"same shape (B, T), T of at least 2"
            )


def _preset(name: str) -> LVMConfig:
    """The configuration of a named shape; a name of trained weights is refused with the remedy."""
    if name in LVM_PRESETS:
        return LVM_PRESETS[name]
    trained = name in pretrained.shipped() or Path(name).is_dir() or "/" in name
    remedy = f"choose from {', '.join(LVM_PRESETS)}"
    if trained:
        remedy = f"it names trained weights: use LVM.from_pretrained({name!r})"
    raise ValueError(f"{name!r} is no shape; {remedy}")
