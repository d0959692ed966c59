"""Stored runs are named by what decides them, whatever their fields were called when they were computed."""

import json

import pytest
import rekey

from lvmlab.lab import runs
from lvmlab.utils import paths

STORED = sorted((paths.assets() / "runs").glob("*.json"))


def test_every_stored_run_is_named_by_its_configuration():
    assert STORED
    for path in STORED:
        record = json.loads(path.read_text())
        assert path.stem == record["name"] == runs.key(record["study"], record["config"], record["world"])


def test_every_stored_run_has_todays_names():
    for path in STORED:
        record = json.loads(path.read_text())
        assert rekey.renew(record["study"], record["config"]) == record["config"], "python assets/rekey.py"


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.setattr(
        rekey, "RENAMED", [("probe", "shape", {"width": "dim"}), (rekey.ALL, "", {"few": "limit"})]
    )
    monkeypatch.setattr(rekey, "REVALUED", [("probe", "arm.scheme", {"resampled": "balanced"})])
    monkeypatch.setattr(rekey, "REMOVED", [(rekey.ALL, "arm", ("share",))])
    monkeypatch.setattr(rekey, "ADDED", [(rekey.ALL, "shape", {"bias": False})])


def test_a_renamed_field_moves_the_run(tables, tmp_path):
    config = {"shape": {"width": 8}, "few": 3, "arm": {"scheme": "resampled", "share": 0.5}}
    renewed = {"shape": {"dim": 8, "bias": False}, "limit": 3, "arm": {"scheme": "balanced"}}
    path = tmp_path / f"{runs.key('probe', config)}.json"
    record = {
        "name": path.stem,
        "study": "probe",
        "config": config,
        "world": runs.DEFAULT.version,
        "result": [1.5],
    }
    path.write_text(json.dumps(record))

    moved = rekey.rekey(path)
    assert not path.exists() and moved.stem == runs.key("probe", renewed)
    assert json.loads(moved.read_text()) == record | {"name": moved.stem, "config": renewed}
    assert rekey.rekey(moved) == moved, "a second time changes nothing"


def test_another_study_keeps_its_fields(tables):
    config = {"shape": {"width": 8, "bias": True}, "arm": None}
    assert rekey.renew("other", config) == config
