"""The perception ceiling: what a small specialist with full supervision reaches from a tokenizer's codes.

    lvmlab perception mini-v2
    rows = perception(Tokenizer.from_pretrained("mini-v2"), ["segmentation", "pose"])["rows"]

A score of a language model is bounded by what its tokens still know. For each task a specialist is trained
to answer from the pixels, from the picture after the tokenizer's round trip, and from the codes alone,
embedded afresh; scored on val. The one for pixels trains until val gains under 1 % over its last quarter,
the others get as many steps and examples. The perception ceiling is the score from the codes.
"""

import functools
import hashlib
import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lvmlab.data.truths import class_map
from lvmlab.evaluation.statistics import resample
from lvmlab.lab import runs
from lvmlab.lab.specialists import GOALS, PAIRS, CodeReader, Goal, Specialist, UNet
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.training.checkpoints import CHECKPOINT, load_checkpoint, read_log
from lvmlab.training.loop import TrainConfig, train
from lvmlab.utils import images, paths
from lvmlab.utils.checks import check_fields
from lvmlab.world import Laws, default, of_size, tasks
from lvmlab.world.encodings import Encoding
from lvmlab.world.sentences import sentence
from lvmlab.world.tasks.base import Pair

STUDY, VERSION = "perception", 1
INPUTS = ("pixels", "round trip", "codes")
FRAMES = 3  # of a clip, from which the next one is answered


@dataclass(frozen=True)
class Scale:
    """How much a specialist sees.

    Args:
        examples: drawn once for training.
        val: drawn once for scores.
        steps: the most that the specialist for pixels trains.
        round: steps between its scores on val.
        batch: examples a step.
        gain: over its last quarter on val, below which it stops.
        lr: of all steps after the warm-up.
    """

    examples: int = 12_000
    val: int = 300
    steps: int = 2400
    round: int = 100
    batch: int = 32
    gain: float = 0.01
    lr: float = 1e-3

    def __post_init__(self):
        sizes = {k: getattr(self, k) for k in ("examples", "val", "steps", "round", "batch")}
        whole = {k: (isinstance(v, int) and v > 0, "a positive integer") for k, v in sizes.items()}
        check_fields(self, **whole, gain=(self.gain >= 0, "0 or more"), lr=(self.lr > 0, "more than 0"))


SCALES = {"smoke": Scale(examples=48, val=8, steps=4, round=2, batch=4), "study": Scale()}


@dataclass
class Examples:
    """Pairs of one task as a specialist reads them.

    pictures uint8 (N, k, S, S, 3); targets (N, ...) as the goal wants them; conditions float (N, C) or
    None; pairs and encodings, for the scores, of val alone.
    """

    pictures: np.ndarray
    targets: np.ndarray
    conditions: np.ndarray | None = None
    pairs: list[Pair] | None = None
    encodings: list[Encoding] | None = None

    def __len__(self) -> int:
        return len(self.pictures)


