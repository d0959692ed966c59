"""Pictures to tokens and back: the `Tokenizer`, the VQGAN behind it, and the layouts in which others publish
theirs.

Training one lives in `training/`. It imports `utils/`."""
