"""What an answer hangs on: skill when the number, order, choice, task, colours or ground of the examples
change, or the codes that may be written.

The fixed prompts of a split, each changed in one way; ``plain`` is the prompt of three examples as they come.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from lvmlab.evaluation.scoring import Job, Scorer, encoded, picture, prompts, written
from lvmlab.model.lvm import LVM
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.world import of_size, tasks
from lvmlab.world.encodings import BACKGROUNDS, HELD_OUT_BACKGROUNDS, Encoding
from lvmlab.world.sentences import PAIRS, Sentence

GROUNDS = BACKGROUNDS | HELD_OUT_BACKGROUNDS
PAPER = (BACKGROUNDS["pink"], BACKGROUNDS["black"])  # DeLVM's labels: pink objects on black


def overlap(tokens: torch.Tensor, n: int) -> torch.Tensor:
    """How much of the query's image each example's image shares, whatever its place: (B, examples), shares of
    the query's n tokens.

    tokens: (B, T) of whole sentences, the query's label last (see `lvmlab.evaluation.scoring.encoded`).
    """
    images = tokens.unflatten(1, (-1, n))[:, ::2]  # (B, examples + 1, n)
    return (images[:, -1:, :, None] == images[:, :-1, None, :]).any(-1).float().mean(-1)


def recoloured(asked: Sentence, colours: tuple, examples_only: bool = False) -> Sentence:
    """The prompt with its labels in other (foreground, background) colours; ``examples_only`` leaves the
    query to be judged in the old ones.
    """
    encoding = Encoding("chosen colours", colours, asked.encoding.options)
    pairs = [tasks.get(asked.task).relabel(pair, encoding) for pair in asked.pairs]
    return (
        replace(asked, pairs=[*pairs[:-1], asked.pairs[-1]])
        if examples_only
        else Sentence(asked.task, encoding, pairs)
    )


def changes(tokenizer: Tokenizer, job: Job) -> Iterator[tuple[str, str, list[Sentence]]]:
    """Every change of a job's prompts that makes sense for its task: (group, name, prompts), the plain ones
    first.
    """
    laws = of_size(tokenizer.size)
    task, k, plain = tasks.get(job.task), job.examples, prompts(job, laws)
    yield "plain", f"{k} examples", plain
    yield "codes", "of the labels", plain
    yield from (
        ("number", str(i), prompts(replace(job, examples=i), laws)) for i in (1, 2, 3, 5, 7) if i != k
    )
    if task.sequence:
        return  # a clip has one order, and its own frames
    whole = prompts(replace(job, examples=PAIRS - 1), laws)
    ranks = (
        overlap(encoded(tokenizer, whole), tokenizer.tokens_per_image)
        .argsort(dim=1, descending=True, stable=True)
        .tolist()
    )
    chance = [np.random.default_rng(i).permutation(PAIRS - 1).tolist() for i in range(len(whole))]
    shuffled, drawn = [[j for j in c if j < k] for c in chance], [c[:k] for c in chance]
    for group, name, orders in (
        ("order", "reversed", [range(k)[::-1]] * len(whole)),
        ("order", "shuffled", shuffled),
        ("choice", "random", drawn),
        ("choice", "nearest", [sorted(r[:k]) for r in ranks]),
        ("choice", "farthest", [sorted(r[-k:]) for r in ranks]),
    ):
        yield (
            group,
            name,
            [
                replace(s, pairs=[*(s.pairs[j] for j in order), s.pairs[-1]])
                for s, order in zip(whole, orders, strict=True)
            ],
        )
    yield "wrong", "task", prompts(replace(job, condition="wrong_task"), laws)
    if task.conflicting:
        yield "wrong", "colours", [recoloured(s, s.encoding.colours[::-1], True) for s in plain]
        yield "ground", "the paper's", [recoloured(s, PAPER) for s in plain]
        hues = [next(c for c in s.encoding.colours if c not in GROUNDS.values()) for s in plain]
        for name in (
            "black",
            "white",
            "grey",
            "teal",
        ):  # teal is never seen in training; the other colour stays
            yield (
                "ground",
                name,
                [recoloured(s, (hue, GROUNDS[name])) for s, hue in zip(plain, hues, strict=True)],
            )


def measure(lvm: LVM, tokenizer: Tokenizer, job: Job, batch: int = 8) -> Iterator[tuple[str, dict | None]]:
    """Each of `changes` as it is done, ("GROUP: NAME", row): rows of `lvmlab.evaluation.scoring.Scorer` with
    ``group`` and ``name``; None after every
    ``batch`` prompts before, so that it may be left at any time."""
    for group, name, sentences in changes(tokenizer, job):
        scorer, tokens = Scorer(job, tokenizer, sentences), []
        for part in written(
            lvm, scorer.tokens, tokenizer.tokens_per_image, job.answers, batch, constrained=group == "codes"
        ):
            tokens.append(part)
            yield f"{group}: {name}", None
        row = scorer.rows(scorer.scores(picture(tokenizer, torch.cat(tokens))), "", 0.0)[0]
        yield f"{group}: {name}", row | {"group": group, "name": name}
