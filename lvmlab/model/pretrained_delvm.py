"""Token models that the field has released and that no plain `transformers` folder holds: DeLVM's, as it is
exported and as it trains.

Its LLaMA is `transformers`' with biases in q, k, v and o. Its ViT flavour (LayerNorm, GELU) is
`transformers`' Starcoder2 under other names. A
training folder packs q, k and v in one matrix, counts layers anew in each pipeline part, and keeps the
embedding in two factors.
"""

import json
import re
from pathlib import Path

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from lvmlab.utils.checkpoints import (
    CheckpointError,
    State,
    match_keys,
    positive_ints,
    read_config,
    read_pickle,
    read_state,
    require,
    weights_in,
)
from lvmlab.utils.files import atomic, write_file

WEIGHTS, CONTEXT, BASE = "pytorch_model.bin", 2048, 10_000.0
GELUS = {
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_approx": "gelu_pytorch_tanh",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
}
_PLAIN = {
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "attn_implementation": "sdpa",
}
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def load(folder: Path) -> PreTrainedModel | None:
    """The model in a folder of DeLVM's, or None where it is no such folder. Raises CheckpointError."""
    if (folder / "model_config.pt").is_file():
        return training(folder)
    kind = (
        read_config(folder / "config.json").get("model_type") if (folder / "config.json").is_file() else None
    )
    return {"internlm": exported, "vit": vit}[kind](folder) if kind in ("internlm", "vit") else None


def _sizes(config: dict, path: Path) -> dict:
    found = positive_ints(config, path, *_SIZES, max_position_embeddings=CONTEXT)
    require(
        found["hidden_size"] % (2 * found["num_attention_heads"]) == 0,
        path,
        config,
        "num_attention_heads",
        "divisors of hidden_size",
    )
    return found | {"num_key_value_heads": found["num_attention_heads"]}


def exported(folder: Path) -> LlamaForCausalLM:
    """DeLVM's exported LLaMA."""
    path = folder / "config.json"
    config = read_config(path)
    require(config.get("hidden_act", "silu") == "silu", path, config, "hidden_act", "silu")
    shape = LlamaConfig(
        **_sizes(config, path),
        rms_norm_eps=config.get("rms_norm_eps", 1e-6),
        attention_bias=config.get("bias", True),
        rope_theta=BASE,
        **_PLAIN,
    )
    return _filled(LlamaForCausalLM(shape), _read(folder), folder)


def vit(folder: Path) -> Starcoder2ForCausalLM:
    """DeLVM's ViT flavour; its trainer's GELU is the tanh approximation, what it exports says erf."""
    path = folder / "config.json"
    config = read_config(path)
    act = config.get("hidden_act", "gelu")
    require(act in GELUS, path, config, "hidden_act", f"one of {', '.join(GELUS)}")
    shape = Starcoder2Config(
        **_sizes(config, path),
        norm_epsilon=config.get("norm_eps", 1e-6),
        hidden_act=GELUS[act],
        use_bias=True,
        sliding_window=None,
        residual_dropout=0.0,
        embedding_dropout=0.0,
        attention_dropout=0.0,
        rope_theta=BASE,
        **_PLAIN,
    )
    model, state = Starcoder2ForCausalLM(shape), _read(folder)

    def theirs(key: str) -> str:
        return key.replace("mlp.c_fc", "mlp.fc1").replace("mlp.c_proj", "mlp.fc2")

    left_out = [r"mlp\.c_(fc|proj)\.bias"] * (not config.get("mlp_bias", False)) + [
        r"self_attn\..*\.bias"
    ] * (not config.get("bias", True))
    zeros = {
        theirs(k): torch.zeros_like(v)
        for k, v in model.state_dict().items()
        if any(re.search(p, k) for p in left_out)
    }
    return _filled(model, zeros | state, folder, theirs)


