"""Skill, by which every answer is judged, and bootstrap intervals over sources.

Skill = (score - best floor) / (ceiling - best floor): 0 is what needs no model, 1 is all that the tokenizer
can carry. The *ceiling* is the score of the true label after the tokenizer's round trip. A *floor* is the
score of an answer that needs neither a model nor the truth. Intervals are 95 % percentile bootstraps over
sources (photographs, object families or bodies), not over prompts, because prompts of one source resemble
each other.
"""

import numpy as np

RESAMPLES = 1000


def skill(scores: np.ndarray, floor: np.ndarray, ceiling: np.ndarray, sources: np.ndarray) -> dict:
    """The mean score and its skill, each with its interval.

    Args:
        scores: (P,), of each prompt's answer.
        floor: (P,), of the best floor's answers to the same prompts.
        ceiling: (P,), of the true labels after the tokenizer's round trip.
        sources: (P,), names of the prompts' sources.

    Returns:
        score, low, high, skill, skill_low, skill_high. The skills are None where the ceiling is not above the
        floor: the tokenizer then carries less than the floor has (the SSIM of a blurred copy, say).
    """
    score, gain, room = resample([scores, scores - floor, ceiling - floor], sources)
    low, high = interval(score)
    row = {"score": score[0], "low": low, "high": high, "skill": None, "skill_low": None, "skill_high": None}
    if room[0] > 0:
        skill_low, skill_high = interval(gain / np.where(room > 0, room, np.inf))
        row |= {"skill": gain[0] / room[0], "skill_low": skill_low, "skill_high": skill_high}
    return row


def resample(columns: list[np.ndarray], sources: np.ndarray, seed: int = 0) -> np.ndarray:
    """Means of columns (P,), of all prompts first, then with sources drawn with replacement.

    Returns:
        (columns, 1 + RESAMPLES).
    """
    counts = source_weights(sources, seed)
    return np.stack([(counts * column).sum(1) / np.maximum(counts.sum(1), 1) for column in columns])


def source_weights(sources: np.ndarray, seed: int = 0) -> np.ndarray:
    """How often each prompt counts: once first, then as often as its source is drawn.

    Returns:
        (1 + RESAMPLES, P) integers.
    """
    names, inverse = np.unique(sources, return_inverse=True)
    equal = np.full(len(names), 1 / len(names))
    draws = np.random.default_rng(seed).multinomial(len(names), equal, RESAMPLES)
    return np.vstack([np.ones(len(names), int), draws])[:, inverse]


def interval(values: np.ndarray) -> np.ndarray:
    """The 95 % interval (2,) of values (1 + RESAMPLES,), whose first is the one of all prompts."""
    return np.percentile(values[1:], (2.5, 97.5))
