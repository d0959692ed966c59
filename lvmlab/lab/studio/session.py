"""What the prompt studio does, without any widget: a prompt to edit, its answer, and what is inside both."""

import base64
import importlib.metadata
import io
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lvmlab.evaluation.inspection import alternatives, attention
from lvmlab.evaluation.prompts import Job, to_prompt
from lvmlab.evaluation.scoring import Scorer
from lvmlab.evaluation.sensitivity import recoloured
from lvmlab.model.generation import Prefilled, Sampling, Step, check_prompt, label_ids
from lvmlab.model.lvm import LVM
from lvmlab.model.pretrained import shipped
from lvmlab.model.prompting import encode_prompts
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.utils import images
from lvmlab.utils.device import describe
from lvmlab.utils.labels import load_label
from lvmlab.world import of_size, tasks
from lvmlab.world.sentences import PAIRS, Sentence, sentence
from lvmlab.world.tasks.base import Encoding, Pair, read_mask

SPLIT = "val"  # the test split is for released scores
FORMAT = "lvmlab recipe 1"


@dataclass(frozen=True, eq=False)
class Answer:
    """An answer as far as it is written: ``steps`` of (1, A) each, its ``model`` and ``options``, and the
    ``seconds`` it took, prefill included.

    message: of a replayed recipe, whether the answer is the recipe's.
    """

    model: str
    options: dict
    forced: list[int]
    steps: list[Step]
    seconds: float
    message: str = ""

    def of(self, name: str) -> Tensor:
        """ids, logprobs or entropies (A, i), or log (A, i, codes)."""
        return torch.stack([getattr(step, name)[0] for step in self.steps], 1).cpu()


