"""Photographs of mini-world: real, colour, and free to pass on (public domain, CC0 or CC-BY; no share-alike).

Sources: Debian's `gcompris-qt-data` and `lomiri-wallpapers-16.04`, the samples in scikit-image and
    scikit-learn.
The pictures of gcompris lie inside Qt resource files (.rcc), beside a README that names author, licence and
origin of
each. Those READMEs are the record used here: the package's debian/copyright still lists the pictures that an
older
release had under the same names. gcompris is divided into train, val and test; all the rest is `shifted`.

    python assets/builders/photographs.py OUT DOWNLOADS
"""

import dataclasses
import hashlib
import importlib.util
import io
import json
import pathlib
import random
import re
import struct
import subprocess
import sys
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

SEED = 20
LONG_SIDE = 512  # px, at most
SHORT_SIDE = 200  # px of the original, at least: a crop of 30 % is then about the 64 px of a rendered scene
QUALITY = 88
SHARES = {"test": 0.18, "val": 0.12}  # of the gcompris pictures; the rest trains
LARGEST_HELD_OUT = 3  # a larger group of kindred pictures always trains: it would be most of a test set

# Chosen by eye among the files of exactly these versions.
PACKAGES = {
    "gcompris-qt-data": ("3.1-2", "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f"),
    "lomiri-wallpapers-16.04": (
        "20.04.0-2",
        "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
    ),
}
GCOMPRIS_FILES = ["categorization", "clickgame", "erase", "explore_farm_animals", "explore_monuments"]
GCOMPRIS_FILES += ["explore_world_animals", "explore_world_music"]
# Hand tools and other shots on plain ground; near-empty or near-black pictures; one grey-scale; a fairground
# reef.
LEFT_OUT = re.compile(
    r"(tools-.*|others-(?!igloo|pan$|pillow).*|music-(middleeast|ireland)|usa-castleClinton|animals-duck|"
    r"fishes-fish(4|6|11|18|25)|clickgame-sea[35])"
)
# Pictures of one subject are kindred, and so are all pictures of one photographer.
SUBJECTS = re.compile(
    r"windmill|solar|dam(?=\d)|pyramid|eiffel|liberty|greatwall|rushmore|tubminar|giraffe|cham(?=a?eleon)|sea(?=\d)|music-"
)
FREE = re.compile(r"(public domain|CC0-1\.0|CC-BY-[1-4]\.\d|MIT|Expat|Apache-2\.0)", re.IGNORECASE)
# Origins that only pass on what others uploaded without saying who took the picture are not clear enough.
CLEAR_ORIGIN = re.compile(r"https?://(commons\.wikimedia\.org|www\.flickr\.com)/")

SCIKIT_IMAGE = {
    "astronaut.png": ("NASA", "public domain", "https://flic.kr/p/r9qvLn"),
    "chelsea.png": ("Stéfan van der Walt", "CC0-1.0", "skimage.data.chelsea"),
    "coffee.png": ("Rachel Michetti, courtesy of Pikolo Espresso Bar", "CC0-1.0", "skimage.data.coffee"),
    "rocket.jpg": ("SpaceX", "public domain", "https://www.flickr.com/photos/spacexphotos/16511594820/"),
}
SCIKIT_LEARN = {
    "china.jpg": ("danielbuechele", "CC-BY-2.0", "https://www.flickr.com/photos/danielbuechele/6061409035/"),
    "flower.jpg": ("vultilion", "CC-BY-2.0", "https://www.flickr.com/photos/vultilion/6056698931/"),
}
LOMIRI_LEFT_OUT = ["umang_by_Abhishek_Mudgal.jpg"]  # a colour gradient, no photograph


@dataclasses.dataclass
class Photograph:
    """One picture file with its credit; `content` as the source has it."""

    name: str
    source: str
    content: bytes
    author: str
    licence: str
    origin: str
    split: str = "shifted"


