"""The stages of the input pipeline one by one, to find the one that hangs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config.train import TrainConfig
from pipeline.data.loader import LoadedSplit, decode_square, open_split_records
from pipeline.data.training_batches import make_training_batches
from pipeline.image_size import ImageSize

if TYPE_CHECKING:
    from pipeline.data.training_batches import Batch

# A stage's name, and a function that tries a bit of it.
InputStage = tuple[str, Callable[[], object]]


def list_input_stages(
    images: LoadedSplit, config: TrainConfig, image_size: ImageSize
) -> list[InputStage]:
    """Return the stages that the images of a training batch pass through, from the disk on."""

    def take_batch(**changes: str) -> Batch:
        changed = config.model_copy(update=changes)
        return next(iter(make_training_batches(images, changed, image_size=image_size, epoch=0)))

    batching = "cutting and changing the images of a batch"
    if isinstance(images.pixels, np.memmap):
        path = images.dataset.pixels_path(images.split)
        return [
            (f"reading the prepared pixels {path}", images.pixels[-1].sum),
            (batching, take_batch),
        ]
    if images.pixels is not None:
        return [(batching, take_batch)]
    reader = open_split_records(images)

    def decode_first() -> object:
        squares = reader.read(None).map(
            lambda record: decode_square(images.dataset, reader.parse(record))
        )
        return next(iter(squares))

    stages: list[InputStage] = [
        (f"reading the shards in {images.dataset.shards}", lambda: next(iter(reader.read(None)))),
        ("decoding an image", decode_first),
        (batching, functools.partial(take_batch, data_services="")),
    ]
    services = [address for address in config.data_services.split(",") if address]
    return stages + [
        (f"the input service {address}", functools.partial(take_batch, data_services=address))
        for address in services
    ]
