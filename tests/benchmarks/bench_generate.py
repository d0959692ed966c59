"""Entries of answering a prompt: against `generate` as it comes, at its best, and against what reading the
weights alone would take.
"""

import time

import torch
from bench_rows import COMPILER, Row, entry, interleaved, median, rates, synchronise
from torch import Tensor

from lvmlab.evaluation.prompts import Job
from lvmlab.evaluation.scoring import Scorer, answer_tokens, mean_pictures
from lvmlab.model.generation import Prefilled, complete_tokens
from lvmlab.model.lvm import LVM
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.utils import paths
from lvmlab.utils.device import default_device

N, EXAMPLES, REPEATS = 64, 3, 5  # tokens an answer, pairs in a prompt
PROMPTS, ROWS = 50, 32  # scored; answered in one batch
READ = 2**29  # bytes that the bandwidth is measured on


def prompt(lvm: LVM, rows: int = 1, n: int = N) -> Tensor:
    """Random tokens in the place of EXAMPLES pairs and a query of n tokens each."""
    return torch.randint(
        lvm.codebook_size, (rows, (2 * EXAMPLES + 1) * n), generator=torch.Generator().manual_seed(0)
    ).to(default_device())


def stock(lvm: LVM, tokens: Tensor, n: int, **options) -> Tensor:
    """`transformers`' own greedy answer, (B, n)."""
    return lvm.llama.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        max_new_tokens=n,
        pad_token_id=0,
        **options,
    )[:, tokens.shape[1] :]


