"""Answers token by token: a prompt's tokens are read once, then as many answers as wanted are written after
it.

Answers are in effect greedy in DeLVM (arXiv 2402.04841), sampled at temperature 1 in LVM (arXiv 2312.00785).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from numbers import Real

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lvmlab.model.decoder import decoder_of
from lvmlab.model.lvm import LVM

MIN_TEMPERATURE = 1e-6  # below it fp32 logits divided by it overflow


@dataclass(frozen=True, eq=False)
class AnswerTokens:
    """Answers to B prompts.

    Attributes:
        tokens: (B, answers, n) int64.
        logprobs: (B, answers, n), the log-probability of each answered token in nats, at temperature 1,
            before top-k and top-p. Where ``allowed`` restricts the answer, probabilities are renormalised
            over the allowed ids.
        entropies: (B, answers, n), of the same distributions, in nats.
    """

    tokens: Tensor
    logprobs: Tensor
    entropies: Tensor


@torch.inference_mode()
def complete_tokens(
    lvm: LVM, tokens: Tensor, n: int, *, allowed: Tensor | None = None, **sampling
) -> AnswerTokens:
    """The next n tokens after each prompt, for prompts that are encoded already
    (`lvmlab.model.prompting.complete` takes pictures).

    Each prompt is read once, however many answers are drawn. The same generator state and batch give the same
    tokens.

    Args:
        lvm: Used in its own device and precision.
        tokens: (B, T) int64, prompts of one length.
        n: Tokens of an answer.
        allowed: Ids that may be written, (m,) for all prompts or (B, m), each row padded by repeating any of
            its own; `label_ids`, say. None allows every code.
        **sampling: The fields of `Sampling`; greedy by default.

    Returns:
        The answers, on the device of ``tokens``.

    Raises:
        ValueError: Options that do not go together, ids out of range, or n beyond the context.
    """
    sampling = Sampling(**sampling)
    check_prompt(lvm, tokens, n)
    return answer(lvm, tokens, n, sampling, allowed)


def answer(
    lvm: LVM, tokens: Tensor, n: int, sampling: "Sampling", allowed: Tensor | None = None
) -> AnswerTokens:
    """`complete_tokens` for prompts and options that were checked."""
    prefilled = Prefilled(lvm, tokens, n, sampling.answers)
    steps = list(prefilled.stream(n, sampling, allowed=allowed))
    columns = ([getattr(step, name) for step in steps] for name in ("ids", "logprobs", "entropies"))
    # n of (B, answers) -> (B, answers, n)
    return AnswerTokens(*(torch.stack(column, -1).to(tokens.device) for column in columns))


class Prefilled:
    """Prompts of one length, read once, to be answered many times.

        prefilled = Prefilled(lvm, tokens, 64)
        for step in prefilled.stream(64): ...   # a `Step` for each place, as it is written

    Args:
        lvm: The model.
        tokens: (B, T) int64, prompts as `check_prompt` accepts them.
        max_new_tokens: Tokens of the longest answer.
        answers: Answers written side by side, at most.
    """

    @torch.inference_mode()
    def __init__(self, lvm: LVM, tokens: Tensor, max_new_tokens: int, answers: int = 1):
        self.lvm, self.max_new_tokens, self.answers = lvm, max_new_tokens, answers
        self.decoder = decoder_of(lvm)
        tokens = tokens.to(lvm.llama.device, torch.int64)
        self.cache, self.logits = self.decoder.prefill(tokens, answers * (max_new_tokens - 1))

    @torch.inference_mode()
    def stream(
        self,
        n: int,
        sampling: "Sampling | None" = None,
        *,
        allowed: Tensor | None = None,
        forced: Tensor | None = None,
    ) -> Iterator["Step"]:
        """Steps of an answer as they are chosen; the iteration may stop anywhere.

        Args:
            n: Tokens to write.
            sampling: How they are chosen; None is greedy.
            allowed: Ids that may be written, as in `complete_tokens`.
            forced: Ids of the first places, (m,) or (B, answers, m), written whatever the model predicts. The
                places after them are drawn with the same chance as without.

        Raises:
            ValueError: More tokens or answers than there is room for.
        """
        sampling = sampling or Sampling()
        answers = sampling.answers
        if n > self.max_new_tokens or answers > self.answers:
            raise ValueError(
                f"n={n}, answers={answers}: there is room for {self.answers} answers of "
                f"{self.max_new_tokens} tokens; make another Prefilled"
            )
        self.cache.length = self.cache.prompt_length  # earlier answers are dropped
        disallowed = None if allowed is None else disallowed_mask(allowed, self.lvm)
        logits = self.logits.expand(-1, answers, -1)  # (B, answers, codes)
        for i in range(n):
            if disallowed is not None:
                logits = logits.masked_fill(disallowed, -torch.inf)
            log_probs = logits.log_softmax(-1)
            ids = sampling.choose(logits)
            if forced is not None and i < forced.shape[-1]:
                ids = forced[..., i].to(ids).expand_as(ids)
            entropies = torch.special.entr(log_probs.exp()).sum(-1)
            yield Step(ids, log_probs.gather(-1, ids[..., None])[..., 0], entropies, log_probs)
            if i + 1 < n:
                logits = self.decoder.step(ids, self.cache)


@dataclass(frozen=True, eq=False)
class Step:
    """One place of every answer.

    Attributes:
        ids: (B, answers) int64.
        logprobs: (B, answers), of these ids.
        entropies: (B, answers).
        log_probs: (B, answers, codes), of all codes; renormalised over the allowed ids where they are
            restricted.
    """

    ids: Tensor
    logprobs: Tensor
    entropies: Tensor
    log_probs: Tensor


@dataclass(frozen=True)
class Sampling:
    """How answers are chosen: the likeliest token at each place (greedy), or drawn.

    Attributes:
        sample: Whether tokens are drawn; the fields below say how.
        temperature: At least MIN_TEMPERATURE; None is 1.
        top_k: Only the k likeliest ids are drawn, k at least 1.
        top_p: Only the likeliest ids that together reach this probability are drawn, in (0, 1]. The three
            apply in this order.
        generator: The source of chance, of any device.
        answers: Answers to each prompt.

    Raises:
        ValueError: A field is out of range, or would be ignored.
    """

    sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    generator: torch.Generator | None = None
    answers: int = 1
    logits_processors: LogitsProcessorList = field(init=False, repr=False)

    def choose(self, logits: Tensor) -> Tensor:
        """One id of each distribution: (B, answers, codes) to (B, answers)."""
        if not self.sample:
            return logits.argmax(-1)
        probs = self.logits_processors(None, logits.flatten(0, 1)).softmax(-1)  # (B * answers, codes)
        ids = torch.multinomial(probs.to(self.generator.device), 1, generator=self.generator)
        return ids.to(logits.device).view(logits.shape[:-1])

    def __post_init__(self):
        if not _is_integer(self.answers):
            raise ValueError(f"answers={self.answers!r}: give an integer of at least 1")
        if self.sample:
            self._check_ranges()
        else:
            self._check_unused()
        warpers = (
            (TemperatureLogitsWarper, self.temperature and float(self.temperature)),
            (TopKLogitsWarper, self.top_k),
            (TopPLogitsWarper, self.top_p),
        )
        processors = LogitsProcessorList([kind(value) for kind, value in warpers if value is not None])
        object.__setattr__(self, "logits_processors", processors)

    def _check_ranges(self) -> None:
        if not isinstance(self.generator, torch.Generator):
            raise ValueError(
                "sample=True needs generator=torch.Generator().manual_seed(seed), so that the answer can be "
                "had again"
            )
        t, k, p = self.temperature, self.top_k, self.top_p
        if t is not None and not (isinstance(t, Real) and MIN_TEMPERATURE <= t < float("inf")):
            raise ValueError(
                f"temperature={t!r}: give a number of at least {MIN_TEMPERATURE:g} (for the greedy answer: "
                f"sample=False)"
            )
        if k is not None and not _is_integer(k):
            raise ValueError(f"top_k={k!r}: give an integer of at least 1")
        if p is not None and not (isinstance(p, Real) and 0 < p <= 1):
            raise ValueError(f"top_p={p!r}: give a number over 0, at most 1")

    def _check_unused(self) -> None:
        names = ("temperature", "top_k", "top_p", "generator")
        given = [f"{name}={value!r}" for name in names if (value := getattr(self, name)) is not None]
        if given:
            raise ValueError(
                f"{', '.join(given)} would be ignored without sampling: add sample=True, or leave out for "
                f"the greedy answer"
            )
        if self.answers > 1:
            raise ValueError(
                f"answers={self.answers} greedy ones would all be the same: add sample=True and a generator"
            )


def label_ids(tokens: Tensor, n: int) -> Tensor:
    """The ids in each prompt's label pictures, as ``allowed`` takes them.

    Args:
        tokens: (B, (2 * examples + 1) * n).
        n: Tokens of a picture.

    Returns:
        (B, examples * n).
    """
    return tokens.unflatten(1, (-1, n))[:, 1::2].flatten(1)


def disallowed_mask(allowed: Tensor, lvm: LVM) -> Tensor:
    """(1 or B, 1, codes) bool, True where an id may not be written. Raises ValueError for bad ids."""
    allowed = allowed.to(lvm.device)
    if not allowed.numel() or allowed.min() < 0 or allowed.max() >= lvm.codebook_size:
        raise ValueError(
            f"allowed holds ids outside 0 to {lvm.codebook_size - 1}, or none: give ids that may be written"
        )
    rows = allowed if allowed.ndim == 2 else allowed[None]
    mask = torch.ones(len(rows), 1, lvm.codebook_size, dtype=torch.bool, device=lvm.device)
    return mask.scatter_(2, rows[:, None], False)


def check_prompt(lvm: LVM, tokens: Tensor, n: int) -> None:
    """Raises ValueError unless n tokens can be written after tokens (B, T)."""
    lvm.check_tokens(tokens)
    if not _is_integer(n):
        raise ValueError(f"n={n!r}: give an integer of at least 1")
    lvm.check_room(tokens.shape[1], n, f"{tokens.shape[1]} tokens and {n} to come")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
