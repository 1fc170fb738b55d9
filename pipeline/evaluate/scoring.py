"""From a model and pictures to logits: each picture once, in stored order, whatever the batch size."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.errors import CheckpointError, DatasetError
from pipeline.evaluate.metrics import Floats, Integers


@dataclass(frozen=True)
class Predictions:
    """What the model says of each picture, in stored order.

    `logits` are float32 [images, classes], `labels` int32 [images] in [0, classes), `keys` the pictures' names.
    """

    logits: Floats
    labels: Integers
    keys: tuple[str, ...]

    def arrays(self) -> dict[str, Any]:
        """Return what predictions.npz holds."""
        return {"logits": self.logits, "labels": self.labels, "keys": np.asarray(self.keys, dtype=np.str_)}

    def sha256(self) -> str:
        """Return the SHA-256 of the arrays: names, types, shapes and bytes."""
        digest = hashlib.sha256()
        for name, array in self.arrays().items():
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def score(
    model: Any, batches: Iterable[tuple[Any, Any]], keys: Iterable[Any], *, batch_size: int, progress: Callable[[int, int], None]
) -> Predictions:
    """Run the model over every picture once.

    Every step has the same static shape: a smaller last batch is filled up with repeated pictures whose logits are cut off. So there
    is one compiled program, and the last pictures are computed by the same code as all others.

    Args:
        model: takes uint8 [batch, size, size, 3] in [0, 255], gives logits [batch, classes].
        batches: (uint8 [n, size, size, 3] or, for views of each picture, [n, views, size, size, 3], int [n]) with n = batch_size but
            for the last, in the order of `keys`.
        keys: the pictures' names, str or bytes, [images].
        batch_size: pictures a step.
        progress: called with pictures done and wrong first guesses among them.

    Raises:
        DatasetError: the batches do not hold one picture for each key, or a label is not a class.
        CheckpointError: a logit is NaN or infinite.
    """
    names = decoded(keys)
    forward = _compiled(model, batch_size)
    logits, labels, done, wrong = [], [], 0, 0
    for pixels, classes in batches:
        found = forward(_filled(pixels, batch_size)).numpy()[: len(pixels)]
        logits.append(found)
        labels.append(np.asarray(classes, np.int32))
        done, wrong = done + len(found), wrong + int(np.count_nonzero(found.argmax(axis=1) != labels[-1]))
        progress(done, wrong)
    if done != len(names) or done == 0:
        raise DatasetError(
            f"The split cannot be scored once per picture. Expected {len(names)} pictures, at least one. Received {done}. "
            "Type the same command with --rerun ingest."
        )
    predictions = Predictions(np.concatenate(logits), np.concatenate(labels), names)
    require_sound(predictions)
    return predictions


def require_sound(predictions: Predictions) -> None:
    """Raise unless every logit is finite and every label is a class: a NaN compares as false and would score silently.

    Raises:
        DatasetError: a label is not a class of the model.
        CheckpointError: a logit is NaN or infinite.
    """
    images, classes = predictions.logits.shape
    outside = (predictions.labels < 0) | (predictions.labels >= classes)
    if outside.any():
        first = int(np.argmax(outside))
        raise DatasetError(
            f"{np.count_nonzero(outside)} labels are not a class of the model. Expected 0-{classes - 1}. Received "
            f"{predictions.labels[first]} for {predictions.keys[first]!r}. Type the same command with --rerun ingest."
        )
    broken = ~np.isfinite(predictions.logits).all(axis=1)
    if broken.any():
        first = int(np.argmax(broken))
        raise CheckpointError(
            f"The model's logits are not numbers for {np.count_nonzero(broken)} of {images} pictures. Expected finite values. Received "
            f"{predictions.logits[first].min()} for {predictions.keys[first]!r}. Train again with a lower rate, for example "
            "--set train.learning_rate=0.001."
        )


def require_counts(predictions: Predictions, counts: Sequence[int], split: str) -> None:
    """Raise unless the scored pictures are those that the dataset's record promises.

    Args:
        predictions: of the whole split.
        counts: images of each class that the record names.
        split: for the message.

    Raises:
        DatasetError: a class has more or fewer pictures.
    """
    found = np.bincount(predictions.labels, minlength=len(counts))
    if not np.array_equal(found, counts):
        first = int(np.argmax(found != np.asarray(counts)))
        raise DatasetError(
            f"The {split} split is not what its record promises. Expected {counts[first]} pictures of class {first}. "
            f"Received {found[first]}. Type the same command with --rerun ingest."
        )


def decoded(keys: Iterable[Any]) -> tuple[str, ...]:
    """Return names as text, whether they came as str, bytes, an array or a tensor; other bytes than UTF-8 are shown by number."""
    array = keys.numpy() if hasattr(keys, "numpy") else keys
    return tuple(key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else str(key) for key in array)


def pictures_at(batches: Iterable[tuple[Any, Any]], positions: Sequence[int]) -> dict[int, Any]:
    """Return position -> uint8 [size, size, 3] in [0, 255] for a few pictures of a split; stops reading after the last of them."""
    wanted, kept, start = set(positions), {}, 0
    for pixels, _ in batches:
        for position in wanted & set(range(start, start + len(pixels))):
            kept[position] = np.asarray(pixels[position - start])
        start += len(pixels)
        if len(kept) == len(wanted):
            break
    return kept


def first_kernel(model: Any) -> Any:
    """Return the weights of `conv1`, float32 [height, width, 3, filters]."""
    return model.get_layer("conv1").kernel.numpy()


def save_predictions(predictions: Predictions, path: Path) -> None:
    """Write `logits`, `labels` and `keys` as an .npz that loads without pickle."""
    np.savez(path, **predictions.arrays())


def _compiled(model: Any, batch_size: int) -> Any:
    """Return the forward pass as one program of a static shape that gives float32 logits.

    Of several views of a picture it gives the logarithms of the mean probabilities (paper, section 4.1), which softmax takes back.
    """
    size = tuple(model.input_shape[1:])

    @tf.function(reduce_retracing=False)
    def forward(pixels: Any) -> Any:
        logits = tf.cast(model(tf.reshape(pixels, (-1, *size)), training=False), tf.float32)
        if len(pixels.shape) == 4:
            return logits
        views = tf.reshape(tf.nn.log_softmax(logits), (batch_size, -1, logits.shape[-1]))
        return tf.reduce_logsumexp(views, axis=1) - math.log(pixels.shape[1])

    return forward


def _filled(pixels: Any, batch_size: int) -> Any:
    """Return uint8 [batch_size, ...]: the pictures, then the same ones again as often as needed."""
    missing = batch_size - len(pixels)
    return pixels if missing == 0 else tf.gather(pixels, tf.range(batch_size) % len(pixels))
