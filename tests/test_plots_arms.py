"""Figures of the studies, of made-up records: everything that is asked for is drawn, and labels do not lie on
each other.
"""

import numpy as np
import pytest

from lvmlab.lab import frames
from lvmlab.lab.plots import arms, training
from lvmlab.lab.plots.balancing import copies_chart
from lvmlab.lab.studies import balancing, common, scaling


@pytest.fixture(scope="module")
def records():
    rng = np.random.default_rng(0)

    def row(seed):
        return {
            "seed": seed,
            "losses": {
                t: {"cross entropy": 4 + rng.random(), "accuracy": rng.random()} for t in balancing.TASKS
            },
            "scores": [{"task": t, "skill": rng.random()} for t in balancing.TASKS],
            "curve": [
                {"step": s, **{t: 6 - s / 50 + rng.random() for t in balancing.TASKS}} for s in (0, 50, 100)
            ],
        }

    return {name: {"result": [row(seed) for seed in range(3)]} for name in balancing.ARMS}


def crossing(figure):
    """Pairs of visible texts whose boxes overlap."""
    figure.canvas.draw()
    texts = [figure._supxlabel] if figure._supxlabel else []
    for axis in (a for a in figure.axes if a.axison):
        legend = axis.get_legend()
        texts += [axis.title, axis.xaxis.label, axis.yaxis.label, *(legend.get_texts() if legend else [])]
        for ticks, (low, high) in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, sorted(axis.get_ylim()))):
            texts += [
                t.label1
                for t in ticks.get_major_ticks()
                if low <= t.get_loc() <= high and t.label1.get_visible()
            ]
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts if t.get_text().strip()]
    return [(a, b) for i, (a, x) in enumerate(boxes) for b, y in boxes[i + 1 :] if x.overlaps(y)]


@pytest.mark.parametrize("what", ["loss", "skill", "accuracy"])
def test_arms(records, what):
    figure = arms.arms_chart(frames.trainings(records), {t: f"{t} (75 pairs)" for t in balancing.TASKS}, what)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == list(records) and not crossing(figure)


def test_curves_differences_and_copies(records):
    ordered = {n: r for n, r in records.items() if "sequential" in n or "replay" in n}
    figure = arms.curves_chart(frames.curves(ordered), balancing.TASKS)
    assert len(figure.axes) == 6 and not crossing(figure)
    rows = frames.trainings(records)
    figure = arms.differences_chart(balancing.effects(rows), "nats", lines="effect")
    assert len(figure.axes[0].containers) == 3 and not crossing(figure)
    figure = copies_chart(rows)
    assert [len(axis.get_xticks()) for axis in figure.axes] == [4, 3] and not crossing(figure)


def test_scaling_and_examples():
    rng = np.random.default_rng(0)
    made = {
        name: {
            "result": [
                {
                    "seed": seed,
                    "parameters": n,
                    "tokens": d,
                    "losses": {"pose": {"cross entropy": 2 + 1e5 / n + 2e5 / d + rng.random() / 50}},
                    "scores": [{"task": "pose", "skill": rng.random()}],
                }
                for d in (1e6, 2e6, 4e6)
                for seed in range(2)
            ]
        }
        for name, n in zip(scaling.SIZES, (3e5, 6e5, 1e6, 2.6e6), strict=True)
    }
    assert not crossing(training.scaling_chart(scaling.points(made)))
    found = {t: (rng.random((12, 15, 16)), np.arange(12) // 2) for t in ("segmentation", "pose")}
    figure = training.examples_chart(found)
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [8, 8, 7] and not crossing(figure)


def test_a_table_has_a_line_an_arm(records):
    single = [{**row, "losses": {"pose": row["losses"]["pose"]}} for row in records["natural"]["result"]]
    rows = frames.trainings({"natural": records["natural"], "pose alone": {"result": single}})
    lines = frames.markdown(common.table(rows, balancing.TASKS)).split("\n")
    assert len(lines) == 4 and {line.count("|") for line in lines} == {8}
    mean = common.by_seed(rows, "pose")["natural"].mean()
    assert f"{mean:.2f} (" in lines[2] and f"| pose alone |  |  |  |  | {mean:.2f} (" in lines[3]
