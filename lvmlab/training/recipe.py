"""What an LVM is trained on: which task, how many pairs, how much each token weighs, and what is corrupted.

All tokens of a sentence are targets. Tokens of a picture that its context hardly determines (an input
photograph) weigh little, those of an answer weigh fully. Short sentences first and full ones last cost less
for the same reading.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lvmlab.data.mixture import Mixture
from lvmlab.utils.checks import check_fields
from lvmlab.world import V1, V2

# answers that are photographs: many tokens would do nearly as well as the true one, so their loss is mostly
# noise
PHOTOGRAPHS = {"derain": 0.3, "motion": 0.4}
SHARES = {"segmentation": 0.30, "selection": 0.22, "pose": 0.28, "derain": 0.06, "motion": 0.14}
SHARES_V2 = {
    "segmentation": 0.22,
    "semantic": 0.16,
    "selection": 0.18,
    "category": 0.06,
    "pose": 0.24,
    "derain": 0.05,
    "motion": 0.09,
}
SHARES_OF = {V1.version: SHARES, V2.version: SHARES_V2}  # the training mix of each version of mini-world


@dataclass(frozen=True)
class LVMRecipe:
    """How sentences are drawn and weighed.

    Args:
        tokens: Tokens of a step, on all devices together.
        phases: (share of the steps at which it ends, pairs in a sentence), in order.
        image_weight: Weight of the tokens of inputs, 0 or more.
        answer_weights: {task: weight of its answers}; others weigh 1.
        corruption_rate: Share of answers that are read corrupted, see
            `lvmlab.training.sampler.corrupt_answers`.
        permute_label_codes: {task: share of its sentences} whose labels are written in other codes, see
            `lvmlab.training.sampler.permute_label_codes`.
        mixture: Which task a sentence is of.
        mixed: Share of sentences in which every pair is of a task of its own.
        on_policy: Share of sentences whose last answer the student writes itself, see
            `lvmlab.training.sampler.write_answers`.

    Raises:
        ValueError: A field is out of range; the message names it.
    """

    tokens: int = 4096
    phases: tuple[tuple[float, int], ...] = ((0.6, 4), (1.0, 8))
    image_weight: float = 0.1
    answer_weights: dict[str, float] = field(default_factory=lambda: dict(PHOTOGRAPHS))
    corruption_rate: float = 0.8
    permute_label_codes: dict[str, float] = field(default_factory=dict)
    mixture: Mixture = Mixture("balanced", weights=SHARES)
    mixed: float = 0.0
    on_policy: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "phases", tuple(tuple(phase) for phase in self.phases))
        ends = [end for end, _ in self.phases]
        rising = bool(ends) and ends == sorted(ends) and ends[-1] == 1.0
        good = rising and all(pairs >= 1 for _, pairs in self.phases)
        check_fields(self, phases=(good, "(end, pairs), ends rising to 1.0 and at least one pair"))
        shares = ("corruption_rate", "mixed", "on_policy")
        check_fields(
            self, **{name: (0 <= getattr(self, name) <= 1, "a share from 0 to 1") for name in shares}
        )
        check_fields(self, image_weight=(self.image_weight >= 0, "0 or more"))

    def pairs(self, step: int, steps: int) -> int:
        """Pairs in the sentences of a step."""
        return next(pairs for end, pairs in self.phases if step < end * steps or end == 1.0)

    @property
    def most_pairs(self) -> int:
        """Pairs in the longest sentence."""
        return max(pairs for _, pairs in self.phases)


def token_weights(
    names: list[str], pairs: int, tokens: int, recipe: LVMRecipe, pictures: dict[str, int]
) -> Tensor:
    """The recipe's weights of answers and inputs.

    Args:
        names: The task of each of B sentences.
        pairs: In a sentence.
        tokens: Of a picture.
        recipe: See `LVMRecipe`.
        pictures: {task: pictures in a row of it}, see `lvmlab.data.store.Rows`.

    Returns:
        (B, pairs * 2 * tokens). In a clip all frames after two are answers; single images have no answers,
        and all weigh fully.
    """
    rows = torch.full((len(names), pairs, 2), recipe.image_weight)
    for row, name in zip(rows, names, strict=True):
        answers = row[:, 1] if pictures[name] == 2 else row[1:] if pictures[name] > 2 else row
        answers[:] = recipe.answer_weights.get(name, 1.0)
    return rows.flatten(1).repeat_interleave(tokens, 1)
