"""What the prompt studio does, without any widget: a prompt to be edited, its answer, and what can be asked of both."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lvmlab import images, tasks
from lvmlab.evaluate import Job, Scorer, encoded
from lvmlab.inside import alternatives, attention
from lvmlab.lvm import LVM, shipped
from lvmlab.prompting import Prefilled, Step
from lvmlab.recipes import Options, Recipe, made
from lvmlab.sensitivity import recoloured
from lvmlab.sentences import PAIRS, Sentence, sentence
from lvmlab.tasks.base import Pair, read_mask
from lvmlab.tokenizer import Tokenizer

SPLIT = "val"  # the test split is for released scores


@dataclass(frozen=True, eq=False)
class Answer:
    """So much of an answer as is written: ``steps`` of (1, A) each, by which ``model`` and ``options``, in ``seconds``, prefill included."""

    model: str
    options: Options
    forced: Tensor | None
    steps: list[Step]
    seconds: float

    def of(self, name: str) -> Tensor:
        """ids, logprobs or entropies (A, i), or log (A, i, codes)."""
        return torch.stack([getattr(step, name)[0] for step in self.steps], 1).cpu()


class Session:
    """A prompt under the user's hands.

        session = Session()                       # the shipped tokenizer and models
        session.draw("segmentation", index=3)     # a val prompt of mini-world
        for answer in session.answer("mini-teacher", Options()): ...

    models: others than the shipped ones, by name. Everything raises ValueError with the remedy in it. Public: ``asked``, the prompt, whose
    last pair is the query; whether its truth is ``known``; ``found``, the answer that is shown; ``first``, the one before a token was chosen.
    """

    def __init__(self, tokenizer: Tokenizer | None = None, models: dict[str, LVM] | None = None):
        self.tokenizer, self.models = tokenizer or Tokenizer.from_pretrained("mini"), dict(models or {})
        self.names, self.n = [*self.models] or shipped()[::-1], self.tokenizer.tokens
        self.draw()

    def lvm(self, name: str) -> LVM:
        """A model by its name, a shipped one or a checkpoint's folder; kept. Raises ValueError (CheckpointError)."""
        if name not in self.models:
            lvm = LVM.from_pretrained(name)
            lvm.check_fits(self.tokenizer)
            self.models[name] = lvm
        return self.models[name]

    def draw(self, task: str = "segmentation", index: int = 0, examples: int = 3) -> None:
        """Prompt ``index`` of a task in the val split of mini-world, as `lvmlab.evaluate.prompts` has it."""
        if index < 0 or not 1 <= examples < PAIRS:
            raise ValueError(f"prompt {index} with {examples} examples: give a number of 0 or more, and 1 to {PAIRS - 1} examples")
        whole = sentence(task, SPLIT, index, pairs=PAIRS, size=self.tokenizer.size)
        *others, query = whole.pairs[: examples + 1] if tasks.get(task).sequence else whole.pairs
        self._spare = others[examples:]
        self.set(replace(whole, pairs=[*others[:examples], query]), known=True)

    def set(self, asked: Sentence, known: bool) -> None:
        """Another prompt, and whether its last label is the query's truth; what was answered before is gone."""
        self.tokens = encoded(self.tokenizer, [asked])[:, : -self.n]  # (1, T)
        self.asked, self.known, self.found, self.first, self._ready, self._scorer = asked, known, None, None, (None, None), None

    def arrange(self, order: Sequence[int], swapped: Sequence[int] = ()) -> None:
        """The examples in a new order, by their numbers now; one left out is removed, one beyond the last is added; image and label of the
        ``swapped`` change places."""
        *examples, query = self.asked.pairs
        there = [*examples, *self._spare]
        if not 1 <= len(order) < PAIRS or not set(order) <= set(range(len(there))):
            raise ValueError(f"a prompt holds 1 to {PAIRS - 1} examples, of {len(there)} at hand here: remove or add one first, or draw another")
        kept = [Pair(there[i].label, there[i].image) if i in swapped else there[i] for i in order]
        self._spare = [pair for i, pair in enumerate(there) if i not in order]
        self.set(replace(self.asked, pairs=[*kept, query]), self.known)

    def shuffle(self, seed: int = 0) -> None:
        """The examples in an order drawn by the seed."""
        self.arrange(np.random.default_rng(seed).permutation(len(self.asked.pairs) - 1).tolist())

    def put(self, source: images.Source, at: int, side: str) -> None:
        """A picture of the user's as the ``side``, image or label, of pair ``at``; of the last, the query, the truth is then unknown."""
        pairs = list(self.asked.pairs)
        pairs[at] = replace(pairs[at], truth={}, source="", **{side: images.to_uint8(images.load(source, self.tokenizer.size))})
        self.set(replace(self.asked, pairs=pairs), self.known and at < len(pairs) - 1)

    def recolour(self, foreground: Sequence[int], background: Sequence[int]) -> None:
        """All labels in two other colours, RGB in 0..255; pictures of the user's by whichever of the old ones each pixel is nearer to."""
        if not tasks.get(self.asked.task).conflicting:
            raise ValueError(f"labels of {self.asked.task} have no two colours to choose: draw a prompt of segmentation or selection")
        if tuple(foreground) == tuple(background):
            raise ValueError("both colours are the same: choose two that differ")
        pairs = [p if p.truth else replace(p, truth={"mask": read_mask(p.label, self.asked.encoding).astype(np.float32)}) for p in self.asked.pairs]
        self.set(recoloured(replace(self.asked, pairs=pairs), (tuple(foreground), tuple(background))), self.known)

    def answer(self, model: str, options: Options, forced: Tensor | None = None, keep: bool = True) -> Iterator[Answer]:
        """The answer as it grows, a token at a time; the prompt is read once for all its answers. keep: as ``found``."""
        started, lvm, key, steps = time.perf_counter(), self.lvm(model), (model, options.answers), []
        if self._ready[0] != key:
            self._ready = key, Prefilled(lvm, self.tokens, self.n, options.answers)
        for step in options.stream(self._ready[1], self.tokens, self.n, forced):
            steps.append(step)
            found = Answer(model, options, forced, list(steps), time.perf_counter() - started)
            if keep:
                self.found, self.first = found, self.first if forced is not None else None
            yield found

    def choose(self, sample: int, place: int, code: int) -> Iterator[Answer]:
        """Another token at a place of one sample: that sample alone, the rest of it written again after the token."""
        found = self._answered(sample, place)
        self.first = self.first or found
        forced = torch.cat([found.of("ids")[sample, :place], torch.tensor([code])])
        return self.answer(found.model, replace(found.options, answers=1), forced)

    def back(self) -> None:
        """The answer as it was before a token was chosen."""
        self.found, self.first = self.first or self._answered(), None

    def pictures(self, found: Answer) -> np.ndarray:
        """Answers drawn, uint8 (A, S, S, 3); where one is not whole, its last token stands for those to come."""
        ids = found.of("ids")
        return images.to_uint8(self.tokenizer.decode(torch.cat([ids, ids[:, -1:].expand(-1, self.n - ids.shape[1])], 1)))

    def rows(self, pictures: np.ndarray) -> list[dict]:
        """Each picture's score with ceiling, floors and skill (rows of `lvmlab.evaluate.Scorer`); none where the truth is not known."""
        if self.known and self._scorer is None:
            self._scorer = Scorer(Job(self.asked.task, prompts=1, split=SPLIT), self.tokenizer, [self.asked])
        return [self._scorer.rows(self._scorer.scores(picture[None]), "", 0.0)[0] for picture in pictures] if self.known else []

    def inside(self, sample: int, place: int) -> tuple:
        """At a place of an answer: what else could stand there (`lvmlab.inside.alternatives`), and what the position that predicted it looked
        at (`lvmlab.inside.attention`)."""
        found = self._answered(sample, place)
        ids = found.of("ids")[sample]
        written = torch.cat([ids, ids[-1:].expand(self.n - len(ids))])
        seen = torch.cat([self.tokens[0].cpu(), ids[:place]])[None]
        return alternatives(self.tokenizer, written, place, found.of("log")[sample, place]), attention(self.lvm(found.model), seen)

    def recipe(self) -> Recipe:
        """What to take away."""
        found = self._answered()
        versions = made(self.lvm(found.model), self.tokenizer)
        return Recipe(self.asked, self.known, found.model, found.options, found.forced, found.of("ids"), versions)

    def _answered(self, sample: int = 0, place: int = 0) -> Answer:
        if self.found is None:
            raise ValueError("there is no answer yet: press Answer first")
        samples, written = self.found.of("ids").shape
        if not (0 <= sample < samples and 0 <= place < written):
            raise ValueError(f"token {place} of answer {sample + 1} is not written: choose one of {written} tokens of {samples} answers")
        return self.found
