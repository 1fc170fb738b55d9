"""Classification: from an image file's bytes to classes, for `predict`, `serve` and the gate.

The pixels are those of the evaluation: the same decoder, the same resize, the same central crop,
and the same compiled network.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import tensorflow as tf

from pipeline.data.decoding import decode_and_resize, decoding_error_reason
from pipeline.data.headers import read_orientation, require_decodable
from pipeline.errors import CheckpointError
from pipeline.evaluate.map_layers import flatten_graph
from pipeline.evaluate.scoring import ScoringModel, compute_tensor_logits, load_network
from pipeline.image_size import make_image_size, sides_of, write_image_size
from pipeline.model.batch_limit import limit_batch
from pipeline.release.package import Release

if TYPE_CHECKING:
    from pipeline.arrays import Floats, Image, Images, Logits, Network, Tensor
    from pipeline.artifacts import Fit

    # From a file's bytes and EXIF orientation to uint8 [height, width, 3].
    Cutter: TypeAlias = Callable[[Tensor, Tensor], Tensor]
    # From uint8 [size, height, width, 3] to float32 [size, classes].
    Forward: TypeAlias = Callable[[Images], Logits]

MAX_SIDE = 65_500  # libjpeg's own limit, in pixels
# Of a logit, relative to the largest one: float32 has 7 digits, and batches of other sizes are
# summed in another order.
TOLERANCE = 1e-5
# Layers with weights of the network that the tolerance was chosen for.
_LAYERS_OF_ALEXNET = 8
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
    """A release, opened; its methods may be called from several threads."""

    release: Release
    model: Network
    batch: int
    _cut: Cutter
    _forward: dict[int, Forward]

    def prepare_pixels(
        self, encoded: bytes, *, orientation: int | None = None, max_pixels: int = MAX_PIXELS
    ) -> Image:
        """Return the network's input, uint8 [height, width, 3] in [0, 255].

        It is the center crop of an image file.

        Args:
            encoded: the file.
            orientation: in 1..8. None: that of its EXIF.
            max_pixels: of an image that is decoded.

        Raises:
            UnusableError: the bytes are not an image, or one that is damaged or has more than
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

    def predict_logits(self, pixels: Images) -> Logits:
        """Return float32 [images, classes], computed in batches of fixed sizes.

        Args:
            pixels: uint8 [images, height, width, 3] in [0, 255].

        Raises:
            CheckpointError: a logit is not a number.
        """
        batches = (
            pixels[start : start + self.batch] for start in range(0, len(pixels), self.batch)
        )
        found = (
            np.concatenate([self._predict_batch(batch) for batch in batches])
            if len(pixels)
            else np.zeros((0, len(self.release.class_names)), "f4")
        )
        if not np.isfinite(found).all():
            raise CheckpointError(
                f"The model {self.release.title} answers with NaN or infinity",
                expected="finite logits",
                received=f"{found[~np.isfinite(found)][0]}",
                hint="Name another model with --model",
            )
        return found

    def _predict_batch(self, pixels: Images) -> Logits:
        """Return the logits of at most a batch, padded with its first image to a compiled size."""
        size = next(size for size in self._forward if size >= len(pixels))
        filled = np.concatenate(
            [pixels, np.broadcast_to(pixels[:1], (size - len(pixels), *pixels.shape[1:]))]
        )
        return self._forward[size](filled)[: len(pixels)]

    def compute_probabilities(self, logits: Logits) -> Floats:
        """Return calibrated probabilities, float64 [images, classes].

        Softmax of the logits divided by the release's temperature.
        """
        scaled = np.asarray(logits, np.float64) / self.release.temperature
        scaled -= scaled.max(axis=1, keepdims=True)
        powers = np.exp(scaled)
        return powers / powers.sum(axis=1, keepdims=True)

    def rank_classes(self, logits: Logits, top: int) -> list[list[Guess]]:
        """Return for each image its `top` likeliest classes, the likeliest first.

        Of equal ones the lower number is first.
        """
        probabilities, names = self.compute_probabilities(logits), self.release.class_names
        order = np.argsort(-np.asarray(logits), axis=1, kind="stable")[:, :top]
        return [
            [Guess(names[number], int(number), float(own[number])) for number in first]
            for own, first in zip(probabilities, order, strict=True)
        ]


