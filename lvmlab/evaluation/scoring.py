"""Scoring models on mini-world's fixed prompts: score, ceiling, floors and skill, with intervals over sources.

Skill = (score - best floor) / (ceiling - best floor): 0 is what needs no model, 1 all that the tokenizer can
carry. The ceiling is the true label after the tokenizer's round trip. A *floor* is an answer that needs neither
a model nor the query's truth. A *landmark* is an answer without a model that looks at the truth (the mean
skeleton in the true box, all objects by their true masks): it is printed beside the score and never enters
skill. Intervals are 95 % percentile bootstraps over sources (photographs, object families or bodies), not over
prompts.
"""

import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from lvmlab.model.generation import complete_tokens, label_ids
from lvmlab.model.lvm import LVM
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.utils.checks import check_fields
from lvmlab.utils.files import write_file
from lvmlab.utils.images import from_uint8, to_uint8
from lvmlab.world import DEFAULT, Laws, Sources, default, of_size, tasks
from lvmlab.world.sentences import PAIRS, Sentence, sentence

CONDITIONS = ("right", "wrong_task", "shuffled_labels", "conflicting")
SETTINGS = ("seen", "trained objects", "shifted", "new encoding", "new task")
RESAMPLES = 1000
ANSWERS = 4  # eight are a little better (motion by 0.2 dB on val) and take nearly twice as long


@dataclass(frozen=True)
class Job:
    """One row to be scored: a task in a setting and condition, after so many examples, on the first
    ``prompts`` prompts.

    answers: so many are sampled at temperature 1 and their mean picture is scored; 1 is the one greedy
        answer.
    """

    task: str
    setting: str = "seen"
    condition: str = "right"
    examples: int = 3
    prompts: int = 200
    split: str = "test"
    answers: int = ANSWERS

    def __post_init__(self):
        check_fields(
            self,
            task=(bool(tasks.scored([self.task])), "a task whose answers are scored"),
            setting=(self.setting in SETTINGS, f"one of {', '.join(SETTINGS)}"),
            condition=(self.condition in CONDITIONS, f"one of {', '.join(CONDITIONS)}"),
            examples=(1 <= self.examples < PAIRS, f"1 to {PAIRS - 1}"),
            answers=(self.answers >= 1, "1 (greedy) or more (the mean of so many)"),
        )


