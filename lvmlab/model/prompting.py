"""Prompts of example pairs, and their completion: the one way to ask a model.

Both kinds of prompts of LVM (arXiv 2312.00785): analogies (pairs and a query) and sequences (frames).
Pictures are float (3, S, S) in [0, 1]; `lvmlab.model.generation` answers prompts that are tokens already.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lvmlab.model.generation import AnswerTokens, Sampling, answer
from lvmlab.model.lvm import LVM
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.utils import images as pictures_of


@dataclass(frozen=True, eq=False)
class Prompt:
    """Example pairs and a query.

    Attributes:
        examples: Pairs (image, label) of float pictures (3, S, S) in [0, 1].
        query: A picture of the same size; the answer is its label.

    Raises:
        ValueError: No example, a pair that is none, or a picture of another kind or size.
    """

    examples: Sequence[tuple[Tensor, Tensor]]
    query: Tensor

    @classmethod
    def sequence(cls, frames: Sequence[Tensor]) -> "Prompt":
        """A prompt of frames in time order; the answer is the next frame.

        The model reads pictures in pairs: its answer stands where labels stood in training, so an odd number
            of frames
        comes before it.

        Args:
            frames: An odd number of pictures, at least 3.

        Raises:
            ValueError: Another number of frames.
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
                    "with the same S; images.load(path, size=S) makes one of any picture"
                )


@dataclass(frozen=True, eq=False)
class Completion(AnswerTokens):
    """Answers and their pictures.

    Attributes:
        images: (B, answers, images, 3, S, S) float in [0, 1]. Of the fields of `AnswerTokens`, n is images *
            N.
    """

    images: Tensor


@torch.inference_mode()
def complete(
    lvm: LVM,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt] | Prompt,
    *,
    images: int = 1,
    batch: int = 50,
    **sampling,
) -> Completion:
    """Answers prompts of any lengths, in their order.

    With ``sample`` the same generator state, prompts and batch give the same answers.

    Args:
        lvm: The model.
        tokenizer: The one it was trained with.
        prompts: One or several.
        images: Pictures to answer one after another; more than one continues a sequence of frames.
        batch: Prompts of one length that are answered together.
        **sampling: The fields of `lvmlab.model.generation.Sampling` (sample, temperature, top_k, top_p,
            generator, answers); greedy by default.

    Raises:
        ValueError: Before any work: model and tokenizer do not fit, options do not go together, or prompts
            are of another size or too long.
    """
    prompts = [prompts] if isinstance(prompts, Prompt) else list(prompts)
    _check_prompts(tokenizer, prompts)
    if images < 1 or batch < 1:
        raise ValueError(f"images={images!r}, batch={batch!r}: give at least 1 of each")
    groups = _by_length(prompts)
    sampling = Sampling(**sampling)
    lvm.check_fits(tokenizer)
    n = images * tokenizer.tokens_per_image
    for examples in groups:
        pictures = (
            f"{images} answered picture{'s' * (images > 1)} of {tokenizer.tokens_per_image} tokens each"
        )
        length = (2 * examples + 1) * tokenizer.tokens_per_image
        lvm.check_room(length, n, f"{examples} examples, a query and {pictures}")

    # one length at a time
    order, parts = [], []
    for rows in groups.values():
        for start in range(0, len(rows), batch):
            chunk = rows[start : start + batch]
            tokens = encode_prompts(tokenizer, [prompts[i] for i in chunk])
            order += chunk
            parts.append(answer(lvm, tokens, n, sampling))

    # back in the order of the prompts
    back = torch.tensor(order).argsort()
    columns = ([getattr(part, name) for part in parts] for name in ("tokens", "logprobs", "entropies"))
    tokens, logprobs, entropies = (torch.cat(column)[back] for column in columns)
    pictures = tokenizer.decode(
        tokens.reshape(-1, tokenizer.tokens_per_image)
    )  # (B * answers * images, 3, S, S)
    return Completion(tokens, logprobs, entropies, pictures.unflatten(0, (len(prompts), -1, images)))


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> Tensor:
    """Tokens of prompts of one length; a picture that several share is encoded once.

    Returns:
        (B, (2 * examples + 1) * N) int64.

    Raises:
        ValueError: The prompts differ in length, or their pictures are not of the tokenizer's size.
    """
    lengths = sorted(_by_length(prompts))
    if len(lengths) > 1:
        raise ValueError(
            f"prompts of {', '.join(map(str, lengths))} examples do not fit one tensor: give prompts of one "
            "length; complete takes any mixture"
        )
    unique = {id(picture): picture for prompt in prompts for picture in prompt.pictures}
    row = {key: i for i, key in enumerate(unique)}
    tokens = tokenizer.encode(
        torch.stack([picture.float() for picture in unique.values()])
    )  # (unique pictures, N)
    rows = [[row[id(picture)] for picture in prompt.pictures] for prompt in prompts]
    return tokens[torch.tensor(rows, device=tokens.device)].flatten(1)  # (B, 2 * examples + 1, N) -> (B, T)


def _by_length(prompts: Sequence[Prompt]) -> dict[int, list[int]]:
    """The rows of the prompts with each number of examples."""
    groups: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(len(prompt.examples), []).append(i)
    return groups


def _check_prompts(tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> None:
    if not prompts:
        raise ValueError("no prompts: give at least one Prompt(examples, query)")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, Prompt):
            raise ValueError(f"prompts[{i}] is {type(prompt).__name__}: give a Prompt(examples, query)")
        if prompt.size != tokenizer.size:
            raise ValueError(
                f"prompts[{i}] has pictures of {prompt.size} px but the tokenizer takes {tokenizer.size} px: "
                f"images.load(path, size={tokenizer.size}) makes one of any picture"
            )
