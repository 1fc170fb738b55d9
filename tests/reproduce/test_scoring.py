"""The splits that experiments use."""

from __future__ import annotations

import dataclasses

import numpy as np

from pipeline.reproduce.scoring import take_first_images


def test_some_images_are_the_first_ones_and_no_more_than_there_are():
    from types import SimpleNamespace

    from pipeline.data.loader import LoadedSplit

    dataset = SimpleNamespace(
        reads={"train": "train[:90%]"}, model_copy=lambda update: SimpleNamespace(**update)
    )
    images = LoadedSplit(
        dataset, "train", np.arange(10), tuple("abcdefghij"), np.zeros((10, 2, 2, 3), np.uint8)
    )
    few = take_first_images(images, 4)
    assert (len(few), few.keys, few.pixels.shape, few.dataset.reads) == (
        4,
        tuple("abcd"),
        (4, 2, 2, 3),
        {"train": "train[:4]"},
    )
    assert take_first_images(images, 0) is images
    assert take_first_images(images, 10) is images
    assert take_first_images(dataclasses.replace(images, pixels=None), 4).pixels is None
