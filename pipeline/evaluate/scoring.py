"""Scoring: from a model and images to logits.

Each image once, in stored order, whatever the batch size and the devices.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf

from pipeline.errors import CheckpointError, DatasetError, describe_cause
from pipeline.evaluate.predictions import PredictionChunk
from pipeline.model.weights import load_model

if TYPE_CHECKING:
    from pipeline.arrays import Floats, Image, Images, Integers, Labels, Network, Tensor

MIN_PROBABILITY = 1e-30  # float32 still holds it; the logarithm of 0 would be infinite


@dataclass(frozen=True)
class ScoringModel:
    """A model, on one device or a copy of it on each of several (`strategy`)."""

    model: Network
    strategy: tf.distribute.Strategy | None = None

    @property
    def ends_in_softmax(self) -> bool:
        """Whether the model gives probabilities, as many external models do.

        Their logarithms serve as logits.
        """
        last = self.model.layers[-1]
        return (
            isinstance(last, keras.layers.Softmax)
            or getattr(last, "activation", None) is keras.activations.softmax
        )

    @property
    def device_count(self) -> int:
        """Number of batches that are worked on at a time."""
        return self.strategy.num_replicas_in_sync if self.strategy else 1


def load_network(path: Path, classes: int | None) -> Network:
    """Return the model of a file after checking that it takes images and gives logits.

    Args:
        path: a .keras file.
        classes: how many logits it must give; None for any number.

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
            f" {describe_cause(error, 150)})",
            expected="a .keras file that this pipeline or Keras 3 wrote, without code of its own",
            hint="Name another one, or train again",
        ) from error
    if isinstance(model, keras.Sequential) and model.inputs:
        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    takes, gives = (
        [tuple(tensor.shape) for tensor in keras.tree.flatten(end or [])]
        for end in (model.inputs, model.outputs)
    )
    sized = (
        len(takes) == 1
        and len(takes[0]) == 4
        and all(isinstance(side, int) for side in takes[0][1:3])
        and takes[0][3] == 3
    )
    named = sized and (
        isinstance(model.input, dict) or isinstance(model.output, dict | list | tuple)
    )
    classes = gives[0][-1] if classes is None and gives else classes
    if not sized or named or [shape[1:] for shape in gives] != [(classes,)]:
        raise DatasetError(
            f"The model {path} is not one for this dataset",
            expected=f"images of a fixed height and width in 3 colors, and {classes} logits",
            received=f"inputs {takes} and outputs {gives}",
            hint="Name the dataset that it was trained for: --dataset",
        )
    return model


def load_on_devices(load: Callable[[], Network]) -> ScoringModel:
    """Load a model onto all GPUs of this process, or onto its CPU devices without a GPU.

    TensorFlow lists one CPU device unless more were configured.
    """
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    # After a training on several machines TensorFlow lists the devices of all; a task is in their
    # names only then.
    own = f"/task:{tf.distribute.cluster_resolver.TFConfigClusterResolver().task_id or 0}/"
    names = [device.name for device in devices if own in device.name or "/task:" not in device.name]
    if len(names) == 1:
        return ScoringModel(load())
    strategy = tf.distribute.MirroredStrategy(names)
    with strategy.scope():
        return ScoringModel(load(), strategy)


