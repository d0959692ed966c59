"""Training an LVM on visual sentences: which tokens weigh how much, and how long the sentences are when.

All tokens of a sentence are targets; a token of a picture that nothing before it foretells (an input
photograph) weighs
little, one of an answer weighs fully. A short context first and the full one last costs less for the same
reading.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from lvmlab.data.mixture import Mixture
from lvmlab.data.store import Store
from lvmlab.distillation.objectives import Objective, check, criterion
from lvmlab.distillation.teacher import Frozen, said
from lvmlab.model.config import LVM_PRESETS, LVMConfig
from lvmlab.model.embedding import factor, fold
from lvmlab.model.generation import complete_tokens
from lvmlab.model.initialisation import init_from_codebook, init_from_grid
from lvmlab.model.lora import adapt, merge
from lvmlab.model.loss import cross_entropy
from lvmlab.model.lvm import LVM
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.training.checkpoints import CHECKPOINT, load_checkpoint, read_log
from lvmlab.training.cpu_attention import by_blocks
from lvmlab.training.loop import TrainConfig, train
from lvmlab.utils.checks import check_fields
from lvmlab.utils.device import default_device

NATURAL = {
    "derain": 0.3,
    "motion": 0.4,
}  # photographs: many tokens would do nearly as well as the true one, so their loss is mostly noise
_OF_SHAPE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "attention_bias",
    "rms_norm_eps",
)
_NOT_SHAPE = (
    "training",
    "transformers_version",
    "tokenizer_fingerprint",
    "dtype",
    "architectures",
)  # of a model's configuration
SHARES = {"segmentation": 0.30, "selection": 0.22, "pose": 0.28, "derain": 0.06, "motion": 0.14}


@dataclass(frozen=True)
class LVMRecipe:
    """``tokens`` a step at every length; ``phases`` (share of the steps, pairs in a sentence), in order.

    image_weight: of the tokens of inputs. answer_weights: of the answers of the tasks it names, 1 for the
        others.
    corruption_rate: the share of answers that are read disturbed, see `corrupt_answers`. permute_label_codes: the share of a task's
        sentences whose labels are written
    in other codes, see `permute_label_codes`. grid_start: see `lvmlab.model.initialisation.init_from_grid`.
    mixture: which task a sentence is of, see `lvmlab.data.mixture`. mixed: the share of sentences in which
        every pair is of a task of its own.
    """

    tokens: int = 4096
    phases: tuple[tuple[float, int], ...] = ((0.6, 4), (1.0, 8))
    image_weight: float = 0.1
    answer_weights: dict[str, float] = field(default_factory=lambda: dict(NATURAL))
    corruption_rate: float = 0.8
    permute_label_codes: dict[str, float] = field(default_factory=dict)
    grid_start: bool = True
    mixture: Mixture = Mixture("balanced", weights=SHARES)
    mixed: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "phases", tuple(tuple(p) for p in self.phases))
        ends = [end for end, _ in self.phases]
        good = (
            bool(ends)
            and ends == sorted(ends)
            and ends[-1] == 1.0
            and all(pairs >= 1 for _, pairs in self.phases)
        )
        check_fields(self, phases=(good, "(end, pairs), ends rising to 1.0 and at least one pair"))
        check_fields(
            self,
            **{
                share: (0 <= getattr(self, share) <= 1, "a share from 0 to 1")
                for share in ("corruption_rate", "mixed")
            },
            image_weight=(self.image_weight >= 0, "0 or more"),
        )

    def pairs(self, step: int, steps: int) -> int:
        return next(pairs for end, pairs in self.phases if step < end * steps or end == 1.0)


def weights(names: list[str], pairs: int, tokens: int, recipe: LVMRecipe, pictures: dict[str, int]) -> Tensor:
    """(B, pairs * 2 * tokens): the recipe's weights of answers and inputs. pictures: in a row of each task,
    see `lvmlab.data.store.Rows`.

    In a clip all frames after two are answers; of single images, which answer nothing, all weigh fully.
    """
    rows = torch.full((len(names), pairs, 2), recipe.image_weight)
    for row, name in zip(rows, names, strict=True):
        answers = row[:, 1] if pictures[name] == 2 else row[1:] if pictures[name] > 2 else row
        answers[:] = recipe.answer_weights.get(name, 1.0)
    return rows.flatten(1).repeat_interleave(tokens, 1)


def corrupt_answers(tokens: Tensor, pairs: int, share: float, rng: np.random.Generator) -> Tensor:
    """Sentences (B, T) as they are read in training: in a ``share`` of the answers some tokens are exchanged.

    What a label has shown so far foretells its next token so well that a model learns to go by it and looks
    at the picture too
    little; its own first mistakes then carry it away (exposure bias, arXiv 1506.03099). So some tokens, none
    to all of an answer,
    become tokens from elsewhere in the sentence's answers: each another, or all the same one; or the answer
    is another pair's as
    a whole, which looks right and is wrong, so that only the picture can tell. What is to be written stays
    true.
    """
    read = tokens.numpy().copy().reshape(len(tokens), pairs, 2, -1)
    for row in read:
        answers = row[:, 1].copy()
        for i, answer in enumerate(row[:, 1]):
            if rng.random() < share:
                kind, rate = rng.integers(3), rng.random()
                if kind == 0:
                    answer[:] = answers[(i + rng.integers(pairs)) % pairs]
                else:
                    drawn = rng.choice(answers.ravel(), answer.shape if kind == 1 else 1)
                    answer[:] = np.where(rng.random(answer.shape) < rate, drawn, answer)
    return torch.from_numpy(read.reshape(len(tokens), -1))


def permute_label_codes(
    tokens: Tensor,
    names: list[str],
    pairs: int,
    shares: dict[str, float],
    codes: np.ndarray,
    rng: np.random.Generator,
) -> Tensor:
    """Sentences (B, T) where, in ``shares`` of each task's, the labels' codes are exchanged for others, alike
    in all of its labels.

    Which codes mean object and ground is then to be read from the prompt alone: no colour that training
        happened to show is of use, and
    a colour that it never showed is copied like any other. codes: those that may be written; the others stay
    as they are.
    """
    written = tokens.numpy().copy().reshape(len(tokens), pairs, 2, -1)
    for row, name in zip(written, names, strict=True):
        if rng.random() < shares.get(name, 0.0):
            table = np.arange(max(codes.max(), row.max()) + 1)
            table[codes] = rng.permutation(codes)
            row[:, 1] = table[row[:, 1]]
    return torch.from_numpy(written.reshape(len(tokens), -1))


class SentenceSampler:
    """Training batches drawn from a token store as a recipe says, each a function of its place alone.

    codes: that `permute_label_codes` may write; None: all.
    """

    def __init__(
        self,
        store: str | Path,
        recipe: LVMRecipe,
        *,
        steps: int,
        seed: int,
        tokens_per_image: int = 64,
        codes: np.ndarray | None = None,
    ):
        self.data = Store(store, copies=recipe.mixture.most_copies)
        self.recipe, self.steps, self.seed, self.n, self.codes = recipe, steps, seed, tokens_per_image, codes
        self.counts, self.pictures = (
            self.data.counts(),
            {"mixed": 2} | {task: rows.pictures for task, rows in self.data.tasks.items()},
        )

    @property
    def identity(self) -> dict:
        return {"recipe": asdict(self.recipe), "store": self.data.meta} | (
            {} if self.codes is None else {"codes": len(self.codes)}
        )

    def __call__(self, step: int, part: int, parts: int) -> dict:
        """{tokens (B, T), read (B, T), weights (B, T), tasks and sources of each} of one of a step's parts."""
        pairs, number = self.recipe.pairs(step, self.steps), step * parts + part
        size = max(1, self.recipe.tokens // (parts * pairs * 2 * self.n))
        shares = self.recipe.mixture.shares(self.counts, step, self.steps)
        tokens, names, rows = self.data.batch(number, size, pairs, shares, self.seed, self.recipe.mixed)
        if self.recipe.permute_label_codes:
            tokens = permute_label_codes(
                tokens,
                names,
                pairs,
                self.recipe.permute_label_codes,
                self.codes,
                np.random.default_rng((self.seed, number, 2)),
            )
        read = corrupt_answers(
            tokens, pairs, self.recipe.corruption_rate, np.random.default_rng((self.seed, number, 1))
        )
        return {
            "tokens": tokens,
            "read": read,
            "weights": weights(names, pairs, self.n, self.recipe, self.pictures),
            "tasks": names,
            "rows": rows,
        }

    def batch_sources(self, batch: dict) -> str:
        """The sources of a batch's sentences."""
        return "; ".join(
            f"{task}: {', '.join(self.data.sources(task, rows))}"
            for origin in batch["rows"]
            for task, rows in origin
        )


def train_lvm(
    store: str | Path | Frozen,
    folder: str | Path,
    *,
    shape: str | LVMConfig | None = None,
    config: TrainConfig,
    recipe: LVMRecipe | None = None,
    tokens_per_image: int = 64,
    codebook: Tensor | None = None,
    codes: np.ndarray | None = None,
    start: str | Path | LVM | None = None,
    lora: int = 0,
    teacher: LVM | None = None,
    objective: Objective | None = None,
    on_log: Callable[[dict, LVM], None] | None = None,
    compiled: bool = False,
    factored: bool = False,
    checkpointing: bool = False,
    budget_s: float | None = None,
    progress: bool = True,
) -> list[dict]:
    """Trains an LVM of a shape, or one that is trained already, on a token store and returns the log; resumes
    from ``folder``, where
    `load_lvm` then finds the model and `export_lvm` makes one of it that plain `transformers` loads.

    store: a store's folder, or sentences that are drawn already (`lvmlab.distillation.teacher.Frozen`; the
        recipe then gives their pairs alone).
    codes: that `permute_label_codes` may write; None: all. codebook: (K, D), the tokenizer's: embedding and head start
        from it (`lvmlab.model.initialisation.init_from_codebook`).
    start: what to go on from, with a fresh optimiser and sentences that no stage before has seen in this
        order: the folder of an earlier
        training, all that `LVM.from_pretrained` takes (DeLVM's models and LVM's among it), or a loaded model,
        which is trained in place. Its
        shape is its own; a ``shape`` given as well must be the same.
    lora: the rank of the adapters that are trained in the place of all weights (`lvmlab.model.lora`); 0:
        none. They are merged when it is loaded.
    objective: what to learn from a teacher, which is ``teacher`` or the cache of frozen sentences
        (`lvmlab.distillation.objectives`); DeLVM's by default.
    on_log: called with each record, to which it may add, and the model as it is then.
    compiled: each layer under torch.compile: 1.3 times as fast on a CPU with bf16 units, but it wants a C++
        compiler and half a minute.
    factored: an embedding of two factors, the codebook frozen (`lvmlab.model.embedding`; DeLVM's).
        checkpointing: activations are worked out again in the
        backward pass, for a third more time and a fraction of the memory.
    """
    recipe = recipe or LVMRecipe()
    if shape is None and start is None:
        raise ValueError("give the shape of a new model, or start, a trained one to go on from")
    model, frozen = (
        LVM.from_shape(shape, seed=config.seed) if start is None else load_start(start),
        isinstance(store, Frozen),
    )
    before = (getattr(model.config, "training", None) or {}).get("stages", [])
    origin = {} if shape else {"start": model.fingerprint()}
    wanted = (LVM_PRESETS[shape] if isinstance(shape, str) else shape).to_llama() if shape else model.config
    if differ := [
        f"{k}={getattr(model.config, k, None)!r} for {getattr(wanted, k, None)!r}"
        for k in _OF_SHAPE
        if getattr(model.config, k, None) != getattr(wanted, k, None)
    ]:
        raise ValueError(
            f"start is of another shape than shape={shape!r} ({', '.join(differ)}): leave shape out, the "
            f"model brings its own"
        )
    codes = np.arange(model.vocab_size) if codes is None and recipe.permute_label_codes else codes
    batches = (
        store
        if frozen
        else SentenceSampler(
            store,
            recipe,
            steps=config.steps,
            seed=config.seed + 1000 * len(before),
            tokens_per_image=tokens_per_image,
            codes=codes,
        )
    )
    longest = max(pairs for _, pairs in recipe.phases)
    if longest * 2 * tokens_per_image > model.max_seq_len:
        raise ValueError(
            f"sentences of {longest} pairs are {longest * 2 * tokens_per_image} tokens, the model reads "
            f"{model.max_seq_len}: at most "
            f"{model.max_seq_len // (2 * tokens_per_image)} pairs in LVMRecipe.phases"
        )
    if factored and (codebook is None or start is not None):
        raise ValueError(
            "a factored embedding starts from a codebook, at the first stage: give codebook, and no start"
        )
    if codebook is not None and start is None:
        init_from_codebook(model, codebook, seed=config.seed)
    if factored:
        factor(model, codebook, seed=config.seed)
    if checkpointing:
        model.llama.gradient_checkpointing_enable({"use_reentrant": False})
    if recipe.grid_start and start is None:
        init_from_grid(model, tokens_per_image)
    if lora:
        adapt(model, lora, seed=config.seed)
    said_by = (
        _taught(model, batches, teacher, objective, config.seed, tokens_per_image)
        if teacher or objective or frozen and store.cache
        else None
    )
    if not checkpointing:  # who wants little memory gets the kernel that takes little
        by_blocks(model.llama)
    if compiled:
        for layer in model.llama.model.layers:
            layer.compile(dynamic=False)
    drawn = Counter()

    def loss(net, batch: dict) -> tuple[Tensor, dict[str, float]]:
        drawn.update(batch["tasks"])
        batch, criterion = said_by(batch) if said_by else (batch, cross_entropy)
        value = net(batch["read"], batch["tokens"], batch["weights"], loss_fn=criterion)
        return value, {"items": float(batch["tokens"].numel())}

    def log(record: dict) -> None:
        record["shares"] = {
            task: round(count / drawn.total(), 4) for task, count in sorted(drawn.items())
        }  # realised since the last record
        drawn.clear()
        if on_log:
            on_log(record, model)

    named = (
        asdict(shape)
        if isinstance(shape, LVMConfig)
        else shape or {k: v for k, v in model.config.to_diff_dict().items() if k not in _NOT_SHAPE}
    )
    identity = {"shape": named, **batches.identity, "codebook": codebook is not None, **origin}
    identity |= {"stages": before} if start is not None else {}
    identity |= {"lora": lora} if lora else {}
    identity |= {"factored": True} if factored else {}
    if said_by:
        identity |= {
            "objective": asdict(objective or Objective()),
            "teacher": teacher.fingerprint() if teacher else identity.get("teacher"),
        }
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


def _taught(
    model: LVM, batches, teacher: LVM | None, objective: Objective | None, seed: int, n: int
) -> Callable[[dict], tuple[dict, Callable]]:
    """What makes a batch (and the criterion it is held to) of a batch: with the teacher's word on it. Raises
    ValueError where that cannot be had.
    """
    objective = objective or Objective()
    if teacher is None:
        cache = getattr(batches, "cache", None)
        check(objective, cache.word(np.arange(1)) if cache else None)
    else:
        if teacher.vocab_size != model.vocab_size:
            raise ValueError(
                f"the teacher speaks {teacher.vocab_size} codes, the student {model.vocab_size}: give two models of "
                f"one tokenizer"
            )
        teacher = teacher.to(default_device()).eval().requires_grad_(False)
    projection = None
    if objective.name == "hidden" and teacher.config.hidden_size != model.config.hidden_size:
        projection = model.projection = nn.Linear(
            model.config.hidden_size, teacher.config.hidden_size, bias=False
        )

    def of(batch: dict) -> tuple[dict, Callable]:
        weights = None
        if objective.name == "own":
            batch, weights = _own_answers(model, batch, objective.share, seed, n)
        word = said(teacher, batch["read"]) if teacher is not None else batch.get("word")
        return batch, criterion(objective, word, weights=weights, projection=projection)

    return of


def _own_answers(model: LVM, batch: dict, share: float, seed: int, n: int) -> tuple[dict, Tensor]:
    """A batch in which the student has written the last answer of some sentences, and the divergence's
    weights (M,): of those answers alone.

    What it wrote is no target of the cross entropy.
    """
    tokens, read, weights = (batch[name].clone() for name in ("tokens", "read", "weights"))
    own = max(1, round(share * len(tokens)))
    rng = torch.Generator().manual_seed(int(tokens.sum()) + seed)  # a function of the batch
    with torch.compiler.set_stance("force_eager"):  # each new length would be compiled
        written = (
            complete_tokens(model, tokens[:own, :-n], n, sample=True, generator=rng).tokens[:, 0].clone()
        )
    read[:own], tokens[:own, -n:] = torch.cat([tokens[:own, :-n], written], 1), written
    weights[:own, -n:] = 0
    divergence = torch.zeros_like(weights)
    divergence[:own, -n:] = 1 / (own * n)
    return batch | {"tokens": tokens, "read": read, "weights": weights}, divergence[:, 1:].flatten()


def stages(folder: str | Path) -> list[dict]:
    """What made a model, in order: {steps, tokens, hours, device, loss} of each stage. folder: of a training."""
    checkpoint, log = load_checkpoint(folder), read_log(folder)
    more, last = checkpoint["identity"]["more"], log[-1]
    device = next((record["device"] for record in log if "device" in record), "unknown")
    own = {
        "steps": checkpoint["step"],
        "tokens": checkpoint["step"] * more["recipe"]["tokens"],
        "hours": round(last["seconds"] / 3600, 3),
        "device": device,
        "loss": round(last.get("mean_loss", last["loss"]), 4),
    }
    return [*more.get("stages", []), own]


def load_start(start: str | Path | LVM) -> LVM:
    """What a training goes on from, on the CPU: all that `LVM.from_pretrained` takes, or the folder of a
    training.
    """
    if isinstance(start, LVM):
        return start
    if not (Path(start) / CHECKPOINT).is_file():
        return LVM.from_pretrained(start, device="cpu")
    model = load_lvm(start)
    model.config.training = {"stages": stages(start)}
    return model


def load_lvm(folder: str | Path) -> LVM:
    """The model of a training folder's latest checkpoint, on the CPU, adapters merged. Raises TrainingError
    where there is none.
    """
    checkpoint = load_checkpoint(folder)
    shape = checkpoint["identity"]["more"]["shape"]
    if "model_type" in shape:  # a pretrained model's own
        model = LVM(AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape)))
    else:
        model = LVM.from_shape(shape if isinstance(shape, str) else LVMConfig(**shape))
    state = merge(fold(checkpoint["model"]))
    model.load_state_dict(
        {k: v for k, v in state.items() if not k.startswith("projection.")}
    )  # that served the training alone
    return model.eval()


