"""What an answer hangs on: skill when the number, order, choice, task, colours or ground of the examples change, or the codes that may be written.

The fixed prompts of a split, each changed in one way; ``plain`` is the prompt of three examples as they come.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from lvmlab import tasks
from lvmlab.evaluate import Job, Scorer, answer, encoded, picture, prompts
from lvmlab.lvm import LVM
from lvmlab.sentences import PAIRS, Sentence
from lvmlab.tasks.base import BACKGROUNDS, HELD_OUT_BACKGROUNDS, Encoding
from lvmlab.tokenizer import Tokenizer

GROUNDS = BACKGROUNDS | HELD_OUT_BACKGROUNDS
PAPER = (BACKGROUNDS["pink"], BACKGROUNDS["black"])  # DeLVM's labels: pink objects on black


def overlap(tokens: torch.Tensor, n: int) -> torch.Tensor:
    """How much of the query's image each example's image shares, whatever its place: (B, examples), shares of the query's n tokens.

    tokens: (B, T) of whole sentences, the query's label last (see `lvmlab.evaluate.encoded`).
    """
    images = tokens.unflatten(1, (-1, n))[:, ::2]  # (B, examples + 1, n)
    return (images[:, -1:, :, None] == images[:, :-1, None, :]).any(-1).float().mean(-1)


def recoloured(asked: Sentence, colours: tuple, examples_only: bool = False) -> Sentence:
    """The prompt with its labels in other (foreground, background) colours; ``examples_only`` leaves the query to be judged in the old ones."""
    encoding = Encoding("chosen colours", colours, asked.encoding.options)
    pairs = [tasks.get(asked.task).relabel(pair, encoding) for pair in asked.pairs]
    return replace(asked, pairs=[*pairs[:-1], asked.pairs[-1]]) if examples_only else Sentence(asked.task, encoding, pairs)


def cases(tokenizer: Tokenizer, job: Job) -> dict[tuple[str, str], Callable[[], list[Sentence]]]:
    """Every change of a job's prompts that makes sense for its task, by (group, name), the plain prompts first."""
    task, k, plain = tasks.get(job.task), job.examples, prompts(job)
    found = {("plain", f"{k} examples"): lambda: plain, ("codes", "of the labels"): lambda: plain}
    found |= {("number", str(i)): lambda i=i: prompts(replace(job, examples=i)) for i in (1, 2, 3, 5, 7) if i != k}
    if task.sequence:
        return found  # a clip has one order, and its own frames
    whole = prompts(replace(job, examples=PAIRS - 1))

    def picked(of: list[Sentence], order: Callable[[int], list[int]]) -> list[Sentence]:
        return [replace(s, pairs=[*(s.pairs[j] for j in order(i)), s.pairs[-1]]) for i, s in enumerate(of)]

    def by_overlap(part: slice) -> list[Sentence]:
        ranks = overlap(encoded(tokenizer, whole), tokenizer.tokens).argsort(dim=1, descending=True, stable=True)
        return picked(whole, lambda i: sorted(ranks[i, part].tolist()))

    found["order", "reversed"] = lambda: picked(plain, lambda i: range(k)[::-1])
    found["order", "shuffled"] = lambda: picked(plain, lambda i: np.random.default_rng(i).permutation(k))
    found["choice", "nearest"], found["choice", "farthest"] = lambda: by_overlap(slice(k)), lambda: by_overlap(slice(-k, None))
    found["choice", "random"] = lambda: picked(whole, lambda i: np.random.default_rng(i).permutation(PAIRS - 1)[:k])
    found["wrong", "task"] = lambda: prompts(replace(job, condition="wrong_task"))
    if task.conflicting:
        found["wrong", "colours"] = lambda: [recoloured(s, s.encoding.colours[::-1], True) for s in plain]
        found["ground", "the paper's"] = lambda: [recoloured(s, PAPER) for s in plain]
        for name in ("black", "white", "grey", "teal"):  # teal is never seen in training; the other colour stays
            found["ground", name] = lambda ground=GROUNDS[name]: [recoloured(s, (_hue(s), ground)) for s in plain]
    return found


def _hue(asked: Sentence) -> tuple[int, int, int]:
    return next(c for c in asked.encoding.colours if c not in GROUNDS.values())


def measure(lvm: LVM, tokenizer: Tokenizer, job: Job, found: dict[tuple[str, str], Callable]) -> Iterator[dict]:
    """A row for each of `cases` as it is done: those of `lvmlab.evaluate.Scorer.rows`, with ``group`` and ``name``; may be left at any time."""
    for (group, name), make in found.items():
        scorer = Scorer(job, tokenizer, make())
        tokens = answer(lvm, scorer.tokens, tokenizer.tokens, job.answers, constrained=group == "codes")
        yield scorer.rows(scorer.scores(picture(tokenizer, tokens)), "", 0.0)[0] | {"group": group, "name": name}
