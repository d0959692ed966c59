"""mini-world is what it was when it was frozen, and a change to it is named."""

import json
import os
from dataclasses import replace

import frozen
import pytest

VERSIONS = pytest.mark.parametrize("laws", frozen.LAWS.values(), ids=frozen.LAWS)

pytestmark = pytest.mark.slow


def committed(laws):
    return json.loads(frozen.path(laws.version).read_text())


@VERSIONS
def test_the_world_is_as_it_was_frozen(laws):
    found = frozen.manifest(laws, frozen.FIRST, workers=os.cpu_count() or 2)
    assert frozen.differences(found, laws.version, ("parameters", "files", "first")) == []


@VERSIONS
def test_a_changed_parameter_is_named(laws):
    found = committed(laws) | {"parameters": frozen.parameters(laws)}
    assert frozen.differences(found, laws.version) == []
    found["parameters"] = frozen.parameters(replace(laws, crop=(0.2, 0.9)))
    assert frozen.differences(found, laws.version) == ["parameters: crop"]


@VERSIONS
def test_a_changed_file_set_or_version_is_named(laws):
    found = committed(laws)
    found["version"] = "mini-world-v3"
    found["files"]["bodies.parquet"] = "0"
    del found["sets"]["test/pose"]
    found["sets"]["test/sing"] = "0"
    differ = frozen.differences(found, laws.version)
    assert "mini-world-v3" in differ[0]
    assert differ[1:] == ["files: bodies.parquet", "sets: test/pose", "sets: test/sing"]


@VERSIONS
def test_every_set_is_frozen(laws):
    names = set(map(frozen.name_of, frozen.sets(laws)))
    assert set(committed(laws)["sets"]) == names and len(names) == len(frozen.sets(laws))
    assert len(set(committed(laws)["sets"].values())) == len(names)


@VERSIONS
def test_a_digest_is_deterministic_and_tells_sets_apart(laws):
    val = ("val", "segmentation", False)
    first = frozen.digest(laws, val, prompts=2)
    assert first == frozen.digest(laws, val, prompts=2)
    others = [
        (laws, ("val", "derain", False), 2),
        (laws, ("test", "segmentation", False), 2),
        (laws, ("val", "segmentation", True), 2),
        (laws, val, 1),
        (replace(laws, crop=(0.3, 0.8)), val, 2),
    ]
    assert len({first, *(frozen.digest(*other) for other in others)}) == 6
