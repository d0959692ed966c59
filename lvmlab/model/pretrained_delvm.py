"""DeLVM's released models (arXiv 2402.04841): its exported LLaMA, its ViT flavour, and its training folders.

The LLaMA is `transformers`' with biases in q, k, v and o. The ViT flavour (LayerNorm, GELU) is
`transformers`' Starcoder2 under other names. A training folder packs q, k and v in one matrix, counts layers
anew in each pipeline part, and keeps the embedding in two factors.
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

WEIGHTS = "pytorch_model.bin"
MAX_SEQ_LEN, ROPE_THETA = 2048, 10_000.0
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
    """The model in a folder of DeLVM's, or None where it is no such folder.

    Raises:
        CheckpointError: The folder is damaged or of another network.
    """
    if (folder / "model_config.pt").is_file():
        return training(folder)
    path = folder / "config.json"
    kind = read_config(path).get("model_type") if path.is_file() else None
    if kind == "internlm":
        return exported(folder)
    if kind == "vit":
        return vit(folder)
    return None


def _sizes(config: dict, path: Path) -> dict:
    sizes = positive_ints(config, path, *_SIZES, max_position_embeddings=MAX_SEQ_LEN)
    heads = sizes["num_attention_heads"]
    even = sizes["hidden_size"] % (2 * heads) == 0
    require(even, path, config, "num_attention_heads", "divisors of hidden_size")
    return sizes | {"num_key_value_heads": heads}


def exported(folder: Path) -> LlamaForCausalLM:
    """DeLVM's exported LLaMA."""
    path = folder / "config.json"
    config = read_config(path)
    require(config.get("hidden_act", "silu") == "silu", path, config, "hidden_act", "silu")
    shape = LlamaConfig(
        **_sizes(config, path),
        rms_norm_eps=config.get("rms_norm_eps", 1e-6),
        attention_bias=config.get("bias", True),
        rope_theta=ROPE_THETA,
        **_PLAIN,
    )
    return _filled(LlamaForCausalLM(shape), _read(folder), folder)


def vit(folder: Path) -> Starcoder2ForCausalLM:
    """DeLVM's ViT flavour. Its trainer's GELU is the tanh approximation; exported configs name erf's."""
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
        rope_theta=ROPE_THETA,
        **_PLAIN,
    )
    model, state = Starcoder2ForCausalLM(shape), _read(folder)

    def released_name(key: str) -> str:
        return key.replace("mlp.c_fc", "mlp.fc1").replace("mlp.c_proj", "mlp.fc2")

    # Starcoder2 has all biases or none; those that the release leaves out are 0
    missing = []
    if not config.get("mlp_bias", False):
        missing.append(r"mlp\.c_(fc|proj)\.bias")
    if not config.get("bias", True):
        missing.append(r"self_attn\..*\.bias")
    zeros = {
        released_name(key): torch.zeros_like(value)
        for key, value in model.state_dict().items()
        if any(re.search(pattern, key) for pattern in missing)
    }
    return _filled(model, zeros | state, folder, released_name)


def training(folder: Path) -> LlamaForCausalLM:
    """A training folder of tensor-parallel rank 0: its pipeline parts in order, q, k and v apart, the
    embedding's two factors as their product.
    """
    path = folder / "model_config.pt"
    config = read_pickle(path)
    fields = config if isinstance(config, dict) else {}
    heads = positive_ints(fields, path, "num_attention_heads")["num_attention_heads"]
    state, layers = _pipeline(_parts(folder))

    # the embedding is the tokenizer's codebook, then a linear layer
    codebook = state.get("embedding.vq_model.quantize.embedding.weight")
    skipped = ("embedding.vq_model.", "inv_freq")
    state = {key: value for key, value in state.items() if not any(part in key for part in skipped)}
    gates = [value for key, value in state.items() if key.endswith("mlp.w1.weight")]
    expected = config.get("num_layers", layers)
    if codebook is None or not gates or layers != expected:
        raise CheckpointError(
            f"{folder} holds no whole DeLVM training ({layers} of {expected} layers, codebook "
            f"{'missing' if codebook is None else 'there'}): it is damaged or of another network"
        )
    ffn_dim, dim = gates[0].shape
    shape = LlamaConfig(
        hidden_size=dim,
        intermediate_size=ffn_dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=len(codebook),
        rms_norm_eps=config.get("layer_norm_epsilon", 1e-5),
        attention_bias="blocks.0.mixer.Wqkv.bias" in state,
        max_position_embeddings=MAX_SEQ_LEN,
        rope_theta=ROPE_THETA,
        **_PLAIN,
    )
    model = LlamaForCausalLM(shape)

    # compared in the training's own form: q, k and v packed in q's place, the linear layer in the embedding's
    packed = {k: v for k, v in model.state_dict().items() if not re.search(r"self_attn\.[kv]_proj", k)}
    packed = {k: torch.cat([v] * 3) if "self_attn.q_proj" in k else v for k, v in packed.items()}
    packed["model.embed_tokens.weight"] = torch.empty(dim, codebook.shape[1])
    weights = match_keys(state, packed, folder, _training_name)

    weights["model.embed_tokens.weight"] = codebook.float() @ weights["model.embed_tokens.weight"].T
    for key in [key for key in weights if "self_attn.q_proj" in key]:
        for name, rows in zip("qkv", weights.pop(key).chunk(3), strict=True):
            weights[key.replace("q_proj", f"{name}_proj")] = rows.contiguous()
    model.load_state_dict(weights)
    return model


