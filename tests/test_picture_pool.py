"""Pools for tokenizers: mini-world-v2's show what training shows, and nothing that is held out."""

from dataclasses import replace

import numpy as np

from lvmlab.data import picture_pool
from lvmlab.world import V1, V2, tasks


def test_shares_are_of_the_tasks_that_a_tokenizer_may_see():
    for shares in picture_pool.SHARES.values():
        assert abs(sum(shares.values()) - 1) < 1e-9
    assert set(picture_pool.SHARES[V2.version]) == set(V2.trained)


def test_a_pool_of_v2_holds_training_encodings_alone(monkeypatch):
    drawn = []
    monkeypatch.setattr(picture_pool, "sentence", lambda *a, **options: drawn.append(options) or Sentence())
    for laws in (V2, V1):
        for index in range(10):
            picture_pool._render(("train", "segmentation", index, laws))
    assert [options["held_out"] for options in drawn] == [False] * 10 + [i % 5 == 0 for i in range(10)]


class Sentence:
    def pictures(self):
        return np.zeros((picture_pool.PICTURES, 8, 8, 3), np.uint8)


def test_a_pool_is_rendered_once_with_the_kind_of_each_picture(tmp_path):
    laws = replace(V2, size=32)
    path = picture_pool.render_pool(tmp_path / "pool.npy", "train", 60, progress=False, laws=laws)
    pictures, kinds = np.load(path, mmap_mode="r"), np.load(tmp_path / "pool-kinds.npy")
    assert pictures.shape[1:] == (32, 32, 3) and pictures.dtype == np.uint8
    assert len(kinds) == len(pictures) >= picture_pool.PICTURES * len(V2.trained)
    assert not kinds[::2].any() and set(kinds) == {tasks.get(task).kind for task in V2.trained} == {0, 1, 2}
    flat = [len(np.unique(p.reshape(-1, 3), axis=0)) for p in pictures[kinds == 1]]
    natural = [len(np.unique(p.reshape(-1, 3), axis=0)) for p in pictures[kinds == 0]]
    assert np.median(flat) < 0.3 * np.median(natural)
    written = path.stat().st_mtime_ns
    assert (
        picture_pool.render_pool(path, "train", 60, progress=False, laws=laws).stat().st_mtime_ns == written
    )
