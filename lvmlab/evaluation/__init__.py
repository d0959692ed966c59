"""How good an answer is: scores between floor and ceiling, sensitivity to the prompt, probes of features.

Nothing here trains a model of the lab. It imports the rooms from `utils/` to `distillation/`."""