def load_classifier(release: Release, *, batch: int = 32) -> Classifier:
    """Open the model of a release that was verified, on one device.

    Args:
        release: as `open_release` gives it.
        batch: the largest number of images that are answered together; fewer where a layer's
            output would take more than 1 GiB.

    Raises:
        CheckpointError: the file is not safe to open or cannot be read.
        DatasetError: its classes are not those of the release.
    """
    model = load_network(release.model_path, len(release.class_names) or None)
    (height, width), classes = model.input_shape[1:3], model.output_shape[-1]
    size = make_image_size(height, width)
    if release.image_size not in (0, size):
        raise CheckpointError(
            f"The model {release.title} is not as its release describes it",
            expected=f"images of {write_image_size(release.image_size)} pixels",
            received=f"a network for {write_image_size(size)}",
            hint="Name another model with --model",
        )
    names = release.class_names or tuple(f"class {number}" for number in range(classes))
    known = release.model_copy(
        update={
            "class_names": names,
            "image_size": size,
            "short_side": max(release.short_side, height, width),
        }
    )
    batch = limit_batch(flatten_graph(model), batch)
    sizes = sorted({min(batch, 1 << power) for power in range(batch.bit_length() + 1)})
    return Classifier(
        known,
        model,
        batch,
        _compile_cutter(known.short_side, height, width, known.fit),
        {size: _compile_forward(model, size) for size in sizes},
    )


def find_tolerance(model: Network) -> float:
    """Return how much a logit may differ by rounding alone, relative to the largest one.

    The rounding of each layer is passed on by the next ones, so it grows as a random walk does:
    with the root of the number of layers with a kernel, over the eight of AlexNet.
    """
    kernels = sum(len(weight.shape) > 1 for weight in model.weights)
    return TOLERANCE * max(1.0, math.sqrt(kernels / _LAYERS_OF_ALEXNET))


def _compile_forward(model: Network, size: int) -> Forward:
    """Return the forward pass of a batch size, compiled when it is first called."""
    network = ScoringModel(model)

    @functools.cache
    def compile_once() -> Callable[[Tensor], Tensor]:
        program = tf.function(lambda pixels: compute_tensor_logits(network, pixels))
        return program.get_concrete_function(
            tf.TensorSpec((size, *model.input_shape[1:]), tf.uint8)
        )

    return lambda pixels: compile_once()(tf.convert_to_tensor(pixels)).numpy()


# A reload or a promotion opens several models of the same pixels.
@functools.lru_cache(maxsize=8)
def _compile_cutter(short_side: int, height: int, width: int, fit: Fit) -> Cutter:
    """Return a compiled function from a file's bytes and EXIF orientation to the center crop."""
    top, left = (short_side - height) // 2, (short_side - width) // 2

    def cut(encoded: Tensor, orientation: Tensor) -> Tensor:
        square = decode_and_resize(encoded, short_side, orientation, fit=fit)
        return square[top : top + height, left : left + width]

    signature = [tf.TensorSpec((), tf.string), tf.TensorSpec((), tf.int32)]
    with tf.device("CPU:0"):
        return tf.function(cut, input_signature=signature, autograph=False).get_concrete_function()


def warm_up(classifier: Classifier) -> None:
    """Answer black images in each batch size, so that no request waits for a compilation."""
    sides = sides_of(classifier.release.image_size)
    for size in classifier._forward:
        classifier.predict_logits(np.zeros((size, *sides, 3), np.uint8))


def measure_logit_difference(
    classifier: Classifier, images: Sequence[tuple[bytes, Sequence[float]]]
) -> float:
    """Return the largest difference of a logit from the recorded one.

    Args:
        classifier: the model.
        images: for each a file's bytes and the recorded logits.
    """
    found = classifier.predict_logits(
        np.stack([classifier.prepare_pixels(encoded) for encoded, _ in images])
    )
    return float(np.abs(found - np.asarray([logits for _, logits in images])).max())
