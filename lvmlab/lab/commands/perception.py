"""What tokens still know: `lvmlab perception`."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from lvmlab.lab.commands.checks import check_folder, check_model
from lvmlab.lab.commands.choices import PerceptionTask

Name = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="TOKENIZER")]]


def perception(
    tokenizer: Name = "mini",
    tasks: tuple[PerceptionTask, ...] = (),
    scale: Literal["smoke", "study"] = "study",
    out: Path = Path("runs/perception"),
    pairs: Path | None = None,
) -> None:
    """Measure what a tokenizer's codes still know of a picture, by specialists that are trained to say it.

    For each task a small network is trained to answer from the pixels, from the picture after the
    tokenizer's round trip and from the codes alone. The last score is the perception ceiling. Each task is
    stored as a run; one that was interrupted resumes.
    Writes OUT/perception.json and OUT/perception.png and prints a table.

    Args:
        tokenizer: A shipped tokenizer, a folder or a hub id.
        tasks: The tasks. The default is all that have a specialist.
        scale: How long the specialists train: smoke is seconds, study is hours.
        out: The folder written to.
        pairs: A folder of your own pairs (see `lvmlab tokenize`) instead of mini-world's tasks; a tenth of
            them is val.
    """
    check_model(tokenizer)
    if pairs is not None:
        check_folder(pairs)

    import json

    import matplotlib

    matplotlib.use("agg")
    from lvmlab.data.readers import paired_folder
    from lvmlab.lab.perception import perception as measure
    from lvmlab.lab.perception import perception_of_pairs
    from lvmlab.lab.plots.perception import chart, table
    from lvmlab.lab.specialists import GOALS
    from lvmlab.tokenizer.tokenizer import Tokenizer
    from lvmlab.utils.files import atomic, write_file

    tok = Tokenizer.from_pretrained(tokenizer)
    if pairs is None:
        rows = measure(tok, tasks or tuple(GOALS), scale, name=Path(tokenizer).name)
    else:
        found = [row.pictures for _, row in paired_folder(pairs).rows(tok.size)]
        if len(found) < 2:
            raise ValueError(
                f"{pairs} holds {len(found)} pairs: give at least 2, one to train on and one for val"
            )
        count = max(1, len(found) // 10)
        rows = perception_of_pairs(tok, found[count:], found[:count], scale, name=Path(tokenizer).name)
    write_file(out / "perception.json", json.dumps(rows, indent=1) + "\n")
    with atomic(out / "perception.png") as temporary:
        chart(rows).figure.savefig(temporary, format="png", bbox_inches="tight", dpi=150)
    print(table(rows).round(3).to_string(index=False))
    print(f"wrote {out / 'perception.json'} and {out / 'perception.png'}")
