"""Prompts of example pairs, and their completion: prefill once, then answer token by token, many answers at
once.

In effect greedy in DeLVM (arXiv 2402.04841), sampled at temperature 1 in LVM (arXiv 2312.00785); both prompt
kinds of the
latter: analogies (pairs and a query) and sequences (frames).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from numpy import ndarray
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lvmlab.model.decoder import decoder
from lvmlab.model.lvm import LVM
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.utils import images as pictures_of


@dataclass(frozen=True, eq=False)
class Prompt:
    """Examples, each (image, label), and a query: float (3, S, S) in [0, 1], all of one size. Raises
    ValueError.
    """

    examples: Sequence[tuple[Tensor, Tensor]]
    query: Tensor

    def __post_init__(self):
        object.__setattr__(self, "examples", tuple(tuple(pair) for pair in self.examples))
        if not self.examples:
            raise ValueError("the prompt is empty: give at least one example (image, label) before the query")
        for i, pair in enumerate(self.examples):
            if len(pair) != 2:
                raise ValueError(f"examples[{i}] has {len(pair)} pictures: give two, (image, label)")
        side = getattr(self.examples[0][0], "shape", (0,))[-1]
        for i, picture in enumerate(self.pictures):
            name = (
                "query" if i == 2 * len(self.examples) else f"examples[{i // 2}] {('image', 'label')[i % 2]}"
            )
            pictures_of.check(picture, name)
            if picture.ndim != 3 or picture.shape != (3, side, side):
                raise ValueError(
                    f"{name} has shape {tuple(picture.shape)}: give (3, S, S), every picture of a prompt "
                    f"with the same S; "
                    "images.load(path, size=S) makes one of any picture"
                )

    @classmethod
    def sequence(cls, frames: Sequence[Tensor]) -> "Prompt":
        """A prompt of frames in time order, an odd number from 3 on; the answer is the next frame. Raises
        ValueError.

        Odd, because the model reads pictures in pairs: what it answers stands where labels stood in training.
        """
        if len(frames) < 3 or len(frames) % 2 == 0:
            raise ValueError(
                f"a sequence of {len(frames)} frames: give an odd number, at least 3 (drop or add the oldest "
                f"frame)"
            )
        return cls([(frames[i], frames[i + 1]) for i in range(0, len(frames) - 1, 2)], frames[-1])

    @property
    def pictures(self) -> list[Tensor]:
        """image, label, image, label, ..., query: 2 * examples + 1 of them."""
        return [picture for pair in self.examples for picture in pair] + [self.query]

    @property
    def size(self) -> int:
        """Pixels along each side."""
        return self.query.shape[-1]


@dataclass(frozen=True, eq=False)
class Tokens:
    """Answers to B prompts. Log-probabilities (of each answered token) and entropies are the model's own, in
    nats: at
    temperature 1, before top-k and top-p."""

    tokens: Tensor  # (B, answers, n) int64
    logprobs: Tensor  # (B, answers, n)
    entropies: Tensor  # (B, answers, n)


@dataclass(frozen=True, eq=False)
class Completion(Tokens):
    """Answers and their pictures, float in [0, 1]; n is images * N."""

    images: Tensor  # (B, answers, images, 3, S, S)


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> Tensor:
    """Prompts of one length to tokens (B, T), T = (2 * examples + 1) * N; a picture that several share is
    encoded once.

    Raises ValueError where there are none, they differ in length, or are not of the tokenizer's size.
    """
    _check_prompts(tokenizer, prompts)
    lengths = sorted({len(p.examples) for p in prompts})
    if len(lengths) > 1:
        raise ValueError(
            f"prompts of {', '.join(map(str, lengths))} examples do not fit one tensor: give prompts of one "
            f"length; "
            "complete takes any mixture"
        )
    unique = {id(picture): picture for p in prompts for picture in p.pictures}
    row = {key: i for i, key in enumerate(unique)}
    tokens = tokenizer.encode(
        torch.stack([picture.float() for picture in unique.values()])
    )  # (unique pictures, N)
    which = torch.tensor(
        [[row[id(picture)] for picture in p.pictures] for p in prompts], device=tokens.device
    )
    return tokens[which].flatten(1)  # (B, 2k + 1, N) -> (B, T)


def label_ids(tokens: Tensor, n: int) -> Tensor:
    """The ids in each prompt's label pictures, (B, examples * n), as ``allowed`` takes them. tokens: (B, (2 *
    examples + 1) * n).
    """
    return tokens.unflatten(1, (-1, n))[:, 1::2].flatten(1)


class Prefilled:
    """Prompts of one length, read once, to be answered many times: by `complete_tokens` for the whole
    answers, or token by token.

        ready = Prefilled(lvm, tokens, 64)
        for step in ready.stream(64): ...        # Step: ids, log-probabilities and entropies of one place, as
        it is written

    room: tokens to come, of all answers together. Raises ValueError for ids out of range and for more than
        the context holds.
    """

    @torch.inference_mode()
    def __init__(self, lvm: LVM, tokens: Tensor, n: int, answers: int = 1):
        lvm.check_tokens(tokens)
        _check_room(lvm, tokens.shape[1], n)
        self.lvm, self.decoder, self.length, self.most = lvm, decoder(lvm), tokens.shape[1], n
        self.memory, self.hidden = self.decoder.prefill(tokens.to(lvm.device, torch.int64), answers * (n - 1))
        self.answers = answers

    @torch.inference_mode()
    def stream(
        self,
        n: int,
        *,
        answers: int = 1,
        generator: torch.Generator | None = None,
        allowed: Tensor | None = None,
        forced: Tensor | None = None,
        **options,
    ) -> Iterator["Step"]:
        """Steps of an answer as they are chosen; stopping in the middle does no harm. Options as in
        `complete_tokens`.

        forced: ids of the first places, (m,) or (B, answers, m), written whatever the model says; the places
            after them are drawn with the
        same chance as without.
        """
        warp = warpers(answers=answers, generator=generator, **options)
        if n > self.most or answers > self.answers:
            raise ValueError(
                f"n={n}, answers={answers}: there is room for {self.answers} answers of {self.most} tokens; "
                f"make another Prefilled"
            )
        self.memory.rewind()
        barred = None if allowed is None else _barred(allowed, self.lvm)
        hidden = self.hidden.expand(-1, answers, -1)  # (B, answers, d)
        for i in range(n):
            logits = self.decoder.logits(hidden)
            logits = logits if barred is None else logits.masked_fill(barred, -torch.inf)
            log = logits.log_softmax(-1)
            if generator is not None:
                likely = (
                    warp(None, logits.flatten(0, 1)).softmax(-1).to(generator.device)
                )  # (B * answers, codes)
                ids = torch.multinomial(likely, 1, generator=generator).to(log.device).view(-1, answers)
            else:
                ids = logits.argmax(-1)
            if forced is not None and i < forced.shape[-1]:
                ids = forced[..., i].to(ids).expand_as(ids)
            yield Step(
                ids, log.gather(-1, ids[..., None])[..., 0], torch.special.entr(log.exp()).sum(-1), log
            )
            if i + 1 < n:
                hidden = self.decoder.step(ids, self.length + i, self.memory, _own(ids, self.length, i + 1))

    @torch.inference_mode()
    def read(self, ids: list[int]) -> Tensor:
        """Of the tokens ``ids`` after one prompt those that are not in memory yet, in one pass: their hidden
        states (1, new, width).
        """
        start, keys = self.memory.filled, torch.arange(self.length + len(ids), device=self.lvm.device)
        new = torch.tensor([ids[start - self.length :]], device=self.lvm.device)
        return self.decoder.step(
            new, keys[start:], self.memory, (keys <= keys[start:, None])[None, None]
        )  # the mask is (1, 1, new, keys)


@dataclass(frozen=True, eq=False)
class Step:
    """One place of every answer, (B, answers) each; ``log`` (B, answers, codes): log-probabilities of all
    codes there.
    """

    ids: Tensor
    logprobs: Tensor
    entropies: Tensor
    log: Tensor


def _barred(allowed: Tensor, lvm: LVM) -> Tensor:
    """True where an id may not be written: allowed holds ids, (n,) for all prompts or (B, n), each row padded
    by repeating any of its own.
    """
    allowed = allowed.to(lvm.device)
    if not allowed.numel() or allowed.min() < 0 or allowed.max() >= lvm.codebook_size:
        raise ValueError(
            f"allowed holds ids outside 0 to {lvm.codebook_size - 1}, or none: give ids that may be written"
        )
    rows = allowed if allowed.ndim == 2 else allowed[None]
    return torch.ones(len(rows), 1, lvm.codebook_size, dtype=torch.bool, device=lvm.device).scatter_(
        2, rows[:, None], False
    )


@torch.inference_mode()
def complete_tokens(
    lvm: LVM,
    tokens: Tensor,
    n: int,
    *,
    sample: bool = False,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    answers: int = 1,
    allowed: Tensor | None = None,
) -> Tokens:
    """The next n tokens after each row of tokens (B, T): the likeliest (greedy), or with `sample` drawn from
    `generator`.

    temperature (over 0), top_k (1 or more) and top_p (in (0, 1]) shape what is drawn, in this order. allowed:
    ids that may be written, (n,)
    or (B, n), those of the prompt's label pictures, say. The same generator state and batch give the same
    tokens. Each prompt is read
    once, however many `answers` are drawn. The model is used in its own device and precision; answers come
    back on the device of `tokens`.
    Raises ValueError for options that do not go together, ids out of range, and n beyond the context.
    """
    options = {
        "sample": sample,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "generator": generator,
        "answers": answers,
    }
    warpers(**options)
    steps = list(Prefilled(lvm, tokens, n, answers).stream(n, allowed=allowed, **options))
    found = ([getattr(step, name) for step in steps] for name in ("ids", "logprobs", "entropies"))
    return Tokens(
        *(torch.stack(v, -1).to(tokens.device) for v in found)
    )  # n of (B, answers) -> (B, answers, n)


def _own(ids: Tensor, length: int, step: int) -> Tensor | None:
    """Which keys each answer (ids (B, answers)) sees: the prompt's, and of the ``step`` tokens of all answers
    since, its own.

    None where there is one answer, which sees all.
    """
    rows, answers = ids.shape
    if answers == 1:
        return None
    own = torch.eye(answers, dtype=torch.bool, device=ids.device).repeat(1, step)  # (answers, step * answers)
    return torch.cat([own.new_ones(answers, length), own], 1).expand(rows, 1, -1, -1)


@torch.inference_mode()
def complete(
    lvm: LVM,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt] | Prompt,
    *,
    images: int = 1,
    batch: int = 50,
    **options,
) -> Completion:
    """Answers prompts of any lengths, in their order, `batch` of one length at a time.

    images: pictures to answer one after another (more than one continues a sequence of frames). options:
        sample, answers, temperature, top_k,
    top_p and generator, as in `complete_tokens`; with `sample` the same generator state, prompts and batch
    give the same answers.
    Raises ValueError, before any work, for a model and tokenizer that do not fit, prompts of another size or
    too long.
    """
    prompts = [prompts] if isinstance(prompts, Prompt) else list(prompts)
    lvm.check_fits(tokenizer)
    warpers(**options)
    _check_prompts(tokenizer, prompts)
    if images < 1 or batch < 1:
        raise ValueError(f"images={images!r}, batch={batch!r}: give at least 1 of each")
    n = images * tokenizer.tokens_per_image
    groups: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(len(prompt.examples), []).append(i)
    for examples in groups:
        _check_room(
            lvm,
            (2 * examples + 1) * tokenizer.tokens_per_image,
            n,
            f"{examples} examples, a query and {images} answered "
            f"picture{'s' * (images > 1)} of {tokenizer.tokens_per_image} tokens each",
        )
    order, parts = [], []
    for group in groups.values():
        for start in range(0, len(group), batch):
            chunk = group[start : start + batch]
            order += chunk
            parts.append(
                complete_tokens(lvm, encode_prompts(tokenizer, [prompts[i] for i in chunk]), n, **options)
            )
    back = torch.tensor(order).argsort()
    tokens, logprobs, entropies = (
        torch.cat([getattr(p, name) for p in parts])[back] for name in ("tokens", "logprobs", "entropies")
    )
    drawn = tokenizer.decode(
        tokens.reshape(-1, tokenizer.tokens_per_image)
    )  # (B * answers * images, 3, S, S)
    return Completion(tokens, logprobs, entropies, drawn.unflatten(0, (len(prompts), -1, images)))


@torch.inference_mode()
def attention(lvm: LVM, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Where the last position of tokens (1, T) looks, the one that predicts the token after them, among all
    up to itself.

    By layer and head (layers, heads, T), and rolled up over all layers (T,), as in Abnar and Zuidema,
    "Quantifying attention flow in
    transformers" (arXiv 2005.00928, section 3): half of each layer's way is the residual's. Each row sums to
    1. A second pass, since the fast
    kernels that answer never hold attention; it takes layers * heads * T * T * 4 bytes. Raises ValueError for
    a bad shape, length or id.
    """
    lvm.check_tokens(tokens)
    model, before = lvm.llama.model, lvm.config._attn_implementation
    model.set_attn_implementation("eager")  # the one that keeps its weights
    try:
        kept = model(
            input_ids=tokens.to(lvm.device, torch.int64), use_cache=False, output_attentions=True
        ).attentions
    finally:
        model.set_attn_implementation(before)
    heads = torch.stack(kept)[:, 0].float().cpu()  # (layers, heads, T, T)
    rolled = torch.eye(heads.shape[-1])[-1]
    for layer in heads.mean(1).flip(0):
        rolled = (rolled + rolled @ layer) / 2
    return heads[:, :, -1], rolled


