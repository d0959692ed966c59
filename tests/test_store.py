"""The token store: sentences by (seed, step), groups kept together, builds that go on and never overwrite."""

import json

import numpy as np
import pytest
import torch

from lvmlab.sentences import PAIRS, sentence
from lvmlab.store import Store, build
from lvmlab.tokenizer import Tokenizer

GROUPS = {"segmentation": 3, "motion": 2}
OPTIONS = dict(pairs=3, seed=7, workers=1, progress=False)


@pytest.fixture(scope="module")
def tokenizer():
    torch.set_num_threads(2)
    return Tokenizer.from_preset("mini", seed=0, device="cpu")


@pytest.fixture(scope="module")
def built(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    build(folder, tokenizer, GROUPS, **OPTIONS)
    return folder


@pytest.fixture
def numbered(tmp_path):
    """A store whose every token is another number, so that each can be traced: six groups of segmentation, four clips."""
    (tmp_path / "store.json").write_text("{}")
    np.save(tmp_path / "segmentation.000000.npy", np.arange(4 * 16 * 2 * 4, dtype=np.uint16).reshape(4, 16, 2, 4))
    np.save(tmp_path / "segmentation.000032.npy", 1000 + np.arange(2 * 16 * 2 * 4, dtype=np.uint16).reshape(2, 16, 2, 4))
    np.save(tmp_path / "motion.000000.npy", 5000 + np.arange(4 * 8 * 2 * 4, dtype=np.uint16).reshape(4, 8, 2, 4))
    return Store(tmp_path)


def snapshot(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_tokens_are_those_of_the_sentences(built, tokenizer):
    store = Store(built)
    assert store.meta["tokenizer"] == tokenizer.fingerprint and store.meta["seed"] == 7
    assert store.tasks["segmentation"].shape == (3, 3, 2, 64) and store.tasks["motion"].shape == (2, PAIRS, 2, 64)
    for task, index, pairs in (("segmentation", 2, 3), ("motion", 1, PAIRS)):
        pictures = sentence(task, "train", index, seed=7, pairs=pairs).pictures()
        tokens = tokenizer.encode(torch.from_numpy(pictures).movedim(-1, 1).float() / 255).numpy()
        stored = store.tasks[task][index].reshape(2 * pairs, 64)
        # another batch size rounds otherwise, which may move a token that lies between two codes
        assert (tokens == stored).mean() > 0.98
        assert stored.max() < tokenizer.codebook_size


def test_resuming_gives_the_same_tokens(built, tokenizer):
    before = snapshot(built)
    (built / "segmentation.000000.npy").unlink()
    build(built, tokenizer, GROUPS, **OPTIONS)
    assert snapshot(built) == before


def test_a_store_grows(tokenizer, tmp_path):
    build(tmp_path, tokenizer, {"segmentation": 1}, **OPTIONS)
    first = Store(tmp_path).tasks["segmentation"]
    build(tmp_path, tokenizer, {"segmentation": 2}, **OPTIONS)
    grown = Store(tmp_path).tasks["segmentation"]
    assert len(grown) == 2
    assert (grown[0] == first[0]).mean() > 0.98


def test_another_tokenizer_seed_or_split_is_refused_and_nothing_overwritten(built, tokenizer):
    before = snapshot(built)
    other = Tokenizer.from_preset("mini", seed=1, device="cpu")
    with pytest.raises(ValueError, match=f"{tokenizer.fingerprint}.*{other.fingerprint}.*another folder"):
        build(built, other, GROUPS, **OPTIONS)
    for option, value in (("seed", 8), ("split", "val"), ("pairs", 4)):
        with pytest.raises(ValueError, match=f"{option}: "):
            build(built, tokenizer, GROUPS, **OPTIONS | {option: value})
    assert snapshot(built) == before


def test_a_missing_or_empty_store_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="store.json is missing: build"):
        Store(tmp_path / "nowhere")
    (tmp_path / "store.json").write_text(json.dumps({"seed": 1}))
    with pytest.raises(ValueError, match="no tokens yet"):
        Store(tmp_path)


def test_a_batch_is_a_function_of_seed_and_step(numbered):
    shares = {"segmentation": 0.5, "motion": 0.5}
    tokens, drawn = numbered.batch(3, 16, 4, shares, seed=1)
    again, drawn_again = numbered.batch(3, 16, 4, shares, seed=1)
    assert torch.equal(tokens, again) and drawn == drawn_again
    assert tokens.shape == (16, 4 * 2 * 4) and tokens.dtype == torch.int64
    assert set(drawn) == {"segmentation", "motion"}
    for step, seed in ((4, 1), (3, 2)):
        assert not torch.equal(tokens, numbered.batch(step, 16, 4, shares, seed)[0])


def test_pairs_of_a_sentence_come_from_one_group_in_any_order(numbered):
    tokens, drawn = numbered.batch(0, 40, 8, {"segmentation": 1.0}, seed=0)
    groups = numbered.tasks["segmentation"]
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
    tokens, drawn = numbered.batch(0, 40, 5, {"motion": 1.0}, seed=0)
    clips = numbered.tasks["motion"]
    starts = set()
    for row in tokens.numpy().reshape(40, 5, 2, 4):
        clip, first = np.argwhere((clips == row[0]).all((2, 3)))[0]
        assert np.array_equal(row, clips[clip, first : first + 5])
        starts.add((int(clip), int(first)))
    assert {first for _, first in starts} == set(range(4)) and {clip for clip, _ in starts} == set(range(4))


def test_shares_are_kept(numbered):
    drawn = [name for step in range(40) for name in numbered.batch(step, 20, 2, {"segmentation": 3.0, "motion": 1.0}, seed=0)[1]]
    assert 0.69 < drawn.count("segmentation") / len(drawn) < 0.81  # four standard deviations of 800 draws
