"""How images of any shape become squares: as the settings say, or as the images' shapes suggest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.headers import read_header_size
from pipeline.data.shards import make_deterministic_options, read_examples

if TYPE_CHECKING:
    from pipeline.arrays import Integers
    from pipeline.artifacts import Fit
    from pipeline.data.prepared import PreparedDataset

# `auto` pads where more than this fraction of the training images would be cut.
MAX_CUT_FRACTION = 0.25


def choose_fit(prepared: PreparedDataset) -> Fit:
    """Return the fit of `data.fit=auto`, from the headers of all training images.

    `pad` where more than a quarter of them would lose more than a quarter of their area.
    """
    examples = read_examples(
        prepared.builder_directory, prepared.reads["train"], prepared.image_key, prepared.label_key
    ).with_options(make_deterministic_options())
    sides = [read_header_size(example["image"]) for example in examples.as_numpy_iterator()]
    heights, widths = np.asarray(sides, np.int64).T
    return "pad" if measure_cut_fraction(heights, widths) > MAX_CUT_FRACTION else "crop"


def measure_cut_fraction(heights: Integers, widths: Integers) -> float:
    """Return the fraction of images that lose more than a quarter of their area when cropped.

    The central square is min / max of the sides of an image's area: 4:3 loses a quarter and counts
    as kept.

    Args:
        heights: int64 [images], in pixels.
        widths: int64 [images], in pixels.
    """
    shorter, longer = np.minimum(heights, widths), np.maximum(heights, widths)
    return float(np.mean(4 * shorter < 3 * longer))
