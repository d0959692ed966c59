"""Checkpoints of other projects load and compute what their own networks compute, restated in
tests/restated.py.
"""

import json
import os
import pickle

import layouts
import pytest
import restated
import torch
import torch.nn.functional as F
from layouts import DELVM, DIFFUSERS, LLAMA, LLAMAGEN, OPEN_MUSE, TAMING, TRAINING, VIT, draw, draw_training
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from lvmlab import LVM, Tokenizer
from lvmlab.model.generation import complete_tokens
from lvmlab.tokenizer.tokenizer import CheckpointError

SIZE = 32
HEADS, CODES = DELVM["num_attention_heads"], DELVM["vocab_size"]
NAMES = {
    "open_muse": layouts.MUSE,
    "taming": layouts.MUSE,
    "llamagen": layouts.LLAMAGEN_NAMES,
    "diffusers_vq": layouts.DIFFUSERS_NAMES,
}
SIGNED = ("taming", "llamagen")  # formats whose pictures are in [-1, 1]


def images(count=2, size=SIZE):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def sentences(rows=2, length=24, codes=CODES):
    return torch.randint(0, codes, (rows, length), generator=torch.Generator().manual_seed(2))


def tokenizer(path, **options):
    return Tokenizer.from_pretrained(path, device="cpu", precision="fp32", **options)


def lvm_of(path, **options):
    return LVM.from_pretrained(path, device="cpu", **options)


@torch.no_grad()
def logits(lvm, ids):
    return lvm(ids)


@torch.no_grad()
def transformers_logits(state, config, ids, **changes):
    """Of `transformers`' own LLaMA with these weights."""
    c = {**config, **changes}
    llama = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=c["hidden_size"],
            num_hidden_layers=c["num_hidden_layers"],
            num_attention_heads=c["num_attention_heads"],
            intermediate_size=c["intermediate_size"],
            vocab_size=c["vocab_size"],
            rms_norm_eps=c["rms_norm_eps"],
            attention_bias=c.get("bias", False),
            max_position_embeddings=c["max_position_embeddings"],
            tie_word_embeddings=False,
        )
    )
    llama.load_state_dict({k: v.float() for k, v in state.items()})
    return llama.eval()(input_ids=ids).logits


def same(one, other):
    torch.testing.assert_close(one.double(), other.double(), atol=1e-5, rtol=0)


def far(one, other, by=1e-3):
    """They differ by much more than `same` forgives."""
    return (one.double() - other.double()).abs().max() > by


def agrees(loaded, state, form, size=SIZE, **options):
    """Tokens of pictures exactly, pictures of tokens closely; the range is the format's own."""
    names, signed = NAMES[form], form in SIGNED
    cosine = form == "llamagen"
    x = images(size=size)
    tokens = restated.tokens(x * 2 - 1 if signed else x, state, names, cosine, **options)
    assert len(tokens.unique()) > 8, "a tokenizer of few codes shows little"
    assert (loaded.size, loaded.tokens_per_image, loaded.codebook_size) == (
        size,
        tokens.shape[1],
        len(state["quantize.embedding.weight"]),
    )
    found = loaded.encode(x)
    assert found.dtype == torch.int64 and torch.equal(found, tokens)
    pictures = restated.pictures(tokens, state, names, cosine, **options)
    pictures = ((pictures + 1) / 2 if signed else pictures).clamp(0, 1)
    assert ((pictures > 0) & (pictures < 1)).float().mean() > 0.2 and pictures.std() > 0.05
    same(loaded.decode(tokens), pictures)


# Tokenizers


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attn_resolutions": [16]},
        {"no_attn_mid_block": False},
        {"attn_resolutions": [8, 32], "no_attn_mid_block": False},
    ],
    ids=["no attention", "at 16", "in the middle", "everywhere"],
)
def test_open_muse(tmp_path, changes, weights):
    config = {**OPEN_MUSE, **changes}
    state = draw(layouts.open_muse_shapes, config)
    agrees(tokenizer(layouts.write_open_muse(tmp_path / "vqgan", state, config, weights)), state, "open_muse")


@pytest.mark.parametrize("kept", [("num_embeddings",), ()], ids=["codes named", "class named alone"])
def test_what_an_open_muse_config_leaves_out_is_its_default(tmp_path, kept):
    """Attention at 16 and in the middle, two blocks a level, 256 dimensions, 1024 codes."""
    config = {k: OPEN_MUSE[k] for k in ("resolution", "hidden_channels", "channel_mult", *kept)}
    state = draw(layouts.open_muse_shapes, config)
    assert "encoder.mid.attn_1.q.weight" in state and "encoder.down.1.attn.1.q.weight" in state
    agrees(tokenizer(layouts.write_open_muse(tmp_path / "vqgan", state, config)), state, "open_muse")


