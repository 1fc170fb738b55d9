"""Photographs that scikit-learn and matplotlib bring, so that tests need no download."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import sklearn.datasets
from PIL import Image


def load_photographs():
    """Return uint8 [height, width, 3] by name: a palace, a flower, a portrait."""
    samples = Path(sklearn.datasets.__file__).parent / "images"
    files = (
        samples / "china.jpg",
        samples / "flower.jpg",
        Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg",
    )
    return {file.name: np.asarray(Image.open(file).convert("RGB")) for file in files}


def cut_corners_and_center(pixels, side):
    """Return uint8 [4, side, side, 3]: three corners and the center, as they are."""
    height, width, _ = pixels.shape
    bottom, right = height - side, width - side
    corners = ((0, 0), (0, right), (bottom, 0), (bottom // 2, right // 2))
    return np.stack([pixels[top : top + side, left : left + side] for top, left in corners])


def cut_squares(pixels, side):
    """Return uint8 [4, side, side, 3]: the central square, two smaller ones, one mirrored."""
    image = Image.fromarray(pixels)
    found = []
    for fraction in (1.0, 0.875, 0.75):
        edge = int(min(image.size) * fraction)
        left, top = (image.width - edge) // 2, (image.height - edge) // 2
        square = image.crop((left, top, left + edge, top + edge))
        found.append(np.asarray(square.resize((side, side), Image.Resampling.BICUBIC)))
    return np.stack([*found, found[0][:, ::-1]])