def _parts(folder: Path) -> list[Path]:
    """The pipeline parts' files in order. Raises CheckpointError where one is missing or ranks are split."""
    parts = {int(re.search(r"pp(\d+)", path.name)[1]): path for path in folder.glob("model_tp0_pp*.pt")}
    if sorted(parts) != list(range(max(1, len(parts)))):
        there = ", ".join(map(str, sorted(parts))) or "none"
        raise CheckpointError(
            f"{folder} holds the pipeline parts {there}: give them all, model_tp0_pp0.pt first"
        )
    if others := sorted(path.name for path in folder.glob("model_tp[1-9]*_pp*.pt")):
        raise CheckpointError(
            f"{folder} is split over several tensor-parallel ranks ({', '.join(others)}): give a "
            "training of one rank"
        )
    return [parts[i] for i in sorted(parts)]


def _pipeline(parts: list[Path]) -> tuple[State, int]:
    """The state of all parts, and their number of layers: each part counts its layers from 0."""
    state, before = {}, 0
    for path in parts:
        last = -1
        for key, value in read_state(path, "state_dict", "model").items():
            key = key.removeprefix("model.")
            if match := re.match(r"blocks\.(\d+)\.", key):
                last = max(last, int(match[1]))
                key = f"blocks.{int(match[1]) + before}.{key[match.end() :]}"
            state[key] = value
        before += last + 1
    return state, before


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


def _training_name(key: str) -> str:
    for name, training_name in _NAMES.items():
        key = key.replace(name, training_name)
    return key


def _read(folder: Path) -> State:
    state = read_state(weights_in(folder, "model.safetensors", WEIGHTS))
    return {k: v for k, v in state.items() if not k.endswith("rotary_emb.inv_freq")}


def _filled(model: PreTrainedModel, state: State, folder: Path, released_name=str) -> PreTrainedModel:
    model.load_state_dict(match_keys(state, model.state_dict(), folder, released_name))
    return model


def save_delvm(llama: LlamaForCausalLM, folder: Path) -> None:
    """Writes a LLaMA in DeLVM's exported layout, the configuration last.

    Raises:
        ValueError: The model is of another kind.
    """
    config = llama.config
    if config.model_type != "llama":
        raise ValueError(
            f"a model of type {config.model_type!r} has no place in DeLVM's exported layout: give a LLaMA"
        )
    state = {key: value.detach().cpu() for key, value in llama.state_dict().items()}
    half = config.hidden_size // config.num_attention_heads // 2
    for i in range(config.num_hidden_layers):
        rate = ROPE_THETA ** (-torch.arange(half) / half)
        state[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = rate
    fields = {
        "model_type": "internlm",
        "architectures": ["InternLMForCausalLM"],
        "bias": config.attention_bias,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    fields |= {name: getattr(config, name) for name in (*_SIZES, "rms_norm_eps", "max_position_embeddings")}
    with atomic(folder / WEIGHTS) as temporary:
        torch.save(state, temporary)
    write_file(folder / "config.json", json.dumps(fields, indent=1) + "\n")