def test_an_attention_alone_in_its_level_is_not_used_by_open_muse(tmp_path):
    """With one block a level the encoder has one attention there, which open-muse's forward passes by: do as
    it does, or refuse.
    """
    config = {**OPEN_MUSE, "num_res_blocks": 1, "attn_resolutions": [16]}
    state = draw(layouts.open_muse_shapes, config)
    folder = layouts.write_open_muse(tmp_path / "vqgan", state, config)
    used, unused = (restated.tokens(images(), state, layouts.MUSE, lone=lone) for lone in (False, True))
    assert not torch.equal(used, unused)
    try:
        loaded = tokenizer(folder)
    except CheckpointError:
        return
    agrees(loaded, state, "open_muse", lone=True)


@pytest.mark.parametrize("file", ["", "last.ckpt"], ids=["folder", "file"])
def test_taming(tmp_path, file):
    state = draw(layouts.taming_shapes, TAMING)
    agrees(tokenizer(layouts.write_taming(tmp_path / "vqgan", state, TAMING) / file), state, "taming")


@pytest.mark.parametrize(
    "weights, config",
    [("checkpoints/last.ckpt", "configs/model.yaml"), ("f16_16384.ckpt", "f16_16384.yaml")],
    ids=["a run's folder", "pairs of one name"],
)
def test_taming_where_its_users_keep_it(tmp_path, weights, config):
    """As a run leaves it and the authors share it; or several in one folder, each with the yaml of its name."""
    state = draw(layouts.taming_shapes, TAMING)
    written = layouts.write_taming(tmp_path / "written", state, TAMING)
    if config.startswith("f16"):
        other = {**TAMING, "n_embed": 80}
        smaller = layouts.write_taming(tmp_path / "smaller", draw(layouts.taming_shapes, other), other)
        (tmp_path / "run").mkdir()
        for file, suffix in (("last.ckpt", "ckpt"), ("config.yaml", "yaml")):
            (smaller / file).rename(tmp_path / f"run/f16_1024.{suffix}")
    for file, place in (("last.ckpt", weights), ("config.yaml", config)):
        (tmp_path / "run" / place).parent.mkdir(parents=True, exist_ok=True)
        (written / file).rename(tmp_path / "run" / place)
    agrees(tokenizer(tmp_path / "run" / weights), state, "taming")


def test_tamings_attention_alone_in_its_level_is_used(tmp_path):
    config = {**TAMING, "ddconfig": {**TAMING["ddconfig"], "num_res_blocks": 1, "attn_resolutions": [16]}}
    state = draw(layouts.taming_shapes, config)
    agrees(tokenizer(layouts.write_taming(tmp_path / "vqgan", state, config)), state, "taming")


def test_lightnings_callbacks_keep_no_one_from_the_weights(tmp_path):
    """The published files of 1024 and of 16384 codes name Lightning's class, which is not installed here."""
    state = draw(layouts.taming_shapes, TAMING)
    agrees(
        tokenizer(layouts.write_taming(tmp_path / "vqgan", state, TAMING, callbacks=True)), state, "taming"
    )


@pytest.mark.parametrize("under", ["model", "ema"])
def test_llamagen(tmp_path, under):
    state = draw(layouts.llamagen_shapes, LLAMAGEN)
    agrees(
        tokenizer(layouts.write_llamagen(tmp_path / "vq.pt", **{under: state}), resolution=SIZE),
        state,
        "llamagen",
    )


def test_llamagens_average_goes_before_the_last_step(tmp_path):
    last, average = (draw(layouts.llamagen_shapes, LLAMAGEN, seed) for seed in (0, 1))
    file = layouts.write_llamagen(tmp_path / "vq.pt", model=last, ema=average, steps=5)
    agrees(tokenizer(file, resolution=SIZE), average, "llamagen")


def test_llamagens_shape_is_read_from_its_weights(tmp_path):
    """Levels, widths, blocks, codes; the size cannot be, and is 256 unless said."""
    config = {
        "ch": 32,
        "ch_mult": [1, 1, 2, 3],
        "num_res_blocks": 1,
        "z_channels": 24,
        "codebook_size": 80,
        "codebook_embed_dim": 6,
    }
    state = draw(layouts.llamagen_shapes, config)
    file = layouts.write_llamagen(tmp_path / "vq.pt", model=state)
    agrees(tokenizer(file, resolution=64), state, "llamagen", size=64)
    assert (tokenizer(file).size, tokenizer(file).tokens_per_image) == (256, 1024)


@pytest.mark.parametrize("add", [False, True, None], ids=["no attention", "attention", "left out"])
def test_diffusers(tmp_path, add):
    config = {**DIFFUSERS, "mid_block_add_attention": add}
    if add is None:
        del config["mid_block_add_attention"]
    state = draw(layouts.diffusers_shapes, config)
    assert ("encoder.mid_block.attentions.0.to_out.0.weight" in state) == (add is not False)
    agrees(
        tokenizer(layouts.write_diffusers_vq(tmp_path / "vq", state, config), resolution=SIZE),
        state,
        "diffusers_vq",
    )


def test_diffusers_sample_size_is_not_the_pictures_size(tmp_path):
    """aMUSEd's says 32 and stands for 256: taken at its word, a picture would be four tokens."""
    state = draw(layouts.diffusers_shapes, DIFFUSERS)
    assert tokenizer(layouts.write_diffusers_vq(tmp_path / "vq", state, DIFFUSERS)).size == 256


