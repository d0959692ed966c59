"""The prompt studio without a browser: the session's logic, what the widget shows, and the figures of the
same views.
"""

import base64
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from lvmlab.evaluation import sensitivity
from lvmlab.evaluation.inspection import alternatives, attention
from lvmlab.evaluation.prompts import Job, encode_sentences, sentences
from lvmlab.lab.plots import studio as figures
from lvmlab.lab.studio.session import Session
from lvmlab.lab.studio.studio import Studio
from lvmlab.model.config import LVMConfig
from lvmlab.model.generation import complete_tokens, label_ids
from lvmlab.model.lvm import LVM
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.utils import images


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_preset("tiny", device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def models(tokenizer):
    """Untrained, their weights enlarged so that answers depend on the prompt."""
    found = {}
    for seed, name in enumerate(("one", "two")):
        found[name] = LVM.from_shape(
            LVMConfig(
                32, 2, 2, 64, max_seq_len=16 * tokenizer.tokens_per_image, vocab_size=tokenizer.codebook_size
            ),
            seed=seed,
        )
        with torch.no_grad():
            for p in found[name].parameters():
                if p.ndim > 1:
                    p.mul_(8)
    return found


@pytest.fixture
def session(tokenizer, models):
    return Session(tokenizer, models)


def answered(session, **options):
    *_, found = session.answer("one", **options)
    return found


def same(a, b):
    return all(
        np.array_equal(x.image, y.image) and np.array_equal(x.label, y.label)
        for x, y in zip(a.pairs, b.pairs, strict=True)
    )


def test_a_drawn_prompt_is_the_evaluations_and_its_answer_is_completion(session, tokenizer, models):
    session.draw("segmentation", index=1, examples=2)
    tokens = encode_sentences(tokenizer, [session.sentence])[:, : -tokenizer.tokens_per_image]
    found = list(session.answer("one", sample=True, seed=5, answers=3, top_k=20))
    assert [len(a.steps) for a in found] == list(range(1, tokenizer.tokens_per_image + 1))
    options = {"sample": True, "generator": torch.Generator().manual_seed(5), "answers": 3, "top_k": 20}
    assert torch.equal(
        found[-1].of("ids"),
        complete_tokens(models["one"], tokens, tokenizer.tokens_per_image, **options).tokens[0],
    )
    whole = Session(Tokenizer.from_pretrained("mini", device="cpu"))
    whole.draw("derain", index=1)
    assert same(whole.sentence, sentences(Job("derain", prompts=2, split="val"))[1])


def test_examples_are_moved_swapped_removed_and_added(session):
    session.draw(examples=3)
    first = session.sentence.pairs
    session.arrange([2, 0, 1], swapped=[0])
    assert (
        session.sentence.pairs[0] is first[2]
        and session.sentence.pairs[2] is first[1]
        and session.sentence.pairs[-1] is first[-1]
    )
    assert np.array_equal(session.sentence.pairs[1].image, first[0].label) and np.array_equal(
        session.sentence.pairs[1].label, first[0].image
    )
    session.arrange([0])
    session.arrange([0, 1, 2, 3, 4, 5])
    assert len(session.sentence.pairs) == 7 and session.tokens.shape[1] == 13 * session.n
    for wrong in ([], [99], list(range(8))):
        with pytest.raises(ValueError, match="1 to 7 examples"):
            session.arrange(wrong)
    assert len(session.sentence.pairs) == 7, "a refused edit leaves the prompt as it was"


def test_an_edit_forgets_the_answer_and_an_own_query_has_no_score(session):
    found = answered(session)
    assert 0 <= session.rows(session.pictures(found))[0]["score"] <= 1
    session.put(np.full((40, 30, 3), 200, np.uint8), len(session.sentence.pairs) - 1, "image")
    assert (
        session.current is None
        and not session.known
        and session.rows(session.pictures(answered(session))) == []
    )
    with pytest.raises(images.ImageError, match="convert it to PNG or JPEG"):
        session.put(b"no picture", 0, "label")


def test_labels_take_the_papers_colours_whether_drawn_or_painted(session):
    session.draw()
    foreground, background = session.sentence.encoding.colours
    half = np.zeros((16, 16, 3), np.uint8)
    half[:, :8], half[:, 8:] = foreground, background
    session.put(half, 0, "label")
    session.recolour(*sensitivity.PAPER)
    painted = session.sentence.pairs[0].label
    assert (painted[:, :8] == sensitivity.PAPER[0]).all() and (painted[:, 8:] == sensitivity.PAPER[1]).all()
    assert (session.sentence.pairs[1].label.reshape(-1, 3) == sensitivity.PAPER[1]).all(
        1
    ).any() and session.known
    with pytest.raises(ValueError, match="choose two that differ"):
        session.recolour((1, 1, 1), (1, 1, 1))
    session.draw("derain")
    with pytest.raises(ValueError, match="segmentation or selection"):
        session.recolour(*sensitivity.PAPER)


def test_another_token_leaves_what_came_before_it_and_changes_what_follows(session):
    first = answered(session, sample=True, answers=2, seed=1)
    place, before = 5, first.of("ids")[1]
    code = int(first.of("log_probs")[1, place].argsort()[-5])
    *_, second = session.choose(1, place, code)
    after = second.of("ids")[0]
    assert (
        torch.equal(after[:place], before[:place])
        and after[place] == code
        and not torch.equal(after[place + 1 :], before[place + 1 :])
    )
    again = complete_tokens(
        session.lvm("one"),
        torch.cat([session.tokens, after[None, : place + 1]], 1),
        1,
        sample=True,
        top_k=1,
        generator=torch.Generator(),
    )
    assert second.steps[place + 1].log_probs[0, 0].argmax() == again.tokens[0, 0, 0], (
        "the rest is told by the chosen token"
    )
    session.back()
    assert session.current is first and session.original is None
    with pytest.raises(ValueError, match="not written"):
        session.choose(7, 0, 0)


def test_stopping_leaves_a_part_that_can_be_looked_into(session):
    growing = session.answer("one")
    for _ in range(3):
        next(growing)
    growing.close()
    assert len(session.current.steps) == 3 and session.pictures(session.current).shape == (1, 16, 16, 3)
    session.inside(0, 2)
    with pytest.raises(ValueError, match="not written"):
        session.inside(0, 3)


def test_attention_is_that_of_the_position_that_predicts(models, tokenizer):
    lvm = models["one"]
    tokens = torch.randint(0, tokenizer.codebook_size, (1, 20), generator=torch.Generator().manual_seed(0))
    heads, rolled = attention(lvm, tokens)
    assert (
        heads.shape == (2, 2, 20)
        and torch.allclose(heads.sum(-1), torch.ones(2, 2), atol=1e-5)
        and abs(rolled.sum() - 1) < 1e-5
    )
    assert lvm.config._attn_implementation == "sdpa"
    layer, model = lvm.llama.model.layers[0], lvm.llama.model  # by hand, the first layer
    x = layer.input_layernorm(model.embed_tokens(tokens))
    q, k = (
        proj(x).view(20, 2, 16).transpose(0, 1) for proj in (layer.self_attn.q_proj, layer.self_attn.k_proj)
    )
    angle = torch.arange(20)[:, None] * 10000.0 ** (-torch.arange(8) / 8)
    cos, sin = angle.cos(), angle.sin()
    q, k = (
        torch.cat([v[..., :8] * cos - v[..., 8:] * sin, v[..., 8:] * cos + v[..., :8] * sin], -1)
        for v in (q, k)
    )
    torch.testing.assert_close(
        heads[0], (q[:, -1:] @ k.mT / 4).softmax(-1)[:, 0].detach(), atol=1e-4, rtol=1e-3
    )
    changed = tokens.clone()
    changed[0, 3] = (changed[0, 3] + 1) % tokenizer.codebook_size
    assert not torch.allclose(attention(lvm, changed)[1], rolled)


def test_alternatives_are_the_likeliest_codes_drawn_where_they_would_stand(session, tokenizer):
    found = answered(session)
    ids, likely, patches = alternatives(tokenizer, found.of("ids")[0], 0, found.of("log_probs")[0, 0], 4)
    assert ids[0] == found.of("ids")[0, 0] and (likely.diff() <= 0).all() and patches.shape == (4, 12, 12, 3)
    assert torch.allclose(likely[0].log(), found.of("logprobs")[0, 0])
    assert np.array_equal(patches[0], session.pictures(found)[0][:12, :12]) and not np.array_equal(
        patches[0], patches[1]
    )


def test_constrained_answers_are_written_in_the_labels_own_codes(session):
    labels = set(label_ids(session.tokens, session.n)[0].tolist())
    images_alone = set(session.tokens[0].tolist()) - labels
    free, bound = (
        set(answered(session, sample=True, answers=8, constrained=c).of("ids").flatten().tolist())
        for c in (False, True)
    )
    assert bound <= labels and not free <= labels and images_alone


def test_a_recipe_gives_the_same_answer_and_says_what_differs(session, tokenizer, models):
    session.draw("selection", index=2, examples=2)
    session.put(np.full((9, 9, 3), 77, np.uint8), 0, "image")
    answered(session, sample=True, seed=3, answers=2, temperature=0.7)
    *_, found = session.choose(1, 4, 9)
    text = session.recipe()
    other = Session(tokenizer, models)
    *others, last = other.replay(text)
    assert len(others) == 16 and not any(one.message for one in others)
    assert (
        last is other.current
        and last.message == "The same answer as in the recipe. Machine and versions are the same."
    )
    assert (
        same(other.sentence, session.sentence)
        and torch.equal(other.current.of("ids"), found.of("ids"))
        and other.current.options == found.options
    )
    assert other.rows(other.pictures(other.current)) == session.rows(session.pictures(found))
    kept = json.loads(text)
    kept["made"]["torch"], kept["tokens"][0][-1] = "0.1", (kept["tokens"][0][-1] + 1) % 16
    *_, last = other.replay(json.dumps(kept))
    said = last.message
    assert said.startswith("1 of 16 tokens differ") and "torch is" in said and "was 0.1" in said
    for wrong in (b"\xff", "{}", '{"format": "else"}', json.dumps(kept | {"asked": {"pairs": [{}]}})):
        with pytest.raises(ValueError, match="Take away"):
            next(other.replay(wrong))


def test_a_checkpoints_folder_is_a_model_and_one_that_does_not_fit_is_refused(session, tmp_path):
    session.models["one"].save_pretrained(tmp_path / "fits", dtype=torch.float32)
    *_, found = session.answer(str(tmp_path / "fits"))
    assert torch.equal(found.of("ids"), answered(session).of("ids"))
    LVM.from_shape("tiny", vocab_size=7).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="7"):
        next(session.answer(str(tmp_path / "other")))


