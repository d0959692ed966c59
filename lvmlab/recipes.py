"""A prompt and how it was answered, as JSON to take away: pictures, model, options, and the tokens that came, to compare with.

The same machine and versions give the same answer; where something differs, `replay` says what.
"""

import base64
import importlib.metadata
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lvmlab import images
from lvmlab.device import describe
from lvmlab.lvm import LVM
from lvmlab.prompting import Prefilled, Step, label_ids
from lvmlab.sentences import Sentence
from lvmlab.tasks import Encoding, Pair
from lvmlab.tokenizer import Tokenizer

FORMAT = "lvmlab recipe 1"


@dataclass(frozen=True)
class Options:
    """How an answer is chosen: as `lvmlab.prompting.complete_tokens` has it, by ``seed``; ``constrained`` to the codes of the prompt's labels."""

    sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    answers: int = 1
    seed: int = 0
    constrained: bool = False

    def stream(self, ready: Prefilled, tokens: Tensor, n: int, forced: Tensor | None = None) -> Iterator[Step]:
        """Steps of the answers to one prompt, tokens (1, T), read once. Raises ValueError for options that do not go together."""
        return ready.stream(n, sample=self.sample, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, answers=self.answers,
                            generator=torch.Generator().manual_seed(self.seed) if self.sample else None, forced=forced,
                            allowed=label_ids(tokens, n) if self.constrained else None)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Recipe:
    """``asked``, the query last; whether its truth is ``known``; ``forced`` ids of the first places (m,); the ``tokens`` (answers, n) that
    came; ``made`` of what: versions, device, and the fingerprints of model and tokenizer."""

    asked: Sentence
    known: bool
    model: str
    options: Options
    forced: Tensor | None
    tokens: Tensor
    made: dict[str, str]

    def text(self) -> str:
        """As JSON; every picture is in it, as PNG."""
        return json.dumps({"format": FORMAT} | asdict(self), default=lambda v: png(v) if v.dtype == np.uint8 else v.tolist())

    @classmethod
    def read(cls, text: str | bytes) -> "Recipe":
        """Of `text`. Raises ValueError for what is none."""
        try:
            found = json.loads(text)
            if found.pop("format") != FORMAT:
                raise ValueError("it is of another format")
            asked = found.pop("asked")
            pairs = [Pair(*(images.to_uint8(images.load(base64.b64decode(p[side]))) for side in ("image", "label")),
                          {k: np.array(v) if isinstance(v, list) else v for k, v in p["truth"].items()}, p["source"]) for p in asked["pairs"]]
            encoding = Encoding(**{k: _frozen(v) for k, v in asked["encoding"].items()})
            forced = None if found["forced"] is None else torch.tensor(found["forced"])
            return cls(**found | {"asked": Sentence(asked["task"], encoding, pairs), "options": Options(**found["options"]),
                                  "forced": forced, "tokens": torch.tensor(found["tokens"])})  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is no recipe that can be read ({error}): give the JSON file that the studio's Take away wrote") from error


def made(lvm: LVM, tokenizer: Tokenizer) -> dict[str, str]:
    """What an answer hangs on beside its recipe."""
    return {name: importlib.metadata.version(name) for name in ("lvmlab", "torch", "transformers")} | {
        "device": describe(lvm.device), "precision": f"{lvm.llama.dtype}, tokenizer {tokenizer.precision}",
        "model": lvm.fingerprint(), "tokenizer": tokenizer.fingerprint}  # fmt: skip


def replay(recipe: Recipe, lvm: LVM, tokenizer: Tokenizer) -> tuple[Tensor, str]:
    """The answer anew, tokens (answers, n), and a sentence that says whether it is the stored one and what differs here."""
    lvm.check_fits(tokenizer)
    tokens, n = tokenizer.encode(images.from_uint8(recipe.asked.pictures())).view(1, -1)[:, : -tokenizer.tokens], tokenizer.tokens
    steps = recipe.options.stream(Prefilled(lvm, tokens, n, recipe.options.answers), tokens, n, recipe.forced)
    found = torch.stack([step.ids[0].cpu() for step in steps], -1)
    return found, compared(found, recipe, made(lvm, tokenizer))


def compared(found: Tensor, recipe: Recipe, here: dict[str, str]) -> str:
    """Whether tokens (answers, n) are those of the recipe, in a sentence; one that was stopped is compared as far as it went."""
    other = [f"{name} is {here.get(name)}, was {was}" for name, was in recipe.made.items() if here.get(name) != was]
    changed = int((found[:, : recipe.tokens.shape[-1]] != recipe.tokens).sum())
    same = f"{changed} of {recipe.tokens.numel()} tokens differ from the recipe's." if changed else "The same answer as in the recipe."
    return f"{same} {'Here ' + '; '.join(other) + '.' if other else 'Machine and versions are the same.'}"


def png(picture: np.ndarray) -> str:
    """uint8 (H, W, 3 or 4) as a PNG in base64."""
    Image.fromarray(np.ascontiguousarray(picture)).save(file := io.BytesIO(), format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def _frozen(value):
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
