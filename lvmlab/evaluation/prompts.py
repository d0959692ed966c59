"""What a model is asked: the jobs of an evaluation, and each job's sentences from mini-world in a fixed
order.

A sentence's last pair is the query and its true answer. `to_prompt` gives the prompt that
`lvmlab.model.prompting.complete` answers.
"""

import functools
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lvmlab.model.prompting import Prompt
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.utils.checks import check_fields
from lvmlab.utils.images import from_uint8
from lvmlab.world import DEFAULT, Laws, Sources, default, tasks
from lvmlab.world.sentences import PAIRS, Sentence, sentence

CONDITIONS = ("right", "wrong_task", "shuffled_labels", "conflicting")
SETTINGS = ("seen", "trained objects", "shifted", "new encoding", "new task")
ANSWERS = 4  # eight are a little better (motion by 0.2 dB on val) and take nearly twice as long


@dataclass(frozen=True)
class Job:
    """One row to be scored: a task in a setting and condition.

    Attributes:
        task: A task whose answers are scored.
        setting: One of SETTINGS: what is new to the model.
        condition: One of CONDITIONS: what is wrong with the examples.
        examples: Pairs before the query.
        prompts: The first so many of the split.
        split: "test", "val" or "train".
        answers: So many are sampled at temperature 1, and their mean picture is scored; 1 is the one greedy
            answer.

    Raises:
        ValueError: A field is out of range; the message names it.
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
    """All jobs that are reported of a model trained under these laws.

    Settings and conflicting prompts use all prompts; 1 to 7 examples and the controls a quarter of them. Jobs
    that share sentences follow each other.
    """
    trained = tasks.scored(laws.trained)
    images = [task for task in trained if not tasks.get(task).sequence]
    full = functools.partial(Job, prompts=prompts, split=split)
    quarter = functools.partial(Job, prompts=max(1, prompts // 4), split=split)
    jobs = [full(task) for task in trained]
    jobs += [full(task, "new encoding") for task in ("segmentation", "selection", "pose")]
    jobs += [full("selection", "trained objects")]
    jobs += [full(task, "new task") for task in laws.new]
    jobs += [full(task, "shifted") for task in trained]
    jobs += [full(task, condition="conflicting") for task in trained if tasks.get(task).conflicting]
    jobs += [quarter(task, condition=c) for c in ("wrong_task", "shuffled_labels") for task in images]
    jobs += [quarter(task, examples=k) for k in (1, 2, 4, 5, 6, 7) for task in trained]
    names = [*trained, *laws.new]
    return sorted(jobs, key=lambda job: (names.index(job.task), SETTINGS.index(job.setting)))


def sentences(job: Job, laws: Laws = DEFAULT) -> list[Sentence]:
    """The job's sentences under these laws in their fixed order: ``examples`` pairs and the query last."""
    right = [_with_examples(job, laws, index) for index in range(job.prompts)]
    if job.condition == "right":
        return right
    return [_under_condition(item, job, index, laws) for index, item in enumerate(right)]


def to_prompt(asked: Sentence) -> Prompt:
    """A sentence's examples and its query, without the answer."""
    *examples, query = asked.pairs
    pairs = [tuple(from_uint8(np.stack([pair.image, pair.label]))) for pair in examples]
    return Prompt(pairs, from_uint8(query.image[None])[0])


def encode_sentences(tokenizer: Tokenizer, sentences: list[Sentence], batch: int = 50) -> Tensor:
    """Tokens (B, T) of sentences of one length, their answers included.

    `lvmlab.model.prompting.encode_prompts` encodes prompts, which have no answer.
    """
    parts = []
    for first in range(0, len(sentences), batch):
        part = sentences[first : first + batch]
        pictures = from_uint8(np.concatenate([s.pictures() for s in part]))
        parts.append(tokenizer.encode(pictures).view(len(part), -1))
    return torch.cat(parts)


def _with_examples(job: Job, laws: Laws, index: int) -> Sentence:
    longest = _longest(laws, job.task, job.setting, job.split, index)
    # a clip's query is the frame after its examples; elsewhere the query stays the last pair, however many
    # examples
    if tasks.get(job.task).sequence:
        return replace(longest, pairs=longest.pairs[: job.examples + 1])
    return replace(longest, pairs=[*longest.pairs[: job.examples], longest.pairs[-1]])


@functools.lru_cache(maxsize=200)  # those of one setting, which many jobs share: about 1.5 MB each at 128 px
def _longest(laws: Laws, task: str, setting: str, split: str, index: int) -> Sentence:
    sources = _known_objects() if setting == "trained objects" else None
    split = "shifted" if setting == "shifted" else split
    held_out = setting == "new encoding"
    return sentence(task, split, index, laws=laws, pairs=PAIRS, held_out=held_out, sources=sources)


@functools.cache
def _known_objects() -> Sources:
    return default().with_objects_of("train")


def _under_condition(right: Sentence, job: Job, index: int, laws: Laws) -> Sentence:
    *examples, query = right.pairs
    if job.condition == "conflicting":
        encoding = right.encoding.swapped()
        pairs = [tasks.get(job.task).relabel(pair, encoding) for pair in right.pairs]
        return Sentence(right.task, encoding, pairs)
    if job.condition == "wrong_task":
        others = [task for task in tasks.scored(laws.trained) if not tasks.get(task).sequence]
        other = others[(others.index(job.task) + 1) % len(others)]
        examples = sentence(other, job.split, index, laws=laws, pairs=len(examples)).pairs
    if job.condition == "shuffled_labels":
        labels = [pair.label for pair in examples]
        shifted = labels[1:] + labels[:1]
        examples = [replace(pair, label=label) for pair, label in zip(examples, shifted, strict=True)]
    return replace(right, pairs=[*examples, query])
