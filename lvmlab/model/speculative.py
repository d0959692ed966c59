"""A small model drafts, a large one reads several drafted tokens in one pass and keeps what it would have
written itself.

Leviathan et al., "Fast inference from transformers via speculative decoding" (arXiv 2211.17192, algorithm 1):
exact in distribution, whatever
the small one drafts; greedy answers are the large one's own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lvmlab.model.lvm import LVM
from lvmlab.model.prompting import Prefilled, warpers


@torch.inference_mode()
def speculate(
    lvm: LVM,
    draft: LVM,
    tokens: Tensor,
    n: int,
    *,
    ahead: int = 4,
    generator: torch.Generator | None = None,
    **options,
) -> tuple[Tensor, float]:
    """The next n tokens after one prompt, tokens (1, T), as `lvm` gives them: (n,) int64, and the share of
    drafted tokens that were kept.

    draft: a model of the same codes. ahead: tokens drafted before each pass. Options as in
        `lvmlab.model.prompting.complete_tokens`; chance needs a
    generator on the CPU. Raises ValueError where the models differ in codes, for more than one prompt, and as
    `complete_tokens` does.
    """
    warp = warpers(generator=generator, **options)
    if draft.codes != lvm.codes or len(tokens) != 1 or ahead < 1:
        raise ValueError(
            f"{len(tokens)} prompts, ahead={ahead}, {lvm.codes} and {draft.codes} codes: give one prompt, "
            f"ahead over 0, the same codes"
        )
    large, small = (Prefilled(model, tokens, n) for model in (lvm, draft))

    def law(
        ready: Prefilled, hidden: Tensor
    ) -> Tensor:  # (places, codes): what is drawn from; where nothing is, all on the likeliest
        logits = ready.decoder.logits(hidden[0])
        return (
            warp(None, logits).softmax(-1).cpu()
            if generator
            else F.one_hot(logits.argmax(-1), logits.shape[-1]).float().cpu()
        )

    def draw(p: Tensor) -> int:
        return int(torch.multinomial(p, 1, generator=generator) if generator else p.argmax())

    ids, drafted, kept = [draw(law(large, large.hidden)[0])], 0, 0
    while len(ids) < n:
        count, proposed, q = min(ahead, n - len(ids) - 1), list(ids), []
        for _ in range(count):
            q.append(law(small, small.read(proposed))[-1])
            proposed.append(draw(q[-1]))
        p, drafted = law(large, large.read(proposed)), drafted + count  # (count + 1, codes)
        for i, code in enumerate(proposed[len(ids) :]):
            if (torch.rand((), generator=generator) if generator else 0.5) * q[i][code] > p[i, code]:
                ids.append(draw((p[i] - q[i]).clamp(min=0)))
                break
            ids.append(code)
            kept += 1
        else:
            ids.append(draw(p[-1]))
        for ready in (large, small):  # what was refused is forgotten; the last token is not read yet
            ready.memory.filled = min(ready.memory.filled, ready.length + len(ids) - 1)
    return torch.tensor(ids), kept / max(1, drafted)
