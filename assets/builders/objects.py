"""Objects of mini-world: cut-out drawings with exact masks, a class and a family.

The drawings are Microsoft's Fluent Emoji, in two styles: "3d" for train, val and test, "flat" for `shifted`.
`object_classes.json` names, class by class, the families: drawings that look nearly the same (an animal and
its face,
the phases of the moon) stand in one string and always fall in one split. `shifted` holds the flat drawings of
the
test families, so neither its style nor its things are seen in training, and it pairs with `test` object by
object.

Needs npm (to fetch the packages), Pillow, NumPy, PyArrow and, at build time only, `resvg-py`.
"""

import hashlib
import io
import json
import pathlib
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

PACKAGES = {  # npm name: (version, SHA-256 of the tarball)
    "@lobehub/fluent-emoji-3d": ("1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"),
    "@iconify-json/fluent-emoji-flat": (
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    "unicode-emoji-json": ("0.9.0", "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401"),
}
AUTHORS = {
    "3d": "Microsoft Corporation (Fluent Emoji), packaged by LobeHub",
    "flat": "Microsoft Corporation (Fluent Emoji), packaged by Iconify",
}
ORIGINS = {"3d": "@lobehub/fluent-emoji-3d", "flat": "@iconify-json/fluent-emoji-flat"}
SHARES = {"train": 0.65, "val": 0.12, "test": 0.23}
SEED = "mini-world-v1"
SIDE = 128  # the long side of a picture
FILL = 0.25  # the least share of its bounding box that an object covers
CLASSES = pathlib.Path(__file__).with_name("object_classes.json")


def fetch(package: str, downloads: pathlib.Path) -> dict[str, bytes]:
    """The files of an npm package by path, from its tarball in `downloads` (fetched when it is not there)."""
    version, digest = PACKAGES[package]
    tarball = downloads / f"{package.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not tarball.exists():
        if not shutil.which("npm"):
            raise FileNotFoundError(
                f"{tarball.name} is not in {downloads}, and there is no npm to fetch it with"
            )
        downloads.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", f"{package}@{version}", "--pack-destination", str(downloads)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode or not tarball.exists():
            raise RuntimeError(f"npm pack could not fetch {package}@{version}:\n{done.stderr.strip()}")
    if hashlib.sha256(tarball.read_bytes()).hexdigest() != digest:
        raise ValueError(
            f"{tarball} is not the {package}@{version} this was written for; delete it and build again"
        )
    with tarfile.open(tarball) as tar:
        files = {m.name.removeprefix("package/"): tar.extractfile(m).read() for m in tar if m.isfile()}
    licence = json.loads(files["package.json"]).get("license")
    if licence != "MIT":
        raise ValueError(f"{package}@{version} says its licence is {licence!r}, not MIT")
    return files


def code(text: str) -> str:
    """An emoji's name in both packages: its code points in hex, variation selectors left out."""
    points = text.split("-") if text.isascii() else [f"{ord(c):x}" for c in text]
    return "-".join(p for p in (p.lower().lstrip("0") for p in points) if p != "fe0f")


def read_3d(files: dict[str, bytes]) -> dict[str, bytes]:
    """WebP pictures of 256 px by code."""
    return {
        code(pathlib.PurePath(name).stem): data for name, data in files.items() if name.startswith("assets/")
    }


def read_flat(files: dict[str, bytes]) -> dict[str, str]:
    """SVG drawings by code."""
    icons = json.loads(files["icons.json"])
    side = icons.get("height", 16)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {icons.get("width", side)} {side}">'
    chars, bodies = json.loads(files["chars.json"]), icons["icons"]
    return {code(c): f"{head}{bodies[name]['body']}</svg>" for c, name in chars.items() if name in bodies}


def rasterise(svg: str, side: int = 512) -> Image.Image:
    """An SVG drawing as a square RGBA picture."""
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise ImportError("the flat objects are drawn by resvg-py: pip install resvg-py") from error
    return Image.open(io.BytesIO(bytes(svg_to_bytes(svg_string=svg, width=side, height=side))))


def cut_out(picture: Image.Image) -> Image.Image | None:
    """The picture cropped to its alpha, long side 128 px; None where its mask is too thin to stand for an
    object.
    """
    rgba = picture.convert("RGBA")
    alpha = np.asarray(rgba)[..., 3]
    rows, columns = np.flatnonzero((alpha > 127).any(1)), np.flatnonzero((alpha > 127).any(0))
    if not rows.size:
        return None
    rgba = rgba.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    if (np.asarray(rgba)[..., 3] > 127).mean() < FILL:
        return None
    size = tuple(max(1, round(SIDE * s / max(rgba.size))) for s in rgba.size)
    return (
        rgba.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    )  # RGBa is premultiplied


def encode(picture: Image.Image) -> bytes:
    """WebP bytes; the alpha keeps every level."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=85, alpha_quality=100, method=4)
    return buffer.getvalue()


def split_families(sizes: dict[str, int]) -> dict[str, str]:
    """A split for each family of one class, in the order of a fixed hash: where most is still missing and it
    fits.

    A family that would be more than half of the class in a split goes to train, so that val and test stay
    varied.
    """
    have, total = dict.fromkeys(SHARES, 0), sum(sizes.values())
    split_of = {}
    for family in sorted(sizes, key=lambda f: hashlib.sha256(f"{SEED}/{f}".encode()).hexdigest()):
        missing = {split: share * total - have[split] for split, share in SHARES.items()}
        room = {split: min(missing[split] + 1, max(1, SHARES[split] * total / 2)) for split in SHARES}
        fits = [split for split in SHARES if missing[split] > 0 and sizes[family] <= room[split]] or ["train"]
        split_of[family] = max(fits, key=lambda split: missing[split] / SHARES[split])
        have[split_of[family]] += sizes[family]
    if not all(have.values()):
        raise ValueError(f"a class has too few families for every split: {', '.join(sizes)}")
    return split_of


def draw(downloads: pathlib.Path) -> list[dict]:
    """All rows: every object that both the table names and a package draws well enough."""
    three = read_3d(fetch(ORIGINS["3d"], downloads))
    flat = read_flat(fetch(ORIGINS["flat"], downloads))
    emoji = json.loads(fetch("unicode-emoji-json", downloads)["data-by-emoji.json"])
    code_of = {entry["name"].replace("\u2019", "'"): code(char) for char, entry in emoji.items()}
    rows, seen = [], set()
    for klass, families in json.loads(CLASSES.read_text("utf-8")).items():
        drawn = {}
        for family in (f.split(", ") for f in families):
            if unknown := [n for n in family if n not in code_of or code_of[n] not in three or n in seen]:
                raise ValueError(
                    f"{CLASSES.name}, {klass}: {unknown} are named twice or not drawn in {ORIGINS['3d']}"
                )
            seen.update(family)
            pictures = {name: cut_out(Image.open(io.BytesIO(three[code_of[name]]))) for name in family}
            if kept := {name: picture for name, picture in pictures.items() if picture}:
                drawn[family[0]] = kept
        split_of = split_families({family: len(kept) for family, kept in drawn.items()})
        for family, kept in drawn.items():
            for name, picture in kept.items():
                row = {
                    "name": name,
                    "klass": klass,
                    "family": family,
                    "style": "3d",
                    "split": split_of[family],
                }
                rows.append(row | {"image": encode(picture)})
                svg = flat.get(code_of[name]) if row["split"] == "test" else None
                if svg and (other := cut_out(rasterise(svg))):
                    rows.append(row | {"style": "flat", "split": "shifted", "image": encode(other)})
    return rows


def build(out: pathlib.Path, downloads: pathlib.Path) -> list[dict]:
    """Write `out/objects.parquet`; return a row of credits for each style."""
    rows = draw(downloads)
    rows.sort(key=lambda row: row["style"])  # stable: by class and family within a style
    columns = ("name", "klass", "family", "style", "split")
    schema = pa.schema([(c, pa.string()) for c in columns] + [("image", pa.binary())])
    out.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, out / "objects.parquet", use_dictionary=list(columns), compression="zstd")
    credit_rows = []
    for style, package in ORIGINS.items():
        count = sum(row["style"] == style for row in rows)
        row = {
            "file": f"objects.parquet: {style}, {count} pictures",
            "author": AUTHORS[style],
            "licence": "MIT",
        }
        credit_rows.append(row | {"origin": f"{package} {PACKAGES[package][0]} (npm)", "part": "objects"})
    return credit_rows


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: objects.py OUT DOWNLOADS")
    print(json.dumps(build(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])), indent=1))