def written(form, folder, changes=None):
    """A checkpoint of this format with some weights replaced: (what to give to from_pretrained, state)."""
    if form == "open_muse":
        state = draw(layouts.open_muse_shapes, OPEN_MUSE) | (changes or {})
        return layouts.write_open_muse(folder, state, OPEN_MUSE), state
    if form == "taming":
        state = draw(layouts.taming_shapes, TAMING) | (changes or {})
        return layouts.write_taming(folder, state, TAMING), state
    if form == "llamagen":
        state = draw(layouts.llamagen_shapes, LLAMAGEN) | (changes or {})
        return layouts.write_llamagen(folder / "vq.pt", model=state), state
    state = draw(layouts.diffusers_shapes, DIFFUSERS) | (changes or {})
    return layouts.write_diffusers_vq(folder, state, DIFFUSERS), state


def sized(form):
    """Formats that do not say for which pictures they are need to be told."""
    return {"resolution": SIZE} if form in ("llamagen", "diffusers_vq") else {}


@pytest.mark.parametrize("form", NAMES)
def test_pictures_go_in_and_come_out_in_the_formats_own_range(tmp_path, form):
    path, state = written(form, tmp_path / "vq")
    x, cosine = images(), form == "llamagen"
    plain, signed = (restated.tokens(v, state, NAMES[form], cosine) for v in (x, 2 * x - 1))
    assert not torch.equal(plain, signed)
    loaded = tokenizer(path, **sized(form))
    assert torch.equal(loaded.encode(x), signed if form in SIGNED else plain)
    out = restated.pictures(plain, state, NAMES[form], cosine)
    right, wrong = ((out + 1) / 2, out) if form in SIGNED else (out, (out + 1) / 2)
    assert far(right.clamp(0, 1), wrong.clamp(0, 1))
    same(loaded.decode(plain), right.clamp(0, 1))


def test_llamagen_looks_up_by_angle_and_draws_the_code_of_length_one(tmp_path):
    longer = torch.rand(LLAMAGEN["codebook_size"], 1, generator=torch.Generator().manual_seed(3)) * 5 + 0.1
    table = draw(layouts.llamagen_shapes, LLAMAGEN)["quantize.embedding.weight"]
    (path, state), (other, stretched) = (
        written("llamagen", tmp_path / name, {"quantize.embedding.weight": v})
        for name, v in (("one", table), ("two", table * longer))
    )
    x = images()
    by_distance = restated.tokens(2 * x - 1, stretched, layouts.LLAMAGEN_NAMES, cosine=False)
    one, two = (tokenizer(p, resolution=SIZE) for p in (path, other))
    tokens = one.encode(x)
    assert torch.equal(tokens, two.encode(x)) and not torch.equal(tokens, by_distance)
    same(one.decode(tokens), two.decode(tokens))
    assert far(
        one.decode(tokens),
        ((restated.pictures(tokens, stretched, layouts.LLAMAGEN_NAMES) + 1) / 2).clamp(0, 1),
    )


@pytest.mark.parametrize("form", ["open_muse", "diffusers_vq"])
def test_the_others_look_up_by_distance(tmp_path, form):
    path, state = written(form, tmp_path / "vq")
    x = images()
    tokens = tokenizer(path, **sized(form)).encode(x)
    by_distance, by_angle = (restated.tokens(x, state, NAMES[form], cosine) for cosine in (False, True))
    assert torch.equal(tokens, by_distance) and not torch.equal(tokens, by_angle)


@pytest.mark.parametrize("form", NAMES)
def test_levels_of_one_width_keep_their_order(tmp_path, form):
    """With one width no shape tells a level from another: a decoder read the wrong way round would load."""
    if form == "open_muse":
        config = {**OPEN_MUSE, "channel_mult": [1] * 4}
        state = draw(layouts.open_muse_shapes, config)
        path = layouts.write_open_muse(tmp_path / "vq", state, config)
    elif form == "taming":
        config = {**TAMING, "ddconfig": {**TAMING["ddconfig"], "ch_mult": [1] * 4, "attn_resolutions": []}}
        state = draw(layouts.taming_shapes, config)
        path = layouts.write_taming(tmp_path / "vq", state, config)
    elif form == "llamagen":
        state = draw(layouts.llamagen_shapes, {**LLAMAGEN, "ch_mult": [1] * 4})
        path = layouts.write_llamagen(tmp_path / "vq.pt", model=state)
    else:
        config = {
            **DIFFUSERS,
            "block_out_channels": [32] * 4,
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
        }
        state = draw(layouts.diffusers_shapes, config)
        path = layouts.write_diffusers_vq(tmp_path / "vq", state, config)
    agrees(tokenizer(path, **sized(form)), state, form)


