"""Scoring models on the sentences of jobs: each answer is read by its task's score, between floors and
ceiling.

`lvmlab.evaluation.statistics` defines skill. A *floor* is an answer that needs neither a model nor the
query's truth. A *landmark* is an answer without a model that looks at the truth (the mean skeleton in the
true box, all objects by their true masks): it is printed beside the score and never enters skill.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lvmlab.evaluation.prompts import ANSWERS, Job, encode_sentences, sentences, to_prompt
from lvmlab.evaluation.statistics import interval, resample, skill
from lvmlab.model.generation import complete_tokens, label_ids
from lvmlab.model.lvm import LVM
from lvmlab.model.prompting import complete
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.utils.files import write_file
from lvmlab.utils.images import to_uint8
from lvmlab.world import of_size, tasks
from lvmlab.world.sentences import Sentence


def evaluate(
    models: dict[str, LVM],
    tokenizer: Tokenizer,
    jobs: list[Job],
    folder: str | Path | None = None,
    progress: bool = True,
) -> list[dict]:
    """Scores every model on every job.

    Args:
        models: Each by its name.
        tokenizer: The one they were trained with.
        jobs: `lvmlab.evaluation.prompts.plan` has all that are reported.
        folder: Where finished jobs are stored; a second call resumes after them. None stores nothing.
        progress: Whether a bar is shown.

    Returns:
        A row for each job, model and metric; see `Scorer.rows`.

    Raises:
        ValueError: A model does not fit the tokenizer.
    """
    for lvm in models.values():
        lvm.check_fits(tokenizer)
    rows, correct = [], {}
    bar = tqdm(total=len(jobs) * len(models), disable=not progress)
    for job in jobs:
        scorer = None  # made for the first model that needs it
        for name, lvm in models.items():
            bar.set_postfix_str(
                f"{name}: {job.task}, {job.setting}, {job.condition}, {job.examples} examples"
            )
            path = part_path(folder, name, lvm.fingerprint(), tokenizer, job) if folder else None
            if path and path.exists():
                part = json.loads(path.read_text(encoding="utf-8"))
            else:
                scorer = scorer or Scorer(job, tokenizer)
                part = _score(scorer, lvm, name, correct)
                if path:
                    write_file(path, json.dumps(part))
            correct[name, job] = np.array(part["scores"]) > 0.5 * part["rows"][0]["ceiling"]
            rows += part["rows"]
            bar.update()
    bar.close()
    return rows


class Scorer:
    """Scores answers to one job's sentences; ceiling, floors and landmarks are computed once for all models.

    Args:
        job: What is asked.
        tokenizer: Of the models.
        asked: Other sentences of the job's task than its own.

    Attributes:
        sentences: What is asked.
        tokens: (B, T), the sentences with their true answers.
        ceiling, floors, landmarks: Scores by metric, (B,) each; the latter two by the answer's name first.
    """

    def __init__(self, job: Job, tokenizer: Tokenizer, asked: list[Sentence] | None = None):
        self.job, self.task, self.tokenizer = job, tasks.get(job.task), tokenizer
        self.sentences = asked or sentences(job, of_size(tokenizer.size))
        self.queries = [s.pairs[-1] for s in self.sentences]
        self.encodings = [s.encoding for s in self.sentences]
        self.sources = np.array([query.source for query in self.queries])

        # the last pair is the query and its true label: what the tokenizer gives back of both
        self.tokens = encode_sentences(tokenizer, self.sentences)
        pairs = self.tokens.unflatten(1, (-1, tokenizer.tokens_per_image))[:, -2:]  # (B, 2, N)
        query, label = (to_uint8(tokenizer.decode(pairs[:, i])) for i in (0, 1))

        # answers without a model, uint8 (B, S, S, 3) by name
        floors = self._without_model(self.task.floors)
        landmarks = self._without_model(self.task.landmarks)
        if "query" in floors:
            floors["query through tokenizer"] = query

        self.ceiling = self.scores(label)
        self.floors = {name: self.scores(pictures) for name, pictures in floors.items()}
        self.landmarks = {name: self.scores(pictures) for name, pictures in landmarks.items()}

    def answer(self, lvm: LVM) -> Tensor:
        """A model's answers as they are scored: tokens (B, answers, N)."""
        n = self.tokenizer.tokens_per_image
        return torch.cat([*answer_tokens(lvm, self.tokens, n, self.job.answers)])

    def scores(self, pictures: np.ndarray) -> dict[str, np.ndarray]:
        """Each metric of answers uint8 (B, S, S, 3): (B,); the task's own metric comes first."""
        return self.task.scores(pictures, self.queries, self.encodings)

    def rows(self, scores: dict[str, np.ndarray], model: str, seconds: float) -> list[dict]:
        """A row for each metric: the job's fields, the model, score, ceiling, floors, landmarks and skill."""
        return [self._row(metric, values, model, seconds) for metric, values in scores.items()]

    def _row(self, metric: str, values: np.ndarray, model: str, seconds: float) -> dict:
        floors = {name: float(scores[metric].mean()) for name, scores in self.floors.items()}
        best = max(floors, key=floors.get)
        ceiling, floor = self.ceiling[metric], self.floors[best][metric]
        row = asdict(self.job) | {"model": model, "metric": metric}
        row |= skill(values, floor, ceiling, self.sources)
        row |= {
            "ceiling": ceiling.mean(),
            "floors": floors,
            "best_floor": best,
            "landmarks": {name: float(scores[metric].mean()) for name, scores in self.landmarks.items()},
            "prompts": len(values),
            "sources": len(set(self.sources)),
            "seconds": seconds,
        }
        return {k: round(float(v), 5) if isinstance(v, (float, np.floating)) else v for k, v in row.items()}

    def _without_model(self, answers: Callable) -> dict[str, np.ndarray]:
        each = [answers(s.pairs[:-1], s.pairs[-1], s.encoding) for s in self.sentences]
        return {name: np.stack([answer[name] for answer in each]) for name in each[0]}


