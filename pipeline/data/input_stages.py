"""The stages of the input pipeline one by one, to find the one that hangs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.config.train import TrainConfig
from pipeline.data.loader import LoadedSplit, decode_square, open_split_records
from pipeline.data.training_batches import make_training_batches


def list_input_stages(
    images: LoadedSplit, config: TrainConfig, image_size: int
) -> list[tuple[str, Callable[[], Any]]]:
    """Return what the images of a training batch pass through, from the disk on, each with a function that tries a bit of it."""

    def batch(**changes: str) -> Any:
        return next(
            iter(
                make_training_batches(
                    images, config.model_copy(update=changes), image_size=image_size, epoch=0
                )
            )
        )

    whole = ("cutting and changing the images of a batch", batch)
    if isinstance(images.pixels, np.memmap):
        return [
            (
                f"reading the prepared pixels {images.dataset.pixels_path(images.split)}",
                images.pixels[-1].sum,
            ),
            whole,
        ]
    if images.pixels is not None:
        return [whole]
    records, parse = open_split_records(images)
    stages: list[tuple[str, Callable[[], Any]]] = [
        (f"reading the shards in {images.dataset.shards}", lambda: next(iter(records(None)))),
        (
            "decoding an image",
            lambda: next(
                iter(records(None).map(lambda record: decode_square(images.dataset, parse(record))))
            ),
        ),
        (whole[0], functools.partial(batch, data_services="")),
    ]
    services = [address for address in config.data_services.split(",") if address]
    return stages + [
        (f"the input service {address}", functools.partial(batch, data_services=address))
        for address in services
    ]
