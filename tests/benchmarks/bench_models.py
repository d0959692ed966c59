"""Entries of the networks: pictures encoded and prompts answered, against plain loops of the same networks."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from bench_rows import Row, entry, interleaved, of_kind, rates
from torch import Tensor

from lvmlab.evaluation.prompts import Job, encode_sentences
from lvmlab.evaluation.scoring import Scorer, answer_tokens, mean_pictures
from lvmlab.model.generation import complete_tokens
from lvmlab.model.lvm import LVM
from lvmlab.tokenizer.tokenizer import Tokenizer
from lvmlab.tokenizer.vqgan import VQGAN
from lvmlab.utils import paths
from lvmlab.utils.device import default_device, precision
from lvmlab.utils.images import from_uint8
from lvmlab.world import tasks
from lvmlab.world.sentences import PAIRS, sentence

TOKENS, PICTURES, PROMPTS = (
    64,
    256,
    50,
)  # a picture's; encoded for the speed and for the share of equal tokens; scored
REPEATS, ANSWERED = 3, 16


def plain_encode(net: VQGAN, images: Tensor, batch: int, tuned: bool = False) -> Tensor:
    """Pictures to tokens as one would write it: fp32, NCHW, the nearest code by `torch.cdist`.

    tuned: with what torch offers, channels-last, inference mode, and bf16 autocast where the probe says it
        pays.
    """
    device, found = default_device(), []
    layout = torch.channels_last if tuned else torch.contiguous_format
    bf16 = tuned and precision() == "bf16"
    with (
        torch.inference_mode() if tuned else torch.no_grad(),
        torch.autocast(device.type, torch.bfloat16, enabled=bf16),
    ):
        table = net.quantize.embedding.weight
        table = F.normalize(table, dim=-1) if net.config.cosine else table
        for part in images.split(batch):
            z = net.quant_conv(net.encoder(part.to(device).contiguous(memory_format=layout)))
            z = z.permute(0, 2, 3, 1).flatten(1, 2).float()  # (B, D, h, w) -> (B, N, D)
            z = F.normalize(z, dim=-1) if net.config.cosine else z
            found.append(torch.cdist(z.flatten(0, 1), table).argmin(-1).view(len(part), -1))
    return torch.cat(found).to(images.device)


def encoding(
    name: str, tokenizer: Tokenizer, plain: VQGAN, images: Tensor, batch: int, repeats: int, of: str
):
    """The two rows of a tokenizer's speed."""
    calls = {
        "ours": lambda: tokenizer.encode(images),
        "plain": lambda: plain_encode(plain, images, batch),
        "stock": lambda: plain_encode(
            tokenizer.net, images, batch, tuned=True
        ),  # the weights lie channels-last there
    }
    speed = {side: len(images) / min(taken) for side, taken in interleaved(name, calls, repeats).items()}
    kind = f"{of}, {len(images)} pictures of {tokenizer.size} px in batches of {batch}, best of {repeats}"
    yield rates(
        name,
        speed["ours"],
        speed["plain"],
        "images/s",
        of_kind(bf16=1.8, fp32=1.0),
        f"Tokenizer.encode in {tokenizer.precision} against the same network in fp32, NCHW, torch.cdist; "
        f"{kind}",
    )
    best = max(("plain", "stock"), key=speed.get)
    setting = {
        "plain": "the plain loop, fp32 and NCHW",
        "stock": f"channels-last, inference mode, {precision()}, torch.cdist",
    }[best]
    yield rates(
        f"{name}/best-stock",
        speed["ours"],
        speed[best],
        "images/s",
        None,
        f"against the faster of the plain loop and channels-last in {precision()} (the probe's choice), both "
        f"eager; here: {setting}",
    )


def plain_copy(tokenizer: Tokenizer) -> VQGAN:
    return copy.deepcopy(tokenizer.net).to(memory_format=torch.contiguous_format)