def answer_pictures(
    lvm: LVM, tokenizer: Tokenizer, asked: list[Sentence], answers: int = ANSWERS, batch: int = 50
) -> np.ndarray:
    """Answers to sentences as they are scored: the mean of sampled pictures, uint8 (B, S, S, 3)."""
    means = []
    for first in range(0, len(asked), batch):
        prompts = [to_prompt(s) for s in asked[first : first + batch]]
        completion = complete(lvm, tokenizer, prompts, **sampling(answers, seed=first))
        means.append(completion.images[:, :, 0].mean(1))  # (batch, answers, 1, 3, S, S) -> (batch, 3, S, S)
    return to_uint8(torch.cat(means))


def answer_tokens(
    lvm: LVM, tokens: Tensor, n: int, answers: int = ANSWERS, batch: int = 50, constrained: bool = False
) -> Iterator[Tensor]:
    """Answers to encoded sentences, a batch of prompts at a time; the iteration may stop anywhere.

    Args:
        lvm: The model.
        tokens: (B, T), the last n of each sentence in place of the answer; they are not read.
        n: Tokens of an answer.
        answers: So many are sampled, from a fixed seed; 1 is the greedy one.
        batch: Prompts that are answered together.
        constrained: Whether answers are restricted to the ids in each prompt's own labels.

    Yields:
        (batch, answers, n).
    """
    for i, part in enumerate(tokens[:, :-n].split(batch)):
        allowed = label_ids(part, n) if constrained else None
        yield complete_tokens(lvm, part, n, allowed=allowed, **sampling(answers, seed=i * batch)).tokens


def sampling(answers: int = ANSWERS, seed: int = 0) -> dict:
    """The options of `lvmlab.model.prompting.complete` by which answers are scored."""
    if answers == 1:
        return {}
    return {"sample": True, "generator": torch.Generator().manual_seed(seed), "answers": answers}


def mean_pictures(tokenizer: Tokenizer, tokens: Tensor) -> np.ndarray:
    """The mean picture of answers (B, answers, N), uint8 (B, S, S, 3): the nearest to what the model expects.

    One sampled label is crisper, but where it is wrong it is wrong everywhere. The greedy one paints an edge
    that many codes could draw as background, which one code draws.
    """
    pictures = tokenizer.decode(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
    return to_uint8(pictures.mean(1))


def part_path(folder: str | Path, model: str, fingerprint: str, tokenizer: Tokenizer, job: Job) -> Path:
    """Where a finished job is stored.

    The file holds {"rows", "tokens" (the answers to each prompt), "scores" (the task's metric, one a
    prompt)}.
    """
    text = json.dumps([model, fingerprint, tokenizer.fingerprint, asdict(job)])
    return Path(folder) / "parts" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def _score(scorer: Scorer, lvm: LVM, name: str, correct: dict) -> dict:
    """The part of one model and job; see `part_path`. correct: of each prompt, by (model, job)."""
    started = time.perf_counter()
    tokens = scorer.answer(lvm)
    scores = scorer.scores(mean_pictures(scorer.tokenizer, tokens))
    rows = scorer.rows(scores, name, time.perf_counter() - started)
    own = scores[scorer.task.metric].round(4)
    if scorer.job.condition == "conflicting":
        rows.append(_both_right(scorer, own > 0.5 * rows[0]["ceiling"], correct, lvm, name))
    return {"rows": rows, "tokens": tokens.tolist(), "scores": own.tolist()}


def _both_right(scorer: Scorer, swapped: np.ndarray, correct: dict, lvm: LVM, model: str) -> dict:
    """The share of queries answered correctly (over half the ceiling) under both of two conflicting prompts.

    Args:
        scorer: Of the swapped prompts.
        swapped: (B,) bool, of the answers to them.
        correct: (B,) bool of other jobs, by (model, job); where the prompts as they were are not among them,
            they are answered here.
        lvm: The model.
        model: Its name.
    """
    metric, straight = scorer.task.metric, replace(scorer.job, condition="right")
    if (model, straight) not in correct:
        other = Scorer(straight, scorer.tokenizer)
        scores = other.scores(mean_pictures(scorer.tokenizer, other.answer(lvm)))
        correct[model, straight] = scores[metric] > 0.5 * other.ceiling[metric].mean()
    both = (swapped & correct[model, straight]).astype(float)
    (means,) = resample([both], scorer.sources)
    mean, low, high = (round(float(value), 5) for value in (means[0], *interval(means)))
    return asdict(scorer.job) | {
        "model": model,
        "metric": "both right",
        "score": mean,
        "low": low,
        "high": high,
        "ceiling": 1.0,
        "floors": {"one encoding only": 0.0},
        "best_floor": "one encoding only",
        "skill": mean,
        "skill_low": low,
        "skill_high": high,
        "sources": len(set(scorer.sources)),
        "seconds": 0.0,
    }
