"""Entries of the token store: bytes and rows a second against DeLVM's JSON lines, memory at ten million rows,
tokenising end to end.
"""

import json
import mmap
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from bench_rows import Row, entry, interleaved, rates
from PIL import Image

from lvmlab.data.building import build
from lvmlab.data.parts import save_table
from lvmlab.data.readers import paired_folder
from lvmlab.data.store import Rows, Store
from lvmlab.data.token_files import export_tokens
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.utils.device import precision

ROWS, LENGTH, CODES, BATCH, BATCHES = 20_000, 512, 8192, 64, 40
MANY, PART = (
    10_000_000,
    100_000,
)  # rows of the large store; the rows of one part, which is linked as often as is needed
FILES = (256, 8)  # pairs of pictures, for the small tokenizer and the large one
MEMORY = """
import re, sys
from lvmlab.data.store import Store
store = Store(sys.argv[1])
for step in range(50):
    store.batch(step, 64, 1, {"pairs": 1.0}, 0)
print(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


def random_store(folder: Path, rows: int) -> Path:
    tokens = np.random.default_rng(0).integers(0, CODES, (rows, LENGTH))
    folder.mkdir(parents=True, exist_ok=True)
    save_table(
        folder / "pairs.000000.arrow",
        tokens,
        tokenizer="0" * 16,
        pictures=2,
        members=rows,
        task="pairs",
        source=[f"pictures/{i:08d}.jpg" for i in range(rows)],
    )
    (folder / "store.json").write_text(
        json.dumps({"tokenizer": "0" * 16, "tokens": LENGTH // 2, "tasks": {}})
    )
    return folder


@entry("store.rows")
def rows():
    """Shuffled batches from the mapped table, against JSON lines through mmap as DeLVM keeps them; and the
    bytes of both.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder, lines = random_store(Path(temporary) / "store", ROWS), Path(temporary) / "train.bin"
        export_tokens(folder, "delvm", lines)
        offsets = np.load(f"{lines}.meta")[:, 0]
        order = np.random.default_rng(1).permutation(ROWS)[: BATCHES * BATCH].reshape(BATCHES, BATCH)
        stored = Rows([folder / "pairs.000000.arrow"])
        with open(lines, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:

            def theirs() -> list[np.ndarray]:
                found = []
                for batch in order:
                    rows = []
                    for row in batch:
                        mapped.seek(offsets[row])
                        rows.append(json.loads(mapped.readline())["tokens"])
                    found.append(np.array(rows))
                return found

            def ours() -> list[np.ndarray]:
                return [stored[batch].astype(np.int64) for batch in order]

            assert all((a.reshape(BATCH, -1) == b).all() for a, b in zip(ours(), theirs(), strict=True))
            taken = interleaved("store.rows", {"ours": ours, "theirs": theirs}, 5)
        count = BATCHES * BATCH
        yield rates(
            "store.rows",
            count / min(taken["ours"]),
            count / min(taken["theirs"]),
            "rows/s",
            25.0,
            f"batches of {BATCH} shuffled rows of {LENGTH} tokens to int64: Rows against DeLVM's lines "
            f"through mmap and json, best of 5",
        )
        sizes = [
            sum(p.stat().st_size for p in paths)
            for paths in (folder.iterdir(), Path(temporary).glob("train.bin*"))
        ]
        yield Row(
            "store.rows/bytes",
            sizes[0] / ROWS,
            sizes[1] / ROWS,
            sizes[0] / sizes[1],
            "bytes a row",
            0.40,
            f"{ROWS} rows of {LENGTH} tokens of {CODES} codes with their texts, against train.bin and its "
            f"meta",
            "ratio, at most",
        )


@entry("store.memory")
def memory():
    """Anonymous memory of a fresh process that opens a store and draws 50 batches."""
    with tempfile.TemporaryDirectory() as temporary:
        small = random_store(Path(temporary) / "small", PART)
        large = Path(temporary) / "large"
        large.mkdir()
        os.link(small / "store.json", large / "store.json")
        for i in range(MANY // PART):  # the same part under a hundred names: each is mapped by itself
            os.link(small / "pairs.000000.arrow", large / f"pairs.{i * PART:08d}.arrow")
        found = [
            int(
                subprocess.run(
                    [sys.executable, "-c", MEMORY, str(folder)], check=True, capture_output=True, text=True
                ).stdout
            )
            / 1024
            for folder in (large, small)
        ]
    yield Row(
        "store.memory",
        found[0],
        found[1],
        found[0] - found[1],
        "MB",
        200.0,
        f"anonymous memory at {MANY:,} rows and at {PART:,}, after 50 batches of 64; the ratio is the "
        f"difference, the limit an upper one",
        "ratio, at most",
    )


def end_to_end(preset: str, tokenizer: Tokenizer, pairs: int, side: int, limit: float):
    """Folder of JPEG pairs to a store, against the encoder alone on the same pictures."""
    name = f"tokenize.{preset}"
    with tempfile.TemporaryDirectory() as temporary:
        root, rng = Path(temporary) / "pairs", np.random.default_rng(0)
        root.mkdir()
        for i in range(pairs):
            for end in ("", "-label"):
                coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize(
                    (side * 4 // 3, side), Image.BICUBIC
                )
                coarse.save(root / f"{i:04d}{end}.jpg", quality=90)
        images = torch.rand(
            2 * pairs, 3, tokenizer.size, tokenizer.size, generator=torch.Generator().manual_seed(0)
        )
        number = iter(range(100))

        def ours() -> None:
            out = Path(temporary) / f"store{next(number)}"
            build(out, tokenizer, [paired_folder(root)], progress=False)
            assert Store(out).counts() == {"pairs": pairs}

        taken = interleaved(name, {"ours": ours, "encoder": lambda: tokenizer.encode(images)}, 2)
    yield rates(
        name,
        2 * pairs / min(taken["ours"]),
        2 * pairs / min(taken["encoder"]),
        "images/s",
        limit,
        f"decode, resize, encode, write {pairs} pairs of {side * 4 // 3}x{side} JPEGs, against "
        f"Tokenizer.encode of as many in memory "
        f"({precision()}); best of 2",
    )


@entry("tokenize.mini")
def mini():
    yield from end_to_end("mini", Tokenizer.from_pretrained("mini"), FILES[0], 384, 0.6)


@entry("tokenize.f16-8192")
def f16():
    yield from end_to_end("f16-8192", Tokenizer.from_preset("f16-8192"), FILES[1], 384, 0.9)
