"""mini-world is what it was when it was frozen, and a change to it is named."""

import json
import os

import frozen
import pytest

from lvmlab.world import scenes

pytestmark = pytest.mark.slow


def committed():
    return json.loads(frozen.path().read_text())


def test_the_world_is_as_it_was_frozen():
    assert frozen.differences(frozen.manifest(workers=os.cpu_count() or 2)) == []


def test_a_changed_parameter_is_named(monkeypatch):
    found = committed() | {"parameters": frozen.parameters()}
    assert frozen.differences(found) == []
    monkeypatch.setattr(scenes, "CROP", (0.2, 0.9))
    found["parameters"] = frozen.parameters()
    assert frozen.differences(found) == ["parameters: scenes.CROP"]


def test_a_changed_file_set_or_version_is_named():
    found = committed()
    found["version"] = "mini-world-v2"
    found["files"]["bodies.parquet"] = "0"
    del found["sets"]["test/pose"]
    found["sets"]["test/sing"] = "0"
    differ = frozen.differences(found)
    assert "mini-world-v2" in differ[0]
    assert differ[1:] == ["files: bodies.parquet", "sets: test/pose", "sets: test/sing"]


def test_every_set_is_frozen():
    names = {
        "/".join((split, task, *(("new encoding",) if held else ()))) for split, task, held in frozen.sets()
    }
    assert set(committed()["sets"]) == names and len(names) == len(frozen.sets())
    assert len(set(committed()["sets"].values())) == len(names)


def test_a_digest_is_deterministic_and_tells_sets_apart(monkeypatch):
    first = frozen.digest("val", "segmentation", False, prompts=2)
    assert first == frozen.digest("val", "segmentation", False, prompts=2)
    others = [
        ("val", "derain", False, 2),
        ("test", "segmentation", False, 2),
        ("val", "segmentation", True, 2),
        ("val", "segmentation", False, 1),
    ]
    assert len({first, *(frozen.digest(*other) for other in others)}) == 5
    monkeypatch.setattr(scenes, "CROP", (0.2, 0.9))
    assert frozen.digest("val", "segmentation", False, prompts=2) != first
