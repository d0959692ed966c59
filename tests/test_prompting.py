import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lvmlab.model import prompting
from lvmlab.model.config import LVMConfig
from lvmlab.model.generation import Prefilled, Sampling, complete_tokens
from lvmlab.model.lvm import LVM
from lvmlab.model.prompting import Prompt, complete, encode_prompts
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.utils.images import ImageError

CODES, N = 16, 16


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_preset("tiny", device="cpu", precision="fp32")


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "bias"])
def lvm(request):
    """Untrained, its weights enlarged so that answers depend on the prompt."""
    lvm = LVM.from_shape(
        LVMConfig(32, 2, 2, 64, max_seq_len=256, vocab_size=CODES, attention_bias=request.param), seed=3
    )
    with torch.no_grad():
        for i, p in enumerate(lvm.parameters()):
            if p.ndim > 1:
                p.mul_(8)
            elif request.param and not p.any():
                p.normal_(generator=torch.Generator().manual_seed(i))
    return lvm


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(count=4, length=3 * N, seed=0):
    return torch.randint(0, CODES, (count, length), generator=seeded(seed))


def picture(seed, size=16):
    return torch.rand(3, size, size, generator=seeded(seed))


def prompt(examples=1, seed=0):
    start = 100 * seed
    return Prompt(
        [(picture(start + 2 * i), picture(start + 2 * i + 1)) for i in range(examples)], picture(start + 99)
    )


def test_greedy_equals_generate(lvm):
    tokens = rows()
    ours = complete_tokens(lvm, tokens, 2 * N)
    theirs = lvm.llama.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=2 * N
    )[:, 3 * N :]
    assert torch.equal(ours.tokens[:, 0], theirs)
    assert len(ours.tokens.unique()) > 2 and not torch.equal(ours.tokens[0], ours.tokens[1])


STRETCHED = {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0}
OTHERS = (
    {"num_key_value_heads": 1},
    {"mlp_bias": True},
    {"head_dim": 24},
    {"hidden_act": "gelu"},
    {"rope_parameters": STRETCHED},
)


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: next(iter(other)))
def test_any_llama_is_decoded_as_transformers_would(other):
    ends = {"bos_token_id": None, "eos_token_id": None}
    config = LlamaConfig(
        **dict(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            vocab_size=CODES,
            max_position_embeddings=256,
            initializer_range=0.3,
        )
        | ends
        | other
    )
    torch.manual_seed(5)
    test_greedy_equals_generate(LVM(LlamaForCausalLM(config).eval()))


@torch.inference_mode()
def test_a_model_made_under_inference_mode_answers_too():
    test_greedy_equals_generate(
        LVM.from_shape(
            LVMConfig(32, 2, 2, 64, max_seq_len=256, vocab_size=CODES, attention_bias=True), seed=3
        )
    )