def export_lvm(folder: str | Path, out: str | Path) -> LVM:
    """The latest checkpoint of a training folder as a pretrained model in ``out``: weights, configuration,
    log, card.
    """
    checkpoint, log = load_checkpoint(folder), read_log(folder)
    identity = checkpoint["identity"]
    more = identity["more"]
    model = load_lvm(folder)
    model.config.training = (
        {k: v for k, v in identity.items() if k != "more"} | more | {"stages": stages(folder)}
    )
    thinned = log[:: max(1, len(log) // 200)] + log[-1:]
    model.save_pretrained(
        out, tokenizer_fingerprint=more["store"]["tokenizer"], log=thinned, card=card(model, Path(out).name)
    )
    return LVM.from_pretrained(out)


def push_lvm(model: LVM, repo: str, **options) -> str:
    """Uploads a model that `export_lvm` wrote, and its card, to the hub through `transformers`; returns the
    address. options: private, token, ...
    """
    from huggingface_hub import ModelCard

    where = model.llama.push_to_hub(repo, **options)
    ModelCard(card(model, repo)).push_to_hub(repo, token=options.get("token"))
    return str(where)


def card(model: LVM, name: str) -> str:
    """The model card: what it is, what it was trained on, from which teacher, and for how long. name: that it
    is loaded by.
    """
    training = model.config.training
    made, spoken = training["stages"], training["store"]["tokenizer"]
    mixture = training["recipe"].get("mixture", {})
    shares = training["recipe"].get("shares") or mixture.get("weights") or mixture["scheme"]
    devices = ", ".join(dict.fromkeys(stage["device"] for stage in made))
    tokens, hours = (sum(stage[k] for stage in made) for k in ("tokens", "hours"))
    staged = f", in {len(made)} stages (log.json is the last one's)" if len(made) > 1 else ""
    ours = (
        spoken == Tokenizer.from_pretrained("mini", device="cpu").fingerprint
    )  # no model from elsewhere speaks its tokens
    how = (
        "Fine-tuned" + (f" through adapters of rank {training['lora']}" if "lora" in training else "")
        if "start" in training
        else "Trained"
    )
    how += (
        f", from a teacher ({training['teacher']}) by `{training['objective']['name']}`,"
        if training.get("teacher")
        else ""
    )
    origins = training["store"].get("tasks", {"": training["store"]})
    named = dict.fromkeys(
        f"{o['world']}'s training sources alone" if "world" in o else task for task, o in origins.items()
    )
    known = "It knows scenes of mini-world and little else. " * all("world" in o for o in origins.values())
    terms = known + (
        "Licence Apache-2.0; the pictures' credits are in `assets/CREDITS.md`."
        if ours and known
        else "Its licence is that of the model it was tuned from."
        if "start" in training
        else "Its licence is yours to choose."
    )
    return (
        (Path(__file__).parent / "cards" / "lvm.md")
        .read_text(encoding="utf-8")
        .format(
            licence="apache-2.0" if ours and known else "other",
            name=name,
            how=how,
            terms=terms,
            hours=hours,
            tokenizer="mini" if ours else "FOLDER",
            fingerprint=spoken,
            millions=model.num_parameters / 1e6,
            context=model.max_seq_len,
            origin=" and ".join(named),
            tokens=tokens / 1e6,
            devices=devices,
            staged=staged,
            loss=made[-1]["loss"],
            shares=json.dumps(shares),
        )
    )
