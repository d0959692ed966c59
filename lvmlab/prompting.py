"""Prompts of example pairs, and their completion: prefill once, then answer token by token, many answers at once.

In effect greedy in DeLVM (arXiv 2402.04841), sampled at temperature 1 in LVM (arXiv 2312.00785); both prompt kinds of the
latter: analogies (pairs and a query) and sequences (frames).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.cache_utils import Cache, DynamicLayer

from lvmlab import images as pictures_of
from lvmlab.lvm import LVM
from lvmlab.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Prompt:
    """Examples, each (image, label), and a query: float (3, S, S) in [0, 1], all of one size. Raises ValueError."""

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
            name = "query" if i == 2 * len(self.examples) else f"examples[{i // 2}] {('image', 'label')[i % 2]}"
            pictures_of.check(picture, name)
            if picture.ndim != 3 or picture.shape != (3, side, side):
                raise ValueError(f"{name} has shape {tuple(picture.shape)}: give (3, S, S), every picture of a prompt with the same S; "
                                 "images.load(path, size=S) makes one of any picture")

    @classmethod
    def sequence(cls, frames: Sequence[Tensor]) -> "Prompt":
        """A prompt of frames in time order, an odd number from 3 on; the answer is the next frame. Raises ValueError.

        Odd, because the model reads pictures in pairs: what it answers stands where labels stood in training.
        """
        if len(frames) < 3 or len(frames) % 2 == 0:
            raise ValueError(f"a sequence of {len(frames)} frames: give an odd number, at least 3 (drop or add the oldest frame)")
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
    """Answers to B prompts. Log-probabilities (of each answered token) and entropies are the model's own, in nats: at
    temperature 1, before top-k and top-p."""

    tokens: Tensor  # (B, answers, n) int64
    logprobs: Tensor  # (B, answers, n)
    entropies: Tensor  # (B, answers, n)


@dataclass(frozen=True, eq=False)
class Completion(Tokens):
    """Answers and their pictures, float in [0, 1]; n is images * N."""

    images: Tensor  # (B, answers, images, 3, S, S)


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> Tensor:
    """Prompts of one length to tokens (B, T), T = (2 * examples + 1) * N; a picture that several share is encoded once.

    Raises ValueError where there are none, they differ in length, or are not of the tokenizer's size.
    """
    _check_prompts(tokenizer, prompts)
    lengths = sorted({len(p.examples) for p in prompts})
    if len(lengths) > 1:
        raise ValueError(f"prompts of {', '.join(map(str, lengths))} examples do not fit one tensor: give prompts of one length; "
                         "complete takes any mixture")
    unique = {id(picture): picture for p in prompts for picture in p.pictures}
    row = {key: i for i, key in enumerate(unique)}
    tokens = tokenizer.encode(torch.stack([picture.float() for picture in unique.values()]))  # (unique pictures, N)
    which = torch.tensor([[row[id(picture)] for picture in p.pictures] for p in prompts], device=tokens.device)
    return tokens[which].flatten(1)  # (B, 2k + 1, N) -> (B, T)


@torch.inference_mode()
def complete_tokens(lvm: LVM, tokens: Tensor, n: int, *, sample: bool = False, temperature: float | None = None, top_k: int | None = None,
                    top_p: float | None = None, generator: torch.Generator | None = None, answers: int = 1) -> Tokens:
    """The next n tokens after each row of tokens (B, T): the likeliest (greedy), or with `sample` drawn from `generator`.

    temperature (over 0), top_k (1 or more) and top_p (in (0, 1]) shape what is drawn, in this order. The same generator state
    and batch give the same tokens. Each prompt is read once, however many `answers` are drawn. The model is used in its own
    device and precision; answers come back on the device of `tokens`.
    Raises ValueError for options that do not go together, ids out of range, and n beyond the context.
    """
    warpers = _warpers(sample, temperature, top_k, top_p, generator, answers)
    lvm.check_tokens(tokens)
    length = tokens.shape[1]
    _check_room(lvm, length, n)
    llama, head = lvm.llama.model, lvm.llama.lm_head
    cache = Cache(layers=[_Room(length + answers * (n - 1)) for _ in llama.layers])
    ids = tokens.to(lvm.device, torch.int64)
    chosen, logprobs, entropies = [], [], []
    for i in range(n):
        # a prompt's answers are written side by side, as one more step of one sentence: each sees the prompt, which is kept once, and itself
        beside = {} if i == 0 else {"position_ids": ids.new_full((1, answers), length + i - 1), "attention_mask": _own(ids, length, i)}
        hidden = llama(input_ids=ids, cache=cache, use_cache=True, **beside).last_hidden_state
        hidden = hidden if i else hidden[:, -1:].expand(-1, answers, -1)  # (B, answers, d)
        logits = head(hidden).float()[..., : lvm.codes]
        log = logits.log_softmax(-1)
        if sample:
            likely = warpers(ids, logits.flatten(0, 1)).softmax(-1).to(generator.device)  # (B * answers, codes)
            ids = torch.multinomial(likely, 1, generator=generator).to(log.device).view(-1, answers)
        else:
            ids = logits.argmax(-1)
        chosen.append(ids)
        logprobs.append(log.gather(-1, ids[..., None])[..., 0])
        entropies.append(torch.special.entr(log.exp()).sum(-1))
    return Tokens(*(torch.stack(v, -1).to(tokens.device) for v in (chosen, logprobs, entropies)))  # n of (B, answers) -> (B, answers, n)


def _own(ids: Tensor, length: int, step: int) -> Tensor | None:
    """Which keys each answer (ids (B, answers)) sees: the prompt's, and of the ``step`` tokens of all answers since, its own.

    None where there is one answer, which sees all.
    """
    rows, answers = ids.shape
    if answers == 1:
        return None
    own = torch.eye(answers, dtype=torch.bool, device=ids.device).repeat(1, step)  # (answers, step * answers)
    return torch.cat([own.new_ones(answers, length), own], 1).expand(rows, 1, -1, -1)


@torch.inference_mode()
def complete(lvm: LVM, tokenizer: Tokenizer, prompts: Sequence[Prompt] | Prompt, *, images: int = 1, answers: int = 1, batch: int = 50,
             sample: bool = False, temperature: float | None = None, top_k: int | None = None, top_p: float | None = None,
             generator: torch.Generator | None = None) -> Completion:
    """Answers prompts of any lengths, in their order, `batch` of one length at a time.

    images: pictures to answer one after another (more than one continues a sequence of frames). The other options are
    those of `complete_tokens`; with `sample` the same generator state, prompts and batch give the same answers.
    Raises ValueError, before any work, for a model and tokenizer that do not fit, prompts of another size or too long.
    """
    prompts = [prompts] if isinstance(prompts, Prompt) else list(prompts)
    lvm.check_fits(tokenizer)
    _warpers(sample, temperature, top_k, top_p, generator, answers)
    _check_prompts(tokenizer, prompts)
    if images < 1 or batch < 1:
        raise ValueError(f"images={images!r}, batch={batch!r}: give at least 1 of each")
    n = images * tokenizer.tokens
    groups: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(len(prompt.examples), []).append(i)
    for examples in groups:
        _check_room(lvm, (2 * examples + 1) * tokenizer.tokens, n, f"{examples} examples, a query and {images} answered "
                    f"picture{'s' * (images > 1)} of {tokenizer.tokens} tokens each")
    order, parts = [], []
    for group in groups.values():
        for start in range(0, len(group), batch):
            chunk = group[start : start + batch]
            order += chunk
            parts.append(complete_tokens(lvm, encode_prompts(tokenizer, [prompts[i] for i in chunk]), n, sample=sample,
                                         temperature=temperature, top_k=top_k, top_p=top_p, generator=generator, answers=answers))
    back = torch.tensor(order).argsort()
    tokens, logprobs, entropies = (torch.cat([getattr(p, name) for p in parts])[back] for name in ("tokens", "logprobs", "entropies"))
    drawn = tokenizer.decode(tokens.reshape(-1, tokenizer.tokens))  # (B * answers * images, 3, S, S)
    return Completion(tokens, logprobs, entropies, drawn.unflatten(0, (len(prompts), answers, images)))


class _Room(DynamicLayer):
    """A layer's keys and values in memory set aside once; DynamicLayer copies all of them for every token."""

    def __init__(self, length: int):
        super().__init__()
        self.length, self.filled = length, 0

    def update(self, keys: Tensor, values: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.store = [x.new_empty(*x.shape[:2], self.length, x.shape[3]) for x in (keys, values)]  # (B, heads, length, width)
            self.is_initialized = True
        until = self.filled + keys.shape[2]
        for store, new in zip(self.store, (keys, values), strict=True):
            store[:, :, self.filled : until] = new
        self.filled = until
        self.keys, self.values = (store[:, :, :until] for store in self.store)
        return self.keys, self.values


def _warpers(sample, temperature, top_k, top_p, generator, answers) -> LogitsProcessorList:
    given = [f"{k}={v!r}" for k, v in (("temperature", temperature), ("top_k", top_k), ("top_p", top_p), ("generator", generator))
             if v is not None]
    if not isinstance(answers, int) or answers < 1:
        raise ValueError(f"answers={answers!r}: give an integer of at least 1")
    if not sample:
        if given:
            raise ValueError(f"{', '.join(given)} would be ignored without sampling: add sample=True, or leave out for the greedy answer")
        if answers > 1:
            raise ValueError(f"answers={answers} greedy ones would all be the same: add sample=True and a generator")
        return LogitsProcessorList()
    if generator is None:
        raise ValueError("sample=True needs generator=torch.Generator().manual_seed(seed), so that the answer can be had again")
    for name, value, good, accepted in (
        ("temperature", temperature, lambda v: 0 < v < float("inf"), "a number over 0 (for the greedy answer: sample=False)"),
        ("top_k", top_k, lambda v: isinstance(v, int) and v >= 1, "an integer of at least 1"),
        ("top_p", top_p, lambda v: 0 < v <= 1, "a number over 0, at most 1"),
    ):  # fmt: skip
        if value is not None and not good(value):
            raise ValueError(f"{name}={value!r}: give {accepted}")
    kinds = ((TemperatureLogitsWarper, temperature and float(temperature)), (TopKLogitsWarper, top_k), (TopPLogitsWarper, top_p))
    return LogitsProcessorList([kind(value) for kind, value in kinds if value is not None])


def _check_room(lvm: LVM, length: int, n: int, what: str = "") -> None:
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n={n!r}: give an integer of at least 1")
    if length + n > lvm.context:
        raise ValueError(f"{what or f'{length} tokens and {n} to come'}: {length + n} tokens, more than the model's context of "
                         f"{lvm.context}; give fewer examples or ask for fewer pictures")


def _check_prompts(tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> None:
    if not len(prompts):
        raise ValueError("no prompts: give at least one Prompt(examples, query)")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, Prompt):
            raise ValueError(f"prompts[{i}] is {type(prompt).__name__}: give a Prompt(examples, query)")
        if prompt.size != tokenizer.size:
            raise ValueError(f"prompts[{i}] has pictures of {prompt.size} px but the tokenizer takes {tokenizer.size} px: "
                             f"images.load(path, size={tokenizer.size}) makes one of any picture")
