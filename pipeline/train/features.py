"""Features of images: what a frozen network says of each image before its classifier.

They are computed once per image, and once more of its mirror image, a chunk of images at a time.
A chunk is a file in the stage's scratch folder, so that an interrupted attempt goes on where it
was. Batches begin at fixed images, so that the bits do not depend on interruptions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf

from pipeline.data.evaluation_batches import make_evaluation_batches
from pipeline.data.loader import LoadedSplit
from pipeline.files import writing
from pipeline.model.batch_limit import limit_batch
from pipeline.model.graph import find_feature_layer

if TYPE_CHECKING:
    from pipeline.arrays import Floats, Images, Network, Tensor

# Images of a batch, fewer of a network with large layers. More are not faster, and 64 of 224 pixels
# take 0.3 GB in the widest layers of a mobile network.
_BATCH_IMAGES = 64
_CHUNK_BATCHES = 8  # some ten seconds on two processor cores


def compute_features(
    network: Network,
    images: LoadedSplit,
    folder: Path,
    *,
    mirror: bool,
    report: Callable[[int], None],
) -> Floats:
    """Return the features of a split, float32 [images, views, features], in stored order.

    The first view is the central crop that evaluation sees, the second one its mirror image.

    Args:
        network: read in inference mode, and left as it was.
        images: the split, at least one image.
        folder: where chunks are kept; those of an earlier attempt are read.
        mirror: whether there is a second view.
        report: called with the number of images that are done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    batch_size = limit_batch(network, _BATCH_IMAGES)
    program = _compile_features(network, mirror)
    batches = make_evaluation_batches(
        images, image_size=network.input_shape[1:3], batch_size=batch_size
    )
    chunk_images = batch_size * _CHUNK_BATCHES
    paths = [folder / f"{start}.npy" for start in range(0, len(images), chunk_images)]
    done = len(list(itertools.takewhile(Path.exists, paths)))
    rest = iter(batches.skip(done * _CHUNK_BATCHES))
    for index, path in enumerate(paths[done:], start=done):
        report(index * chunk_images)
        parts = [_run_batch(program, pixels, batch_size) for pixels in _take_pixels(rest)]
        with writing(path) as temporary:
            np.save(temporary, np.concatenate(parts))
    report(len(images))
    first = np.load(paths[0], mmap_mode="r")
    features = np.empty((len(images), *first.shape[1:]), first.dtype)
    for index, path in enumerate(paths):  # one chunk at a time beside the whole
        rows = slice(index * chunk_images, (index + 1) * chunk_images)
        features[rows] = np.load(path)
    return features


def _take_pixels(batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[Images]:
    """Yield the pixels of a chunk's batches."""
    for pixels, _ in itertools.islice(batches, _CHUNK_BATCHES):
        yield pixels.numpy()


def _compile_features(network: Network, mirror: bool) -> Callable[[Tensor], Tensor]:
    """Return a compiled function from pixels to features, float32 [batch, views, features]."""
    part = keras.Model(network.input, find_feature_layer(network).output)

    @tf.function(reduce_retracing=True)
    def compute(pixels: Tensor) -> Tensor:
        views = [pixels, pixels[:, :, ::-1]] if mirror else [pixels]
        found = [tf.cast(part(view, training=False), tf.float32) for view in views]
        return tf.stack([tf.reshape(values, (tf.shape(values)[0], -1)) for values in found], axis=1)

    return compute


def _run_batch(program: Callable[[Tensor], Tensor], pixels: Images, batch_size: int) -> Floats:
    """Return the features of a batch; a smaller one is filled up, as bits depend on the size."""
    full = np.resize(pixels, (batch_size, *pixels.shape[1:]))
    return program(tf.constant(full)).numpy()[: len(pixels)]