def score_batches(
    network: ScoringModel,
    batches: Iterable[tuple[Images, Labels]],
    keys: Iterable[str | bytes],
    *,
    batch_size: int,
    progress: Callable[[int, int], None],
) -> Iterator[PredictionChunk]:
    """Run the model over every image once, and yield its predictions.

    Every step has the same static shape: a smaller last batch is filled up with repeated images
    whose logits are cut off. So there is one compiled program, and the last images are computed by
    the same code as all others. Several devices take whole batches in turn, so they compute what
    one would.

    Args:
        network: takes uint8 [batch, height, width, 3] in [0, 255], gives logits [batch, classes].
        batches: (uint8 [n, height, width, 3] or, for views of each image, [n, views, ...],
            int [n]) with n = batch_size but for the last, in the order of `keys`.
        keys: the images' names, str or bytes, [images].
        batch_size: images a step.
        progress: called with images done and wrong first guesses among them.

    Raises:
        DatasetError: the batches do not hold one image for each key, or a label is not a class.
        CheckpointError: a logit is NaN or infinite.
    """
    names = decode_keys(keys)
    forward = compile_forward(network, batch_size)
    done = wrong = 0
    for group in _group_batches(batches, network.device_count):
        found = forward([_fill_batch(pixels, batch_size) for pixels, _ in group])
        for (pixels, labels), logits in zip(group, found, strict=True):
            brightness, contrast = _measure_light(np.asarray(pixels))
            own = names[done : done + len(pixels)]
            chunk = PredictionChunk(
                own,
                np.asarray(labels, np.int32),
                logits.numpy()[: len(pixels)],
                brightness,
                contrast,
            )
            if len(own) == len(pixels):
                _require_finite_logits(chunk)
            done, wrong = (
                done + len(pixels),
                wrong + int(np.count_nonzero(chunk.logits.argmax(axis=1) != chunk.labels)),
            )
            progress(done, wrong)
            yield chunk
    if done != len(names) or done == 0:
        raise DatasetError(
            "The split cannot be scored once per image",
            expected=f"{len(names)} images, at least one",
            received=str(done),
            hint="Type the same command with --rerun ingest",
        )


def _group_batches(
    batches: Iterable[tuple[Images, Labels]], size: int
) -> Iterator[list[tuple[Images, Labels]]]:
    group: list[tuple[Images, Labels]] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def compute_tensor_logits(network: ScoringModel, pixels: Images | Tensor) -> Tensor:
    """Return the logits of images, float32 [batch, classes], eagerly or in a graph.

    Args:
        network: the model.
        pixels: uint8 [batch, height, width, 3] in [0, 255].
    """
    logits = tf.cast(network.model(pixels, training=False), tf.float32)
    return tf.math.log(tf.maximum(logits, MIN_PROBABILITY)) if network.ends_in_softmax else logits


def compile_forward(
    network: ScoringModel, batch_size: int
) -> Callable[[list[Tensor]], list[Tensor]]:
    """Return a function from a batch for each device to its logits, float32 [batch_size, classes].

    Of several views of an image it gives the logarithms of the mean probabilities (paper, section
    4.1), which softmax takes back.
    """
    size, strategy = tuple(network.model.input_shape[1:]), network.strategy

    @tf.function(reduce_retracing=False)
    def forward(pixels: Tensor) -> Tensor:
        logits = compute_tensor_logits(network, tf.reshape(pixels, (-1, *size)))
        if len(pixels.shape) == 4:
            return logits
        views = tf.reshape(tf.nn.log_softmax(logits), (batch_size, -1, logits.shape[-1]))
        return tf.reduce_logsumexp(views, axis=1) - math.log(pixels.shape[1])

    def run_alone(group: list[Tensor]) -> list[Tensor]:
        return [forward(group[0])]

    if strategy is None:
        return run_alone

    @tf.function(reduce_retracing=False)
    def forward_on_each(pixels: Tensor) -> Tensor:
        return strategy.run(forward, args=(pixels,))

    def run_on_each(group: list[Tensor]) -> list[Tensor]:
        full = group + [group[-1]] * (strategy.num_replicas_in_sync - len(group))
        values = strategy.experimental_distribute_values_from_function(
            lambda replica: full[replica.replica_id_in_sync_group]
        )
        return list(strategy.experimental_local_results(forward_on_each(values)))[: len(group)]

    return run_on_each