@pytest.mark.parametrize("form", NAMES)
def test_code_0_is_an_ordinary_code_of_a_picture(tmp_path, form):
    path, state = written(form, tmp_path / "vq")
    loaded, names, cosine = tokenizer(path, **sized(form)), NAMES[form], form == "llamagen"
    x = images()
    z = restated.features((2 * x - 1 if form in SIGNED else x).double(), restated.double(state), names)
    path, state = written(
        form,
        tmp_path / "pulled",
        {"quantize.embedding.weight": torch.cat([z[0, 3:4].float(), state["quantize.embedding.weight"][1:]])},
    )
    loaded = tokenizer(path, **sized(form))
    assert loaded.encode(x)[0, 3] == 0
    tokens = loaded.encode(x).clone()
    tokens[:, ::2] = 0  # not all of it: the norms of a flat picture enlarge what is only rounding
    picture = restated.pictures(tokens, state, names, cosine)
    same(loaded.decode(tokens), ((picture + 1) / 2 if form in SIGNED else picture).clamp(0, 1))


def test_a_loaded_tokenizer_saves_and_loads_as_any_other(tmp_path):
    for form in NAMES:
        path, _ = written(form, tmp_path / form)
        loaded = tokenizer(path, **sized(form))
        loaded.save_pretrained(tmp_path / f"{form} again")
        again = tokenizer(tmp_path / f"{form} again")
        assert again.fingerprint == loaded.fingerprint and torch.equal(
            again.encode(images()), loaded.encode(images())
        )
        same(again.decode(again.encode(images())), loaded.decode(again.encode(images())))


# Transformers


def exported(folder, **changes):
    config = {**DELVM, **changes}
    state = draw(layouts.transformer_shapes, config)
    return layouts.write_transformer(folder, state, config), state


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("weights", ["pytorch_model.bin", "model.safetensors"])
def test_delvm_exported(tmp_path, weights, half):
    """fp16 is what the converter writes; the weights are then those numbers, computed with in fp32."""
    state = draw(layouts.transformer_shapes, DELVM)
    state = {k: v.half() for k, v in state.items()} if half else state
    lvm = lvm_of(
        layouts.write_transformer(
            tmp_path / "delvm", state, {**DELVM, "torch_dtype": "float16" if half else "float32"}, weights
        )
    )
    ids = sentences()
    same(logits(lvm, ids), restated.logits(ids, {k: v.float() for k, v in state.items()}, HEADS, 1e-6))
    same(logits(lvm, ids), transformers_logits(state, DELVM, ids))
    assert (lvm.vocab_size, lvm.codebook_size, lvm.max_seq_len) == (
        CODES,
        CODES,
        DELVM["max_position_embeddings"],
    )
    assert logits(lvm, ids).dtype == torch.float32


def test_the_epsilon_is_the_checkpoints(tmp_path):
    """1e-6 in what DeLVM exports, 1e-5 in its training and in this project's own shapes."""
    folder, state = exported(tmp_path / "delvm")
    right, wrong = (transformers_logits(state, DELVM, sentences(), rms_norm_eps=eps) for eps in (1e-6, 1e-5))
    assert far(right, wrong)
    lvm = lvm_of(folder)
    same(logits(lvm, sentences()), right)
    assert lvm.config.rms_norm_eps == 1e-6
    other, _ = exported(tmp_path / "other", rms_norm_eps=1e-5)
    same(logits(lvm_of(other), sentences()), wrong)


@pytest.mark.parametrize("part", ["q_proj", "k_proj", "v_proj", "o_proj"])
def test_attention_biases_are_used(tmp_path, part):
    folder, state = exported(tmp_path / "delvm")
    without = {k: torch.zeros_like(v) if k.endswith(f"{part}.bias") else v for k, v in state.items()}
    right, wrong = (restated.logits(sentences(), s, HEADS, 1e-6) for s in (state, without))
    assert far(right, wrong)
    same(logits(lvm_of(folder), sentences()), right)


@pytest.mark.parametrize("form", ["delvm_exported", "delvm_vit"])
def test_the_rotary_planes_are_half_split(tmp_path, form):
    config = DELVM if form == "delvm_exported" else VIT
    state = draw(layouts.transformer_shapes, config)
    lvm = lvm_of(layouts.write_transformer(tmp_path / "delvm", state, config))
    right, wrong = (
        restated.logits(sentences(), state, HEADS, 1e-6, interleaved) for interleaved in (False, True)
    )
    assert far(right, wrong)
    same(logits(lvm, sentences()), right)


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "mlp_bias"])
def test_delvm_vit(tmp_path, bias):
    """LayerNorms with biases and a GELU of the exact kind, which its exported model has (its trainer's is the
    approximate one).
    """
    config = {**VIT, "mlp_bias": bias}
    state = draw(layouts.transformer_shapes, config)
    assert ("model.layers.0.mlp.fc1.bias" in state) == bias and "model.norm.bias" in state
    lvm = lvm_of(layouts.write_transformer(tmp_path / "vit", state, config))
    ids = sentences()
    same(logits(lvm, ids), restated.logits(ids, state, HEADS, 1e-6))
    assert (lvm.vocab_size, lvm.codebook_size, lvm.max_seq_len) == (
        CODES,
        CODES,
        VIT["max_position_embeddings"],
    )


