"""From a model and images to logits.

Each image once, in stored order, whatever the batch size and the devices.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline.errors import CheckpointError, DatasetError
from pipeline.evaluate.metrics import Floats, Integers
from pipeline.evaluate.predictions import Chunk
from pipeline.model.weights import load_model

_MIN_PROBABILITY = 1e-30  # float32 still holds it; the logarithm of 0 would be no number


@dataclass(frozen=True)
class Network:
    """A model, on one device or a copy of it on each of several (`strategy`)."""

    model: Any
    strategy: Any = None

    @property
    def ends_in_softmax(self) -> bool:
        """Whether the model gives probabilities, as many from elsewhere do.

        Their logarithms serve as logits.
        """
        last = self.model.layers[-1]
        return (
            isinstance(last, keras.layers.Softmax)
            or getattr(last, "activation", None) is keras.activations.softmax
        )

    @property
    def devices(self) -> int:
        """How many batches are worked on at a time."""
        return self.strategy.num_replicas_in_sync if self.strategy else 1


def load_network(path: Path, classes: int | None) -> Any:
    """Return the model of a file, if it is one that answers images with a logit for each of `classes`, or of as many as it has.

    Raises:
        CheckpointError: the file is not safe to open, or cannot be read.
        DatasetError: the model takes or gives something else.
    """
    try:
        model = load_model(path)
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RuntimeError,
        zipfile.BadZipFile,
    ) as error:
        raise CheckpointError(
            f"The model file {path} cannot be read ({type(error).__name__}:"
            f" {' '.join(str(error).split())[:150]}). Expected a .keras file that this pipeline or"
            " Keras 3 wrote, without code of its own. Name another one, or train again."
        ) from error
    takes, gives = (
        [tuple(tensor.shape) for tensor in keras.tree.flatten(end)]
        for end in (model.inputs, model.outputs)
    )
    squares = (
        len(takes) == 1
        and len(takes[0]) == 4
        and isinstance(takes[0][1], int)
        and takes[0][1:] == (takes[0][1], takes[0][1], 3)
    )
    named = isinstance(model.input, dict) or isinstance(model.output, dict | list | tuple)
    classes = gives[0][-1] if classes is None else classes
    if not squares or named or [shape[1:] for shape in gives] != [(classes,)]:
        raise DatasetError(
            f"The model {path} is not one for this dataset. Expected images of equal sides in 3"
            f" colors and {classes} logits. Received inputs {takes} and outputs {gives}. Name the"
            " dataset that it was trained for: --dataset."
        )
    return model


def on_devices(load: Callable[[], Any]) -> Network:
    """Load a model onto all GPUs of this process, or onto its processors where there is none.

    One unless more were asked for.
    """
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    # After a training on several machines TensorFlow lists the devices of all; a task is in their
    # names only then.
    own = f"/task:{tf.distribute.cluster_resolver.TFConfigClusterResolver().task_id or 0}/"
    names = [device.name for device in devices if own in device.name or "/task:" not in device.name]
    if len(names) == 1:
        return Network(load())
    strategy = tf.distribute.MirroredStrategy(names)
    with strategy.scope():
        return Network(load(), strategy)


def score(
    network: Network,
    batches: Iterable[tuple[Any, Any]],
    keys: Iterable[Any],
    *,
    batch_size: int,
    progress: Callable[[int, int], None],
) -> Iterator[Chunk]:
    """Run the model over every image once, and yield what it says.

    Every step has the same static shape: a smaller last batch is filled up with repeated images
    whose logits are cut off. So there is one compiled program, and the last images are computed by
    the same code as all others. Several devices take whole batches in turn, so they compute what
    one would.

    Args:
        network: takes uint8 [batch, size, size, 3] in [0, 255], gives logits [batch, classes].
        batches: (uint8 [n, size, size, 3] or, for views of each image, [n, views, size, size, 3],
            int [n]) with n = batch_size but for the last, in the order of `keys`.
        keys: the images' names, str or bytes, [images].
        batch_size: images a step.
        progress: called with images done and wrong first guesses among them.

    Raises:
        DatasetError: the batches do not hold one image for each key, or a label is not a class.
        CheckpointError: a logit is NaN or infinite.
    """
    names = decoded(keys)
    forward = compiled(network, batch_size)
    done = wrong = 0
    for group in _groups(batches, network.devices):
        found = forward([_filled(pixels, batch_size) for pixels, _ in group])
        for (pixels, labels), logits in zip(group, found, strict=True):
            brightness, contrast = _light(np.asarray(pixels))
            own = names[done : done + len(pixels)]
            chunk = Chunk(
                own,
                np.asarray(labels, np.int32),
                logits.numpy()[: len(pixels)],
                brightness,
                contrast,
            )
            if len(own) == len(pixels):
                _require_sound(chunk)
            done, wrong = (
                done + len(pixels),
                wrong + int(np.count_nonzero(chunk.logits.argmax(axis=1) != chunk.labels)),
            )
            progress(done, wrong)
            yield chunk
    if done != len(names) or done == 0:
        raise DatasetError(
            f"The split cannot be scored once per image. Expected {len(names)} images, at least"
            f" one. Received {done}. Type the same command with --rerun ingest."
        )


def _groups(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    group: list[Any] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def logits_of(network: Network, pixels: Any) -> Any:
    """Return float32 [batch, classes] of uint8 [batch, size, size, 3] in [0, 255], eagerly or in a graph."""
    logits = tf.cast(network.model(pixels, training=False), tf.float32)
    return tf.math.log(tf.maximum(logits, _MIN_PROBABILITY)) if network.ends_in_softmax else logits


def compiled(network: Network, batch_size: int) -> Callable[[list[Any]], list[Any]]:
    """Return a function from a batch for each device to float32 logits [batch_size, classes] of each.

    Of several views of an image it gives the logarithms of the mean probabilities (paper, section
    4.1), which softmax takes back.
    """
    size, strategy = tuple(network.model.input_shape[1:]), network.strategy

    @tf.function(reduce_retracing=False)
    def forward(pixels: Any) -> Any:
        logits = logits_of(network, tf.reshape(pixels, (-1, *size)))
        if len(pixels.shape) == 4:
            return logits
        views = tf.reshape(tf.nn.log_softmax(logits), (batch_size, -1, logits.shape[-1]))
        return tf.reduce_logsumexp(views, axis=1) - math.log(pixels.shape[1])

    @tf.function(reduce_retracing=False)
    def on_each(pixels: Any) -> Any:
        return strategy.run(forward, args=(pixels,))

    def run(group: list[Any]) -> list[Any]:
        if strategy is None:
            return [forward(group[0])]
        full = group + [group[-1]] * (strategy.num_replicas_in_sync - len(group))
        given = strategy.experimental_distribute_values_from_function(
            lambda replica: full[replica.replica_id_in_sync_group]
        )
        return list(strategy.experimental_local_results(on_each(given)))[: len(group)]

    return run


def answers(network: Network, batch_size: int) -> Callable[[Any], Any]:
    """Return a function from uint8 [images, size, size, 3] in [0, 255] to the first guesses, int64 [images], of a network on one device."""
    forward = compiled(network, batch_size)

    def of(pixels: Any) -> Any:
        parts = (pixels[start : start + batch_size] for start in range(0, len(pixels), batch_size))
        found = [
            forward([_filled(part, batch_size)])[0].numpy()[: len(part)].argmax(axis=1)
            for part in parts
        ]
        return np.concatenate(found)

    return of


def _filled(pixels: Any, batch_size: int) -> Any:
    """Return uint8 [batch_size, ...]: the images, then the same ones again as often as needed."""
    missing = batch_size - len(pixels)
    return (
        tf.convert_to_tensor(pixels)
        if missing == 0
        else tf.gather(pixels, tf.range(batch_size) % len(pixels))
    )


def _light(pixels: Any) -> tuple[Floats, Floats]:
    """Return mean and standard deviation of each image's pixels, float32 [images], in levels of 0-255; of views those of all together."""
    flat = pixels.reshape(len(pixels), -1)
    mean = flat.mean(axis=1, dtype=np.float64)
    squares = np.einsum("ij,ij->i", flat, flat, dtype=np.float64) / flat.shape[1]
    return mean.astype(np.float32), np.sqrt(np.maximum(squares - mean**2, 0)).astype(np.float32)


