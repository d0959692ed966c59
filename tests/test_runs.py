"""Runs: computed once, found again by what decides them, shipped and pruned by name."""

import json

import pytest

from lvmlab.lab import runs, studies
from lvmlab.utils import paths
from lvmlab.world import DEFAULT, V2


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(paths, "assets", lambda: tmp_path / "assets")
    found = runs.folders()
    assert all(tmp_path in folder.parents for folder in found.values())
    return found


@pytest.fixture
def compute():
    """Counts how often it was asked."""

    def work(config):
        work.calls.append(config)
        return {"score": len(work.calls)}

    work.calls = []
    return work


def test_a_run_is_computed_once(compute):
    first = runs.run("probe", {"seed": 1, "rate": 0.1}, compute)
    assert compute.calls == [{"seed": 1, "rate": 0.1}]
    assert runs.run("probe", {"rate": 0.1, "seed": 1}, compute) == first, (
        "the order of fields decides nothing"
    )
    assert len(compute.calls) == 1 and first["result"] == {"score": 1}


def test_whatever_decides_it_names_it():
    names = {
        runs.key("probe", {"seed": 1}),
        runs.key("probe", {"seed": 2}),
        runs.key("other", {"seed": 1}),
        runs.key("probe", {"seed": 1, "v": 1}),
    }
    assert len(names) == 4
    assert runs.key("probe", {"seed": 1}) in names and runs.key("probe", {"seed": 1}).startswith("probe-")


def test_another_world_is_another_run(monkeypatch):
    name = runs.key("probe", {"seed": 1})
    monkeypatch.setattr(runs, "DEFAULT", V2)
    assert runs.key("probe", {"seed": 1}) != name


def test_again_computes_again_and_replaces(compute):
    runs.run("probe", {"seed": 1}, compute)
    assert runs.run("probe", {"seed": 1}, compute, again=True)["result"] == {"score": 2}
    assert runs.run("probe", {"seed": 1}, compute)["result"] == {"score": 2}
    assert len(compute.calls) == 2


def test_a_record_carries_its_provenance(compute, folders):
    record = runs.run("probe", {"seed": 1}, compute)
    assert record["name"] == runs.key("probe", {"seed": 1}) and record["study"] == "probe"
    assert record["config"] == {"seed": 1} and record["world"] == DEFAULT.version
    assert record["versions"].keys() == set(runs.PACKAGES) and all(record["versions"].values())
    assert record["seconds"] >= 0 and record["commit"]
    assert json.loads((folders["cache"] / f"{record['name']}.json").read_text()) == record


def test_the_first_answer_is_the_stored_one():
    """What comes back must not depend on whether it was just computed: JSON knows no tuples and no integer
    keys.
    """
    first = runs.run("probe", {"seed": 1}, lambda _: {3: (1, 2)})
    assert first == runs.run("probe", {"seed": 1}, lambda _: pytest.fail("computed again"))


def test_a_failed_run_leaves_nothing():
    with pytest.raises(ZeroDivisionError):
        runs.run("probe", {"seed": 1}, lambda _: 1 / 0)
    assert runs.listing().empty


def test_promote_ships_and_prune_removes_what_is_shipped(compute, folders):
    record, kept = runs.run("probe", {"seed": 1}, compute), runs.run("probe", {"seed": 2}, compute)
    path = runs.promote(record["name"])
    assert path.parent == folders["shipped"] and json.loads(path.read_text()) == record
    assert set(zip(runs.listing()["name"], runs.listing()["where"], strict=True)) == {
        (record["name"], "shipped"),
        (record["name"], "cache"),
        (kept["name"], "cache"),
    }
    assert runs.prune() == [record["name"]]
    assert set(zip(runs.listing()["name"], runs.listing()["where"], strict=True)) == {
        (record["name"], "shipped"),
        (kept["name"], "cache"),
    }
    assert runs.run("probe", {"seed": 1}, compute) == record and len(compute.calls) == 2


def test_promote_ships_the_recomputed_run(compute):
    name = runs.run("probe", {"seed": 1}, compute)["name"]
    runs.promote(name)
    again = runs.run("probe", {"seed": 1}, compute, again=True)
    assert json.loads(runs.promote(name).read_text()) == again


def test_prune_removes_runs_of_other_worlds(compute, folders):
    old = runs.run("probe", {"seed": 1}, compute)
    path = folders["cache"] / f"{old['name']}.json"
    path.write_text(json.dumps(old | {"world": "mini-world-v0"}))
    assert runs.prune() == [old["name"]] and not path.exists()


def test_listing_shows_provenance_without_results(compute):
    record = runs.run("probe", {"seed": 1}, compute)
    (row,) = runs.listing().to_dict("records")
    assert "result" not in row and row["where"] == "cache" and row["bytes"] > 50
    assert {k: row[k] for k in ("name", "config", "commit", "versions")} == {
        k: record[k] for k in ("name", "config", "commit", "versions")
    }


def test_the_beginning_of_a_name_will_do_where_it_is_clear(compute):
    one = runs.run("probe", {"seed": 1}, compute)
    assert runs.load("pro") == runs.load(one["name"]) == one
    two = runs.run("probe", {"seed": 2}, compute)
    with pytest.raises(FileNotFoundError, match="several") as error:
        runs.load("probe")
    assert one["name"] in str(error.value) and two["name"] in str(error.value)
    assert runs.load(two["name"]) == two


def test_a_missing_run_lists_the_stored(compute):
    with pytest.raises(FileNotFoundError, match="stored: none"):
        runs.load("nothing")
    record = runs.run("probe", {"seed": 1}, compute)
    with pytest.raises(FileNotFoundError, match=record["name"]):
        runs.load("nothing")


def test_the_commit_is_the_checkouts():
    assert runs.commit() == "unknown" or len(runs.commit()) >= 7


def test_recomputing_starts_from_nothing_and_ships_on_request(compute, tmp_path):
    name = runs.run("probe", {"seed": 1}, compute)["name"]
    left = paths.cache() / "studies" / name / "seed-0"
    left.mkdir(parents=True)
    assert runs.recompute("probe", compute)["result"] == {"score": 2} and not left.exists()
    assert runs.load(name)["result"] == {"score": 2}


def test_every_study_can_be_computed_again():
    assert callable(studies.of("balancing").compute) and callable(studies.of("tokenizer-vq-fsq").compute)
    with pytest.raises(ValueError, match="'evaluate' is no study.*balancing"):
        studies.of("evaluate")