def training(folder: Path) -> LlamaForCausalLM:
    """DeLVM's training folder, tensor-parallel rank 0: layers in a row, q, k and v apart, the embedding's two
    factors as their product.
    """
    parts = {int(re.search(r"pp(\d+)", p.name)[1]): p for p in folder.glob("model_tp0_pp*.pt")}
    if sorted(parts) != list(range(max(1, len(parts)))):
        there = ", ".join(map(str, sorted(parts))) or "none"
        raise CheckpointError(
            f"{folder} holds the pipeline parts {there}: give them all, model_tp0_pp0.pt first"
        )
    if others := sorted(p.name for p in folder.glob("model_tp[1-9]*_pp*.pt")):
        raise CheckpointError(
            f"{folder} is split over several tensor-parallel ranks ({', '.join(others)}): merge them with "
            f"DeLVM's tools first"
        )
    path, state, before = folder / "model_config.pt", {}, 0
    config = read_pickle(path)
    heads = positive_ints(config if isinstance(config, dict) else {}, path, "num_attention_heads")[
        "num_attention_heads"
    ]
    for _, part in sorted(parts.items()):
        found = {k.removeprefix("model."): v for k, v in read_state(part, "state_dict", "model").items()}
        layers = [int(m[1]) for k in found if (m := re.match(r"blocks\.(\d+)\.", k))]
        state |= {
            re.sub(r"^blocks\.(\d+)\.", lambda m, before=before: f"blocks.{int(m[1]) + before}.", k): v
            for k, v in found.items()
        }
        before += max(layers, default=-1) + 1
    codebook = state.get("embedding.vq_model.quantize.embedding.weight")
    state = {
        k: v for k, v in state.items() if not k.startswith("embedding.vq_model.") and "inv_freq" not in k
    }
    gates = [v for k, v in state.items() if k.endswith("mlp.w1.weight")]
    if codebook is None or not gates or before != config.get("num_layers", before):
        raise CheckpointError(
            f"{folder} holds no whole DeLVM training ({before} of {config.get('num_layers', before)} layers, "
            f"codebook {'missing' if codebook is None else 'there'}): it is damaged or of another network"
        )
    width = gates[0].shape[1]
    shape = LlamaConfig(
        hidden_size=width,
        intermediate_size=gates[0].shape[0],
        num_hidden_layers=before,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=len(codebook),
        rms_norm_eps=config.get("layer_norm_epsilon", 1e-5),
        attention_bias="blocks.0.mixer.Wqkv.bias" in state,
        max_position_embeddings=CONTEXT,
        rope_theta=BASE,
        **_PLAIN,
    )
    model = LlamaForCausalLM(shape)
    wanted = {k: v for k, v in model.state_dict().items() if not re.search(r"self_attn\.[kv]_proj", k)}
    wanted = {k: torch.cat([v] * 3) if "self_attn.q_proj" in k else v for k, v in wanted.items()}
    wanted["model.embed_tokens.weight"] = torch.empty(width, codebook.shape[1])
    found = match_keys(state, wanted, folder, _trained)
    found["model.embed_tokens.weight"] = codebook.float() @ found["model.embed_tokens.weight"].T
    for key in [k for k in found if "self_attn.q_proj" in k]:
        for name, rows in zip("qkv", found.pop(key).chunk(3), strict=True):
            found[key.replace("q_proj", f"{name}_proj")] = rows.contiguous()
    model.load_state_dict(found)
    return model


_NAMES = {
    "self_attn.q_proj": "mixer.Wqkv",
    "self_attn.o_proj": "mixer.out_proj",
    "mlp.gate_proj": "mlp.w1",
    "mlp.up_proj": "mlp.w2",
    "mlp.down_proj": "mlp.w3",
    "input_layernorm": "norm1",
    "post_attention_layernorm": "norm2",
    "model.layers": "blocks",
    "model.embed_tokens": "embedding.embed_proj",
    "lm_head": "head",
    "model.norm": "norm",
}


def _trained(key: str) -> str:
    for ours, theirs in _NAMES.items():
        key = key.replace(ours, theirs)
    return key


def _read(folder: Path) -> State:
    state = read_state(weights_in(folder, "model.safetensors", WEIGHTS))
    return {k: v for k, v in state.items() if not k.endswith("rotary_emb.inv_freq")}


def _filled(model: PreTrainedModel, state: State, where: Path, theirs=str) -> PreTrainedModel:
    model.load_state_dict(match_keys(state, model.state_dict(), where, theirs))
    return model


def save_delvm(llama: LlamaForCausalLM, folder: Path) -> None:
    """Writes a LLaMA in DeLVM's exported layout, the configuration last. Raises ValueError for a model of
    another kind.
    """
    config = llama.config
    if config.model_type != "llama":
        raise ValueError(
            f"a model of type {config.model_type!r} has no place in DeLVM's exported layout: give a LLaMA"
        )
    state = {k: v.detach().cpu() for k, v in llama.state_dict().items()}
    half = config.hidden_size // config.num_attention_heads // 2
    rotary = {
        f"model.layers.{i}.self_attn.rotary_emb.inv_freq": BASE ** (-torch.arange(half) / half)
        for i in range(config.num_hidden_layers)
    }
    with atomic(folder / WEIGHTS) as temporary:
        torch.save(state | rotary, temporary)
    fields = {k: getattr(config, k) for k in (*_SIZES, "rms_norm_eps", "max_position_embeddings")}
    exported = {
        "model_type": "internlm",
        "architectures": ["InternLMForCausalLM"],
        "bias": config.attention_bias,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        **fields,
    }
    write_file(folder / "config.json", json.dumps(exported, indent=1) + "\n")
