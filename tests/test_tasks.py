"""Tasks: the truth scores best, floors less, and known wrong answers what can be reckoned by hand."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest

from lvmlab.world import V1, V2, default, scenes, skeleton, tasks
from lvmlab.world.encodings import Encoding
from lvmlab.world.sentences import PAIRS, sentence
from lvmlab.world.tasks import Pair, edges
from lvmlab.world.tasks.base import paint, psnr, read_mask, read_regions
from lvmlab.world.tasks.colourise import chroma

# of edges even the truth has no F of 1: contours two pixels apart are drawn as one stroke, and thinned to one
# line
BEST = {"IoU": 0.95, "mIoU": 0.95, "PCK@0.1": 0.95, "PSNR": 60.0, "F": 0.9}


SCORED = tasks.scored([*tasks.TASKS])


@functools.cache
def drawn(task, count=3, laws=V1):
    return [sentence(task, "test", i, laws=laws, pairs=3) for i in range(count)]


def scores(task, answers, items):
    """The scores of one answer a sentence, by name; the last pair of each is the query."""
    return tasks.get(task).scores(
        np.stack(answers), [s.pairs[-1] for s in items], [s.encoding for s in items]
    )


@pytest.mark.parametrize("task", tasks.TASKS)
def test_pairs_are_pictures(task):
    for item in drawn(task):
        assert item.task == task and len(item.pairs) == 3
        assert item.pictures().shape == (6, 64, 64, 3) and item.pictures().dtype == np.uint8
        for pair in item.pairs:
            assert pair.source and isinstance(pair.source, str)
            assert pair.image.shape == pair.label.shape == (64, 64, 3)
            assert not np.array_equal(pair.image, pair.label)
            assert pair.label.std() > 1


@pytest.mark.parametrize("laws", (V1, V2), ids=lambda laws: laws.version)
@pytest.mark.parametrize("task", SCORED)
def test_the_truth_scores_best_and_every_floor_less(task, laws):
    items, metric = drawn(task, laws=laws), tasks.get(task).metric
    floors = [tasks.get(task).floors(s.pairs[:-1], s.pairs[-1], s.encoding) for s in items]
    answers = {"truth": [s.pairs[-1].label for s in items]} | {
        name: [f[name] for f in floors] for name in floors[0]
    }
    assert {"last label", *(["query"] if task != "pose" else [])} < set(
        answers
    )  # a photograph is no drawing of a skeleton
    assert all(
        a.shape == (laws.size, laws.size, 3) and a.dtype == np.uint8 for row in answers.values() for a in row
    )
    found = scores(task, sum(answers.values(), []), items * len(answers))[
        metric
    ]  # one call: fitting skeletons is slow
    means = dict(zip(answers, found.reshape(len(answers), -1).mean(1), strict=True))
    assert means["truth"] >= BEST[metric]
    assert not {
        name: mean for name, mean in means.items() if name != "truth" and mean >= 0.9 * means["truth"]
    }


@pytest.mark.parametrize("task", ["segmentation", "selection"])
def test_half_the_mask_has_half_the_iou(task):
    worker, item = tasks.get(task), drawn(task)[0]
    pair, (foreground, background) = item.pairs[-1], item.encoding.colours
    marked = np.argwhere(pair.truth["mask"] > 0.5)
    answer = np.full((64, 64, 3), background, np.uint8)
    assert worker.score(answer, pair, item.encoding)["IoU"] == 0
    answer[tuple(marked[: len(marked) // 2].T)] = foreground
    assert worker.score(answer, pair, item.encoding)["IoU"] == (len(marked) // 2) / len(marked)
    answer[:] = foreground
    assert worker.score(answer, pair, item.encoding)["IoU"] == len(marked) / 64**2


@pytest.mark.parametrize("task", [name for name, task in tasks.TASKS.items() if task.conflicting])
def test_swapped_encodings_relabel(task):
    worker = tasks.get(task)
    for item in drawn(task):
        pair, swapped = item.pairs[-1], item.encoding.swapped()
        assert swapped.colours == item.encoding.colours[::-1] and swapped.options == item.encoding.options
        other = worker.relabel(pair, swapped)
        assert np.array_equal(other.image, pair.image) and other.source == pair.source
        assert worker.score(other.label, other, swapped)["IoU"] > 0.95
        assert worker.score(other.label, pair, item.encoding)["IoU"] < 0.05
        assert np.array_equal(worker.relabel(other, item.encoding).label, pair.label)


def test_tasks_of_one_encoding_cannot_be_relabelled():
    item = drawn("pose")[0]
    with pytest.raises(NotImplementedError, match="pose"):
        tasks.get("pose").relabel(item.pairs[0], item.encoding)


def test_an_unknown_task_or_split_lists_the_known():
    with pytest.raises(ValueError, match="'sing'") as error:
        tasks.get("sing")
    assert all(name in str(error.value) for name in tasks.TASKS)
    with pytest.raises(ValueError, match="'dev'.*train, val, test, shifted"):
        sentence("pose", "dev", 0)


def test_trained_and_new_tasks_are_all_of_them():
    assert set(tasks.TRAINED) | set(tasks.NEW) <= set(tasks.TASKS) and not set(tasks.TRAINED) & set(tasks.NEW)
    assert tasks.TRAINED and tasks.NEW
    assert set(V2.trained) | set(V2.new) == set(tasks.TASKS) and not set(V2.trained) & set(V2.new)
    assert set(tasks.TASKS) - set(SCORED) == {"category"}
    with pytest.raises(NotImplementedError, match="category"):
        scores("category", [drawn("category")[0].pairs[-1].label], drawn("category")[:1])


def test_floors_look_at_nothing_but_the_prompt_and_the_query():
    for task in SCORED:
        *examples, query = drawn(task, laws=V2)[0].pairs
        encoding = drawn(task, laws=V2)[0].encoding
        # the hole is a part of the query: it is grey
        hidden = {"hole": query.truth["hole"]} if task == "inpaint" else {}
        blind = replace(query, label=np.zeros_like(query.label), truth=hidden)
        floors, again = (tasks.get(task).floors(examples, q, encoding) for q in (query, blind))
        assert floors.keys() == again.keys()
        assert all(np.array_equal(floors[name], again[name]) for name in floors)


@pytest.mark.parametrize(
    "task, name",
    [("pose", "mean skeleton"), ("selection", "all objects"), ("semantic", "all objects as one class")],
)
def test_landmarks_look_at_the_truth_and_are_no_floors(task, name):
    items, worker = drawn(task, laws=V2), tasks.get(task)
    marks = [worker.landmarks(s.pairs[:-1], s.pairs[-1], s.encoding) for s in items]
    assert all(set(found) == {name} for found in marks)
    assert all(name not in worker.floors(s.pairs[:-1], s.pairs[-1], s.encoding) for s in items)
    found = scores(task, [m[name] for m in marks], items)[worker.metric]
    floors = scores(task, [s.pairs[0].label for s in items], items)[worker.metric]
    assert floors.mean() < found.mean() < 0.95


def test_every_trained_pair_of_v2_tells_what_it_shows():
    classes = default().classes
    for task in V2.trained:
        for pair in (pair for item in drawn(task, laws=V2) for pair in item.pairs):
            masks, ids = pair.truth["masks"], pair.truth["classes"]
            assert masks.shape == (len(ids), 128, 128) and masks.dtype == np.uint8
            assert (masks.max((1, 2)) > 200).all() and masks.astype(int).sum(0).max() <= 256
            if task == "pose":
                assert list(ids) == [len(classes)] and pair.truth["keypoints"].shape == (17, 2)
                continue
            assert (0 <= ids).all() and (ids < len(classes)).all()
            if task == "selection":
                assert sum(classes[i] == pair.truth["class"] for i in ids) == 1
            if task in ("motion", "category"):
                assert pair.truth["label masks"].shape == masks.shape
            if task in ("segmentation", "selection"):
                together = masks.astype(np.float32).sum(0) / 255
                assert np.abs(together - pair.truth["all" if task == "selection" else "mask"]).max() < 0.02


def test_an_objects_mask_of_a_clip_follows_its_picture():
    for item in drawn("motion", laws=V2):
        still = np.median(item.pictures(), 0)
        for pair in item.pairs:
            for picture, key in ((pair.image, "masks"), (pair.label, "label masks")):
                moved = np.abs(picture - still).max(-1) > 60
                assert not (moved & (pair.truth[key].sum(0) == 0)).mean() > 0.12


def test_a_category_pair_shows_one_class_in_two_pictures():
    for item in drawn("category", laws=V2):
        assert len({int(k) for pair in item.pairs for k in pair.truth["classes"]}) == 1
        for pair in item.pairs:
            assert np.abs(pair.image.astype(int) - pair.label).mean() > 5


def test_semantic_labels_give_each_class_its_colour():
    for item in drawn("semantic", laws=V2):
        *figures, ground = item.encoding.colours
        assert len(figures) in (2, 3)
        assert len({tuple(pair.truth["classes"]) for pair in item.pairs}) == 1, "a sentence has its classes"
        for pair in item.pairs:
            assert len(set(pair.truth["classes"])) == len(figures)
            for mask, colour in zip(pair.truth["masks"], figures, strict=True):
                assert (pair.label[mask == 255] == colour).all() and (mask == 255).any()
            assert (pair.label[pair.truth["masks"].sum(0) == 0] == ground).all()


def test_miou_by_hand():
    encoding = Encoding("three", ((255, 0, 0), (0, 255, 0), (0, 0, 0)))
    masks = np.zeros((2, 128, 128), np.float32)
    masks[0, :32], masks[1, 32:64] = 1, 1
    picture = paint(masks, encoding)
    pair = Pair(picture, picture, {"masks": np.uint8(255 * masks)})
    score = lambda answer: tasks.get("semantic").score(answer, pair, encoding)["mIoU"]
    assert score(picture) == 1
    assert score(np.zeros_like(picture)) == pytest.approx((0 + 0 + 0.5) / 3)
    assert score(paint(masks[::-1], encoding)) == pytest.approx((0 + 0 + 1) / 3)
    half = masks.copy()
    half[0, 16:32] = 0
    assert score(paint(half, encoding)) == pytest.approx((0.5 + 1 + 64 / 80) / 3)
    assert np.array_equal(read_regions(picture, encoding)[::32, 0], [0, 1, 2, 2])


def test_selection_marks_one_class_only(monkeypatch):
    seen, real = [], scenes.objects_scene
    monkeypatch.setattr(scenes, "objects_scene", lambda *a: seen.append(real(*a)) or seen[-1])
    for index in range(4):
        seen.clear()
        item = sentence("selection", "train", index, pairs=3)
        assert len({pair.truth["class"] for pair in item.pairs}) == 1
        for pair, scene in zip(item.pairs, seen, strict=True):
            classes = [p.sprite.klass for p in scene.placed]
            assert len(classes) in (2, 3) and len(set(classes)) == len(classes)
            at = classes.index(pair.truth["class"])
            marked = read_mask(pair.label, item.encoding)
            assert pair.source == scene.placed[at].sprite.family
            for i, mask in enumerate(scene.masks):
                assert marked[mask > 0.9].all() if i == at else not marked[mask > 0.9].any()


def pose_with_room():
    """A body low enough that it can be moved by 30 % of its box and stay on the picture; which way to move
    it.
    """
    for index in range(200):
        item = sentence("pose", "test", index, pairs=1)
        box = item.pairs[0].truth["box"]
        step = 0.3 * max(box[2:] - box[:2])
        if box[0] > step or box[2] < 64 - step:
            return item, step if box[2] < 64 - step else -step
    raise AssertionError("no body has room")


def test_a_shifted_skeleton_scores_as_reckoned():
    item, step = pose_with_room()
    pair, worker = item.pairs[0], tasks.get("pose")
    style = (64, item.encoding.option("palette"), item.encoding.option("ground"))
    moved = pair.truth["keypoints"] + (step, 0)
    found = worker.scores(
        np.stack([pair.label, skeleton.draw(moved, *style)]), [pair] * 2, [item.encoding] * 2
    )
    assert found["PCK@0.1"][0] >= 0.95 and found["PCK@0.1"][1] <= 0.25
    assert found["OKS"][0] > 0.9 > 0.5 > found["OKS"][1]


def test_pck_and_oks_by_hand():
    truth = drawn("pose")[0].pairs[0].truth["keypoints"]
    box = np.array([0.0, 0.0, 20.0, 40.0])  # a tenth of the longer side is 4 pixels
    for count in range(9):
        found = truth.copy()
        found[skeleton.SCORED[:count]] += (4.1, 0)
        found[skeleton.SCORED[count:]] += (0, 3.9)
        assert skeleton.pck(found, truth, box) == (8 - count) / 8
    found[skeleton.SCORED[0]] = np.nan
    assert skeleton.pck(found, truth, box) == 0
    assert skeleton.oks(truth, truth, box) == 1
    found = np.full((17, 2), np.nan)
    found[0] = truth[0] + (
        3,
        4,
    )  # the nose, of constant 0.026, five pixels away; the other twelve are missing
    assert skeleton.oks(found, truth, box) == pytest.approx(math.exp(-25 / (2 * 800 * 0.052**2)) / 13)


def test_nothing_drawn_is_no_joint():
    item = drawn("pose")[0]
    blank = np.full((64, 64, 3), item.encoding.option("ground"), np.uint8)
    found = scores("pose", [blank], [item])
    assert {name: float(values[0]) for name, values in found.items()} == {"PCK@0.1": 0.0, "OKS": 0.0}


@pytest.mark.parametrize("palette", skeleton.PALETTES)
def test_every_palette_can_be_read_back(palette):
    truth = drawn("pose")[1].pairs[-1].truth
    picture = skeleton.draw(truth["keypoints"], 64, palette, (0, 0, 0))
    assert skeleton.pck(skeleton.read(picture, palette, (0, 0, 0)), truth["keypoints"], truth["box"]) >= 0.75


@pytest.mark.parametrize("task", ["derain", "deblur", "motion"])
def test_psnr_of_a_constant_offset(task):
    item = drawn(task)[0]
    pair = replace(item.pairs[-1], label=np.minimum(item.pairs[-1].label, 245))
    found = tasks.get(task).score(pair.label + np.uint8(10), pair, item.encoding)
    assert found["PSNR"] == pytest.approx(20 * math.log10(255 / 10), abs=1e-3)
    assert 0.5 < found["SSIM"] < 1


def test_inpainting_is_judged_inside_the_hole():
    item = drawn("inpaint")[0]
    pair = replace(item.pairs[-1], label=np.minimum(item.pairs[-1].label, 235))
    hole = pair.truth["hole"]
    assert 0.2**2 < hole.mean() < 0.5**2
    assert (item.pairs[-1].image[hole] == 128).all()
    assert np.array_equal(item.pairs[-1].image[~hole], item.pairs[-1].label[~hole])
    outside, inside = pair.label.copy(), pair.label.copy()
    outside[~hole] = 0
    inside[hole] += 20
    assert tasks.get("inpaint").score(outside, pair, item.encoding) == {"PSNR": 60.0}
    assert tasks.get("inpaint").score(inside, pair, item.encoding)["PSNR"] == pytest.approx(
        20 * math.log10(255 / 20), abs=1e-3
    )


def test_colourising_is_judged_by_chroma():
    item, worker = drawn("colourise")[0], tasks.get("colourise")
    pair = replace(item.pairs[-1], label=np.clip(item.pairs[-1].label, 0, 225))
    assert worker.score(pair.label + np.uint8(30), pair, item.encoding)["PSNR"] > 50
    grey = worker.score(item.pairs[-1].image, pair, item.encoding)["PSNR"]
    assert grey == pytest.approx(psnr(np.full((64, 64, 2), 128, np.uint8), chroma(pair.label)), abs=0.5)
    assert item.pairs[-1].image.std(-1).max() == 0


def line(*columns):
    """Three pixels wide, as the labels are drawn."""
    truth = np.zeros((64, 64), bool)
    truth[10:50, list(columns)] = True
    picture = np.repeat((edges._near(truth) * np.uint8(255))[..., None], 3, -1)
    return Pair(picture, picture, {"edges": truth}, "line")


@pytest.mark.parametrize("shift, expected", [(0, 1), (1, 1), (-1, 1), (3, 0), (-3, 0)])
def test_edges_allow_one_pixel(shift, expected):
    pair = line(30)
    answer = np.roll(pair.label, shift, axis=1)
    assert tasks.get("edges").score(answer, pair, None)["F"] == expected


def test_edges_missed_and_invented():
    both, one, none = line(20, 40), line(20), np.zeros((64, 64, 3), np.uint8)
    worker = tasks.get("edges")
    assert worker.score(one.label, both, None)["F"] == pytest.approx(2 / 3)
    assert worker.score(both.label, one, None)["F"] == pytest.approx(2 / 3)
    assert worker.score(none, one, None)["F"] == 0


def test_motion_is_constant_between_walls(monkeypatch):
    """One white square on black, so that its place can be read from the frames."""
    monkeypatch.setattr(scenes, "place", lambda *_: np.ones((8, 8, 4), np.float32))
    monkeypatch.setattr(scenes, "background", lambda *_: (np.zeros((64, 64, 3), np.float32), "black"))
    worker, free, followed = tasks.get("motion"), 56, 0
    for seed in range(30):
        pairs = worker.sentence(
            default(), "train", V1, worker.encoding(None, V1), PAIRS, np.random.default_rng(seed)
        )
        frames = np.stack([f for pair in pairs for f in (pair.image, pair.label)])[..., 0]
        if (frames > 0).sum((1, 2)).max() > 64:
            continue  # more than one square
        followed += 1
        places = np.array([np.argwhere(f).min(0) for f in frames])
        steps = np.abs(np.diff(places, axis=0))
        speed = steps.max(0)
        assert 0.12 * 64 - 1.5 <= np.hypot(*speed) <= 0.26 * 64 + 1.5
        for axis in (0, 1):
            to_wall = np.minimum(places[:, axis], free - places[:, axis])
            for t in np.flatnonzero(steps[:, axis] < speed[axis] - 1):
                assert min(to_wall[t], to_wall[t + 1]) <= speed[axis] + 1, "slower only where it bounces"
    assert followed >= 3
