"""How good an answer is: jobs and their prompts, scores and skill, perplexity, inspection, sensitivity,
features and probes.

Nothing here trains a model of the lab. It imports the rooms from `utils/` to `distillation/`.
"""