def compile_first_guesses(network: ScoringModel, batch_size: int) -> Callable[[Images], Integers]:
    """Return a function from images to the first guesses of a network on one device.

    It takes uint8 [images, height, width, 3] in [0, 255] and gives int64 [images].
    """
    forward = compile_forward(network, batch_size)

    def guess(pixels: Images) -> Integers:
        parts = (pixels[start : start + batch_size] for start in range(0, len(pixels), batch_size))
        found = [
            forward([_fill_batch(part, batch_size)])[0].numpy()[: len(part)].argmax(axis=1)
            for part in parts
        ]
        return np.concatenate(found)

    return guess


def _fill_batch(pixels: Images, batch_size: int) -> Tensor:
    """Return uint8 [batch_size, ...]: the images, then the same ones again as often as needed."""
    missing = batch_size - len(pixels)
    return (
        tf.convert_to_tensor(pixels)
        if missing == 0
        else tf.gather(pixels, tf.range(batch_size) % len(pixels))
    )


def _measure_light(pixels: Images) -> tuple[Floats, Floats]:
    """Return mean and standard deviation of each image's pixels, float32 [images].

    In levels of 0-255; of several views of an image, those of all views together.
    """
    flat = pixels.reshape(len(pixels), -1)
    mean = flat.mean(axis=1, dtype=np.float64)
    squares = np.einsum("ij,ij->i", flat, flat, dtype=np.float64) / flat.shape[1]
    return mean.astype(np.float32), np.sqrt(np.maximum(squares - mean**2, 0)).astype(np.float32)


def _require_finite_logits(chunk: PredictionChunk) -> None:
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
            f"{np.count_nonzero(outside)} of {images} labels are not a class of the model",
            expected=f"0-{classes - 1}",
            received=f"{chunk.labels[first]} for {chunk.keys[first]!r}",
            hint="Type the same command with --rerun ingest",
        )
    broken = ~np.isfinite(chunk.logits).all(axis=1)
    if broken.any():
        first = int(np.argmax(broken))
        raise CheckpointError(
            f"The model's logits are not numbers for {np.count_nonzero(broken)} of {images} images",
            expected="finite values",
            received=f"{chunk.logits[first].min()} for {chunk.keys[first]!r}",
            hint="Train again with a lower rate, for example --set train.learning_rate=0.001",
        )


def decode_keys(keys: Iterable[str | bytes]) -> tuple[str, ...]:
    """Return names as text, whether they come as str, bytes, an array or a tensor.

    Bytes that are not UTF-8 are written by number.
    """
    if isinstance(keys, tuple) and all(isinstance(key, str) for key in keys):
        return keys  # a million of them need not be there twice
    array = keys.numpy() if hasattr(keys, "numpy") else keys
    return tuple(
        key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else str(key)
        for key in array
    )


def require_class_counts(labels: Labels, counts: Sequence[int], split: str) -> None:
    """Raise unless the scored images have the class counts of the dataset's record.

    Args:
        labels: of the whole split.
        counts: images of each class by the record.
        split: name of the split, for the message.

    Raises:
        DatasetError: a class has more or fewer images.
    """
    found = np.bincount(labels, minlength=len(counts))
    if not np.array_equal(found, counts):
        first = int(np.argmax(found != np.asarray(counts)))
        raise DatasetError(
            f"The {split} split is not what its record promises",
            expected=f"{counts[first]} images of class {first}",
            received=f"{found[first]}",
            hint="Type the same command with --rerun ingest",
        )


def read_images_at(
    batches: Iterable[tuple[Images, Labels]], indices: Sequence[int]
) -> dict[int, Image]:
    """Return some images of a split by index, uint8 [height, width, 3] in [0, 255] each.

    Reading stops after the last of them.
    """
    wanted, kept, start = set(indices), dict[int, "Image"](), 0
    for pixels, _ in batches:
        for index in wanted & set(range(start, start + len(pixels))):
            kept[index] = np.asarray(pixels[index - start])
        start += len(pixels)
        if len(kept) == len(wanted):
            break
    return kept