def alternatives(
    tokenizer: Tokenizer, answer: Tensor, place: int, log: Tensor, count: int = 8
) -> tuple[Tensor, Tensor, ndarray]:
    """What else could stand at ``place`` of an answer (N,): the likeliest ids (k,), their probabilities (k,),
    patches uint8 (k, s, s, 3).

    log: the log-probabilities of all codes there, (codes,). A code means little by itself: a patch is three
        tokens wide, the place among its
    neighbours.
    """
    likely = log.topk(min(count, len(log)))
    written = answer.repeat(len(likely.indices), 1)  # (k, N)
    written[:, place] = likely.indices
    side, most = tokenizer.size // tokenizer.grid, tokenizer.grid - 3
    top, left = (min(max(i - 1, 0), most) * side for i in divmod(place, tokenizer.grid))
    return (
        likely.indices,
        likely.values.exp(),
        pictures_of.to_uint8(tokenizer.decode(written))[:, top : top + 3 * side, left : left + 3 * side],
    )


def warpers(
    sample=False, temperature=None, top_k=None, top_p=None, generator=None, answers=1
) -> LogitsProcessorList:
    """What shapes logits before a draw, in the order of `complete_tokens`. Raises ValueError for options that
    do not go together.
    """
    given = [
        f"{k}={v!r}"
        for k, v in (
            ("temperature", temperature),
            ("top_k", top_k),
            ("top_p", top_p),
            ("generator", generator),
        )
        if v is not None
    ]
    if not isinstance(answers, int) or answers < 1:
        raise ValueError(f"answers={answers!r}: give an integer of at least 1")
    if not sample:
        if given:
            raise ValueError(
                f"{', '.join(given)} would be ignored without sampling: add sample=True, or leave out for "
                f"the greedy answer"
            )
        if answers > 1:
            raise ValueError(
                f"answers={answers} greedy ones would all be the same: add sample=True and a generator"
            )
        return LogitsProcessorList()
    if generator is None:
        raise ValueError(
            "sample=True needs generator=torch.Generator().manual_seed(seed), so that the answer can be had "
            "again"
        )
    for name, value, good, accepted in (
        (
            "temperature",
            temperature,
            lambda v: 0 < v < float("inf"),
            "a number over 0 (for the greedy answer: sample=False)",
        ),
        ("top_k", top_k, lambda v: isinstance(v, int) and v >= 1, "an integer of at least 1"),
        ("top_p", top_p, lambda v: 0 < v <= 1, "a number over 0, at most 1"),
    ):
        if value is not None and not good(value):
            raise ValueError(f"{name}={value!r}: give {accepted}")
    kinds = (
        (TemperatureLogitsWarper, temperature and float(temperature)),
        (TopKLogitsWarper, top_k),
        (TopPLogitsWarper, top_p),
    )
    return LogitsProcessorList([kind(value) for kind, value in kinds if value is not None])


def _check_room(lvm: LVM, length: int, n: int, what: str = "") -> None:
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n={n!r}: give an integer of at least 1")
    if length + n > lvm.max_seq_len:
        raise ValueError(
            f"{what or f'{length} tokens and {n} to come'}: {length + n} tokens, more than the model's "
            f"context of "
            f"{lvm.max_seq_len}; give fewer examples or ask for fewer pictures"
        )


def _check_prompts(tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> None:
    if not len(prompts):
        raise ValueError("no prompts: give at least one Prompt(examples, query)")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, Prompt):
            raise ValueError(f"prompts[{i}] is {type(prompt).__name__}: give a Prompt(examples, query)")
        if prompt.size != tokenizer.size:
            raise ValueError(
                f"prompts[{i}] has pictures of {prompt.size} px but the tokenizer takes {tokenizer.size} px: "
                f"images.load(path, size={tokenizer.size}) makes one of any picture"
            )
