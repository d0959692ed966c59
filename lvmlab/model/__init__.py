"""The models: `LVM`, a LLaMA over visual tokens, how it is prompted and decoded, and `PatchLM`, the model of
AIM.

Foreign checkpoints load here. It imports `utils/` and `tokenizer/`, and `world/` and `data/` at most."""