def test_each_change_of_the_prompt_is_what_it_says():
    job = Job("segmentation", prompts=3, split="val", answers=1)
    mini = Tokenizer.from_pretrained("mini", device="cpu")
    found = {(group, name): asked for group, name, asked in sensitivity.changes(mini, job)}
    plain = found["plain", "3 examples"]
    assert {name for group, name in found if group == "number"} == {"1", "2", "5", "7"} and len(
        found["number", "5"][0].pairs
    ) == 6
    for change, asked in found.items():
        assert all(
            np.array_equal(a.pairs[-1].image, p.pairs[-1].image) for a, p in zip(asked, plain, strict=True)
        ), change
    assert all(
        np.array_equal(a.pairs[0].image, p.pairs[2].image)
        for a, p in zip(found["order", "reversed"], plain, strict=True)
    )
    shuffled = [
        ([id(x) for x in a.pairs[:-1]], [id(x) for x in p.pairs[:-1]])
        for a, p in zip(found["order", "shuffled"], plain, strict=True)
    ]
    assert all(sorted(ours) == sorted(theirs) for ours, theirs in shuffled) and any(
        ours != theirs for ours, theirs in shuffled
    )
    shares = {
        name: sensitivity.overlap(encode_sentences(mini, found["choice", name]), mini.tokens_per_image).mean()
        for name in ("nearest", "random", "farthest")
    }
    assert shares["nearest"] > shares["random"] > shares["farthest"]
    wrong = found["wrong", "colours"][0]
    assert np.array_equal(wrong.pairs[-1].label, plain[0].pairs[-1].label) and not np.array_equal(
        wrong.pairs[0].label, plain[0].pairs[0].label
    )
    assert all(s.encoding.colours[1] == (0, 110, 110) for s in found["ground", "teal"])
    assert {group for group, _, _ in sensitivity.changes(mini, Job("motion", prompts=1, split="val"))} == {
        "plain",
        "codes",
        "number",
    }