class Session:
    """A prompt under the user's hands.

        session = Session()                       # the shipped tokenizer and models
        session.draw("segmentation", index=3)     # a val prompt of mini-world
        for answer in session.answer("mini-teacher"): ...

    models: others than the shipped ones, by name. Everything raises ValueError with the remedy in it.
    Public: ``sentence``, the prompt, whose last pair is the query; whether its truth is ``known``;
        ``current``,
    the answer that is shown; ``original``, the one before a token was chosen.
    """

    def __init__(self, tokenizer: Tokenizer | None = None, models: dict[str, LVM] | None = None):
        self.tokenizer, self.models = tokenizer or Tokenizer.from_pretrained("mini"), dict(models or {})
        self.names, self.n = [*self.models] or shipped(), self.tokenizer.tokens_per_image
        self.draw()

    def lvm(self, name: str) -> LVM:
        """A model by its name, a shipped one or a checkpoint's folder; it stays loaded. Raises ValueError
        (CheckpointError).
        """
        (lvm := self.models.get(name) or LVM.from_pretrained(name)).check_fits(self.tokenizer)
        self.models[name] = lvm
        return lvm

    def draw(self, task: str = "segmentation", index: int = 0, examples: int = 3) -> None:
        """Prompt ``index`` of a task in the val split of mini-world, as `lvmlab.evaluation.prompts.sentences`
        has it.
        """
        if index < 0 or not 1 <= examples < PAIRS:
            raise ValueError(
                f"prompt {index} with {examples} examples: give a number of 0 or more, and 1 to {PAIRS - 1} "
                f"examples"
            )
        longest = sentence(task, SPLIT, index, laws=of_size(self.tokenizer.size), pairs=PAIRS)
        *others, query = longest.pairs[: examples + 1] if tasks.get(task).sequence else longest.pairs
        self._spare = others[examples:]
        self.set(replace(longest, pairs=[*others[:examples], query]), known=True)

    def set(self, sentence: Sentence, known: bool) -> None:
        """Sets another prompt, and whether its last label is the query's truth; drops the answer."""
        self.tokens = encode_prompts(self.tokenizer, [to_prompt(sentence)])  # (1, T)
        self.sentence, self.known, self.current, self.original = sentence, known, None, None
        self._ready = (None, None)

    def arrange(self, order: Sequence[int], swapped: Sequence[int] = ()) -> None:
        """The examples in a new order, by their numbers now; one left out is removed, one beyond the last is
        added; image and label of the
        ``swapped`` change places."""
        *examples, query = self.sentence.pairs
        available = [*examples, *self._spare]
        if not 1 <= len(order) < PAIRS or not set(order) <= set(range(len(available))):
            raise ValueError(
                f"a prompt holds 1 to {PAIRS - 1} examples, out of {len(available)}: remove or add one "
                f"first, or draw another"
            )
        chosen = [(available[i], i in swapped) for i in order]
        pairs = [Pair(pair.label, pair.image) if turned else pair for pair, turned in chosen]
        self._spare = [pair for i, pair in enumerate(available) if i not in order]
        self.set(replace(self.sentence, pairs=[*pairs, query]), self.known)

    def put(self, source: images.Source, at: int, side: str) -> None:
        """A picture of the user's as the ``side``, image or label, of pair ``at``; of the last, the query,
        the truth is then unknown.
        """
        load = load_label if side == "label" else images.load
        pairs = list(self.sentence.pairs)
        pairs[at] = replace(
            pairs[at],
            truth={},
            source="",
            **{side: images.to_uint8(load(source, self.tokenizer.size))},
        )
        self.set(replace(self.sentence, pairs=pairs), self.known and at < len(pairs) - 1)

    def recolour(self, foreground: Sequence[int], background: Sequence[int]) -> None:
        """All labels in two other colours, RGB in 0..255; pictures of the user's by whichever of the old ones
        each pixel is nearer to.
        """
        if not tasks.get(self.sentence.task).conflicting:
            raise ValueError(
                f"labels of {self.sentence.task} have no two colours to choose: draw a prompt of "
                f"segmentation "
                f"or selection"
            )
        if tuple(foreground) == tuple(background):
            raise ValueError("both colours are the same: choose two that differ")
        pairs = [
            p
            if p.truth
            else replace(p, truth={"mask": read_mask(p.label, self.sentence.encoding).astype(np.float32)})
            for p in self.sentence.pairs
        ]
        self.set(
            recoloured(replace(self.sentence, pairs=pairs), (tuple(foreground), tuple(background))),
            self.known,
        )

    def answer(
        self,
        model: str,
        *,
        sample: bool = False,
        seed: int = 0,
        answers: int = 1,
        constrained: bool = False,
        forced: Sequence[int] = (),
        keep: bool = True,
        **shape,
    ) -> Iterator[Answer]:
        """The answer as it grows, a token at a time; the prompt is read once for all its answers.

        Options as in `lvmlab.model.generation.complete_tokens` (temperature, top_k and top_p too), chance by
        ``seed``; constrained: to the codes of
        the prompt's labels; forced: ids of the first places; keep: as ``current``.
        """
        started, lvm, steps = time.perf_counter(), self.lvm(model), []
        options = {"sample": sample, "seed": seed, "answers": answers, "constrained": constrained, **shape}
        generator = torch.Generator().manual_seed(seed) if sample else None
        sampling = Sampling(sample=sample, answers=answers, generator=generator, **shape)
        if self._ready[0] != (model, answers):
            check_prompt(lvm, self.tokens, self.n)
            self._ready = (model, answers), Prefilled(lvm, self.tokens, self.n, answers)
        for step in self._ready[1].stream(
            self.n,
            sampling,
            forced=torch.tensor(forced, dtype=torch.int64),
            allowed=label_ids(self.tokens, self.n) if constrained else None,
        ):
            steps.append(step)
            answer = Answer(model, options, list(forced), list(steps), time.perf_counter() - started)
            if keep:
                self.current, self.original = answer, self.original if forced else None
            yield answer

    def choose(self, sample: int, place: int, code: int) -> Iterator[Answer]:
        """Another token at a place of one sample: that sample alone, the rest of it written again after the
        token.
        """
        answer = self._answered(sample, place)
        self.original = self.original or answer
        return self.answer(
            answer.model,
            forced=[*answer.of("ids")[sample, :place].tolist(), code],
            **answer.options | {"answers": 1},
        )

    def back(self) -> None:
        """The answer as it was before a token was chosen."""
        self.current, self.original = self.original or self._answered(), None

    def pictures(self, answer: Answer) -> np.ndarray:
        """Answers drawn, uint8 (A, S, S, 3); where one is not complete, its last token stands for those to
        come.
        """
        ids = answer.of("ids")
        return images.to_uint8(
            self.tokenizer.decode(torch.cat([ids, ids[:, -1:].expand(-1, self.n - ids.shape[1])], 1))
        )

    def rows(self, pictures: np.ndarray) -> list[dict]:
        """Each picture's score with ceiling, floors and skill (rows of `lvmlab.evaluation.scoring.Scorer`);
        none where the truth is not known.
        """
        scorer = (
            Scorer(Job(self.sentence.task, prompts=1, split=SPLIT), self.tokenizer, [self.sentence])
            if self.known
            else None
        )
        return (
            [scorer.rows(scorer.scores(picture[None]), "", 0.0)[0] for picture in pictures] if scorer else []
        )

    def inside(self, sample: int, place: int) -> tuple:
        """At a place of an answer: what else could stand there (`lvmlab.evaluation.inspection.alternatives`),
        and
        what the position that predicted it
        looked at (`lvmlab.evaluation.inspection.attention`)."""
        answer = self._answered(sample, place)
        ids = answer.of("ids")[sample]
        written = torch.cat([ids, ids[-1:].expand(self.n - len(ids))])
        seen = torch.cat([self.tokens[0].cpu(), ids[:place]])[None]
        return alternatives(self.tokenizer, written, place, answer.of("log_probs")[sample, place]), attention(
            self.lvm(answer.model), seen
        )

    def recipe(self) -> str:
        """The recipe as JSON: every picture (as PNG), model, options, the tokens that came, and by
        which versions and device.
        """
        answer = self._answered()
        record = {k: getattr(answer, k) for k in ("model", "options", "forced")} | {
            "asked": asdict(self.sentence),
            "known": self.known,
        }
        record |= {"format": FORMAT, "tokens": answer.of("ids").tolist(), "made": self._made(answer.model)}
        return json.dumps(record, default=_to_json)

    def replay(self, source: str | bytes) -> Iterator[Answer]:
        """A recipe's prompt and its answer anew, as `answer` gives it; ``message`` of the last is whether it
        is
        the same, and what differs here.
        """
        try:
            record = json.loads(source)
            pairs = [
                Pair(
                    *(images.to_uint8(images.load(base64.b64decode(p[side]))) for side in ("image", "label")),
                    {name: _from_json(value) for name, value in p["truth"].items()},
                    p["source"],
                )
                for p in record["asked"]["pairs"]
            ]
            sentence, before = (
                Sentence(record["asked"]["task"], Encoding(**record["asked"]["encoding"]), pairs),
                torch.tensor(record["tokens"]),
            )
            options, made = {"forced": record["forced"], **record["options"]}, record["made"].items()
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"this is no recipe that can be read ({error}): give the JSON file that the studio's Take "
                f"away wrote"
            ) from error
        self.set(sentence, record["known"])
        for answer in self.answer(record["model"], **options):
            yield answer
        changed, here = (
            int((answer.of("ids")[:, : before.shape[1]] != before).sum()),
            self._made(answer.model),
        )
        other = "; ".join(
            f"{name} is {here.get(name)}, was {value}" for name, value in made if here.get(name) != value
        )
        same = (
            f"{changed} of {before.numel()} tokens differ from the recipe's."
            if changed
            else "The same answer as in the recipe."
        )
        self.current = replace(
            answer, message=f"{same} {f'Here {other}.' if other else 'Machine and versions are the same.'}"
        )
        yield self.current

    def _made(self, model: str) -> dict[str, str]:
        lvm, t, here = (
            self.lvm(model),
            self.tokenizer,
            {name: importlib.metadata.version(name) for name in ("lvmlab", "torch", "transformers")},
        )
        return here | {
            "device": f"{describe(lvm.device)}, {lvm.llama.dtype}, {t.precision}",
            "model": lvm.fingerprint(),
            "tokenizer": t.fingerprint,
        }

    def _answered(self, sample: int = 0, place: int = 0) -> Answer:
        if self.current is None:
            raise ValueError("there is no answer yet: press Answer first")
        if not (0 <= place < len(self.current.steps) and 0 <= sample < self.current.options["answers"]):
            raise ValueError(f"token {place} of answer {sample + 1} is not written: choose one that is")
        return self.current


def _to_json(array: np.ndarray) -> str | dict:
    """A picture as a PNG; what the truth holds as its values."""
    if array.dtype == np.uint8 and array.shape[2:] == (3,):
        return png(array)
    return {"dtype": str(array.dtype), "values": array.tolist()}


def _from_json(value):
    if isinstance(value, dict):
        return np.array(value["values"], value["dtype"])
    return np.array(value) if isinstance(value, list) else value  # lists: as earlier recipes had them


def png(picture: np.ndarray) -> str:
    """uint8 (H, W, 3 or 4) as a PNG in base64."""
    Image.fromarray(np.ascontiguousarray(picture)).save(file := io.BytesIO(), format="PNG")
    return base64.b64encode(file.getvalue()).decode()
