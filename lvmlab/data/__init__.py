"""From pairs of pictures to training tokens: readers of public data sets, augmentation, the token store,
mixtures, token files.

A store holds one row a pair. It imports `utils/`, `world/` and `tokenizer/`."""