def test_overlap_by_hand():
    tokens = torch.tensor(
        [[1, 2, 0, 0, 3, 4, 0, 0, 2, 9, 0, 0]]
    )  # two examples of images 1 2 and 3 4, the query 2 9
    assert sensitivity.overlap(tokens, 2).tolist() == [[0.5, 0.0]]


def test_sensitivity_measures_every_change(models):
    mini, lvm = (
        Tokenizer.from_pretrained("mini", device="cpu"),
        LVM.from_shape(LVMConfig(16, 1, 1, 16, vocab_size=1024)),
    )
    found = list(sensitivity.measure(lvm, mini, Job("motion", prompts=2, split="val", answers=1), batch=1))
    assert found[:3] == [("plain: 3 examples", None)] * 2 + [("plain: 3 examples", found[2][1])], (
        "it may be left after every batch"
    )
    rows = [row for _, row in found if row]
    assert [(r["group"], r["name"]) for r in rows] == [
        ("plain", "3 examples"),
        ("codes", "of the labels"),
        *(("number", k) for k in "1257"),
    ]
    assert rows[0]["score"] != rows[1]["score"]
    figure = figures.sensitivity_chart(
        [r | {"skill": 0.1, "skill_low": 0.0, "skill_high": 0.2} for r in rows]
    )
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()][:2] == [
        "plain: 3 examples",
        "codes: of the labels",
    ]
    plt.close("all")


