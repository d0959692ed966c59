"""Training sentences: drawn from a token store, corrupted where they are read, or answered by the student
itself.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lvmlab.data.store import Store
from lvmlab.model.generation import complete_tokens
from lvmlab.model.lvm import LVM
from lvmlab.training.recipe import LVMRecipe, token_weights


class SentenceSampler:
    """Training batches drawn from a token store as a recipe says; each is a function of its place alone.

    Args:
        store: The store's folder.
        recipe: See `lvmlab.training.recipe.LVMRecipe`.
        steps: Of the training, as in its `TrainConfig`.
        seed: Of the draws.
        label_codes: The codes that `permute_label_codes` may write, needed where the recipe asks for it.

    Raises:
        ValueError: The recipe names a task that the store lacks.
    """

    def __init__(
        self,
        store: str | Path,
        recipe: LVMRecipe,
        *,
        steps: int,
        seed: int,
        label_codes: np.ndarray | None = None,
    ):
        self.data = Store(store, copies=recipe.mixture.most_copies)
        self.recipe, self.steps, self.seed, self.label_codes = recipe, steps, seed, label_codes
        if recipe.permute_label_codes and label_codes is None:
            raise ValueError("LVMRecipe.permute_label_codes needs label_codes: give the codes it may write")
        self.counts = self.data.counts()
        self.pictures = {"mixed": 2} | {task: rows.pictures for task, rows in self.data.tasks.items()}
        self.tokens_per_image = self.data.tokens_per_image
        self.tokens_per_step = recipe.tokens
        self.longest = recipe.most_pairs * 2 * self.tokens_per_image
        self.tokenizer, self.on_policy = self.data.meta["tokenizer"], recipe.on_policy
        recipe.mixture.shares(self.counts)  # names a task that the store lacks

    def check_rows(self) -> None:
        """Raises ValueError that names a task and a class with fewer rows than the longest sentence takes."""
        pairs = self.recipe.most_pairs
        for task in self.recipe.mixture.tasks(self.counts):
            pictures = self.pictures[task]
            if pictures > 2 and pictures < 2 * pairs:
                raise ValueError(
                    f"sentences of {pairs} pairs do not fit {task}, whose clips have {pictures} frames: ask "
                    f"for at "
                    f"most {pictures // 2} pairs"
                )
            name, rows = self.data.smallest_group(task)
            needed = 1 if pictures > 2 else 2 * pairs // pictures
            if rows < needed:
                raise ValueError(
                    f"sentences of {pairs} pairs do not fit {task}: its class {name!r} has {rows} of the "
                    f"{needed} "
                    f"rows they take; ask for at most {rows * pictures // 2} pairs, add rows, or leave the "
                    f"class out"
                )

    @property
    def identity(self) -> dict:
        """All that decides the batches."""
        identity = {"recipe": asdict(self.recipe), "store": self.data.meta}
        identity["sentences"] = {"seed": self.seed, "steps": self.steps}
        return identity | ({} if self.label_codes is None else {"codes": len(self.label_codes)})

    def __call__(self, step: int, part: int, parts: int) -> dict:
        """{tokens, inputs, weights (B, T), tasks and rows of each sentence} of one of a step's parts."""
        pairs, number = self.recipe.pairs(step, self.steps), step * parts + part
        size = max(1, self.recipe.tokens // (parts * pairs * 2 * self.tokens_per_image))
        shares = self.recipe.mixture.shares(self.counts, step, self.steps)
        tokens, names, rows = self.data.batch(number, size, pairs, shares, self.seed, self.recipe.mixed)
        if self.recipe.permute_label_codes:
            rng = np.random.default_rng((self.seed, number, 2))
            tokens = permute_label_codes(
                tokens, names, pairs, self.recipe.permute_label_codes, self.label_codes, rng
            )
        rng = np.random.default_rng((self.seed, number, 1))
        weights = token_weights(names, pairs, self.tokens_per_image, self.recipe, self.pictures)
        return {
            "tokens": tokens,
            "inputs": corrupt_answers(tokens, pairs, self.recipe.corruption_rate, rng),
            "weights": weights,
            "tasks": names,
            "rows": rows,
        }

    def batch_sources(self, batch: dict) -> str:
        """The sources of a batch's sentences."""
        return "; ".join(
            f"{task}: {', '.join(self.data.sources(task, rows))}"
            for origin in batch["rows"]
            for task, rows in origin
        )


def corrupt_answers(tokens: Tensor, pairs: int, rate: float, rng: np.random.Generator) -> Tensor:
    """Sentences as they are read in training: some answers hold wrong tokens; the targets stay true.

    The beginning of a label determines its next token so well that a model learns to continue it and looks at
    the picture too little; its own first mistakes then carry it away (exposure bias, arXiv 1506.03099). A
    corrupted answer has a random share of its tokens replaced by tokens of the sentence's answers, each by
    another or all by the same one; or it is the answer of another pair, which looks right and is wrong, so
    that only the picture can tell.

    Args:
        tokens: (B, T), true sentences.
        pairs: In a sentence.
        rate: Share of the answers that are corrupted, from 0 to 1.
        rng: All draws come from it.

    Returns:
        (B, T), int64.
    """
    inputs = tokens.numpy().copy().reshape(len(tokens), pairs, 2, -1)
    for row in inputs:
        answers = row[:, 1].copy()
        for i, answer in enumerate(row[:, 1]):
            if rng.random() >= rate:
                continue
            kind, share = rng.integers(3), rng.random()
            if kind == 0:
                answer[:] = answers[(i + rng.integers(pairs)) % pairs]
            else:
                drawn = rng.choice(answers.ravel(), answer.shape if kind == 1 else 1)
                answer[:] = np.where(rng.random(answer.shape) < share, drawn, answer)
    return torch.from_numpy(inputs.reshape(len(tokens), -1))


def permute_label_codes(
    tokens: Tensor,
    names: list[str],
    pairs: int,
    shares: dict[str, float],
    codes: np.ndarray,
    rng: np.random.Generator,
) -> Tensor:
    """Sentences whose labels are written in other codes, alike in all labels of a sentence.

    Which codes mean object and ground can then be read from the prompt alone: a colour that training never
    showed is copied like any other.

    Args:
        tokens: (B, T), true sentences.
        names: The task of each.
        pairs: In a sentence.
        shares: {task: share of its sentences}, from 0 to 1.
        codes: (C,), those that are exchanged among each other; the others stay.
        rng: All draws come from it.

    Returns:
        (B, T), int64.
    """
    written = tokens.numpy().copy().reshape(len(tokens), pairs, 2, -1)
    for row, name in zip(written, names, strict=True):
        if rng.random() < shares.get(name, 0.0):
            table = np.arange(max(codes.max(), row.max()) + 1)
            table[codes] = rng.permutation(codes)
            row[:, 1] = table[row[:, 1]]
    return torch.from_numpy(written.reshape(len(tokens), -1))


def write_answers(model: LVM, batch: dict, share: float, seed: int, tokens_per_image: int) -> dict:
    """A batch in which the student has written the last answer of some sentences (on-policy distillation).

    These answers are no targets of the cross entropy, and the divergence counts on them alone.

    Args:
        model: The student as it is now.
        batch: Of `SentenceSampler`.
        share: Of the sentences, at least one.
        seed: The draws are a function of it and the batch.
        tokens_per_image: N, the length of an answer.

    Returns:
        The batch with other tokens, inputs and weights, and "kd_weights" (M,) of the divergence, which sum to
        1.
    """
    n = tokens_per_image
    tokens, inputs, weights = (batch[name].clone() for name in ("tokens", "inputs", "weights"))
    count = max(1, round(share * len(tokens)))
    rng = torch.Generator().manual_seed(int(tokens.sum()) + seed)
    with torch.compiler.set_stance("force_eager"):  # each new length would be compiled
        prompts = tokens[:count, :-n]
        answers = complete_tokens(model, prompts, n, sample=True, generator=rng).tokens[:, 0].clone()
    inputs[:count], tokens[:count, -n:] = torch.cat([prompts, answers], 1), answers
    weights[:count, -n:] = 0
    kd_weights = torch.zeros_like(weights)
    kd_weights[:count, -n:] = 1 / (count * n)
    kd_weights = kd_weights[:, 1:].flatten()
    return batch | {"tokens": tokens, "inputs": inputs, "weights": weights, "kd_weights": kd_weights}
