"""Training an LVM on visual sentences, alone or from a teacher.

The model is prepared before (`lvmlab.training.preparation`), the sentences come from a sampler
(`lvmlab.training.sampler`) or a frozen list (`lvmlab.distillation.cache`). What every training needs is
checked here, once, before any work.
"""

import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor, nn
from transformers import LlamaConfig

from lvmlab.distillation.cache import FrozenSentences
from lvmlab.distillation.objectives import Distillation, check_predictions, distillation_loss
from lvmlab.distillation.teacher import teacher_outputs
from lvmlab.model.config import LVM_PRESETS
from lvmlab.model.lvm import LVM
from lvmlab.training.cpu_layers import use_fastest_layers
from lvmlab.training.loop import TrainConfig, train
from lvmlab.training.preparation import earlier_stages
from lvmlab.training.sampler import SentenceSampler, write_answers
from lvmlab.utils.device import default_device, precision

# of a model's configuration: what a training notes itself, or transformers
_NOT_SHAPE = ("training", "transformers_version", "tokenizer_fingerprint", "dtype", "architectures")


def train_lvm(
    model: LVM,
    batches: SentenceSampler | FrozenSentences,
    folder: str | Path,
    config: TrainConfig,
    distillation: Distillation | None = None,
    *,
    teacher: LVM | None = None,
    on_log: Callable[[dict, LVM], None] | None = None,
    budget_s: float | None = None,
    progress: bool = True,
) -> list[dict]:
    """Trains a model in place; resumes from the folder's checkpoint.

    `lvmlab.training.export.load_lvm` reads the folder afterwards, and `export_lvm` writes a model that plain
    `transformers` loads.

    Args:
        model: Fresh or trained, see `lvmlab.training.preparation`.
        batches: The sentences.
        folder: Of checkpoint and log.
        config: How to optimise.
        distillation: The loss, where it is not cross entropy alone.
        teacher: The model to learn from, of the same tokenizer; not needed where ``batches`` have its
            predictions.
        on_log: Is called with each record, to which it may add, and the model as it is then.
        budget_s: Stop, with a checkpoint, after so many seconds of this call.
        progress: Show a bar.

    Returns:
        The log: records of `lvmlab.training.loop.train`, with "shares", the tasks' shares of the sentences
        since the last record.

    Raises:
        ValueError: Model, sentences and teacher do not fit each other; the message says what to give.
        TrainingError: See `lvmlab.training.loop.train`.
    """
    if distillation is None and (teacher is not None or getattr(batches, "cache", None)):
        distillation = Distillation()
    check_length(model, batches)
    check_tokenizers(model, batches, teacher)
    identity = lvm_identity(model, batches, distillation, teacher)

    # how the layers and the loss are computed
    tokens = config.steps * batches.tokens_per_step
    use_fastest_layers(model.llama, tokens=tokens, bf16=precision(config.precision) == "bf16")
    step = plain_step if distillation is None else make_distillation_step(distillation, batches, teacher)
    counts = Counter()

    def loss(net: nn.Module, batch: dict) -> tuple[Tensor, dict[str, float]]:
        counts.update(batch["tasks"])
        if batches.on_policy:
            batch = write_answers(model, batch, batches.on_policy, config.seed, batches.tokens_per_image)
        return step(net, batch), {"items": float(batch["tokens"].numel())}

    def log(record: dict) -> None:
        record["shares"] = {task: round(n / counts.total(), 4) for task, n in sorted(counts.items())}
        counts.clear()
        if on_log:
            on_log(record, model)

    return train(
        model,
        batches,
        loss,
        config,
        folder,
        log,
        identity=identity,
        batch_sources=batches.batch_sources,
        budget_s=budget_s,
        progress=progress,
    )


def plain_step(net: nn.Module, batch: dict) -> Tensor:
    """The cross entropy of a batch."""
    return net(batch["inputs"], batch["tokens"], batch["weights"])


