"""Balancing schemes: each share by hand, and what is refused."""

import pytest

from lvmlab.data.mixture import SCHEMES, Mixture

COUNTS = {"segmentation": 2000, "derain": 300, "pose": 100}


def test_natural_and_augmented_follow_the_rows():
    for scheme in ("natural", "augmented"):
        assert Mixture(scheme).shares(COUNTS) == {
            "segmentation": 2000 / 2400,
            "derain": 300 / 2400,
            "pose": 100 / 2400,
        }
    assert [
        scheme for scheme in SCHEMES if scheme not in ("sequential", "replay") and Mixture(scheme).augmented
    ] == ["augmented", "mixture"]


def test_resampled_by_weights_or_temperature():
    assert Mixture("balanced", weights={"pose": 3, "derain": 1}).shares(COUNTS) == {
        "pose": 0.75,
        "derain": 0.25,
    }
    root = Mixture("mixture", temperature=2).shares(COUNTS)
    assert root["segmentation"] / root["pose"] == pytest.approx(20**0.5) and sum(
        root.values()
    ) == pytest.approx(1)
    assert Mixture("balanced", temperature=1e9).shares(COUNTS)["pose"] == pytest.approx(1 / 3)


def test_one_task_after_another_and_with_replay():
    order = ("pose", "derain", "segmentation")
    found = [Mixture("sequential", order=order).shares(COUNTS, step, 9) for step in range(9)]
    assert found == [{task: 1.0} for task in order for _ in range(3)]
    replayed = [Mixture("replay", order=order, replay=0.2).shares(COUNTS, step, 9) for step in (0, 3, 8)]
    assert replayed[:2] == [{"pose": 1.0}, {"pose": 0.2, "derain": 0.8}]
    assert replayed[2] == {"pose": 0.1, "derain": 0.1, "segmentation": 0.8}


def test_how_many_copies_are_drawn_from():
    assert [m.most_copies for m in (Mixture(), Mixture("augmented"), Mixture("mixture", copies=3))] == [
        0,
        None,
        3,
    ]


def test_a_task_that_is_not_stored_is_named():
    with pytest.raises(ValueError, match="names edges, the store holds segmentation, derain, pose"):
        Mixture("balanced", weights={"pose": 1, "edges": 1}).shares(COUNTS)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"scheme": "resampled"}, "scheme"),
        ({"weights": {"pose": 1}}, "weights"),
        ({"scheme": "balanced", "weights": {"pose": 0}}, "weights"),
        ({"scheme": "balanced", "weights": {"pose": -1, "derain": 3}}, "weights"),
        ({"temperature": 2}, "temperature"),
        ({"scheme": "mixture", "temperature": 0}, "temperature"),
        ({"scheme": "sequential"}, "order"),
        ({"order": ("pose",)}, "order"),
        ({"scheme": "sequential", "order": ("pose", "pose")}, "order"),
        ({"scheme": "replay", "order": ("pose",)}, "replay"),
        ({"replay": 0.1}, "replay"),
        ({"copies": 3}, "copies"),
        ({"scheme": "augmented", "copies": 0}, "copies"),
    ],
)
def test_what_does_not_go_together_is_refused(options, field):
    with pytest.raises(ValueError, match=rf"Mixture\.{field}="):
        Mixture(**options)