def bandwidth() -> float:
    """Bytes a second that this machine reads from memory, measured now."""
    values = torch.ones(READ // 4, device=default_device())
    return values.numel() * 4 / min(interleaved("bandwidth", {"sum": values.sum}, 5)["sum"])


def weights_read(lvm: LVM) -> int:
    """Bytes of weights that one token needs: all but the embedding's other rows."""
    return (
        sum(p.numel() * p.element_size() for p in lvm.parameters())
        - lvm.llama.model.embed_tokens.weight.nbytes
    )


def compiled(lvm: LVM, tokens: Tensor, n: int):
    """`generate` with a static cache and its forward compiled, as transformers offers it; None where nothing
    compiles here.
    """
    options = {"cache_implementation": "static"}
    before = lvm.llama.forward
    try:
        lvm.llama.forward = torch.compile(before, dynamic=False)
        stock(lvm, tokens, n, **options)
        return lambda: stock(lvm, tokens, n, **options)
    except Exception as error:  # no C++ compiler, say: of many kinds
        print(f"torch.compile fails here ({' '.join(str(error).split())[:120]})")
        lvm.llama.forward = before
        return None


def generation(
    name: str, lvm: LVM, limit: float, *, n: int = N, ours: LVM | None = None, what: str, equal: bool = True
):
    """The rows of one model: against `generate`, the best stock setting, and the limit that memory sets."""
    lvm, fast = lvm.to(default_device()).eval(), (ours or lvm).to(default_device()).eval()
    tokens = prompt(lvm, n=n)
    mine = complete_tokens(fast, tokens, n).tokens[:, 0]
    if equal:
        theirs = stock(lvm, tokens, n)
        assert torch.equal(mine, theirs), (
            f"{name}: {(mine != theirs).sum()} of {n} greedy tokens differ from generate's"
        )
    calls = {
        "ours": lambda: complete_tokens(fast, tokens, n),
        "generate": lambda: stock(lvm, tokens, n),
        "static": lambda: stock(lvm, tokens, n, cache_implementation="static"),
    }
    speed = {side: n / min(taken) for side, taken in interleaved(name, calls, REPEATS).items()}
    yield rates(
        name,
        speed["ours"],
        speed["generate"],
        "tokens/s",
        limit,
        f"complete_tokens against transformers' generate as it comes, {what}, one prompt of "
        f"{tokens.shape[1]} tokens, prefill included, "
        f"best of {REPEATS}{'; the greedy tokens are equal' if equal else ''}",
    )
    best, step = speed["static"], "static cache"
    if COMPILER and (call := compiled(lvm, tokens, n)):
        best, step = max(
            (best, step),
            (
                n / min(interleaved(f"{name}/compiled", {"compiled": call}, REPEATS)["compiled"]),
                "static cache, compiled",
            ),
        )
    best, step = max((best, step), (speed["generate"], "as it comes"))
    yield rates(
        f"{name}/best-stock",
        speed["ours"],
        best,
        "tokens/s",
        None,
        f"against the fastest of generate's settings, warm; here: {step}",
    )
    ready = Prefilled(fast, tokens, n)
    decode = n / min(
        interleaved(f"{name}/decode", {"decode": lambda: list(ready.stream(n))}, REPEATS)["decode"]
    )
    read = bandwidth()
    yield rates(
        f"{name}/bandwidth",
        decode,
        read / weights_read(fast),
        "tokens/s",
        None,
        f"decoding alone, the prompt read before, against {read / 1e9:.1f} GB/s (measured here) over "
        f"{weights_read(fast) / 1e6:.1f} MB of "
        "weights that each token needs",
    )


def shipped(name: str) -> LVM:
    """Trained weights where they ship, else fresh ones of the shape."""
    there = (paths.assets() / "models" / name / "config.json").is_file()
    return LVM.from_pretrained(name) if there else LVM.from_shape(name.removesuffix("-kd"))


@entry("generate.mini-student")
def mini_student():
    yield from generation("generate.mini-student", shipped("mini-student"), 2.5, what="mini-student in fp32")


@entry("generate.mini-teacher")
def mini_teacher():
    yield from generation("generate.mini-teacher", shipped("mini-teacher"), 1.5, what="mini-teacher in fp32")


@entry("generate.300m")
@torch.inference_mode()
def large():
    """bf16 against generate in fp32: at this size reading the weights is all that counts."""
    name, n, whole = "generate.300m", N, LVM.from_shape("300m")
    half = LVM.from_shape("300m").to(torch.bfloat16)
    yield from generation(
        name,
        whole,
        1.8,
        n=n,
        ours=half,
        what="300m, fresh weights, ours in bf16 and theirs in fp32",
        equal=False,
    )
    sentence = torch.cat([prompt(whole, n=n), complete_tokens(whole, prompt(whole, n=n), n).tokens[:, 0]], 1)
    log = [lvm(sentence)[:, -n - 1 : -1].float().argmax(-1) for lvm in (whole, half)]
    agreement = (log[0] == log[1]).float().mean().item()
    yield rates(
        f"{name}/agreement",
        agreement,
        1.0,
        "share",
        None,
        f"of {n} tokens, each after the same ones before it, the share that bf16 finds as fp32 does",
    )


@entry("generate.second-answer")
def second():
    """The whole first answer to a prompt, reading it included, against the second, which need not read it."""
    lvm = shipped("mini-teacher").to(default_device())
    tokens, taken = prompt(lvm), {"first": [], "second": []}
    for trial in range(1 + REPEATS):  # the first is the warm-up
        started = time.perf_counter()
        ready = Prefilled(lvm, tokens, N)
        list(ready.stream(N))
        synchronise()
        between = time.perf_counter()
        list(ready.stream(N))
        synchronise()
        if trial:
            taken["first"].append(between - started)
            taken["second"].append(time.perf_counter() - between)
    yield rates(
        "generate.second-answer",
        1 / median(taken["second"]),
        1 / median(taken["first"]),
        "answers/s",
        None,
        f"mini-teacher in fp32, one prompt of {tokens.shape[1]} tokens: the second answer to it against the "
        f"first, prefill included in the "
        f"first, median of {REPEATS}",
    )


@entry("generate.batch")
def batch():
    lvm, rows = shipped("mini-teacher").to(default_device()), ROWS
    tokens = prompt(lvm, rows)
    calls = {
        "together": lambda: complete_tokens(lvm, tokens, N),
        "one by one": lambda: [complete_tokens(lvm, row[None], N) for row in tokens],
    }
    speed = {side: rows / min(taken) for side, taken in interleaved("generate.batch", calls, 3).items()}
    yield rates(
        "generate.batch",
        speed["together"],
        speed["one by one"],
        "answers/s",
        None,
        f"mini-teacher in fp32, {rows} prompts of {tokens.shape[1]} tokens in one batch against one by one, "
        f"best of 3",
    )


@entry("generate.constrained")
def constrained():
    """What it does to skill where only codes of the prompt's labels may be written."""
    lvm, tokenizer = shipped("mini-teacher").to(default_device()), Tokenizer.from_pretrained("mini")
    for i, task in enumerate(("segmentation", "pose", "derain")):
        scorer = Scorer(Job(task, prompts=PROMPTS, split="val"), tokenizer)
        skills = [
            scorer.rows(
                scorer.scores(
                    mean_pictures(
                        tokenizer,
                        torch.cat(
                            [*answer_tokens(lvm, scorer.tokens, tokenizer.tokens_per_image, constrained=c)]
                        ),
                    )
                ),
                "",
                0.0,
            )[0]
            for c in (True, False)
        ]
        ours, theirs = (row["skill"] for row in skills)
        low, high = (skills[0][k] for k in ("skill_low", "skill_high"))
        yield Row(
            "generate.constrained" + (f"/{task}" if i else ""),
            ours,
            theirs,
            ours - theirs,
            "skill",
            None,
            f"mini-teacher's skill at {task}, {PROMPTS} val prompts: constrained ({low:.2f} to {high:.2f}) "
            f"against "
            f"free; the ratio is the difference",
        )