def unpack(package: str, downloads: pathlib.Path) -> pathlib.Path:
    """Downloads one Debian package in its pinned version, checks its hash and unpacks it without installing."""
    version, digest = PACKAGES[package]
    archive = downloads / f"{package}_{version}_all.deb"
    downloads.mkdir(parents=True, exist_ok=True)
    try:
        if not archive.exists():
            subprocess.run(["apt-get", "download", "-qq", f"{package}={version}"], cwd=downloads, check=True)
        if (found := hashlib.sha256(archive.read_bytes()).hexdigest()) != digest:
            raise RuntimeError(f"{archive} has SHA-256 {found}, not {digest}: delete it and build again")
        subprocess.run(["dpkg", "-x", archive, downloads / package], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        remedy = f"run `apt-get update` on Debian 12, or put {archive.name} into {downloads}"
        raise RuntimeError(
            f"Debian package {package} {version} could not be fetched ({error}): {remedy}"
        ) from error
    return downloads / package


def read_rcc(path: pathlib.Path) -> dict[str, bytes]:
    """Every file inside a Qt binary resource file, by its path.

    Layout (big-endian): "qres", version, then the offsets of the tree, the data and the names. A tree node is
    name
    offset u32, flags u16 (1 zlib, 2 folder, 4 zstd), then either child count and first child, or locale and
    data
    offset, and from version 2 on a time stamp u64.
    """
    blob = path.read_bytes()
    if blob[:4] != b"qres":
        raise ValueError(f"{path} is no Qt resource file")
    version, tree, data, names = struct.unpack_from(">4I", blob, 4)
    size, files = 22 if version >= 2 else 14, {}

    def walk(index: int, folder: str) -> None:
        name_at, flags, first, second = struct.unpack_from(">IHII", blob, tree + index * size)
        name = ""
        if index:  # the root has no name
            length = struct.unpack_from(">H", blob, names + name_at)[0]
            name = blob[names + name_at + 6 :][: 2 * length].decode("utf-16-be")
        here = f"{folder}/{name}" if name else folder
        if flags & 2:
            for child in range(second, second + first):
                walk(child, here)
            return
        length = struct.unpack_from(">I", blob, data + second)[0]
        content = blob[data + second + 4 :][:length]
        if flags & 1:
            content = zlib.decompress(content[4:])  # after the unpacked size
        elif flags & 4:
            content = subprocess.run(
                ["zstd", "-dc"], input=content, stdout=subprocess.PIPE, check=True
            ).stdout
        files[here] = content

    walk(0, "")
    return files


def paragraphs(text: str, fields: str) -> list[dict[str, str]]:
    """Blank-line separated paragraphs of `Field: value` lines; a line without a field goes on with the one
    before.
    """
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        last, values = None, {}
        for line in paragraph.splitlines():
            if match := re.match(rf"({fields}):\s*(.*)", line):
                last = match[1]
                values[last] = match[2].strip()
            elif last:
                values[last] = f"{values[last]} {line.strip()}".strip()
        found.append(values)
    return found


def gcompris(downloads: pathlib.Path) -> list[Photograph]:
    """Usable photographs of gcompris, split; of several copies from one origin the largest."""
    folder = unpack("gcompris-qt-data", downloads) / "usr/share/gcompris-qt/rcc"
    best: dict[str, Photograph] = {}  # by origin
    for activity in GCOMPRIS_FILES:
        files = read_rcc(folder / f"{activity}.rcc")
        for readme in (path for path in files if path.endswith("/README")):
            for record in paragraphs(files[readme].decode(), "Copyright|Source|License|Files|Comments?"):
                licence, origin = (
                    record.get("License", "").replace("CC-BY ", "CC-BY-"),
                    record.get("Source", ""),
                )
                if not (FREE.fullmatch(licence) and CLEAR_ORIGIN.match(origin) and record.get("Copyright")):
                    continue
                for file in record["Files"].split():
                    path = pathlib.PurePosixPath(readme).parent / file
                    if path.suffix != ".webp" or str(path) not in files:
                        continue
                    name = f"{activity if path.parent.name == 'resource' else path.parent.name}-{path.stem}"
                    licence = "public domain" if licence.lower() == "public domain" else licence
                    credit = (record["Copyright"], licence, origin)
                    photo = Photograph(f"gcompris-{name}", "gcompris", files[str(path)], *credit)
                    if min(Image.open(io.BytesIO(photo.content)).size) < SHORT_SIDE or LEFT_OUT.fullmatch(
                        name
                    ):
                        continue
                    best[origin] = max(photo, best.get(origin, photo), key=lambda one: len(one.content))
    return divide(sorted(best.values(), key=lambda photo: photo.name))


def divide(photos: list[Photograph]) -> list[Photograph]:
    """Sets `split`: kindred pictures (one subject or one photographer) are in one split only."""
    groups: list[tuple[set[str], list[Photograph]]] = []  # (marks, members): two that share a mark are merged
    for photo in photos:
        photo.split = "train"
        marks = {photo.author.lower(), *SUBJECTS.findall(photo.name.lower())}
        kindred = [group for group in groups if group[0] & marks]
        groups = [group for group in groups if not group[0] & marks]
        members = [member for group in kindred for member in group[1]]
        groups.append((marks.union(*(group[0] for group in kindred)), [*members, photo]))
    small = [members for _, members in groups if len(members) <= LARGEST_HELD_OUT]
    random.Random(SEED).shuffle(small)
    for split, share in SHARES.items():
        while small and sum(photo.split == split for photo in photos) < round(share * len(photos)):
            for photo in small.pop():
                photo.split = split
    return photos


def lomiri(downloads: pathlib.Path) -> list[Photograph]:
    """The wallpapers that are photographs and not share-alike."""
    folder, photos = unpack("lomiri-wallpapers-16.04", downloads), []
    text = (folder / "usr/share/doc/lomiri-wallpapers-16.04/copyright").read_text(encoding="utf-8")
    for record in paragraphs(text, "Files|Copyright|License"):
        file = record.get("Files", "").removeprefix("16.04/")
        path = folder / "usr/share/backgrounds" / file
        usable = file.endswith(".jpg") and file not in LOMIRI_LEFT_OUT and path.exists()
        if usable and FREE.fullmatch(record["License"]):
            credit = (
                record["Copyright"],
                record["License"],
                f"Debian package lomiri-wallpapers-16.04, {file}",
            )
            photos.append(Photograph(f"lomiri-{path.stem}", "lomiri", path.read_bytes(), *credit))
    return photos


def installed(
    module: str, folder: str, source: str, files: dict[str, tuple[str, str, str]]
) -> list[Photograph]:
    """Sample photographs inside an installed Python package."""
    spec, photos = importlib.util.find_spec(module), []
    for file, credit in files.items():
        path = pathlib.Path(spec.origin).parent / folder / file if spec else None
        if path is None or not path.exists():
            raise RuntimeError(
                f"{folder}/{file} of {source} not found: `pip install --force-reinstall {source}`"
            )
        photos.append(Photograph(f"{source}-{path.stem}", source, path.read_bytes(), *credit))
    return photos


def encode(content: bytes) -> bytes:
    """Any picture file to WebP: upright, RGB, long side at most LONG_SIDE."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    image.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS, reducing_gap=None)
    image.save(packed := io.BytesIO(), "WEBP", quality=QUALITY, method=6)
    return packed.getvalue()


def build(out: pathlib.Path, downloads: pathlib.Path) -> list[dict]:
    """Writes out/photographs.parquet (name, source, split, image as WebP); returns one credit row a
    photograph.

    Raises RuntimeError naming the source and the remedy where one is missing.
    """
    photos = gcompris(downloads) + lomiri(downloads)
    photos += installed("skimage", "data", "scikit-image", SCIKIT_IMAGE)
    photos += installed("sklearn", "datasets/images", "scikit-learn", SCIKIT_LEARN)
    columns = {field: [getattr(photo, field) for photo in photos] for field in ("name", "source", "split")}
    columns["image"] = pa.array([encode(photo.content) for photo in photos], pa.binary())
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), out / "photographs.parquet", compression="none")
    fields = ("author", "licence", "origin")
    return [{"file": p.name, **{f: getattr(p, f) for f in fields}, "part": "photographs"} for p in photos]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python assets/builders/photographs.py OUT DOWNLOADS")
    target = pathlib.Path(sys.argv[1])
    rows = build(target, pathlib.Path(sys.argv[2]))
    text = json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
    (target / "credits-photographs.json").write_text(text, encoding="utf-8")
    print(f"{len(rows)} photographs")