def test_the_vits_epsilon_and_gelu_are_its_own(tmp_path):
    state = draw(layouts.transformer_shapes, VIT)
    lvm = lvm_of(layouts.write_transformer(tmp_path / "vit", state, {**VIT, "norm_eps": 1e-5}))
    right, wrong = (restated.logits(sentences(), state, HEADS, eps) for eps in (1e-5, 1e-6))
    assert far(right, wrong)
    same(logits(lvm, sentences()), right)
    scaled = {
        k: 2 * v if "mlp.fc" in k else v for k, v in state.items()
    }  # where the two kinds of GELU differ most
    lvm = lvm_of(layouts.write_transformer(tmp_path / "scaled", scaled, VIT))
    right, wrong = (
        restated.logits(sentences(), scaled, HEADS, 1e-6, approximate=rough) for rough in (False, True)
    )
    assert far(right, wrong, 1e-4)
    same(logits(lvm, sentences()), right)


def test_the_vit_answers_prompts(tmp_path):
    lvm = lvm_of(layouts.write_transformer(tmp_path / "vit", draw(layouts.transformer_shapes, VIT), VIT))
    ids = sentences(2, 8)
    answer = complete_tokens(lvm, ids, 4).tokens[:, 0]
    for i in range(4):
        assert torch.equal(answer[:, i], logits(lvm, torch.cat([ids, answer[:, :i]], 1))[:, -1].argmax(-1))


@pytest.mark.parametrize("prefix", ["", "model."], ids=["bare", "prefixed"])
@pytest.mark.parametrize("parts", [(3,), (2, 1), (1, 2)], ids=str)
def test_delvm_training(tmp_path, parts, prefix):
    """Pipeline parts count their layers from 0; the epsilon is the one it is trained with."""
    states = draw_training(TRAINING, parts, prefix)
    lvm = lvm_of(layouts.write_delvm_training(tmp_path / "run", states, TRAINING))
    ids, state = sentences(), restated.exported(states)
    right = restated.logits(ids, state, HEADS, TRAINING["layer_norm_epsilon"])
    assert far(right, restated.logits(ids, state, HEADS, 1e-6))
    same(logits(lvm, ids), right)
    shape = {**DELVM, "intermediate_size": 256}
    same(logits(lvm, ids), transformers_logits(state, shape, ids, rms_norm_eps=1e-5))
    assert (lvm.vocab_size, lvm.codebook_size, lvm.config.num_hidden_layers) == (CODES, CODES, 3)


def test_q_k_and_v_are_three_whole_blocks_of_wqkv(tmp_path):
    states = draw_training(TRAINING)
    right, wrong = (
        restated.logits(sentences(), restated.exported(states, by_head), HEADS, 1e-5)
        for by_head in (0, HEADS)
    )
    assert far(right, wrong)
    same(logits(lvm_of(layouts.write_delvm_training(tmp_path / "run", states, TRAINING)), sentences()), right)


def test_the_factored_embedding_is_folded(tmp_path):
    states = draw_training(TRAINING)
    codebook = states[0]["model.embedding.vq_model.quantize.embedding.weight"]
    projection = states[0]["model.embedding.embed_proj.weight"]
    lvm = lvm_of(layouts.write_delvm_training(tmp_path / "run", states, TRAINING))
    torch.testing.assert_close(
        lvm.llama.model.embed_tokens.weight.double(),
        codebook.double() @ projection.double().T,
        atol=1e-7,
        rtol=0,
    )
    assert not [name for name, _ in lvm.named_parameters() if "vq_model" in name or "embed_proj" in name]


def test_the_trainers_own_kind_of_configuration_is_read(tmp_path):
    """DeLVM's trainer pickles its configuration as a dict class of a package that is not installed here."""
    states = draw_training(TRAINING)
    lvm = lvm_of(layouts.write_delvm_training(tmp_path / "run", states, TRAINING, wrapped=True))
    same(logits(lvm, sentences()), restated.logits(sentences(), restated.exported(states), HEADS, 1e-5))


def test_half_of_a_tensor_parallel_model_is_refused(tmp_path):
    """Of two ranks the first holds half of every matrix, by rows or by columns."""
    whole = draw_training(TRAINING, (3,))[0]
    by_rows, by_columns = (
        ("Wqkv.weight", "Wqkv.bias", "w1.weight", "w2.weight", "head.weight"),
        ("out_proj.weight", "w3.weight"),
    )
    halves = [
        {
            k: v.chunk(2)[rank]
            if k.endswith(by_rows)
            else v.chunk(2, 1)[rank]
            if k.endswith(by_columns)
            else v
            for k, v in whole.items()
        }
        for rank in (0, 1)
    ]
    folder = layouts.write_delvm_training(tmp_path / "run", halves[:1], TRAINING)
    torch.save(halves[1], folder / "model_tp1_pp0.pt")
    with pytest.raises(CheckpointError, match="tp1|tensor|misshapen"):
        lvm_of(folder)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_missing_pipeline_part_is_refused(tmp_path, part):
    """Without a middle one the others still fit together: the configuration says how many layers there are."""
    folder = layouts.write_delvm_training(tmp_path / "run", draw_training(TRAINING, (1, 1, 1)), TRAINING)
    (folder / f"model_tp0_pp{part}.pt").unlink()
    with pytest.raises(CheckpointError, match="missing|layers"):
        lvm_of(folder)


