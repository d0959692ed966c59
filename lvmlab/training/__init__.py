"""One loop on `accelerate`, and what it trains: tokenizers, LVMs, AIM; optimisers, recipes and what a
training costs.

Checkpoints resume after any interruption. It imports the rooms from `utils/` to `evaluation/`.
"""
