"""The models: `LVM`, a LLaMA over visual tokens, with its loss, prompting and generation, and `PatchLM`,
AIM's model over patches.

Foreign checkpoints load here. It imports `utils/` and `tokenizer/`, and `world/` and `data/` at most.
"""
