"""How skill depends on the prompt: number, order, choice, task, colours and background of the examples, and
the codes that may be written.

The fixed sentences of a split are each changed in one way; "plain" is the prompt of a job's examples as they
come.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lvmlab.evaluation.prompts import Job, encode_sentences, sentences
from lvmlab.evaluation.scoring import Scorer, answer_tokens, mean_pictures
from lvmlab.model.lvm import LVM
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.world import of_size, tasks
from lvmlab.world.encodings import BACKGROUNDS, HELD_OUT_BACKGROUNDS, Encoding
from lvmlab.world.sentences import PAIRS, Sentence

GROUNDS = BACKGROUNDS | HELD_OUT_BACKGROUNDS
PAPER = (BACKGROUNDS["pink"], BACKGROUNDS["black"])  # DeLVM's labels: pink objects on black


def measure(lvm: LVM, tokenizer: Tokenizer, job: Job, batch: int = 8) -> Iterator[tuple[str, dict | None]]:
    """The skill under each of `changes`, as it is done.

    Args:
        lvm: The model.
        tokenizer: The one it was trained with.
        job: What is asked.
        batch: Prompts that are answered together; the iteration may stop after each batch.

    Yields:
        ("GROUP: NAME", None) after every batch, and ("GROUP: NAME", row) after the last one: a row of
        `lvmlab.evaluation.scoring.Scorer` with ``group`` and ``name``.
    """
    n = tokenizer.tokens_per_image
    for group, name, asked in changes(tokenizer, job):
        scorer, tokens = Scorer(job, tokenizer, asked), []
        for part in answer_tokens(lvm, scorer.tokens, n, job.answers, batch, constrained=group == "codes"):
            tokens.append(part)
            yield f"{group}: {name}", None
        scores = scorer.scores(mean_pictures(tokenizer, torch.cat(tokens)))
        yield f"{group}: {name}", scorer.rows(scores, "", 0.0)[0] | {"group": group, "name": name}


def changes(tokenizer: Tokenizer, job: Job) -> Iterator[tuple[str, str, list[Sentence]]]:
    """Every change of a job's sentences that makes sense for its task, the plain ones first.

    Yields:
        (group, name, sentences).
    """
    laws = of_size(tokenizer.size)
    task, plain = tasks.get(job.task), sentences(job, laws)
    yield "plain", f"{job.examples} examples", plain
    yield "codes", "of the labels", plain
    for count in (1, 2, 3, 5, 7):
        if count != job.examples:
            yield "number", str(count), sentences(replace(job, examples=count), laws)
    if task.sequence:
        return  # a clip has one order, and its own frames
    yield from _rearranged(tokenizer, job, sentences(replace(job, examples=PAIRS - 1), laws))
    yield "wrong", "task", sentences(replace(job, condition="wrong_task"), laws)
    if task.conflicting:
        yield "wrong", "colours", [recoloured(s, s.encoding.colours[::-1], True) for s in plain]
        yield "ground", "the paper's", [recoloured(s, PAPER) for s in plain]
        hues = [next(c for c in s.encoding.colours if c not in GROUNDS.values()) for s in plain]
        # teal is never seen in training; the other colour stays
        for name in ("black", "white", "grey", "teal"):
            grounded = [recoloured(s, (hue, GROUNDS[name])) for s, hue in zip(plain, hues, strict=True)]
            yield "ground", name, grounded


def recoloured(asked: Sentence, colours: tuple, examples_only: bool = False) -> Sentence:
    """The sentence with its labels in other (foreground, background) colours.

    ``examples_only`` leaves the query's in the old ones, by which its answer is then judged.
    """
    encoding = Encoding("chosen colours", colours, asked.encoding.options)
    pairs = [tasks.get(asked.task).relabel(pair, encoding) for pair in asked.pairs]
    if examples_only:
        return replace(asked, pairs=[*pairs[:-1], asked.pairs[-1]])
    return Sentence(asked.task, encoding, pairs)


def overlap(tokens: Tensor, n: int) -> Tensor:
    """How much of the query's image each example's image shares, whatever its place.

    Args:
        tokens: (B, T) of sentences, the query's label last (`lvmlab.evaluation.prompts.encode_sentences`).
        n: Tokens of a picture.

    Returns:
        (B, examples), shares of the query's n tokens.
    """
    images = tokens.unflatten(1, (-1, n))[:, ::2]  # (B, examples + 1, n)
    return (images[:, -1:, :, None] == images[:, :-1, None, :]).any(-1).float().mean(-1)


def _rearranged(
    tokenizer: Tokenizer, job: Job, longest: list[Sentence]
) -> Iterator[tuple[str, str, list[Sentence]]]:
    """Orders and choices of the job's number of examples out of the longest sentences."""
    k = job.examples
    shared = overlap(encode_sentences(tokenizer, longest), tokenizer.tokens_per_image)
    ranks = shared.argsort(dim=1, descending=True, stable=True).tolist()
    chance = [np.random.default_rng(i).permutation(PAIRS - 1).tolist() for i in range(len(longest))]
    for group, name, orders in (
        ("order", "reversed", [range(k)[::-1]] * len(longest)),
        ("order", "shuffled", [[j for j in order if j < k] for order in chance]),
        ("choice", "random", [order[:k] for order in chance]),
        ("choice", "nearest", [sorted(order[:k]) for order in ranks]),
        ("choice", "farthest", [sorted(order[-k:]) for order in ranks]),
    ):
        chosen = []
        for s, order in zip(longest, orders, strict=True):
            chosen.append(replace(s, pairs=[*(s.pairs[j] for j in order), s.pairs[-1]]))
        yield group, name, chosen
