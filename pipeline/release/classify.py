"""From an image file's bytes to classes.

What `predict`, `serve`, the gate and every parity check share.

The pixels are those of the evaluation: the same decoder, the same resize, the same central crop,
and the same compiled network.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from pipeline.data.decoding import decode_and_resize, decoding_error_reason
from pipeline.data.headers import read_orientation, require_decodable
from pipeline.errors import CheckpointError
from pipeline.evaluate.scoring import ScoringModel, compute_logits, load_network
from pipeline.release.package import Release

if TYPE_CHECKING:
    from pipeline.arrays import Floats

MAX_SIDE = 65_500  # libjpeg's own limit, in pixels
# Of a logit, relative to the largest one: float32 has 7 digits, and batches of other sizes are
# summed in another order.
TOLERANCE = 1e-5
MAX_PIXELS = 89_478_485  # Pillow's own limit, as in data.max_pixels


class UnusableError(ValueError):
    """A file that cannot be classified; the message is the reason, such as `empty file`."""


@dataclass(frozen=True)
class Guess:
    """A class with its calibrated probability, in [0, 1]."""

    name: str
    number: int
    probability: float


@dataclass(frozen=True)
class Classifier:
    """A release, opened. Both functions may be called from several threads."""

    release: Release
    model: Any
    batch: int
    _cut: Any
    _forward: dict[int, Callable[[Any], Any]]

    def pixels(
        self, encoded: bytes, *, orientation: int | None = None, max_pixels: int = MAX_PIXELS
    ) -> Any:
        """Return the pixels that the network sees of an image file, uint8 [image_size, image_size, 3] in [0, 255].

        Args:
            encoded: the file.
            orientation: in 1..8; what its EXIF says unless somebody knows better.
            max_pixels: of an image that is decoded.

        Raises:
            UnusableError: the bytes are no image, a damaged one, or one with more than
                `max_pixels`.
        """
        try:
            require_decodable(encoded, max_side=MAX_SIDE, max_pixels=max_pixels)
            turned = read_orientation(encoded) if orientation is None else orientation
            return self._cut(tf.constant(encoded), tf.constant(turned, tf.int32)).numpy()
        except ValueError as error:
            raise UnusableError(str(error)) from error
        except tf.errors.OpError as error:
            raise UnusableError(decoding_error_reason(error.message) or "damaged") from error

    def logits(self, pixels: Any) -> Floats:
        """Return float32 [images, classes] of uint8 [images, image_size, image_size, 3] in [0, 255], in batches of fixed sizes.

        Raises:
            CheckpointError: a logit is not a number.
        """
        parts = (pixels[start : start + self.batch] for start in range(0, len(pixels), self.batch))
        found = (
            np.concatenate([self._part(part) for part in parts])
            if len(pixels)
            else np.zeros((0, len(self.release.class_names)), "f4")
        )
        if not np.isfinite(found).all():
            raise CheckpointError(
                f"The model {self.release.title} returned logits that are not finite",
                expected="finite logits",
                received=str(found[~np.isfinite(found)][0]),
                hint="Name another model with --model",
            )
        return found

    def _part(self, pixels: Any) -> Floats:
        """Answer at most a batch, filled up with its first image to the next size that is compiled."""
        size = next(size for size in self._forward if size >= len(pixels))
        filled = np.concatenate(
            [pixels, np.broadcast_to(pixels[:1], (size - len(pixels), *pixels.shape[1:]))]
        )
        return self._forward[size](filled)[: len(pixels)]

    def probabilities(self, logits: Floats) -> Floats:
        """Return calibrated probabilities, float64 [images, classes].

        Softmax of the logits divided by the release's temperature.
        """
        scaled = np.asarray(logits, np.float64) / self.release.temperature
        scaled -= scaled.max(axis=1, keepdims=True)
        powers = np.exp(scaled)
        return powers / powers.sum(axis=1, keepdims=True)

    def guesses(self, logits: Floats, top: int) -> list[list[Guess]]:
        """Return for each image its `top` likeliest classes, the likeliest first.

        Of equals the lower number first.
        """
        probabilities, names = self.probabilities(logits), self.release.class_names
        order = np.argsort(-np.asarray(logits), axis=1, kind="stable")[:, :top]
        return [
            [Guess(names[number], int(number), float(own[number])) for number in first]
            for own, first in zip(probabilities, order, strict=True)
        ]


def load_classifier(release: Release, *, batch: int = 32) -> Classifier:
    """Open the model of a release that was verified, on one device.

    Args:
        release: as `open_release` gives it.
        batch: most images that are answered together.

    Raises:
        CheckpointError: the file is not safe to open or cannot be read.
        DatasetError: it answers something else than these classes.
    """
    model = load_network(release.model_path, len(release.class_names) or None)
    size, classes = model.input_shape[1], model.output_shape[-1]
    if release.image_size not in (0, size):
        raise CheckpointError(
            f"The model {release.title} is not what its release says. Expected images of"
            f" {release.image_size} pixels. Received a network for {size}. Name another model with"
            " --model."
        )
    names = release.class_names or tuple(f"class {number}" for number in range(classes))
    known = release.model_copy(
        update={
            "class_names": names,
            "image_size": size,
            "short_side": max(release.short_side, size),
        }
    )
    sizes = sorted({min(batch, 1 << power) for power in range(batch.bit_length() + 1)})
    return Classifier(
        known,
        model,
        batch,
        _cutter(known.short_side, size),
        {size: _compiled(model, size) for size in sizes},
    )


def _compiled(model: Any, size: int) -> Callable[[Any], Any]:
    """Return a function from uint8 [size, side, side, 3] to float32 [size, classes], compiled when it is first called."""
    network = ScoringModel(model)

    @functools.cache
    def forward() -> Any:
        program = tf.function(lambda pixels: compute_logits(network, pixels))
        return program.get_concrete_function(
            tf.TensorSpec((size, *model.input_shape[1:]), tf.uint8)
        )

    return lambda pixels: forward()(tf.convert_to_tensor(pixels)).numpy()


def _cutter(short_side: int, size: int) -> Any:
    """Return a compiled function from a file's bytes and EXIF orientation to the central crop."""
    margin = (short_side - size) // 2

    def cut(encoded: Any, orientation: Any) -> Any:
        square = decode_and_resize(encoded, short_side, orientation)
        return square[margin : margin + size, margin : margin + size]

    signature = [tf.TensorSpec((), tf.string), tf.TensorSpec((), tf.int32)]
    with tf.device("CPU:0"):
        return tf.function(cut, input_signature=signature).get_concrete_function()


def warm_up(classifier: Classifier) -> None:
    """Answer a black image in each batch size, so that no person waits for a compilation."""
    side = classifier.release.image_size
    for size in classifier._forward:
        classifier.logits(np.zeros((size, side, side, 3), np.uint8))


def differences(classifier: Classifier, images: Sequence[tuple[bytes, Sequence[float]]]) -> float:
    """Return the largest difference of a logit from the recorded one over some images, each a file's bytes and its logits."""
    found = classifier.logits(np.stack([classifier.pixels(encoded) for encoded, _ in images]))
    return float(np.abs(found - np.asarray([logits for _, logits in images])).max())