def _require_sound(chunk: Chunk) -> None:
    """Raise unless every logit is finite and every label is a class.

    A NaN compares as false and would score silently.

    Raises:
        DatasetError: a label is not a class of the model.
        CheckpointError: a logit is NaN or infinite.
    """
    images, classes = chunk.logits.shape
    outside = (chunk.labels < 0) | (chunk.labels >= classes)
    if outside.any():
        first = int(np.argmax(outside))
        raise DatasetError(
            f"{np.count_nonzero(outside)} of {images} labels are not a class of the model. Expected"
            f" 0-{classes - 1}. Received {chunk.labels[first]} for {chunk.keys[first]!r}. Type the"
            " same command with --rerun ingest."
        )
    broken = ~np.isfinite(chunk.logits).all(axis=1)
    if broken.any():
        first = int(np.argmax(broken))
        raise CheckpointError(
            f"The model's logits are not numbers for {np.count_nonzero(broken)} of {images}"
            f" images. Expected finite values. Received {chunk.logits[first].min()} for"
            f" {chunk.keys[first]!r}. Train again with a lower rate, for example --set"
            " train.learning_rate=0.001."
        )


def decoded(keys: Iterable[Any]) -> tuple[str, ...]:
    """Return names as text, whether they came as str, bytes, an array or a tensor.

    Other bytes than UTF-8 are shown by number.
    """
    if isinstance(keys, tuple) and all(isinstance(key, str) for key in keys):
        return keys  # a million of them need not be there twice
    array = keys.numpy() if hasattr(keys, "numpy") else keys
    return tuple(
        key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else str(key)
        for key in array
    )


def require_counts(labels: Integers, counts: Sequence[int], split: str) -> None:
    """Raise unless the scored images are those that the dataset's record promises.

    Args:
        labels: of the whole split.
        counts: images of each class that the record names.
        split: for the message.

    Raises:
        DatasetError: a class has more or fewer images.
    """
    found = np.bincount(labels, minlength=len(counts))
    if not np.array_equal(found, counts):
        first = int(np.argmax(found != np.asarray(counts)))
        raise DatasetError(
            f"The {split} split is not what its record promises. Expected {counts[first]} images"
            f" of class {first}. Received {found[first]}. Type the same command with --rerun"
            " ingest."
        )


def images_at(batches: Iterable[tuple[Any, Any]], positions: Sequence[int]) -> dict[int, Any]:
    """Return position -> uint8 [size, size, 3] in [0, 255] for a few images of a split.

    Stops reading after the last of them.
    """
    wanted, kept, start = set(positions), {}, 0
    for pixels, _ in batches:
        for position in wanted & set(range(start, start + len(pixels))):
            kept[position] = np.asarray(pixels[position - start])
        start += len(pixels)
        if len(kept) == len(wanted):
            break
    return kept