def make_distillation_step(
    distillation: Distillation, batches: SentenceSampler | FrozenSentences, teacher: LVM | None = None
) -> Callable[[nn.Module, dict], Tensor]:
    """The loss of a batch, with the predictions of a teacher or of the sentences' cache.

    Raises:
        ValueError: Neither has what the divergence needs.
    """
    if teacher is not None:
        teacher = teacher.to(default_device()).eval().requires_grad_(False)
    else:
        cache = getattr(batches, "cache", None)
        check_predictions(distillation, cache.predictions([0]) if cache else None)
    if batches.on_policy and teacher is None:
        raise ValueError("on_policy needs the teacher itself, a cache does not have the student's answers")

    def step(net: nn.Module, batch: dict) -> Tensor:
        predictions = batch.get("predictions")
        if teacher is not None:
            predictions = teacher_outputs(teacher, batch["inputs"])
        elif predictions is not None:
            predictions = predictions.to(batch["inputs"].device)
        loss_fn = partial(
            distillation_loss,
            distillation=distillation,
            predictions=predictions,
            kd_weights=batch.get("kd_weights"),
        )
        return net(batch["inputs"], batch["tokens"], batch["weights"], loss_fn=loss_fn)

    return step


def check_length(model: LVM, batches: SentenceSampler | FrozenSentences) -> None:
    """Raises ValueError where the longest sentence does not fit the model's context, or a class has too few
    rows.
    """
    longest, most = batches.longest, model.max_seq_len
    if longest > most:
        pair = 2 * (batches.tokens_per_image or longest // 2)
        raise ValueError(
            f"sentences of {longest // pair} pairs are {longest} tokens, the model reads {most}: at most "
            f"{most // pair} pairs in LVMRecipe.phases"
        )
    if isinstance(batches, SentenceSampler):
        batches.check_rows()


def check_tokenizers(
    model: LVM, batches: SentenceSampler | FrozenSentences, teacher: LVM | None = None
) -> None:
    """Holds the tokenizers of sentences, model and teacher against each other, by fingerprint.

    Fresh weights take the sentences' tokenizer. Models from elsewhere carry no fingerprint: one warning, and
    the teacher's codes are counted.

    Raises:
        ValueError: Two of them are of different tokenizers; the message names both.
    """
    tokenizer = batches.tokenizer
    if model.tokenizer_fingerprint is None and "start" not in model.preparation:
        model.config.tokenizer_fingerprint = tokenizer
    for name, other in (("model", model), ("teacher", teacher)):
        if other is None or tokenizer is None:
            continue
        if other.tokenizer_fingerprint is None:
            warnings.warn(
                f"the {name} does not say which tokenizer it was trained on; the sentences are of "
                f"{tokenizer}",
                stacklevel=3,
            )
        elif other.tokenizer_fingerprint != tokenizer:
            raise ValueError(
                f"the {name} was trained on the tokens of tokenizer {other.tokenizer_fingerprint}, the "
                f"sentences are "
                f"of {tokenizer}: the same ids mean other things; tokenise the pictures with the {name}'s "
                f"tokenizer, "
                f"or give another {name}"
            )
    if teacher is not None and teacher.vocab_size != model.vocab_size:
        raise ValueError(
            f"the teacher has {teacher.vocab_size} codes, the student {model.vocab_size}: give two models of "
            f"one "
            "tokenizer"
        )


def lvm_identity(
    model: LVM,
    batches: SentenceSampler | FrozenSentences,
    distillation: Distillation | None,
    teacher: LVM | None,
) -> dict:
    """All that decides a training's outcome besides its `TrainConfig`."""
    identity = {"shape": shape_identity(model), **batches.identity, **model.preparation}
    if "start" in model.preparation:
        identity["stages"] = earlier_stages(model)
    if distillation is not None:
        identity["distillation"] = distillation.identity
        identity["teacher"] = teacher.fingerprint() if teacher else identity.get("teacher")
    return identity


def shape_identity(model: LVM) -> str | dict:
    """The name of the model's shape where nothing of it was changed, else its configuration."""

    def fields(config: LlamaConfig) -> dict:
        return {k: v for k, v in config.to_diff_dict().items() if k not in _NOT_SHAPE}

    preset = LVM_PRESETS.get(model.shape)
    same = preset and fields(preset.to_llama(lvm_shape=model.shape)) == fields(model.config)
    return model.shape if same else fields(model.config)