def plan(prompts: int = 200, split: str = "test", laws: Laws = DEFAULT) -> list[Job]:
    """Everything that is reported of a model trained under these laws.

    Settings and conditions on all prompts; 1 to 7 examples and the controls on a quarter of them.
    """
    trained, some = tasks.scored(laws.trained), max(1, prompts // 4)
    jobs = [Job(task, prompts=prompts, split=split) for task in trained]
    jobs += [
        Job(task, "new encoding", prompts=prompts, split=split)
        for task in ("segmentation", "selection", "pose")
    ]
    jobs += [Job("selection", "trained objects", prompts=prompts, split=split)]
    jobs += [Job(task, "new task", prompts=prompts, split=split) for task in laws.new]
    jobs += [Job(task, "shifted", prompts=prompts, split=split) for task in trained]
    jobs += [
        Job(task, "seen", "conflicting", prompts=prompts, split=split)
        for task in trained
        if tasks.get(task).conflicting
    ]
    jobs += [
        Job(task, "seen", c, prompts=some, split=split)
        for c in ("wrong_task", "shuffled_labels")
        for task in trained
        if not tasks.get(task).sequence
    ]
    jobs += [Job(task, examples=k, prompts=some, split=split) for k in (1, 2, 4, 5, 6, 7) for task in trained]
    names = [*trained, *laws.new]
    # jobs that share sentences come together
    return sorted(jobs, key=lambda job: (names.index(job.task), SETTINGS.index(job.setting)))


def prompts(job: Job, laws: Laws = DEFAULT) -> list[Sentence]:
    """The job's sentences under these laws in their fixed order: ``examples`` pairs and the query last."""
    found = []
    for index in range(job.prompts):
        whole = _whole(laws, job.task, job.setting, job.split, index)
        # a clip's query is the frame after its examples; elsewhere the query stays the last pair, whatever
        # the examples
        pairs = (
            whole.pairs[: job.examples + 1]
            if tasks.get(job.task).sequence
            else [*whole.pairs[: job.examples], whole.pairs[-1]]
        )
        found.append(_condition(Sentence(job.task, whole.encoding, pairs), job, index, laws))
    return found


@functools.lru_cache(maxsize=200)  # those of one setting, which many jobs share: about 1.5 MB each at 128 px
def _whole(laws: Laws, task: str, setting: str, split: str, index: int) -> Sentence:
    sources = _known_objects() if setting == "trained objects" else None
    split = "shifted" if setting == "shifted" else split
    held_out = setting == "new encoding"
    return sentence(task, split, index, laws=laws, pairs=PAIRS, held_out=held_out, sources=sources)


@functools.cache
def _known_objects() -> Sources:
    return default().with_objects_of("train")


def _condition(prompt: Sentence, job: Job, index: int, laws: Laws) -> Sentence:
    *examples, query = prompt.pairs
    encoding = prompt.encoding
    if job.condition == "conflicting":
        encoding = encoding.swapped()
        examples, query = (
            [tasks.get(job.task).relabel(p, encoding) for p in pairs] for pairs in (examples, [query])
        )
        query = query[0]
    elif job.condition == "wrong_task":
        others = [t for t in tasks.scored(laws.trained) if not tasks.get(t).sequence]
        other = others[(others.index(job.task) + 1) % len(others)]
        examples = sentence(other, job.split, index, laws=laws, pairs=len(examples)).pairs
    elif job.condition == "shuffled_labels":
        labels = [pair.label for pair in examples]
        examples = [
            type(p)(p.image, label, p.truth, p.source)
            for p, label in zip(examples, labels[1:] + labels[:1], strict=True)
        ]
    return Sentence(prompt.task, encoding, [*examples, query])


def encoded(tokenizer: Tokenizer, sentences: list[Sentence], batch: int = 50) -> torch.Tensor:
    """Tokens of sentences of one length, their answers included: (B, T)."""
    parts = [sentences[first : first + batch] for first in range(0, len(sentences), batch)]
    return torch.cat(
        [
            tokenizer.encode(from_uint8(np.concatenate([s.pictures() for s in part]))).view(len(part), -1)
            for part in parts
        ]
    )


def answer(
    lvm: LVM, tokens: torch.Tensor, n: int, answers: int = ANSWERS, batch: int = 50, constrained: bool = False
) -> torch.Tensor:
    """Answers in the place of the last ``n`` of ``tokens`` (B, T): (B, answers, n), sampled from a fixed
    seed; greedy where one is asked for.

    constrained: to the ids that occur in each prompt's own labels.
    """
    return torch.cat([*written(lvm, tokens, n, answers, batch, constrained)])


def written(
    lvm: LVM, tokens: torch.Tensor, n: int, answers: int, batch: int, constrained: bool = False
) -> Iterator[torch.Tensor]:
    """`answer`, ``batch`` prompts after ``batch``: may be left in between."""
    for i, part in enumerate(tokens[:, :-n].split(batch)):
        options = (
            {"sample": True, "generator": torch.Generator().manual_seed(i * batch), "answers": answers}
            if answers > 1
            else {}
        )
        yield complete_tokens(
            lvm, part, n, allowed=label_ids(part, n) if constrained else None, **options
        ).tokens


@torch.inference_mode()
def _foretold(lvm: LVM, tokens: torch.Tensor, last: int, batch: int) -> tuple[torch.Tensor, ...]:
    """Of the ``last`` of tokens (B, T): the cross entropy in nats of each, whether it is the likeliest, and
    the entropy there, (B, last) each.
    """
    found = []
    for part in tokens.to(lvm.device).split(batch):
        logits, truth = (
            lvm.llama.lm_head(lvm.hidden(part[:, :-1])[:, -last:]).float(),
            part[:, -last:].long(),
        )  # (B, last, codes)
        losses = torch.nn.functional.cross_entropy(logits.mT, truth, reduction="none")
        entropies = torch.special.entr(logits.softmax(-1)).sum(-1)
        found.append((losses.cpu(), (logits.argmax(-1) == truth).float().cpu(), entropies.cpu()))
    return tuple(map(torch.cat, zip(*found, strict=True)))


def answer_loss(lvm: LVM, tokens: torch.Tensor, n: int, batch: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Of the last ``n`` of ``tokens`` (B, T), the true answers (see `encoded`): their cross entropy in nats a
    token, and accuracy, each (B,).
    """
    losses, right, _ = _foretold(lvm, tokens, n, batch)
    return losses.mean(1).numpy(), right.mean(1).numpy()


def picture_losses(lvm: LVM, tokens: torch.Tensor, n: int, batch: int = 16) -> np.ndarray:
    """Cross entropy in nats of every token of sentences (B, T) but those of the first picture, given all
    before it: (B, T / n - 1, n).
    """
    losses, *_ = _foretold(lvm, tokens, tokens.shape[1] - n, batch)
    return losses.unflatten(1, (-1, n)).numpy()


def unsure(lvm: LVM, tokens: torch.Tensor, n: int, batch: int = 32) -> np.ndarray:
    """How unsure a model is of each of the last ``n`` of ``tokens`` (B, T), the true ones before it given:
    entropies in nats, (B, n).
    """
    return _foretold(lvm, tokens, n, batch)[2].numpy()


def perplexities(losses: np.ndarray) -> dict[str, float]:
    """`answer_loss` in both published measures: DeLVM's, exp of the mean over all tokens, and LVM's, the mean
    over sentences of exp.
    """
    mean = losses.mean()
    return {
        "cross entropy": float(mean),
        "perplexity (DeLVM)": float(np.exp(mean)),
        "perplexity (LVM)": float(np.exp(losses).mean()),
    }


def picture(tokenizer: Tokenizer, tokens: torch.Tensor) -> np.ndarray:
    """Answers (B, answers, N) as one picture each, their mean, uint8 (B, S, S, 3): of all pictures the
    nearest to what the model expects.

    One sampled label is crisper, but where it is wrong it is wholly wrong; the greedy one gives an edge that
    many codes
    could draw to the ground, which one code draws.
    """
    drawn = tokenizer.decode(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
    return to_uint8(drawn.mean(1))


def draw(lvm: LVM, tokenizer: Tokenizer, sentences: list[Sentence], answers: int = ANSWERS) -> np.ndarray:
    """`answer` as `picture`: uint8 (B, S, S, 3)."""
    lvm.check_fits(tokenizer)
    return picture(tokenizer, answer(lvm, encoded(tokenizer, sentences), tokenizer.tokens_per_image, answers))


class Scorer:
    """Scores answers to one job's prompts; ceiling, floors and landmarks are computed once for all models.

    Args:
        job: what is scored.
        tokenizer: gives the ceiling; the prompts are drawn at its size.
        sentences: other prompts than the job's own, of its task.
    """

    def __init__(self, job: Job, tokenizer: Tokenizer, sentences: list[Sentence] | None = None):
        self.job, self.task, self.tokenizer = job, tasks.get(job.task), tokenizer
        self.sentences = sentences or prompts(job, of_size(tokenizer.size))
        self.queries, self.encodings = (
            [s.pairs[-1] for s in self.sentences],
            [s.encoding for s in self.sentences],
        )
        self.sources = np.array([q.source for q in self.queries])
        labels, asked = (np.stack([getattr(q, which) for q in self.queries]) for which in ("label", "image"))
        self.ceiling = self.scores(to_uint8(tokenizer.round_trip(from_uint8(labels))))
        floors = self._without_model(self.task.floors)
        if "query" in floors:
            floors["query through tokenizer"] = to_uint8(tokenizer.round_trip(from_uint8(asked)))
        self.floors = {name: self.scores(pictures) for name, pictures in floors.items()}
        landmarks = self._without_model(self.task.landmarks)
        self.landmarks = {name: self.scores(pictures) for name, pictures in landmarks.items()}

    def _without_model(self, answers: Callable) -> dict[str, np.ndarray]:
        """The task's floors or landmarks of all prompts, uint8 (B, S, S, 3) by name."""
        found = [answers(s.pairs[:-1], s.pairs[-1], s.encoding) for s in self.sentences]
        return {name: np.stack([answer[name] for answer in found]) for name in found[0]}

    @functools.cached_property
    def tokens(self) -> torch.Tensor:
        """The prompts and their true answers, (B, T)."""
        return encoded(self.tokenizer, self.sentences)

    def scores(self, pictures: np.ndarray) -> dict[str, np.ndarray]:
        return self.task.scores(pictures, self.queries, self.encodings)

    def rows(self, scores: dict[str, np.ndarray], model: str, seconds: float) -> list[dict]:
        """A row for each metric; the task's own comes first."""
        return [self._row(name, values, model, seconds) for name, values in scores.items()]

    def _row(self, metric: str, values: np.ndarray, model: str, seconds: float) -> dict:
        floors = {name: float(f[metric].mean()) for name, f in self.floors.items()}
        best = max(floors, key=floors.get)
        ceiling, floor = self.ceiling[metric], self.floors[best][metric]
        score, gain, room = resample([values, values - floor, ceiling - floor], self.sources)
        low, high = np.percentile(score[1:], (2.5, 97.5))
        # where the tokenizer carries less than the best floor has (SSIM of a blurred copy, say), there is no
        # skill to speak of
        skill, skill_low, skill_high = gain[:1] / room[:1], None, None
        if room[0] > 0:
            skill_low, skill_high = np.percentile((gain / np.where(room > 0, room, np.inf))[1:], (2.5, 97.5))
        row = asdict(self.job) | {
            "model": model,
            "metric": metric,
            "score": score[0],
            "low": low,
            "high": high,
            "ceiling": ceiling.mean(),
            "floors": floors,
            "best_floor": best,
            "landmarks": {name: float(found[metric].mean()) for name, found in self.landmarks.items()},
            "skill": skill[0] if room[0] > 0 else None,
            "skill_low": skill_low,
            "skill_high": skill_high,
            "prompts": len(values),
            "sources": len(set(self.sources)),
            "seconds": seconds,
        }
        return {k: round(float(v), 5) if isinstance(v, (float, np.floating)) else v for k, v in row.items()}


def drawn(sources: np.ndarray, seed: int = 0) -> np.ndarray:
    """How often each prompt counts, (1 + RESAMPLES, prompts): once first, then as often as its source is
    drawn, with replacement.
    """
    names, inverse = np.unique(sources, return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), RESAMPLES
    )
    return np.vstack([np.ones(len(names), int), draws])[:, inverse]


def resample(columns: list[np.ndarray], sources: np.ndarray, seed: int = 0) -> np.ndarray:
    """Means of each column, (columns, 1 + RESAMPLES): of all prompts first, then with sources drawn with
    replacement.
    """
    counts = drawn(sources, seed)
    return np.stack([(counts * column).sum(1) / np.maximum(counts.sum(1), 1) for column in columns])


def evaluate(
    models: dict[str, LVM],
    tokenizer: Tokenizer,
    jobs: list[Job],
    folder: str | Path | None = None,
    progress: bool = True,
) -> list[dict]:
    """Every job for every model: rows as in the module's docstring. With ``folder`` each finished job is kept
    there, and
    a second call goes on where the first stopped. Raises ValueError where a model does not speak the
    tokenizer's codes.
    """
    for lvm in models.values():
        lvm.check_fits(tokenizer)
    rows, correct = [], {}
    fingerprints = {name: lvm.fingerprint() for name, lvm in models.items()}
    bar = tqdm(total=len(jobs) * len(models), disable=not progress)
    for job in jobs:
        scorer = None
        for name, lvm in models.items():
            bar.set_postfix_str(
                f"{name}: {job.task}, {job.setting}, {job.condition}, {job.examples} examples", refresh=True
            )
            part = part_path(folder, name, fingerprints[name], tokenizer, job) if folder else None
            if part and part.exists():
                kept = json.loads(part.read_text(encoding="utf-8"))
                rows += kept["rows"]
                correct[name, job] = np.array(kept["scores"]) > 0.5 * kept["rows"][0]["ceiling"]
                bar.update()
                continue
            scorer = scorer or Scorer(job, tokenizer)
            started = time.perf_counter()
            tokens = answer(lvm, scorer.tokens, tokenizer.tokens_per_image, job.answers)
            scores = scorer.scores(picture(tokenizer, tokens))
            found = scorer.rows(scores, name, time.perf_counter() - started)
            own = scores[scorer.task.metric].round(4)
            correct[name, job] = own > 0.5 * found[0]["ceiling"]
            if job.condition == "conflicting":
                found.append(_both_right(scorer, correct, lvm, tokenizer, name))
            if part:
                kept = {"rows": found, "tokens": tokens.tolist(), "scores": own.tolist()}
                write_file(part, json.dumps(kept))
            rows += found
            bar.update()
    bar.close()
    return rows


def _both_right(scorer: Scorer, correct: dict, lvm: LVM, tokenizer: Tokenizer, model: str) -> dict:
    """The share of queries answered rightly (over half the ceiling) under both of two prompts that conflict.

    correct: of each prompt by (model, job); the prompts that this one swaps are answered here where it lacks
        them.
    """
    metric, straight = scorer.task.metric, replace(scorer.job, condition="right")
    if (model, straight) not in correct:
        asked = Scorer(straight, tokenizer)
        correct[model, straight] = (
            asked.scores(draw(lvm, tokenizer, asked.sentences, straight.answers))[metric]
            > 0.5 * asked.ceiling[metric].mean()
        )
    both = (correct[model, scorer.job] & correct[model, straight]).astype(float)
    (mean,) = resample([both], scorer.sources)
    low, high = np.percentile(mean[1:], (2.5, 97.5))
    return asdict(scorer.job) | {
        "model": model,
        "metric": "both right",
        "score": round(float(mean[0]), 5),
        "low": round(float(low), 5),
        "high": round(float(high), 5),
        "ceiling": 1.0,
        "floors": {"one encoding only": 0.0},
        "best_floor": "one encoding only",
        "skill": round(float(mean[0]), 5),
        "skill_low": round(float(low), 5),
        "skill_high": round(float(high), 5),
        "sources": len(set(scorer.sources)),
        "seconds": 0.0,
    }


def part_path(folder: str | Path, model: str, fingerprint: str, tokenizer: Tokenizer, job: Job) -> Path:
    """Where a finished job is kept: {"rows", "tokens" (answers to each prompt), "scores" (the task's metric,
    one a prompt)}.
    """
    key = hashlib.sha256(
        json.dumps([model, fingerprint, tokenizer.fingerprint, asdict(job)]).encode()
    ).hexdigest()[:16]
    return Path(folder) / "parts" / f"{key}.json"