def test_the_figures_show_what_the_studio_shows(session):
    found = answered(session)
    (ids, likely, patches), (heads, rolled) = session.inside(0, 6)
    figure = figures.attention_map(session.sentence, session.pictures(found)[0], rolled.numpy(), session.n)
    shares = [int(a.get_title().split("\n")[1].rstrip("%")) for a in figure.axes]
    assert len(shares) == 8 and abs(sum(shares) - 100) <= 4
    assert len(figures.alternatives_chart(ids, likely, patches).axes) == 8
    drawn = (
        figures.entropy_maps(
            {"answer": session.pictures(found)[0]}, {"entropy": found.of("entropies")[0].numpy()}
        )
        .axes[1]
        .images[-1]
        .get_array()
    )
    assert np.allclose(drawn.flatten(), found.of("entropies")[0])
    plt.close("all")


@pytest.fixture
def studio(session):
    return Studio(session)


def test_the_widget_shows_what_the_session_has(studio, session):
    studio.act("answer", model="one", sample=True, answers=2).wait()
    assert (
        studio.answer["done"] == session.n
        and len(studio.answer["samples"]) == 2
        and len(studio.answer["rows"]) == 3
    )
    assert studio.answer["samples"][1]["codes"] == session.current.of("ids")[
        1
    ].tolist() and not studio.status.get("error")
    drawn = images.to_uint8(images.load(base64.b64decode(studio.answer["samples"][0]["picture"])))
    assert np.array_equal(drawn, session.pictures(session.current)[0])
    studio.act("look", sample=1, place=3).wait()
    assert (
        len(studio.inside["rolled"]) == session.tokens.shape[1] + 3
        and len(studio.inside["alternatives"]) == 8
    )
    studio.act("choose", sample=1, place=3, code=studio.inside["alternatives"][4]["code"]).wait()
    assert studio.answer["first"] and len(studio.answer["samples"]) == 1
    studio.act("back").wait()
    assert not studio.answer["first"] and len(studio.answer["samples"]) == 2
    studio.act("contrast", models=["one", "two"]).wait()
    one, two = studio.compare["rows"]
    assert (one["model"], two["model"]) == ("one", "two") and one["mean"] != two["mean"]
    studio.act("take").wait()
    studio.act("draw", task="pose", index=1, examples=2).wait()
    assert studio.prompt["task"] == "pose" and studio.answer == {} and len(studio.prompt["examples"]) == 2
    studio.act("replay", source=studio.session.recipe().encode() if session.current else b"{}").wait()
    assert "Take away" in studio.status["error"]


def test_a_message_of_the_browser_is_an_action(studio, session):
    studio._handle_custom_msg({"do": "put", "at": 0, "side": "image"}, [memoryview(b"nothing")])
    assert "convert it to PNG or JPEG" in studio.wait().status["error"]
    studio._handle_custom_msg({"do": "draw", "task": "selection", "index": 4, "examples": 5}, [])
    assert (
        studio.wait().prompt["task"] == "selection"
        and not studio.status.get("error")
        and len(session.sentence.pairs) == 6
    )


@pytest.mark.parametrize(
    "do, given, sentence",
    [
        ("look", {"sample": 0, "place": 0}, "press Answer first"),
        ("take", {}, "press Answer first"),
        ("answer", {"model": "none"}, "no model 'none'"),
        ("answer", {"model": "one", "sample": True, "temperature": -1.0}, "temperature=-1.0: give a number"),
        ("nothing", {}, "should not"),
        ("draw", {"task": "juggling"}, "choose one of"),
    ],
)
def test_errors_are_sentences_and_the_widget_goes_on(studio, do, given, sentence):
    assert sentence in studio.act(do, **given).wait().status["error"]
    assert studio.act("answer", model="one").wait().answer[
        "done"
    ] == studio.session.n and not studio.status.get("error")


def test_what_is_asked_next_stops_what_is_under_way(studio, session, monkeypatch):
    import threading

    began, go, whole = threading.Event(), threading.Event(), session.answer

    def slow(*args, **options):
        for found in whole(*args, **options):
            began.set()
            assert go.wait(20)
            yield found

    monkeypatch.setattr(session, "answer", slow)
    studio.act("answer", model="one")
    assert began.wait(20)
    studio.act("stop")
    go.set()
    assert studio.wait().status["message"].startswith("Stopped after 1 of") and studio.answer["done"] == 1
    began.clear(), go.clear()
    studio.act("answer", model="one")
    assert began.wait(20)
    studio.act("arrange", order=[1, 0])
    go.set()
    assert studio.wait().answer == {} and len(session.sentence.pairs) == 3