def draw(task: str, split: str, count: int, laws: Laws, workers: int = 2) -> Examples:
    """``count`` examples of a task from mini-world, two under one encoding; of a clip the frames before
    the query's label.
    """
    one = functools.partial(_draw, task, split, laws)
    jobs = range(-(-count // _per_sentence(task)))
    if workers:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            found = [row for rows in pool.map(one, jobs, chunksize=8) for row in rows]
    else:
        found = [row for job in jobs for row in one(job)]
    pictures, targets, conditions, pairs, encodings = zip(*found[:count], strict=True)
    kept = split != "train"  # their pairs would take twice the memory
    return Examples(
        np.stack(pictures),
        np.stack(targets),
        None if conditions[0] is None else np.stack(conditions),
        list(pairs) if kept else None,
        list(encodings) if kept else None,
    )


def _per_sentence(task: str) -> int:
    return 1 if tasks.get(task).sequence else 2


def _draw(task: str, split: str, laws: Laws, index: int) -> list[tuple]:
    found = sentence(task, split, index, laws=laws, seed=4242, pairs=2)
    if tasks.get(task).sequence:
        frames = found.pictures()
        return [(frames[:FRAMES], frames[FRAMES], None, found.pairs[-1], found.encoding)]
    rows = []
    for pair in found.pairs:
        target, condition = _target(task, pair, GOALS[task], laws.size)
        rows.append((pair.image[None], target, condition, pair, found.encoding))
    return rows


def _target(task: str, pair: Pair, goal: Goal, size: int) -> tuple[np.ndarray, np.ndarray | None]:
    """What the specialist shall answer, and the condition that it is given."""
    if goal.kind == "joints":
        return (pair.truth["keypoints"] / size).astype(np.float32), None
    if goal.kind == "picture":
        return pair.label, None
    classes = class_map(pair.truth["masks"], pair.truth["classes"], size // goal.side(size))
    if goal.kind == "classes":
        return classes, None
    if task != "selection":
        return classes > 0, None
    names = default().classes
    chosen = names.index(pair.truth["class"])
    return classes == 1 + chosen, np.eye(len(names), dtype=np.float32)[chosen]


def own_pairs(rows: Iterable[np.ndarray], count: int) -> Examples:
    """The first ``count`` pairs uint8 (2, S, S, 3) of a reader as examples whose label is the answer."""
    found = [row for row, _ in zip(rows, range(count), strict=False)]
    pictures = np.stack(found)
    pairs = [Pair(p[0], p[1], {}, str(i)) for i, p in enumerate(found)]
    return Examples(pictures[:, :1], pictures[:, 1], None, pairs, [Encoding()] * len(pairs))


def inputs(kind: str, examples: Examples, tokenizer: Tokenizer, batch: int = 128) -> Tensor:
    """What a specialist reads: uint8 (N, 3 * k, S, S) of pixels or of the round trip, or tokens int32 (N,
    k * tokens).
    """
    read = []
    for part in np.array_split(examples.pictures, -(-len(examples) // batch)):
        pictures = images.from_uint8(part.reshape(-1, *part.shape[2:]))
        if kind == "codes":
            tokens = tokenizer.encode(pictures).int()
            read.append(tokens.unflatten(0, part.shape[:2]).flatten(1))
            continue
        shown = pictures if kind == "pixels" else tokenizer.round_trip(pictures)
        read.append((shown * 255).round().byte().unflatten(0, part.shape[:2]).flatten(1, 2))
    return torch.cat(read)


def specialist(kind: str, goal: Goal, examples: Examples, tokenizer: Tokenizer) -> Specialist:
    """A fresh specialist for a kind of input."""
    pictures = examples.pictures.shape[1]
    conditions = 0 if examples.conditions is None else examples.conditions.shape[1]
    if kind == "codes":
        shape = (tokenizer.size, tokenizer.grid, tokenizer.codebook_size)
        return Specialist(CodeReader(goal, *shape, pictures, conditions), goal)
    return Specialist(UNet(goal, tokenizer.size, pictures, conditions), goal)


def fit(
    kind: str,
    goal: Goal,
    task,
    data: dict[str, Examples],
    tokenizer: Tokenizer,
    scale: Scale,
    folder: Path,
    steps: int | None = None,
    progress: bool = True,
) -> tuple[np.ndarray, list[dict]]:
    """Trains one specialist and scores it on val.

    Args:
        kind: of `INPUTS`.
        goal: what it answers.
        task: whose score is meant; None: PSNR.
        data: "train" and "val".
        tokenizer: whose codes or round trip is read.
        scale: how much it sees.
        folder: gets the checkpoint, from which it resumes.
        steps: exactly so many; None: until val gains no more.
        progress: whether to show a bar.

    Returns:
        The score of each val example (N,), and the curve, rows {step, val}.
    """
    read = {split: inputs(kind, examples, tokenizer) for split, examples in data.items()}
    torch.manual_seed(0)
    model = specialist(kind, goal, data["train"], tokenizer)

    def batches(step: int, part: int, parts: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((step * parts + part, 0))
        index = rng.integers(len(read["train"]), size=scale.batch)
        return _batch(kind, read["train"], data["train"], index)

    def score() -> np.ndarray:
        model.eval()
        device, found = next(model.parameters()).device, []
        with torch.no_grad():
            for index in np.array_split(np.arange(len(data["val"])), -(-len(data["val"]) // 32)):
                batch = _batch(kind, read["val"], data["val"], index)
                given = (batch[name].to(device) for name in ("inputs", "condition") if name in batch)
                maps = model(*given).cpu()
                chosen = [[of[i] for i in index] for of in (data["val"].pairs, data["val"].encodings)]
                found.append(goal.scores(maps, *chosen, task))
        model.train()
        return np.concatenate(found)

    curve = [{"step": r["step"], "val": r["val"]} for r in _log(folder) if "val" in r]

    def on_log(record: dict) -> bool:
        if (record["step"] + 1) % scale.round and record["step"] + 1 != config.steps:
            return False
        record["val"] = float(score().mean())
        curve.append({"step": record["step"], "val": record["val"]})
        return steps is None and enough(curve, scale.gain)

    config = TrainConfig(
        steps=steps or scale.steps,
        lr=scale.lr,
        min_lr=scale.lr,
        warmup=50,
        weight_decay=0.05,
        log_every=1,
        save_every=scale.round,
        precision="fp32",
        tracker="none",
    )
    identity = {"input": kind, "goal": asdict(goal), "scale": asdict(scale)}
    identity |= {} if kind == "pixels" else {"tokenizer": tokenizer.fingerprint}
    if steps is None and enough(curve, scale.gain):  # it was stopped before its last step
        model.load_state_dict(load_checkpoint(folder)["model"])
    else:
        train(model, batches, model.loss, config, folder, on_log, identity=identity, progress=progress)
    return score(), curve


def _batch(kind: str, read: Tensor, examples: Examples, index: np.ndarray) -> dict[str, Tensor]:
    given = read[index]
    batch = {"inputs": given.long() if kind == "codes" else given.float() / 255}
    targets = torch.from_numpy(examples.targets[index])
    batch["targets"] = targets.movedim(-1, 1) if targets.ndim == 4 else targets  # pictures: (B, 3, S, S)
    if examples.conditions is not None:
        batch["condition"] = torch.from_numpy(examples.conditions[index])
    return batch


def _log(folder: Path) -> list[dict]:
    return read_log(folder) if (folder / CHECKPOINT).is_file() else []


def enough(curve: list[dict], gain: float) -> bool:
    """Whether the best of the last quarter of the steps gains less than ``gain``, relatively, over all
    before it.
    """
    if len(curve) < 8:
        return False
    before = [r["val"] for r in curve if r["step"] <= 0.75 * curve[-1]["step"]]
    return max(r["val"] for r in curve) < (1 + gain) * max(before)


def measure(
    name: str,
    goal: Goal,
    task,
    data: dict[str, Examples],
    tokenizer: Tokenizer,
    scale: Scale,
    config: dict,
    progress: bool = True,
) -> list[dict]:
    """One row an input, with intervals over sources; see `perception`.

    The specialist for pixels is kept without the tokenizer in its key: all tokenizers of a size share it.
    """
    rows, steps = [], None
    for kind in INPUTS:
        decisive = {k: v for k, v in config.items() if kind != "pixels" or k not in ("name", "tokenizer")}
        folder = paths.cache() / "studies" / runs.key(STUDY, decisive | {"input": kind})
        values, curve = fit(kind, goal, task, data, tokenizer, scale, folder, steps, progress)
        steps = steps or curve[-1]["step"] + 1
        means = resample([values], np.array([pair.source for pair in data["val"].pairs]))[0]
        low, high = np.percentile(means[1:], (2.5, 97.5))
        rows.append(
            {
                "task": name,
                "reads": kind,
                "metric": task.metric if task is not None else "PSNR",
                "score": float(means[0]),
                "low": float(low),
                "high": float(high),
                "steps": steps,
                "examples": len(data["train"]),
                "curve": curve,
            }
        )
    return rows


def perception(
    tokenizer: Tokenizer,
    task_names: Iterable[str] = tuple(GOALS),
    scale: Scale | str = "study",
    *,
    name: str = "tokenizer",
    workers: int = 2,
    progress: bool = True,
) -> list[dict]:
    """The perception ceilings of a tokenizer, stored as one run a task.

    Args:
        tokenizer: ours, or a foreign one.
        task_names: the tasks; by default all that have a specialist.
        scale: how much each specialist sees, or its name.
        name: of the tokenizer, by which its runs are found.
        workers: processes that draw.
        progress: whether to show bars.

    Returns:
        Rows {task, reads, metric, score, low, high, steps, examples, curve}, one a task and what is read.
    """
    scale, laws, rows = SCALES[scale] if isinstance(scale, str) else scale, of_size(tokenizer.size), []
    if unknown := set(task_names) - set(GOALS):
        raise ValueError(f"no specialist for {', '.join(sorted(unknown))}: choose from {', '.join(GOALS)}")
    for task in task_names:
        config = _config(tokenizer, name, task, scale) | {"laws": asdict(laws)}

        def compute(config: dict, task: str = task) -> list[dict]:
            counts = {"train": scale.examples, "val": scale.val}
            data = {split: draw(task, split, count, laws, workers) for split, count in counts.items()}
            return measure(task, GOALS[task], tasks.get(task), data, tokenizer, scale, config, progress)

        rows += runs.run(STUDY, config, compute)["result"]
    return rows


def perception_of_pairs(
    tokenizer: Tokenizer,
    train_rows: Iterable[np.ndarray],
    val_rows: Iterable[np.ndarray],
    scale: Scale | str = "study",
    *,
    name: str = "tokenizer",
    progress: bool = True,
) -> list[dict]:
    """The same for pairs of one's own, uint8 (2, S, S, 3) of the tokenizer's size; the answer is the label
    image, by PSNR.
    """
    scale = SCALES[scale] if isinstance(scale, str) else scale
    data = {"train": own_pairs(train_rows, scale.examples), "val": own_pairs(val_rows, scale.val)}
    content = hashlib.sha256(
        b"".join(e.pictures.tobytes() + e.targets.tobytes() for e in data.values())
    ).hexdigest()
    config = _config(tokenizer, name, "pairs", scale) | {"pairs": content[:16]}

    def compute(config: dict) -> list[dict]:
        return measure("pairs", PAIRS, None, data, tokenizer, scale, config, progress)

    return runs.run(STUDY, config, compute)["result"]


def _config(tokenizer: Tokenizer, name: str, task: str, scale: Scale) -> dict:
    read = {"name": name, "size": tokenizer.size, "tokenizer": tokenizer.fingerprint}
    return {"version": VERSION, "task": task, "scale": asdict(scale), **read}