def held_out_pictures(count: int) -> Tensor:
    """Test pictures of the trained tasks in turn, images and labels alike: float (count, 3, 64, 64)."""
    sentences = -(-count // (2 * PAIRS))
    found = [
        sentence(tasks.TRAINED[i % len(tasks.TRAINED)], "test", i // len(tasks.TRAINED)).pictures()
        for i in range(sentences)
    ]
    return from_uint8(np.concatenate(found)[:count])


@entry("tokenizer.encode.mini")
def encode_mini():
    name, trained = "tokenizer.encode.mini", (paths.assets() / "models" / "mini" / "config.json").is_file()
    tokenizer = Tokenizer.from_pretrained("mini") if trained else Tokenizer.from_preset("mini")
    plain, images = plain_copy(tokenizer), held_out_pictures(PICTURES)
    of = (
        "the shipped weights, test pictures" if trained else "fresh weights (none are shipped), test pictures"
    )
    yield from encoding(name, tokenizer, plain, images, tokenizer.batch_size, 7, of)
    if not trained:
        return
    equal = (
        (tokenizer.encode(images) == plain_encode(plain, images, tokenizer.batch_size)).float().mean().item()
    )
    yield rates(
        f"{name}/equal",
        equal,
        1.0,
        "share",
        0.94,
        f"share of tokens that Tokenizer.encode in {tokenizer.precision} has as the plain fp32 loop has "
        f"them, {len(images)} test pictures",
    )
    shipped = [
        m
        for m in ("mini-teacher", "mini-student")
        if (paths.assets() / "models" / m / "config.json").is_file()
    ]
    if shipped:
        yield skill(f"{name}/skill", shipped[0], tokenizer)


def skill(name: str, model: str, tokenizer: Tokenizer) -> Row:
    """What the precision of the prompts' tokens does to a model's skill."""
    lvm, fp32 = LVM.from_pretrained(model), Tokenizer.from_pretrained("mini", precision="fp32")
    scorer = Scorer(Job("segmentation", prompts=PROMPTS, split="val"), fp32)
    skills = {}
    for which, speaker in (("auto", tokenizer), ("fp32", fp32)):
        tokens = encode_sentences(speaker, scorer.sentences)
        answers = torch.cat([*answer_tokens(lvm, tokens, speaker.tokens_per_image)])
        pictures = mean_pictures(fp32, answers)
        skills[which] = scorer.rows(scorer.scores(pictures), model, 0.0)[0]["skill"]
    ours, theirs = (float("nan") if v is None else v for v in skills.values())
    what = (
        f"{model}'s skill at segmentation, {PROMPTS} validation prompts encoded in {tokenizer.precision} "
        f"(auto) against fp32; the ratio is the "
        f"absolute difference, the limit an upper "
        f"one{' (auto is fp32 here: nothing is compared)' if tokenizer.precision == 'fp32' else ''}"
    )
    return Row(name, ours, theirs, abs(ours - theirs), "skill", 0.01, what, "ratio, at most")


@entry("tokenizer.encode.f16-8192")
def encode_f16():
    tokenizer, batch = Tokenizer.from_preset("f16-8192"), 2
    images = torch.rand(batch, 3, tokenizer.size, tokenizer.size, generator=torch.Generator().manual_seed(0))
    yield from encoding(
        "tokenizer.encode.f16-8192",
        tokenizer,
        plain_copy(tokenizer),
        images,
        batch,
        2,
        "fresh weights, noise",
    )


@entry("complete.answers")
def answers():
    """Eight sampled answers to each prompt: one prefill and one step a token, against `generate` on every
    answer by itself.
    """
    lvm, drawn, prompts = LVM.from_shape("mini-teacher").to(default_device()).eval(), 8, ANSWERED
    tokens = torch.randint(
        lvm.vocab_size, (prompts, 7 * TOKENS), generator=torch.Generator().manual_seed(0)
    ).to(default_device())
    options = {
        "do_sample": True,
        "top_k": 0,
        "num_return_sequences": drawn,
        "max_new_tokens": TOKENS,
        "pad_token_id": 0,
    }
    calls = {
        "ours": lambda: complete_tokens(
            lvm, tokens, TOKENS, sample=True, answers=drawn, generator=torch.Generator().manual_seed(0)
        ),
        "generate": lambda: lvm.llama.generate(tokens, attention_mask=torch.ones_like(tokens), **options),
    }
    rate = {
        side: prompts * drawn * TOKENS / min(taken)
        for side, taken in interleaved("complete.answers", calls, REPEATS).items()
    }
    yield rates(
        "complete.answers",
        rate["ours"],
        rate["generate"],
        "tokens/s",
        1.0,
        f"complete_tokens against transformers' generate(num_return_sequences={drawn}), fresh weights of "
        f"mini-teacher in fp32, {prompts} "
        f"prompts of {tokens.shape[1]} tokens, {drawn} answers of {TOKENS} tokens each, best of {REPEATS}",
    )
