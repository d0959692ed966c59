"""The token store: sentences by (seed, step), groups kept together, builds that go on and never overwrite."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from stores import write_part, write_store

from lvmlab.data.building import build
from lvmlab.data.mini_world import World
from lvmlab.data.readers import Broken, paired_folder
from lvmlab.data.store import Store, export_parquet
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.world.sentences import PAIRS, sentence

OPTIONS = dict(pairs=3, seed=7, workers=1)
WORLDS = [World("segmentation", 3, **OPTIONS), World("motion", 2, **OPTIONS)]


@pytest.fixture(scope="module")
def tokenizer():
    torch.set_num_threads(2)
    return Tokenizer.from_preset("mini", seed=0, device="cpu")


@pytest.fixture(scope="module")
def built(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    build(folder, tokenizer, WORLDS, progress=False)
    return folder


@pytest.fixture
def numbered(tmp_path):
    """A store whose every token is another number, so that each can be traced: six groups of segmentation,
    four clips.
    """
    write_store(
        tmp_path,
        {
            "segmentation": np.arange(4 * 16 * 2 * 4, dtype=np.uint16).reshape(4, 16, 2, 4),
            "motion": 5000 + np.arange(4 * 8 * 2 * 4, dtype=np.uint16).reshape(4, 8, 2, 4),
        },
    )
    write_part(
        tmp_path / "segmentation.000032.arrow",
        1000 + np.arange(2 * 16 * 2 * 4, dtype=np.uint16).reshape(2, 16, 2, 4),
        first=4,
    )
    return Store(tmp_path)


def every(rows):
    return rows[np.arange(len(rows))]


def snapshot(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_tokens_are_those_of_the_sentences(built, tokenizer):
    store = Store(built)
    assert store.meta["tokenizer"] == tokenizer.fingerprint and store.meta["tasks"]["motion"]["seed"] == 7
    assert every(store.tasks["segmentation"]).shape == (9, 2, 64) and every(store.tasks["motion"]).shape == (
        2,
        2 * PAIRS,
        64,
    )
    assert store.counts() == {"segmentation": 9, "motion": 2}
    for task, index, pairs in (("segmentation", 2, 3), ("motion", 1, PAIRS)):
        found = sentence(task, "train", index, seed=7, pairs=pairs)
        tokens = tokenizer.encode(torch.from_numpy(found.pictures()).movedim(-1, 1).float() / 255).numpy()
        where = [6, 7, 8] if task == "segmentation" else [1]
        stored = store.tasks[task][np.array(where)].reshape(2 * pairs, 64)
        # another batch size rounds otherwise, which may move a token that lies between two codes
        assert (tokens == stored).mean() > 0.98
        assert stored.max() < tokenizer.codebook_size
        if task == "segmentation":
            assert store.tasks[task].column("source")[6:9] == [pair.source for pair in found.pairs]
            assert set(store.tasks[task].column("augmentation")) == {""} and set(
                store.tasks[task].column("split")
            ) == {"train"}


def test_resuming_gives_the_same_tokens(built, tokenizer):
    before = snapshot(built)
    (built / "segmentation.000000.arrow").unlink()
    build(built, tokenizer, WORLDS, progress=False)
    assert snapshot(built) == before


def test_a_store_grows(tokenizer, tmp_path):
    build(tmp_path, tokenizer, [World("segmentation", 1, **OPTIONS)], progress=False)
    first = every(Store(tmp_path).tasks["segmentation"])
    build(tmp_path, tokenizer, [World("segmentation", 2, **OPTIONS)], progress=False)
    grown = every(Store(tmp_path).tasks["segmentation"])
    assert len(grown) == 6
    assert (grown[:3] == first).mean() > 0.98


def test_ranks_share_the_parts(tokenizer, tmp_path):
    readers = [World("segmentation", 66, pairs=1, workers=1)]
    for rank in (1, 0):
        build(tmp_path, tokenizer, readers, rank=rank, ranks=2, progress=False)
        assert len(list(tmp_path.glob("*.arrow"))) == (1 if rank else 3)
    assert len(Store(tmp_path).tasks["segmentation"]) == 66


def test_another_tokenizer_seed_or_split_is_refused_and_nothing_overwritten(built, tokenizer):
    before = snapshot(built)
    other = Tokenizer.from_preset("mini", seed=1, device="cpu")
    with pytest.raises(ValueError, match=f"{tokenizer.fingerprint}.*{other.fingerprint}.*another folder"):
        build(built, other, WORLDS, progress=False)
    for option, value in (("seed", 8), ("split", "val"), ("pairs", 4)):
        with pytest.raises(ValueError, match=f"segmentation's {option}: "):
            build(built, tokenizer, [World("segmentation", 3, **OPTIONS | {option: value})], progress=False)
    assert snapshot(built) == before


def test_a_part_of_another_tokenizer_is_refused(tmp_path):
    write_store(tmp_path, {"segmentation": np.zeros((2, 16, 2, 4), np.uint16)})
    (tmp_path / "store.json").write_text(
        json.dumps({"tokenizer": "fedcba9876543210", "tokens": 4, "tasks": {}})
    )
    with pytest.raises(ValueError, match="tokens of 0123456789abcdef, the store is of fedcba9876543210"):
        Store(tmp_path)


def test_a_missing_or_empty_store_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="store.json is missing: build"):
        Store(tmp_path / "nowhere")
    (tmp_path / "store.json").write_text(json.dumps({"tokenizer": "1"}))
    with pytest.raises(ValueError, match="no tokens yet"):
        Store(tmp_path)


def test_a_users_folder_becomes_sentences_with_copies(tokenizer, tmp_path):
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    for i in range(5):
        for name in (f"{i}.png", f"{i}-label.png"):
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (70, 90, 3), np.uint8)).save(
                pairs / name
            )
    (pairs / "lonely.png").write_bytes((pairs / "0.png").read_bytes())
    with pytest.raises(Broken, match="lonely.png"):
        build(tmp_path / "store", tokenizer, [paired_folder(pairs, "mine")], progress=False)
    reader = paired_folder(pairs, "mine")
    build(tmp_path / "store", tokenizer, [reader], copies=2, tolerate=0.2, progress=False)
    assert "1 broken" in str(reader.report)
    store = Store(tmp_path / "store")
    assert store.counts() == {"mine": 15} and [
        Store(tmp_path / "store", copies=n).counts()["mine"] for n in (0, 1, 2)
    ] == [5, 10, 15]
    assert store.tasks["mine"].column("augmentation")[:3] == ["", "copy 1", "copy 2"]
    tokens, _, _ = store.batch(0, 2, 4, {"mine": 1.0}, seed=0)
    assert tokens.shape == (2, 4 * 2 * 64)
    with pytest.raises(ValueError, match="do not fit mine: a group of it has 15 of the 16 rows"):
        store.batch(0, 2, 16, {"mine": 1.0}, seed=0)


def test_copies_of_mini_world_keep_their_labels_colours(tokenizer, tmp_path):
    (found,) = [list(World("segmentation", 1, pairs=2, workers=1).rows(64, copies=3))]
    assert [copy for copy, _ in found] == [0, 0, 1, 2, 3, 1, 2, 3]
    plain, copied = found[0][1].pictures, found[2][1].pictures
    colours = {tuple(c) for c in plain[1].reshape(-1, 3)}
    assert (plain[0] != copied[0]).any() and {tuple(c) for c in copied[1].reshape(-1, 3)} <= colours
    drawn = dict(World("pose", 1, pairs=1, workers=1).rows(64, copies=2))
    assert all((drawn[c].pictures[1] > 0).any() for c in drawn) and drawn[1].pictures.shape == (2, 64, 64, 3)


def test_parquet_is_what_datasets_streams(built, tmp_path):
    from datasets import load_dataset

    store, files = Store(built), export_parquet(built, tmp_path)
    assert [f.name for f in files] == ["motion.000000.parquet", "segmentation.000000.parquet"]
    rows = list(
        load_dataset(
            "parquet",
            data_files=str(files[1]),
            streaming=True,
            split="train",
            cache_dir=str(tmp_path / "cache"),
        )
    )
    assert (np.array([r["tokens"] for r in rows]) == every(store.tasks["segmentation"]).reshape(9, -1)).all()
    assert [r["source"] for r in rows] == store.tasks["segmentation"].column("source")


def test_a_batch_is_a_function_of_seed_and_step(numbered):
    shares = {"segmentation": 0.5, "motion": 0.5}
    tokens, drawn, _ = numbered.batch(3, 16, 4, shares, seed=1)
    again, drawn_again, _ = numbered.batch(3, 16, 4, shares, seed=1)
    assert torch.equal(tokens, again) and drawn == drawn_again
    assert tokens.shape == (16, 4 * 2 * 4) and tokens.dtype == torch.int64
    assert set(drawn) == {"segmentation", "motion"}
    for step, seed in ((4, 1), (3, 2)):
        assert not torch.equal(tokens, numbered.batch(step, 16, 4, shares, seed)[0])


def test_pairs_of_a_sentence_come_from_one_group_in_any_order(numbered):
    tokens, drawn, _ = numbered.batch(0, 40, 8, {"segmentation": 1.0}, seed=0)
    groups = every(numbered.tasks["segmentation"]).reshape(6, 16, 2, 4)
    assert groups.shape == (6, 16, 2, 4) and set(drawn) == {"segmentation"}
    seen, ordered = set(), 0
    for row in tokens.numpy().reshape(40, 8, 2, 4):
        where = [tuple(np.argwhere((groups == pair).all((2, 3)))[0]) for pair in row]
        assert len({group for group, _ in where}) == 1
        places = [int(place) for _, place in where]
        assert len(set(places)) == 8, "no pair twice"
        seen.add(where[0][0])
        ordered += places == sorted(places)
    assert len(seen) == 6 and ordered <= 2


def test_clips_keep_their_order(numbered):
    tokens, drawn, _ = numbered.batch(0, 40, 5, {"motion": 1.0}, seed=0)
    clips = every(numbered.tasks["motion"]).reshape(4, 8, 2, 4)
    starts = set()
    for row in tokens.numpy().reshape(40, 5, 2, 4):
        clip, first = np.argwhere((clips == row[0]).all((2, 3)))[0]
        assert np.array_equal(row, clips[clip, first : first + 5])
        starts.add((int(clip), int(first)))
    assert {first for _, first in starts} == set(range(4)) and {clip for clip, _ in starts} == set(range(4))


def test_shares_are_kept(numbered):
    drawn = [
        name
        for step in range(40)
        for name in numbered.batch(step, 20, 2, {"segmentation": 3.0, "motion": 1.0}, seed=0)[1]
    ]
    assert 0.69 < drawn.count("segmentation") / len(drawn) < 0.81  # four standard deviations of 800 draws


def test_a_mixed_sentence_holds_pairs_of_several_tasks(tmp_path):
    write_store(
        tmp_path,
        {
            name: np.full((6, 8, 2, 4), i, np.uint16) + np.arange(2, dtype=np.uint16)[:, None] * 10
            for i, name in enumerate(("segmentation", "pose"))
        }
        | {"motion": np.full((4, 8, 2, 4), 5, np.uint16)},
    )
    store, shares = Store(tmp_path), {"segmentation": 1.0, "pose": 3.0, "motion": 2.0}
    tokens, names, rows = store.batch(0, 200, 4, shares, seed=0, mixed=0.5)
    assert 0.35 < names.count("mixed") / len(names) < 0.65
    mixed = tokens[[name == "mixed" for name in names]].view(-1, 4, 2, 4)
    assert (mixed[:, :, 1] == mixed[:, :, 0] + 10).all(), "an image is followed by its own label"
    assert 0.65 < mixed[:, :, 0].float().mean() < 0.85 and (mixed[:, :, 0, 0].float().std(1) > 0).any(), (
        "by the shares, and within a sentence"
    )
    assert all(len(origin) == (4 if name == "mixed" else 1) for name, origin in zip(names, rows, strict=True))
    assert store.sources("pose", rows[names.index("mixed")][0][1]) == [""]
    with pytest.raises(ValueError, match="clips or single images"):
        store.batch(0, 2, 4, {"motion": 1.0}, seed=0, mixed=1.0)
