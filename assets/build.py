"""Builds mini-world's assets again from public packages: `python assets/build.py [photographs] [objects]
[bodies]`.

Needs apt-get (Debian), npm and `pip install -e .[assets]`. Writes `assets/world/*.parquet` and
`assets/CREDITS.md`.
mini-world-v1 is frozen: a build that gives other bytes is a new version of the world.
"""

import importlib
import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PARTS = ("photographs", "objects", "bodies")
HEAD = """# Credits

What every file of mini-world is made from. All pictures were resized and re-encoded (WebP); objects and bodies were cut
out or rendered as described in `assets/builders`. The models in `assets/models` were trained on these alone.
"""


def credits(folder: Path) -> str:
    """The credit rows of every part as one Markdown page."""
    lines = [HEAD]
    for part in PARTS:
        rows = json.loads((folder / f"credits-{part}.json").read_text())
        lines += [
            f"\n## {part.capitalize()} (`assets/world/{part}.parquet`)\n",
            "| file | author | licence | origin |",
            "|---|---|---|---|",
        ]
        for row in rows:
            cells = (
                str(row[k]).replace("|", "/").replace("\n", " ")
                for k in ("file", "author", "licence", "origin")
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(parts: list[str]) -> None:
    sys.path.insert(0, str(HERE))
    out = HERE / "world"
    with tempfile.TemporaryDirectory() as downloads:
        for part in parts:
            rows = importlib.import_module(f"builders.{part}").build(out, Path(downloads))
            (out / f"credits-{part}.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    (HERE / "CREDITS.md").write_text(credits(out))


if __name__ == "__main__":
    unknown = set(sys.argv[1:]) - set(PARTS) - {"credits"}
    if unknown:
        sys.exit(f"unknown part {', '.join(unknown)}: choose from {', '.join(PARTS)}, or credits")
    main([] if sys.argv[1:] == ["credits"] else sys.argv[1:] or list(PARTS))