def test_pipeline_parts_are_in_the_order_of_their_numbers(tmp_path):
    """10 comes after 2."""
    config = {**TRAINING, "num_layers": 11}
    states = draw_training(config, (1,) * 11)
    lvm = lvm_of(layouts.write_delvm_training(tmp_path / "run", states, config))
    same(logits(lvm, sentences()), restated.logits(sentences(), restated.exported(states), HEADS, 1e-5))


def llama(folder, weights="model.safetensors", shards=1, changes=None):
    state = draw(layouts.transformer_shapes, LLAMA) | (changes or {})
    return layouts.write_transformer(folder, state, LLAMA, weights, shards), state


@pytest.mark.parametrize(
    "weights, shards",
    [("model.safetensors", 1), ("model.safetensors", 3), ("pytorch_model.bin", 1), ("pytorch_model.bin", 3)],
)
def test_lvm_llama(tmp_path, weights, shards):
    folder, state = llama(tmp_path / "lvm", weights, shards)
    lvm, ids = lvm_of(folder), sentences(codes=8192)
    same(logits(lvm, ids), restated.logits(ids, state, HEADS, 1e-6))
    same(logits(lvm, ids), transformers_logits(state, LLAMA, ids))
    assert lvm.vocab_size == 8292 and logits(lvm, ids).shape == (*ids.shape, 8292)


def test_lvms_unused_ids_are_never_answered(tmp_path):
    """Of 8292 ids the last 100 are no codes, however likely the model thinks them."""
    head = draw(layouts.transformer_shapes, LLAMA)["lm_head.weight"]
    head[8192:] *= 50
    lvm = lvm_of(llama(tmp_path / "lvm", changes={"lm_head.weight": head})[0])
    ids = sentences(4, 16, 8192)
    assert lvm.codebook_size == 8192 and (logits(lvm, ids).argmax(-1) >= 8192).float().mean() > 0.9
    for options in ({"sample": True, "generator": torch.Generator().manual_seed(0)}, {}):
        answer = complete_tokens(lvm, ids, 32, **options).tokens
        assert answer.min() >= 0 and answer.max() < 8192
    assert lvm_of(tmp_path / "lvm", codebook_size=100).codebook_size == 100