def test_logprobs_and_entropies_are_those_of_one_whole_pass(lvm):
    tokens = rows()
    got = complete_tokens(
        lvm, tokens, N, sample=True, temperature=0.7, top_k=9, generator=seeded(), answers=3
    )
    for i in range(3):  # answers are written side by side; each must be as if it were alone
        whole = torch.cat([tokens, got.tokens[:, i]], 1)
        with torch.no_grad():
            log = lvm(whole)[:, 3 * N - 1 : -1].log_softmax(-1)
        torch.testing.assert_close(
            got.logprobs[:, i], log.gather(2, got.tokens[:, i, :, None])[..., 0], atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(got.entropies[:, i], -(log.exp() * log).sum(-1), atol=1e-4, rtol=1e-4)


def test_the_same_generator_gives_the_same_tokens_and_the_global_one_is_left_alone(lvm):
    before = torch.get_rng_state()
    one, same, other = (
        complete_tokens(lvm, rows(), N, sample=True, generator=seeded(s), answers=3) for s in (0, 0, 1)
    )
    assert (
        torch.equal(one.tokens, same.tokens)
        and torch.equal(one.logprobs, same.logprobs)
        and not torch.equal(one.tokens, other.tokens)
    )
    assert one.tokens.shape == one.logprobs.shape == one.entropies.shape == (4, 3, N)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(one.tokens[:, 0], one.tokens[:, 1])


def test_top_k_1_and_a_low_temperature_are_greedy_and_prompts_stay_apart(lvm):
    greedy = complete_tokens(lvm, rows(), N).tokens
    drawn = complete_tokens(lvm, rows(), N, sample=True, top_k=1, generator=seeded(), answers=3).tokens
    assert torch.equal(drawn, greedy.expand(-1, 3, -1))
    for options in ({"temperature": 1e-4}, {"top_p": 1e-6}):
        assert torch.equal(
            complete_tokens(lvm, rows(), N, sample=True, generator=seeded(), **options).tokens, greedy
        )
    for i in range(4):
        assert torch.equal(complete_tokens(lvm, rows()[i : i + 1], N).tokens[0], greedy[i])


def test_samples_follow_the_models_distribution():
    lvm = LVM.from_shape("tiny", seed=3, vocab_size=4)
    tokens = torch.zeros(1, 5, dtype=torch.int64)
    drawn = complete_tokens(lvm, tokens, 1, sample=True, generator=seeded(), answers=4000).tokens.flatten()
    with torch.no_grad():
        expected = lvm(tokens)[0, -1].softmax(-1)
    assert (drawn.bincount(minlength=4) / 4000 - expected).abs().max() < 0.03


def test_the_prompt_is_read_once(lvm, monkeypatch):
    read, forward = [], lvm.llama.model.forward
    monkeypatch.setattr(
        lvm.llama.model, "forward", lambda **k: read.append(tuple(k["input_ids"].shape)) or forward(**k)
    )
    complete_tokens(lvm, rows(), 3, sample=True, generator=seeded(), answers=5)
    assert read == [(4, 48)], "the steps are not the model's forward"


def test_one_reading_serves_many_answers_and_may_be_left_in_the_middle(lvm):
    ready, tokens = Prefilled(lvm, rows(), N, answers=3), complete_tokens(lvm, rows(), N).tokens
    for step in ready.stream(N, Sampling(sample=True, generator=seeded(), answers=3)):
        if step.ids.shape == (4, 3):
            break
    steps = list(ready.stream(N))
    assert torch.equal(torch.stack([s.ids for s in steps], -1), tokens)
    assert torch.allclose(steps[5].log_probs.logsumexp(-1), torch.zeros(4, 1), atol=1e-5)
    again = [
        torch.stack(
            [s.ids for s in ready.stream(N, Sampling(sample=True, generator=seeded(), answers=3))], -1
        )
        for _ in range(2)
    ]
    assert torch.equal(*again)
    with pytest.raises(ValueError, match="room for 3 answers of 16"):
        list(ready.stream(N + 1))


def test_only_allowed_ids_are_written(lvm):
    allowed = torch.tensor([[3, 5, 5], [1, 2, 7]])
    got = complete_tokens(lvm, rows(2), N, sample=True, generator=seeded(), answers=2, allowed=allowed)
    assert set(got.tokens[0].unique().tolist()) <= {3, 5} and set(got.tokens[1].unique().tolist()) <= {
        1,
        2,
        7,
    }
    assert set(complete_tokens(lvm, rows(2), N, allowed=torch.tensor([4])).tokens.unique().tolist()) == {4}
    with pytest.raises(ValueError, match="ids outside 0 to 15"):
        complete_tokens(lvm, rows(2), N, allowed=torch.tensor([99]))


def test_large_models_and_others_than_llama_decode_by_their_own_forward(lvm, monkeypatch):
    from lvmlab.model import decoder as decode

    fast = complete_tokens(lvm, rows(), N, sample=True, generator=seeded(), answers=3)
    monkeypatch.setattr(decode, "MAX_FUSED", 0)
    object.__setattr__(lvm, "_decoder", (None,))
    slow = complete_tokens(lvm, rows(), N, sample=True, generator=seeded(), answers=3)
    object.__setattr__(lvm, "_decoder", (None,))
    assert torch.equal(fast.tokens, slow.tokens)
    torch.testing.assert_close(fast.logprobs, slow.logprobs, atol=2e-4, rtol=1e-4)


def test_changed_weights_are_seen():
    lvm = LVM.from_shape("tiny", seed=1, vocab_size=CODES)
    before = complete_tokens(lvm, rows(2), N).logprobs
    with torch.no_grad():
        lvm.llama.lm_head.weight.mul_(9)
        lvm.llama.model.layers[0].self_attn.q_proj.weight.normal_()
    after = complete_tokens(lvm, rows(2), N)
    whole = torch.cat([rows(2), after.tokens[:, 0]], 1)
    with torch.no_grad():
        log = lvm(whole)[:, 3 * N - 1 : -1].log_softmax(-1)
    torch.testing.assert_close(
        after.logprobs[:, 0], log.gather(2, after.tokens[:, 0, :, None])[..., 0], atol=1e-4, rtol=1e-4
    )
    assert not torch.allclose(before, after.logprobs)


def test_answers_between_training_steps_are_those_of_the_weights_as_they_are():
    """Neither a fused optimiser nor a write to .data raises the version counters of parameters."""
    lvm = LVM.from_shape("tiny", seed=1, vocab_size=CODES)
    optimizer = torch.optim.AdamW(lvm.parameters(), lr=0.1, fused=True)
    before = complete_tokens(lvm, rows(2), N).logprobs
    for step in range(3):
        lvm(rows(2, seed=step), rows(2, seed=step)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 2:
            lvm.llama.model.norm.weight.data.mul_(2)
        after = complete_tokens(lvm, rows(2), N)
        with torch.no_grad():
            log = lvm(torch.cat([rows(2), after.tokens[:, 0]], 1))[:, 3 * N - 1 : -1].log_softmax(-1)
        torch.testing.assert_close(
            after.logprobs[:, 0], log.gather(2, after.tokens[:, 0, :, None])[..., 0], atol=1e-4, rtol=1e-4
        )
        assert not torch.allclose(before, after.logprobs)
        before = after.logprobs


def test_unused_ids_are_never_answered():
    lvm = LVM.from_shape("tiny", vocab_size=CODES)
    lvm.llama.config.tokenizer_codes = 5
    got = complete_tokens(lvm, rows(codes := 4), 64, sample=True, generator=seeded(), answers=2)
    assert got.tokens.max() < 5 == codes + 1 and got.entropies.isfinite().all()


def test_it_fills_the_context_exactly_and_no_more(lvm):
    assert complete_tokens(lvm, rows(1, 240), 16).tokens.shape == (1, 1, 16)
    with pytest.raises(ValueError, match="context of 256"):
        complete_tokens(lvm, rows(1, 241), 16)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": 0.7}, "sample=True"),
        ({"top_k": 3}, "sample=True"),
        ({"top_p": 0.9}, "sample=True"),
        ({"generator": seeded()}, "sample=True"),
        ({"answers": 2}, "all be the same"),
        ({"answers": 0}, "answers=0"),
        ({"sample": True}, "generator=torch.Generator"),
        ({"sample": True, "generator": seeded(), "temperature": 0}, "temperature=0"),
        ({"sample": True, "generator": seeded(), "temperature": 1e-40}, "temperature=1e-40: give a number"),
        ({"sample": True, "generator": seeded(), "temperature": "0.7"}, "temperature='0.7': give a number"),
        ({"sample": True, "generator": seeded(), "top_p": "0.9"}, "top_p='0.9': give a number"),
        ({"sample": True, "generator": 3}, "generator=torch.Generator"),
        ({"sample": True, "generator": seeded(), "top_k": 0}, "top_k=0"),
        ({"sample": True, "generator": seeded(), "top_p": 1.5}, "top_p=1.5"),
    ],
)
def test_options_that_would_be_ignored_or_make_no_sense_are_errors(lvm, tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        complete_tokens(lvm, rows(), 2, **options)
    with pytest.raises(ValueError, match=message):
        complete(lvm, tokenizer, [prompt()], **options)


@pytest.mark.parametrize(
    "tokens, n, message",
    [
        (torch.full((1, 4), CODES), 2, "out of range"),
        (torch.zeros(4, dtype=torch.int64), 2, "shape"),
        (torch.zeros(1, 4), 2, "float32"),
        (torch.zeros(1, 0, dtype=torch.int64), 2, "shape"),
        (torch.zeros(1, 4, dtype=torch.int64), 0, "n=0"),
    ],
)
def test_bad_tokens_are_errors(lvm, tokens, n, message):
    with pytest.raises(ValueError, match=message):
        complete_tokens(lvm, tokens, n)


def test_encode_prompts_lays_pictures_in_order_and_encodes_a_shared_one_once(tokenizer, monkeypatch):
    one = prompt(2)
    two = Prompt(one.examples, picture(7))
    expected = torch.stack([tokenizer.encode(torch.stack(p.pictures)).flatten() for p in (one, two)])
    counted, encode = [], tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda x: counted.append(len(x)) or encode(x))
    tokens = encode_prompts(tokenizer, [one, two])
    assert tokens.shape == (2, 5 * N) and torch.equal(tokens, expected) and counted == [6]
    with pytest.raises(ValueError, match="1, 2 examples"):
        encode_prompts(tokenizer, [prompt(1), prompt(2)])


