"""Prompts as pictures: example pairs, the query, the answer and the truth, side by side."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lvmlab.utils.images import to_uint8
from lvmlab.world.sentences import Sentence
from lvmlab.world.tasks import Pair

GAP, EDGE = 3, 10
INK, ANSWER, TRUTH = (30, 30, 30), (200, 40, 40), (40, 110, 60)


def _font(size: int):
    return ImageFont.load_default(size)


def strip(
    prompt: Sentence, answers: dict[str, np.ndarray], scale: int = 1
) -> tuple[Image.Image, list[tuple[str, int, int]]]:
    """One prompt in a row, and its column groups (name, first x, last x): examples, query, an answer each
    and, where the query has a label, the truth.
    """
    pictures = [("examples", p) for pair in prompt.pairs[:-1] for p in (pair.image, pair.label)]
    query = prompt.pairs[-1]
    pictures += [("query", query.image), *answers.items()]
    if query.label is not None:
        pictures.append(("truth", query.label))
    size = query.image.shape[0] * scale
    row = Image.new(
        "RGB", (len(pictures) * (size + 2 * GAP), size), "white"
    )  # cut where its last picture ends
    columns, x, before = [], 0, "examples"
    for name, picture in pictures:
        if name != before:
            x, before = x + GAP, name
        row.paste(Image.fromarray(np.ascontiguousarray(picture)).resize((size, size), Image.NEAREST), (x, 0))
        columns = (
            columns[:-1] + [(name, columns[-1][1], x + size)]
            if columns and columns[-1][0] == name
            else [*columns, (name, x, x + size)]
        )
        x += size + GAP
    return row.crop((0, 0, x - GAP, size)), columns


def sheet(
    blocks: list[tuple[str, list[Sentence], list[dict[str, np.ndarray]]]], columns: int = 2, scale: int = 1
) -> Image.Image:
    """Titled blocks of prompts: for each (title, prompts, answers by name) ``columns`` prompts a line."""
    font, small = _font(15), _font(11)
    rendered = []
    for title, prompts, answers in blocks:
        rows = [strip(p, a, scale) for p, a in zip(prompts, answers, strict=True)]
        rendered.append((title, rows))
    width = max(row.width for _, rows in rendered for row, _ in rows)
    height = sum(52 + -(-len(rows) // columns) * (rows[0][0].height + GAP) for _, rows in rendered)
    page = Image.new("RGB", (columns * (width + 3 * EDGE), height + EDGE), "white")
    pen, y = ImageDraw.Draw(page), EDGE
    for title, rows in rendered:
        pen.text((EDGE, y), title, INK, font)
        for c in range(min(columns, len(rows))):
            for name, left, right in rows[0][1]:
                colour = TRUTH if name == "truth" else INK if name in ("examples", "query") else ANSWER
                pen.text(
                    (EDGE + c * (width + 3 * EDGE) + (left + right) / 2, y + 28),
                    name,
                    colour,
                    small,
                    anchor="ma",
                )
        y += 44
        for i, (row, _) in enumerate(rows):
            page.paste(row, (EDGE + i % columns * (width + 3 * EDGE), y + i // columns * (row.height + GAP)))
        y += -(-len(rows) // columns) * (rows[0][0].height + GAP) + 8
    return page


def captioned(
    pairs: Sequence[tuple[Tensor, Tensor]], query: Tensor, answers: dict[str, Tensor], scale: int = 3
) -> Image.Image:
    """Example pairs, a query without a known truth and its answers in a row, each column under its name.

    Args:
        pairs: Images and labels, float (3, S, S) in [0, 1].
        query: The image asked about, float (3, S, S) in [0, 1].
        answers: Pictures by caption, float (3, S, S) in [0, 1].
        scale: Screen pixels a pixel.
    """
    examples = [Pair(to_uint8(image), to_uint8(label)) for image, label in pairs]
    prompt = Sentence("", None, [*examples, Pair(to_uint8(query), None)])
    drawn = {name: to_uint8(picture) for name, picture in answers.items()}
    return sheet([("", [prompt], [drawn])], columns=1, scale=scale)
