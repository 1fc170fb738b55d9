"""Selection of the images that the report shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipeline.arrays import Booleans, Floats

SHOWN_IMAGES = 8  # as in the paper's figure 4


def spread_indices(images: int, count: int) -> list[int]:
    """Return up to `count` indices spread evenly over a split, whatever the answers are."""
    return sorted({int(index) for index in np.linspace(0, images - 1, count)})


def select_confident_mistakes(wrong: Booleans, confidence: Floats) -> list[int]:
    """Return up to eight indices of wrong first guesses, the most confident first.

    Args:
        wrong: bool [images], whose first guess is wrong.
        confidence: float [images], the probability of the first guess.
    """
    indices = np.flatnonzero(wrong)
    order = np.argsort(-confidence[indices], kind="stable")[:SHOWN_IMAGES]
    return [int(index) for index in indices[order]]


def select_unsure_hits(wrong: Booleans, confidence: Floats) -> list[int]:
    """Return up to eight indices of right first guesses, the least confident first.

    Args:
        wrong: bool [images], whose first guess is wrong.
        confidence: float [images], the probability of the first guess.
    """
    indices = np.flatnonzero(~wrong)
    order = np.argsort(confidence[indices], kind="stable")[:SHOWN_IMAGES]
    return [int(index) for index in indices[order]]