@pytest.mark.parametrize("form", ["delvm_exported", "delvm_vit", "delvm_training", "lvm_llama"])
def test_code_0_is_an_ordinary_code_of_a_sentence(tmp_path, form):
    """It is read, written and a target."""
    if form == "delvm_training":
        states = draw_training(TRAINING)
        folder, state = (
            layouts.write_delvm_training(tmp_path / "m", states, TRAINING),
            restated.exported(states),
        )
    elif form == "lvm_llama":
        folder, state = llama(tmp_path / "m")
    else:
        config = DELVM if form == "delvm_exported" else VIT
        state = draw(layouts.transformer_shapes, config)
        folder = layouts.write_transformer(tmp_path / "m", state, config)
    lvm, ids = lvm_of(folder), sentences()
    ids[:, 5:9] = 0
    expected = restated.logits(ids, state, HEADS, 1e-5 if form == "delvm_training" else 1e-6)
    same(logits(lvm, ids), expected)
    same(lvm(ids, ids).detach(), F.cross_entropy(expected[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))


@pytest.mark.parametrize("form", ["delvm_exported", "delvm_vit", "delvm_training", "lvm_llama"])
def test_no_id_begins_ends_or_pads_a_sentence(tmp_path, form):
    """DeLVM's files name none, and LVM's name 1 and 2, its library's defaults: kept, they would end what
    plain transformers generates.
    """
    lvm = lvm_of(damaged(form, tmp_path / "m", dict))
    assert lvm.config.bos_token_id is lvm.config.eos_token_id is lvm.config.pad_token_id is None


def test_saved_it_loads_in_plain_transformers(tmp_path):
    folder, _ = exported(tmp_path / "delvm")
    lvm = lvm_of(folder)
    lvm.save_pretrained(tmp_path / "saved", dtype=torch.float32)
    plain, info = LlamaForCausalLM.from_pretrained(
        tmp_path / "saved", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        torch.testing.assert_close(
            plain(input_ids=sentences()).logits, logits(lvm, sentences()), atol=1e-6, rtol=0
        )
    same(logits(lvm_of(tmp_path / "saved"), sentences()), logits(lvm, sentences()))


def weights_in(folder):
    file = next(p for p in sorted(folder.iterdir()) if p.suffix in (".bin", ".safetensors"))
    return load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)


@pytest.mark.parametrize("form", ["delvm_exported", "delvm_training"])
def test_save_delvm_writes_what_delvm_exports(tmp_path, form):
    if form == "delvm_exported":
        folder, config = exported(tmp_path / "delvm")[0], DELVM
    else:
        folder = layouts.write_delvm_training(tmp_path / "run", draw_training(TRAINING), TRAINING)
        config = {**DELVM, "intermediate_size": 256, "rms_norm_eps": 1e-5, "max_position_embeddings": 2048}
    lvm = lvm_of(folder)
    lvm.save_delvm(tmp_path / "saved")
    fields = json.loads((tmp_path / "saved/config.json").read_text())
    for field in (
        "model_type",
        "hidden_size",
        "num_attention_heads",
        "num_hidden_layers",
        "intermediate_size",
        "vocab_size",
        "rms_norm_eps",
        "bias",
        "max_position_embeddings",
    ):
        assert fields[field] == config[field], field
    shapes = {name: tuple(v.shape) for name, v in weights_in(tmp_path / "saved").items()}
    wanted = layouts.with_frequencies(draw(layouts.transformer_shapes, config), config)
    assert shapes == {name: tuple(v.shape) for name, v in wanted.items()}
    same(logits(lvm_of(tmp_path / "saved"), sentences()), logits(lvm, sentences()))


# What is refused

FORMS = (*NAMES, "delvm_exported", "delvm_vit", "delvm_training", "lvm_llama")
PICKLES = [
    ("open_muse", "pytorch_model.bin"),
    ("taming", "last.ckpt"),
    ("llamagen", "vq.pt"),
    ("delvm_exported", "pytorch_model.bin"),
    ("delvm_vit", "pytorch_model.bin"),
    ("delvm_training", "model_config.pt"),
    ("delvm_training", "model_tp0_pp1.pt"),
    ("lvm_llama", "pytorch_model.bin"),
]


def damaged(form, folder, damage):
    """A checkpoint whose state dict went through `damage` before it was written: what to give to
    from_pretrained.
    """
    if form == "open_muse":
        return layouts.write_open_muse(folder, damage(draw(layouts.open_muse_shapes, OPEN_MUSE)), OPEN_MUSE)
    if form == "taming":
        return layouts.write_taming(folder, damage(draw(layouts.taming_shapes, TAMING)), TAMING)
    if form == "llamagen":
        return layouts.write_llamagen(folder / "vq.pt", model=damage(draw(layouts.llamagen_shapes, LLAMAGEN)))
    if form == "diffusers_vq":
        return layouts.write_diffusers_vq(
            folder, damage(draw(layouts.diffusers_shapes, DIFFUSERS)), DIFFUSERS
        )
    if form == "delvm_training":
        return layouts.write_delvm_training(
            folder, [damage(s) for s in draw_training(TRAINING, (3,), "")], TRAINING
        )
    config = {"delvm_exported": DELVM, "delvm_vit": VIT, "lvm_llama": LLAMA}[form]
    return layouts.write_transformer(folder, damage(draw(layouts.transformer_shapes, config)), config)


def load(form, path):
    return tokenizer(path, **sized(form)) if form in NAMES else lvm_of(path)


@pytest.mark.parametrize("form", FORMS)
def test_an_unharmed_one_loads(tmp_path, form):
    load(form, damaged(form, tmp_path / "model", dict))


@pytest.mark.parametrize("form", FORMS)
def test_all_that_does_not_fit_is_listed(tmp_path, form):
    """Whole, and under the names that the file has or should have."""
    parts = {
        "delvm_training": ("norm1.weight", "mlp.w3.weight"),
        "delvm_vit": ("input_layernorm.bias", "mlp.fc2.weight"),
    }
    missing, misshapen = (
        ("conv2.bias", "norm1.bias")
        if form in NAMES
        else parts.get(form, ("input_layernorm.weight", "down_proj.weight"))
    )
    lists = {}

    def damage(state):
        mine = [k for k in state if "vq_model" not in k]
        lists["missing"] = [k for k in mine if k.endswith(missing)][-7:]
        lists["misshapen"] = [k for k in mine if k.endswith(misshapen)][-7:]
        lists["unexpected"] = [f"surplus.{i}.weight" for i in range(7)]
        state = {
            k: torch.cat([v, v[:1]]) if k in lists["misshapen"] else v
            for k, v in state.items()
            if k not in lists["missing"]
        }
        return state | {k: torch.zeros(2) for k in lists["unexpected"]}

    path = damaged(form, tmp_path / "model", damage)
    with pytest.raises(CheckpointError) as caught:
        load(form, path)
    text = str(caught.value)
    assert not {what: lost for what, names in lists.items() if (lost := [n for n in names if n not in text])}
    assert all(what in text for what in lists)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("what", ["missing", "unexpected", "misshapen"])
def test_one_wrong_key_is_enough(tmp_path, form, what):
    names = []

    def damage(state):
        name = next(
            k
            for k in reversed(state)
            if k.endswith(("decoder.conv_out.bias", "lm_head.weight", "head.weight"))
        )
        names.append(f"{name}.more" if what == "unexpected" else name)
        if what == "missing":
            return {k: v for k, v in state.items() if k != name}
        return state | {names[0]: torch.zeros(7, *state[name].shape[1:])}

    with pytest.raises(CheckpointError) as caught:
        load(form, damaged(form, tmp_path / "model", damage))
    assert names[0] in str(caught.value) and what in str(caught.value)


class Wants:
    """Unpickled by Python it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("form, file", PICKLES, ids=[f"{a} {b}" for a, b in PICKLES])
def test_a_pickle_that_wants_more_than_data_is_refused_by_name_and_not_run(tmp_path, form, file, how):
    path = damaged(form, tmp_path / "model", dict)
    place = path if path.is_file() else path / file
    held = {"state_dict": {}, "model": {}, "wants": Wants(tmp_path / "made")}
    if how == "pickle":
        place.write_bytes(pickle.dumps(held, protocol=2))
    else:
        torch.save(held, place, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(CheckpointError) as caught:
        load(form, path)
    assert "mkdir" in str(caught.value) and not (tmp_path / "made").exists()
    if how == "pickle":
        pickle.loads(place.read_bytes())
        assert (tmp_path / "made").exists(), "the trap itself works"


def test_no_object_of_any_class_is_made(tmp_path):
    """A class that is installed and harmless is one too many all the same."""
    folder, state = exported(tmp_path / "delvm")
    torch.save(state | {"note": DELVM["vocab_size"], "where": pytest.approx}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="approx"):
        lvm_of(folder)


@pytest.mark.parametrize("form", FORMS)
def test_a_cut_file_is_refused(tmp_path, form):
    path = damaged(form, tmp_path / "model", dict)
    place = path if path.is_file() else max((p for p in path.iterdir()), key=lambda p: p.stat().st_size)
    place.write_bytes(place.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="damaged"):
        load(form, path)


@pytest.mark.parametrize("form", [f for f in FORMS if f != "llamagen"])
def test_a_missing_config_is_named(tmp_path, form):
    path = damaged(form, tmp_path / "model", dict)
    name = {"taming": "config.yaml", "delvm_training": "model_config.pt"}.get(form, "config.json")
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=r"config\.|config_?"):
        load(form, path)


@pytest.mark.parametrize("form", [f for f in FORMS if f != "llamagen"])
def test_missing_weights_are_named(tmp_path, form):
    path = damaged(form, tmp_path / "model", dict)
    for place in path.iterdir():
        if place.name not in ("config.json", "config.yaml", "model_config.pt"):
            place.unlink()
    with pytest.raises(CheckpointError, match="missing|no weights|safetensors|model_tp0|ckpt"):
        load(form, path)


@pytest.mark.parametrize("kind", [tokenizer, lvm_of], ids=["Tokenizer", "LVM"])
def test_an_empty_folder_is_refused(tmp_path, kind):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty"):
        kind(tmp_path / "empty")


@pytest.mark.parametrize("form", FORMS)
def test_the_wrong_kind_of_model_is_refused(tmp_path, form):
    path = damaged(form, tmp_path / "model", dict)
    with pytest.raises(CheckpointError):
        lvm_of(path) if form in NAMES else tokenizer(path)


@pytest.mark.parametrize(
    "form, field, value",
    [
        ("diffusers_vq", "act_fn", "relu"),
        ("delvm_exported", "hidden_act", "gelu"),
        ("delvm_vit", "hidden_act", "silu"),
    ],
)
def test_a_config_that_asks_for_another_function_is_refused(tmp_path, form, field, value):
    """None of the released ones does; no key or shape would tell."""
    path = damaged(form, tmp_path / "model", dict)
    change(path / "config.json", field, value)
    with pytest.raises(CheckpointError, match=field):
        load(form, path)


def change(file, field, value):
    """Of a config.json; None takes the field out."""
    config = json.loads(file.read_text()) | {field: value}
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize(
    "form, field, value",
    [
        ("open_muse", "hidden_channels", "many"),
        ("diffusers_vq", "latent_channels", None),
        ("diffusers_vq", "latent_channels", "many"),
        ("delvm_exported", "hidden_size", None),
        ("delvm_exported", "hidden_size", "many"),
        ("delvm_vit", "num_attention_heads", None),
        ("delvm_vit", "num_attention_heads", -1),
        ("lvm_llama", "hidden_size", "many"),
    ],
)
def test_a_config_without_sense_is_refused(tmp_path, form, field, value):
    path = damaged(form, tmp_path / "model", dict)
    change(path / "config.json", field, value)
    with pytest.raises(CheckpointError, match=field):
        load(form, path)


@pytest.mark.parametrize("fields", [{"ch": None}, {"ch": "many"}], ids=str)
def test_a_taming_yaml_without_sense_is_refused(tmp_path, fields):
    config = {**TAMING, "ddconfig": {k: v for k, v in (TAMING["ddconfig"] | fields).items() if v is not None}}
    folder = layouts.write_taming(tmp_path / "vqgan", draw(layouts.taming_shapes, TAMING), config)
    with pytest.raises(CheckpointError):
        tokenizer(folder)
