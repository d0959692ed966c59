"""Token models that the field has released and that no plain `transformers` folder holds: DeLVM's, as it is exported and as it trains.

Its LLaMA is `transformers`' with biases in q, k, v and o. Its ViT flavour (LayerNorm, GELU) is `transformers`' Starcoder2 under other names. A
training folder packs q, k and v in one matrix, counts layers anew in each pipeline part, and keeps the embedding in two factors.
"""

import json
import re
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Starcoder2Config, Starcoder2ForCausalLM

from lvmlab.checkpoints.files import CheckpointError, State, compared, read_config, read_state, weights_in
from lvmlab.files import atomic

WEIGHTS, CONTEXT, BASE = "pytorch_model.bin", 2048, 10_000.0
_PLAIN = {"tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "attn_implementation": "sdpa"}


def find(folder: Path) -> PreTrainedModel | None:
    """The model in a folder of DeLVM's, or None where it is no such folder. Raises CheckpointError."""
    if (folder / "model_config.pt").is_file():
        return training(folder)
    kind = read_config(folder / "config.json").get("model_type") if (folder / "config.json").is_file() else None
    return {"internlm": exported, "vit": vit}[kind](folder, read_config(folder / "config.json")) if kind in ("internlm", "vit") else None


def exported(folder: Path, config: dict) -> LlamaForCausalLM:
    """DeLVM's exported LLaMA."""
    shape = _llama(config, config.get("rms_norm_eps", 1e-6), config.get("bias", True), config.get("max_position_embeddings", CONTEXT))
    return _filled(LlamaForCausalLM(shape), _read(folder), folder)


def _llama(config: dict, eps: float, bias: bool, context: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=config["hidden_size"], intermediate_size=config["intermediate_size"], num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"], num_key_value_heads=config["num_attention_heads"], vocab_size=config["vocab_size"],
        rms_norm_eps=eps, attention_bias=bias, max_position_embeddings=context, rope_theta=BASE, **_PLAIN)  # fmt: skip


def vit(folder: Path, config: dict) -> Starcoder2ForCausalLM:
    """DeLVM's ViT flavour."""
    shape = Starcoder2Config(
        hidden_size=config["hidden_size"], intermediate_size=config["intermediate_size"], num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"], num_key_value_heads=config["num_attention_heads"], vocab_size=config["vocab_size"],
        norm_epsilon=config.get("norm_eps", 1e-6), hidden_act="gelu", use_bias=True, sliding_window=None, residual_dropout=0.0,
        embedding_dropout=0.0, attention_dropout=0.0, max_position_embeddings=config.get("max_position_embeddings", CONTEXT), rope_theta=BASE,
        **_PLAIN)  # fmt: skip
    model = Starcoder2ForCausalLM(shape)
    state = {k.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj"): v for k, v in _read(folder).items()}
    optional = [k for k in model.state_dict() if re.search(r"mlp\.c_(fc|proj)\.bias", k)] if not config.get("mlp_bias", False) else []
    optional += [k for k in model.state_dict() if re.search(r"self_attn\..*\.bias", k)] if not config.get("bias", True) else []
    return _filled(model, {k: torch.zeros_like(model.state_dict()[k]) for k in optional} | state, folder)


def training(folder: Path) -> LlamaForCausalLM:
    """DeLVM's training folder, tensor-parallel rank 0: layers in a row, q, k and v apart, the embedding's two factors as their product."""
    parts = sorted(folder.glob("model_tp0_pp*.pt"), key=lambda p: int(re.search(r"pp(\d+)", p.name)[1]))
    if not parts:
        raise CheckpointError(f"{folder} has model_config.pt and no model_tp0_pp0.pt: give the whole folder of the training")
    config = _plain(folder / "model_config.pt")
    state, before = {}, 0
    for part in parts:
        found = {k.removeprefix("model."): v for k, v in read_state(part, "state_dict", "model").items()}
        layers = [int(m[1]) for k in found if (m := re.match(r"blocks\.(\d+)\.", k))]
        state |= {re.sub(r"^blocks\.(\d+)\.", lambda m, before=before: f"blocks.{int(m[1]) + before}.", k): v for k, v in found.items()}
        before += max(layers, default=-1) + 1
    state = _renamed(state)
    missing = [k for k in ("model.embed_tokens.weight", "model.layers.0.mlp.gate_proj.weight") if k not in state]
    if missing:
        raise CheckpointError(f"{folder} holds no DeLVM training (missing: {', '.join(missing)}): it is damaged or of another network")
    vocab, width = state["model.embed_tokens.weight"].shape
    shape = _llama({"hidden_size": width, "intermediate_size": state["model.layers.0.mlp.gate_proj.weight"].shape[0], "num_hidden_layers": before,
                    "num_attention_heads": config["num_attention_heads"], "vocab_size": vocab}, config.get("layer_norm_epsilon", 1e-5),
                   "model.layers.0.self_attn.q_proj.bias" in state, CONTEXT)  # fmt: skip
    return _filled(LlamaForCausalLM(shape), state, folder)


_NAMES = {"mixer.out_proj": "self_attn.o_proj", "mlp.w1": "mlp.gate_proj", "mlp.w2": "mlp.up_proj", "mlp.w3": "mlp.down_proj",
          "norm1": "input_layernorm", "norm2": "post_attention_layernorm"}  # fmt: skip


def _renamed(state: State) -> State:
    found = {}
    for key, value in state.items():
        block = re.match(r"blocks\.(\d+)\.(.+)\.(weight|bias)$", key)
        if block and block[2] == "mixer.Wqkv":
            for name, rows in zip("qkv", value.chunk(3), strict=True):
                found[f"model.layers.{block[1]}.self_attn.{name}_proj.{block[3]}"] = rows.contiguous()
        elif block:
            found[f"model.layers.{block[1]}.{_NAMES.get(block[2], block[2])}.{block[3]}"] = value
        elif key == "embedding.embed_proj.weight" and "embedding.vq_model.quantize.embedding.weight" in state:
            found["model.embed_tokens.weight"] = state["embedding.vq_model.quantize.embedding.weight"].float() @ value.float().T
        elif key in ("norm.weight", "head.weight"):
            found[{"norm.weight": "model.norm.weight", "head.weight": "lm_head.weight"}[key]] = value
        elif not key.startswith("embedding.") and "inv_freq" not in key:
            found[key] = value  # to be named as unexpected
    return found


def _plain(path: Path) -> dict:
    try:
        config = torch.load(path, map_location="cpu", weights_only=True)
        return {"num_attention_heads": config["num_attention_heads"], **{k: v for k, v in config.items() if isinstance(v, (int, float, str, bool))}}
    except Exception as error:
        raise CheckpointError(f"{path} holds no plain model configuration ({str(error).splitlines()[0]}): it is damaged, or refused for what it "
                              "would run") from error


def _read(folder: Path) -> State:
    state = read_state(weights_in(folder, "model.safetensors", WEIGHTS))
    return {k: v for k, v in state.items() if not k.endswith("rotary_emb.inv_freq")}


def _filled(model: PreTrainedModel, state: State, where: Path) -> PreTrainedModel:
    model.load_state_dict(compared(state, model.state_dict(), where))
    return model


def save_delvm(llama: LlamaForCausalLM, folder: Path) -> None:
    """Writes a LLaMA in DeLVM's exported layout, the configuration last. Raises ValueError for a model of another kind."""
    config = llama.config
    if config.model_type != "llama":
        raise ValueError(f"a model of type {config.model_type!r} has no place in DeLVM's exported layout: give a LLaMA")
    state = {k: v.detach().cpu() for k, v in llama.state_dict().items()}
    half = config.hidden_size // config.num_attention_heads // 2
    rotary = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": BASE ** (-torch.arange(half) / half) for i in range(config.num_hidden_layers)}
    with atomic(folder / WEIGHTS) as temporary:
        torch.save(state | rotary, temporary)
    fields = {k: getattr(config, k) for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
                                              "rms_norm_eps", "max_position_embeddings")}  # fmt: skip
    with atomic(folder / "config.json") as temporary:
        temporary.write_text(json.dumps({"model_type": "internlm", "architectures": ["InternLMForCausalLM"], "bias": config.attention_bias,
                                         "hidden_act": "silu", "tie_word_embeddings": False, **fields}, indent=1) + "\n")  # fmt: skip