def test_complete_answers_mixed_lengths_in_order(lvm, tokenizer):
    prompts = [prompt(k, seed) for seed, k in enumerate((1, 3, 1, 2, 3, 1))]
    got = complete(lvm, tokenizer, prompts, batch=2)
    assert got.tokens.shape == got.logprobs.shape == got.entropies.shape == (
        6,
        1,
        N,
    ) and got.images.shape == (6, 1, 1, 3, 16, 16)
    assert got.images.dtype == torch.float32 and 0 <= got.images.min() and got.images.max() <= 1
    for i, p in enumerate(prompts):
        alone = complete(lvm, tokenizer, p)
        assert torch.equal(alone.tokens[0], got.tokens[i])
        torch.testing.assert_close(alone.images[0], got.images[i], atol=1e-5, rtol=0)
    assert torch.equal(got.images[:, 0, 0], tokenizer.decode(got.tokens[:, 0]))


def test_sequences_and_several_answers_of_several_pictures(lvm, tokenizer):
    frames = [picture(i) for i in range(5)]
    p = Prompt.sequence(frames)
    assert len(p.examples) == 2 and all(a is b for a, b in zip(p.pictures, frames, strict=True))
    got = complete(
        lvm, tokenizer, [p, p], images=2, answers=3, sample=True, temperature=1.0, generator=seeded()
    )
    assert got.tokens.shape == (2, 3, 2 * N) and got.images.shape == (2, 3, 2, 3, 16, 16)
    torch.testing.assert_close(
        got.images[1, 2, 1], tokenizer.decode(got.tokens[1, 2, None, N:])[0], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Prompt([], picture(0)), "empty"),
        (lambda: Prompt([(picture(0),)], picture(1)), r"examples\[0\] has 1"),
        (lambda: Prompt([(picture(0), picture(1, 8))], picture(2)), r"examples\[0\] label has shape"),
        (lambda: Prompt([(picture(0), picture(1)[:, :8])], picture(2)), r"examples\[0\] label has shape"),
        (lambda: Prompt([(picture(0), 255 * picture(1))], picture(2)), r"examples\[0\] label.*divide"),
        (lambda: Prompt([(picture(0), picture(1))], "query.png"), "query: expected a float tensor"),
        (lambda: Prompt([(picture(0), picture(1))], picture(2) * float("nan")), "query"),
        (lambda: Prompt.sequence([picture(0), picture(1)]), "odd number"),
        (lambda: Prompt.sequence([picture(0)]), "odd number"),
    ],
)
def test_bad_prompts_are_errors_with_a_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()
    assert issubclass(ImageError, ValueError)


def test_what_does_not_fit_is_an_error_before_any_work(lvm, tokenizer, monkeypatch):
    def never(*_, **__):
        raise AssertionError("work was started")

    monkeypatch.setattr(prompting, "encode_prompts", never)
    for prompts, message, options in (
        ([], "no prompts", {}),
        ([prompt(1), prompt(8)], "8 examples, a query", {}),
        ([prompt(7)], "7 examples, a query", {"images": 2}),
        ([Prompt([(picture(0, 8), picture(1, 8))], picture(2, 8))], "8 px but the tokenizer takes 16", {}),
        (["a.png"], "str", {}),
        ([prompt()], "images=0", {"images": 0}),
        ([prompt()], "batch=0", {"batch": 0}),
    ):
        with pytest.raises(ValueError, match=message):
            complete(lvm, tokenizer, prompts, **options)
    with pytest.raises(ValueError, match="16 codes but the model speaks 1024"):
        complete(LVM.from_shape("tiny"), tokenizer, [prompt()])
