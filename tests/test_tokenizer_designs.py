import pytest

from lvmlab.data import truths
from lvmlab.lab.studies.tokenizer_designs import DESIGNS, Setting, design, table
from lvmlab.tokenizer.vitvq import ViTVQConfig

SETTING = Setting(preset="tiny-v2", pictures=80, val_pictures=80, continuous=1, codes=1)


@pytest.fixture(scope="module")
def few(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(truths, "_drawn", lambda plan, jobs, workers: (truths._draw(plan, job) for job in jobs))
        yield {name: design(name, SETTING, progress=False) for name in ("mini-v2", "no truths")}


def test_a_design_is_a_run_and_a_line_of_the_table(few):
    lines = table(few)
    assert list(lines["design"]) == ["mini-v2", "no truths"]
    assert lines.notna().all(axis=None) and few["mini-v2"]["result"]["pictures"] == 64
    assert few["mini-v2"]["name"] != few["no truths"]["name"]
    assert design("mini-v2", SETTING, progress=False) == few["mini-v2"]


def test_every_design_can_be_built_and_changes_something():
    for name, changes in DESIGNS.items():
        assert isinstance(Setting().network(name), ViTVQConfig) and Setting().network(name).grid == 8
        assert any(changes) == (name != "mini-v2")
        Setting().recipe(name)


def test_an_unknown_design_or_preset_is_refused():
    with pytest.raises(ValueError, match="choose from mini-v2"):
        design("other", SETTING)
    with pytest.raises(ValueError, match="one of mini-v2"):
        Setting(preset="mini")
