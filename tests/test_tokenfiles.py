"""Token files of DeLVM and LVM, written here in their exact formats."""

import base64
import json

import numpy as np
import pytest
import torch

from lvmlab.data.store import Store
from lvmlab.data.token_files import PART, export_tokens, import_tokens, read_lines
from lvmlab.tokenizer.tokenizer import Tokenizer

ROWS = np.random.default_rng(0).integers(0, 1024, (7, 128))


@pytest.fixture(scope="module")
def tokenizer():
    torch.set_num_threads(2)
    return Tokenizer.from_preset("mini", seed=0, device="cpu")


def delvm(path, rows):
    lines = [(json.dumps({"tokens": [int(t) for t in row]}) + "\n").encode() for row in rows]
    path.write_bytes(b"".join(lines))
    offsets = np.cumsum([0, *map(len, lines)])[:-1]
    np.save(
        open(f"{path}.meta", "wb"),
        np.array([(o, len(r)) for o, r in zip(offsets, rows, strict=True)], np.int64),
    )  # noqa: SIM115
    return path


def lvm(path, rows):
    path.write_text(
        "".join(
            json.dumps({"tokens": base64.b64encode(np.asarray(r, np.int32).tobytes()).decode()}) + "\n"
            for r in rows
        )
    )
    return path


@pytest.mark.parametrize(("form", "write"), [("delvm", delvm), ("lvm", lvm)])
def test_in_and_out_again(form, write, tokenizer, tmp_path):
    path = write(tmp_path / "train.bin", ROWS)
    assert import_tokens(path, form, tmp_path / "store", tokenizer, "theirs") == 7
    rows = Store(tmp_path / "store").tasks["theirs"]
    assert (rows[np.arange(7)].reshape(7, 128) == ROWS).all() and rows.column("source")[6] == "line 7"
    assert export_tokens(tmp_path / "store", form, tmp_path / "again.bin") == 7
    assert (np.stack(list(read_lines(tmp_path / "again.bin", form))) == ROWS).all()
    if form == "delvm":
        meta, data = np.load(f"{tmp_path / 'again.bin'}.meta"), (tmp_path / "again.bin").read_bytes()
        assert meta.dtype == np.int64 and meta.shape == (7, 2)
        for (offset, length), row in zip(meta, ROWS, strict=True):  # as DeLVM reads it: seek, then one line
            tokens = json.loads(data[offset:].split(b"\n", 1)[0])["tokens"]
            assert len(tokens) == length and tokens == row.tolist()


def test_many_rows_make_several_parts(tokenizer, tmp_path):
    many = np.tile(ROWS, (PART // 7 + 2, 1))
    assert import_tokens(
        lvm(tmp_path / "l.jsonl", many), "lvm", tmp_path / "store", tokenizer, "theirs"
    ) == len(many)
    rows = Store(tmp_path / "store").tasks["theirs"]
    assert len(list((tmp_path / "store").glob("*.arrow"))) == 2 and len(rows) == len(many)
    assert (rows[np.array([PART - 1, PART, 3])].reshape(3, -1) == many[[PART - 1, PART, 3]]).all()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", "line 3 is no line of the delvm format"),
        ('{"ids": [1]}', "line 3 is no line"),
        ('{"tokens": [1, 2]}', "line 3 has 2 tokens: every"),
        (json.dumps({"tokens": [5000] * 128}), "line 3 has the token 5000"),
        (json.dumps({"tokens": [-1] * 128}), "line 3 has the token -1"),
    ],
)
def test_a_bad_line_is_named(line, message, tokenizer, tmp_path):
    path = delvm(tmp_path / "train.bin", ROWS[:2])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=message):
        import_tokens(path, "delvm", tmp_path / "store", tokenizer, "theirs")
    assert not list((tmp_path / "store").glob("*.arrow"))


def test_an_unknown_format_and_another_tokenizer_are_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="choose from delvm, lvm"):
        list(read_lines(tmp_path, "csv"))
    import_tokens(delvm(tmp_path / "train.bin", ROWS), "delvm", tmp_path / "store", tokenizer, "theirs")
    with pytest.raises(ValueError, match="another folder"):
        import_tokens(
            tmp_path / "train.bin",
            "delvm",
            tmp_path / "store",
            Tokenizer.from_preset("mini", seed=1, device="cpu"),
            "theirs",
        )
