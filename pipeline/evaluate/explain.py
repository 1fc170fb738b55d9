"""What a trained network looks at.

Its filters, its feature maps, what excites them, where an answer comes from, which images are
alike.

A network here is a chain of layers with square windows, as pipeline.model.alexnet builds it, from
uint8 [batch, size, size, 3] in [0, 255] to logits. It is read as it was saved: not compiled, and
unchanged afterwards. Whatever it computes in, results are float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy import linalg

from pipeline.evaluate.metrics import Floats, Integers
from pipeline.model.layers import (
    LocalResponseNormalization,
    PixelNormalization,
    SpatialResponseNormalization,
    TwoTowerConv2D,
)

_CONVOLUTIONS = (keras.layers.Conv2D, TwoTowerConv2D)
_POOLS = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)
# What lies between them in a network whose inside can be shown: layers that move nothing, or by a
# known border.
_BETWEEN = (
    "InputLayer",
    "ZeroPadding2D",
    "Rescaling",
    "BatchNormalization",
    "Activation",
    "ReLU",
    "Dropout",
    "Flatten",
    "Dense",
    "Softmax",
)
_OURS = (PixelNormalization, LocalResponseNormalization, SpatialResponseNormalization)
_KNOWN = (*_CONVOLUTIONS, *_POOLS, *_OURS, *(getattr(keras.layers, name) for name in _BETWEEN))
_IMAGES_AT_ONCE = 64  # what the convolutions of the 2012 network give takes 2.6 MB an image
_NUMBERS_AT_ONCE = (
    2**16
)  # differences in float64 take 512 kB, which stay in a processor's cache: twice as fast as 32 MB


@dataclass(frozen=True)
class Maps:
    """The strongest feature maps of one layer for each image, the strongest first.

    `indices` are int32 [images, count], which maps; `values` float32 [images, count, height,
    width], unbounded, their activations.
    """

    indices: Integers
    values: Floats


@dataclass(frozen=True)
class Field:
    """What the units of a layer see, along either side.

    Unit `p` the pixels from `start + stride * p` on, `size` of them.

    It may begin before the image and end behind it, where a layer saw its border.
    """

    start: int
    stride: int
    size: int


@dataclass(frozen=True)
class Patches:
    """The parts of images that excite some feature maps of one layer most.

    `maps` are int [maps], which; `images` int [maps, patches], whose parts, the most exciting
    first; `peaks` float32 [maps, patches], the activations there; `pixels` uint8 [maps, patches,
    field, field, 4], RGBA in [0, 255], transparent outside the image.
    """

    maps: Integers
    images: Integers
    peaks: Floats
    pixels: Any


def explainable(model: Any) -> bool:
    """Say whether a network can be explained here.

    Its layers are one chain, with a convolution that sees three channels in it.
    """
    if not all(isinstance(layer, _KNOWN) and _is_plain(layer) for layer in model.layers):
        return False
    convolutions = [layer for layer in model.layers if isinstance(layer, _CONVOLUTIONS)]
    chained = all(
        after.input is before.output for before, after in itertools.pairwise(model.layers)
    )
    first_dense = next(
        (
            place
            for place, layer in enumerate(model.layers)
            if isinstance(layer, keras.layers.Dense)
        ),
        len(model.layers),
    )
    within = all(model.layers.index(layer) < first_dense for layer in convolutions)
    return chained and bool(convolutions) and within and convolutions[0].input.shape[-1] == 3


def _is_plain(layer: Any) -> bool:
    """Say whether a layer's window is square and without gaps, so that what it sees is known."""
    shapes = [
        getattr(layer, name, 1) for name in ("kernel_size", "pool_size", "strides", "dilation_rate")
    ]
    square = all(not isinstance(shape, tuple) or len(set(shape)) == 1 for shape in shapes)
    return (
        square
        and getattr(layer, "dilation_rate", 1) in (1, (1, 1))
        and getattr(layer, "data_format", "channels_last") == "channels_last"
    )


def depth_layers(model: Any) -> list[str]:
    """Return, for each convolution in order, the layer that gives its activated output.

    That is the convolution if the activation is part of it, else the activation that follows,
    behind whatever lies between.
    """
    names: list[str] = []
    waiting = False
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dense):
            break
        if isinstance(layer, _CONVOLUTIONS):
            names.append(layer.name)
            waiting = layer.activation is keras.activations.linear
        elif waiting and isinstance(layer, keras.layers.Activation):
            names[-1], waiting = layer.name, False
    return names


def feature_layer(model: Any) -> str:
    """Return `fc7`, or the last layer before the logits that changes anything if there is no `fc7`."""
    names = [
        layer.name for layer in model.layers[:-1] if not isinstance(layer, keras.layers.Dropout)
    ]
    return "fc7" if "fc7" in names else names[-1]


def filters_by_tower(model: Any) -> tuple[Floats, int]:
    """Return the filters that see the pixels, float32 [height, width, 3, filters], and how many towers share them.

    With 2, the next layer reads the first half of the filters in the first tower and the second
    half in the second.
    """
    first, *others = (layer for layer in model.layers if isinstance(layer, _CONVOLUTIONS))
    towers = 2 if others and isinstance(others[0], TwoTowerConv2D) else 1
    return np.asarray(first.kernel, np.float32), towers


def receptive_field(model: Any, layer: str) -> Field:
    """Return which pixels a unit of a layer can see.

    Normalization over neighboring positions counts; the mean over a batch does not, as it is a
    constant by now.
    """
    start, stride, size = 0, 1, 1
    for step in model.layers:
        window, apart, before = _window(step)
        start, size, stride = start - before * stride, size + (window - 1) * stride, stride * apart
        if step.name == layer:
            break
    return Field(start, stride, size)


def strongest_maps(model: Any, pixels: Any, layers: Sequence[str], count: int) -> dict[str, Maps]:
    """Return the feature maps with the largest mean activation, for each layer and image.

    Equal ones in order of their numbers.

    Args:
        model: takes `pixels`.
        pixels: uint8 [images, size, size, 3] in [0, 255], at least one image.
        layers: names, such as `depth_layers` gives.
        count: maps an image; all of a layer that has fewer.
    """
    outputs = _outputs(model, layers)

    def strongest(batch: Any) -> list[Any]:
        found = []
        for values in outputs(batch):
            order = tf.math.top_k(
                tf.reduce_mean(values, axis=(1, 2)), min(count, values.shape[-1])
            ).indices
            found += [order, tf.gather(tf.transpose(values, (0, 3, 1, 2)), order, batch_dims=1)]
        return found

    arrays = _in_batches(strongest, pixels)
    return {name: Maps(*arrays[2 * place : 2 * place + 2]) for place, name in enumerate(layers)}


def top_patches(
    model: Any, pixels: Any, layers: Sequence[str], *, maps: int = 6, patches: int = 5
) -> dict[str, Patches]:
    """Return, for each layer, what excites a few of its feature maps most, cut to what the exciting unit can see.

    The first map is the one whose largest activation varies most between the images; a map that is
    the same for all says nothing. Each other varies most in what the ones before it do not tell, so
    that six maps show six things. Each image is cut once a map, around its largest activation.

    Args:
        model: takes `pixels`.
        pixels: uint8 [images, size, size, 3] in [0, 255], a sample, at least one image.
        layers: names, such as `depth_layers` gives.
        maps: a layer.
        patches: a map; one for each image if there are fewer.
    """
    outputs = _outputs(model, layers)
    widths = [model.get_layer(name).output.shape[2] for name in layers]

    def peaks(batch: Any) -> list[Any]:
        found = []
        for values in outputs(batch):
            rows = tf.reshape(values, (len(batch), -1, values.shape[-1]))
            found += [tf.reduce_max(rows, axis=1), tf.argmax(rows, axis=1, output_type=tf.int32)]
        return found

    arrays = _in_batches(peaks, pixels)
    found = {}
    for name, width, heights, places in zip(layers, widths, arrays[::2], arrays[1::2], strict=True):
        chosen = linalg.qr(
            heights - heights.mean(axis=0, dtype=np.float64), mode="r", pivoting=True
        )[1][:maps]
        order = np.argsort(-heights[:, chosen], axis=0, kind="stable")[:patches].T
        corners = np.stack(np.divmod(places[order, chosen[:, np.newaxis]], width), axis=-1)
        cut = _cut(pixels, order, corners, receptive_field(model, name))
        found[name] = Patches(chosen, order, heights[order, chosen[:, np.newaxis]], cut)
    return found


def grad_cam(model: Any, pixels: Any, classes: Any) -> Floats:
    """Return where in each image the last convolution speaks for a class.

    Grad-CAM (Selvaraju and others, 2017).

    The maps are added up, each weighted with the mean gradient of the class's logit by it, and what
    speaks against the class is left out. Between the units, which lie where the middles of their
    receptive fields are, the sum is interpolated bilinearly.

    Args:
        model: takes `pixels`.
        pixels: uint8 [images, size, size, 3] in [0, 255], at least one image.
        classes: int [images], for each image the class that is asked about.

    Returns:
        float32 [images, size, size] in [0, 1], 1 at the largest of each image; all 0 where nothing
        speaks for the class.
    """
    layer = depth_layers(model)[-1]
    middle = model.get_layer(layer).output
    body, head = keras.Model(model.input, middle), keras.Model(middle, model.output)

    def cam(batch: Any, asked: Any) -> list[Any]:
        values = body(batch, training=False)
        with tf.GradientTape() as tape:
            tape.watch(
                values
            )  # by itself it watches only trainable weights, and a network may be frozen
            score = tf.gather(
                tf.cast(head(values, training=False), tf.float32), asked, batch_dims=1
            )
        weights = tf.reduce_mean(
            tf.cast(tape.gradient(score, values), tf.float32), axis=(1, 2), keepdims=True
        )
        return [tf.nn.relu(tf.reduce_sum(weights * tf.cast(values, tf.float32), axis=-1))]

    (found,) = _in_batches(cam, pixels, np.asarray(classes, np.int32))
    spread = _interpolation(model.input_shape[1], found.shape[1], receptive_field(model, layer))
    heat = spread @ found @ spread.T
    largest = heat.max(axis=(1, 2), keepdims=True)
    return heat / np.where(largest > 0, largest, 1)


def features(model: Any, batches: Iterable[tuple[Any, Any]], layer: str) -> Floats:
    """Return what a layer says of each image, float32 [images, units], in one piece.

    1024 units of 50,000 images take 200 MB.

    Args:
        model: takes the batches' pixels.
        batches: (uint8 [n, size, size, 3] in [0, 255], anything), at least one, of any sizes.
        layer: a name, such as `feature_layer` gives; of feature maps, every position is a unit.
    """
    outputs = _outputs(model, [layer])
    program = tf.function(
        lambda batch: [tf.reshape(values, (len(batch), -1)) for values in outputs(batch)]
    )
    size, found = 0, []
    for pixels, _ in batches:
        size = size or min(_IMAGES_AT_ONCE, len(pixels))
        found += _by_size(program, size, np.asarray(pixels))
    return np.concatenate([rows for (rows,) in found])


def nearest(train_features: Floats, query_features: Floats, count: int) -> tuple[Integers, Floats]:
    """Return which rows lie nearest to each query and how far.

    Int64 and float64 [queries, count], the nearest first.

    Distances are Euclidean and exact: the differences themselves are squared and added in float64.
    Of equally near rows the first is first. Time grows with queries x rows x units, for 8 queries
    among 50,000 rows of 1024 units a second or two; memory does not.

    Args:
        train_features: float [rows, units].
        query_features: float [queries, units].
        count: rows a query; all if there are fewer.
    """
    queries = np.asarray(query_features, np.float64)
    rows = max(1, _NUMBERS_AT_ONCE // max(1, queries.shape[1]))
    indices, squares = np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0))
    for start in range(0, len(train_features), rows):
        block = np.asarray(train_features[start : start + rows], np.float64)
        found = np.stack([np.square(block - query).sum(axis=1) for query in queries])
        places = np.broadcast_to(np.arange(start, start + len(block)), found.shape)
        indices, squares = (
            np.concatenate([indices, places], axis=1),
            np.concatenate([squares, found], axis=1),
        )
        order = np.argsort(squares, axis=1, kind="stable")[
            :, :count
        ]  # earlier rows stand on the left
        indices, squares = (
            np.take_along_axis(indices, order, axis=1),
            np.take_along_axis(squares, order, axis=1),
        )
    return indices, np.sqrt(squares)


def _window(layer: Any) -> tuple[int, int, int]:
    """Return how many inputs along a side an output of a layer sees, how far apart their windows are, and how far before 0 they begin.

    TensorFlow's `same` makes an output for every `stride` inputs, and puts the smaller half of the
    border before the first.
    """
    if isinstance(layer, keras.layers.ZeroPadding2D):
        return 1, 1, layer.padding[0][0]
    if isinstance(layer, _CONVOLUTIONS):
        size = layer.kernel.shape[0]
    elif isinstance(layer, _POOLS):
        size = layer.pool_size[0]
    elif isinstance(layer, SpatialResponseNormalization):
        size = layer.size
    else:
        return 1, 1, 0
    stride = layer.strides[0] if hasattr(layer, "strides") else 1
    if getattr(layer, "padding", "same") == "valid":
        return size, stride, 0
    inputs = layer.input.shape[1]
    return size, stride, max((-(-inputs // stride) - 1) * stride + size - inputs, 0) // 2


def _outputs(model: Any, layers: Sequence[str]) -> Callable[[Any], list[Any]]:
    """Return a function from pixels to what each layer gives, in float32."""
    part = keras.Model(model.input, [model.get_layer(name).output for name in layers])
    # A model gives a list of one as its only element.
    return lambda pixels: [
        tf.cast(values, tf.float32) for values in keras.tree.flatten(part(pixels, training=False))
    ]


def _in_batches(compute: Callable[..., list[Any]], *columns: Any) -> list[Any]:
    """Return what a function gives for all rows of some columns, computed for a few rows at a time."""
    parts = _by_size(tf.function(compute), min(_IMAGES_AT_ONCE, len(columns[0])), *columns)
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def _by_size(program: Any, size: int, *columns: Any) -> list[list[Any]]:
    """Return what a program gives for each `size` rows.

    The last ones are repeated to fill that up, so that it is compiled only once.
    """
    parts = []
    for start in range(0, len(columns[0]), size):
        rows = [column[start : start + size] for column in columns]
        full = [tf.constant(np.resize(part, (size, *part.shape[1:]))) for part in rows]
        parts.append([array.numpy()[: len(rows[0])] for array in program(*full)])
    return parts


def _cut(pixels: Any, images: Integers, corners: Integers, field: Field) -> Any:
    """Return uint8 [maps, patches, size, size, 4], what the unit at each corner, int [maps, patches, 2], sees of its image."""
    side, shape = pixels.shape[1], images.shape
    cut = np.zeros((*shape, field.size, field.size, 4), np.uint8)
    for place in np.ndindex(shape):
        start = field.start + field.stride * corners[place]
        top, left = np.maximum(start, 0)
        bottom, right = np.minimum(start + field.size, side)
        inside = cut[place][top - start[0] : bottom - start[0], left - start[1] : right - start[1]]
        inside[..., :3], inside[..., 3] = pixels[images[place]][top:bottom, left:right], 255
    return cut


def _interpolation(size: int, units: int, field: Field) -> Floats:
    """Return float32 [size, units], what each unit contributes to each pixel along a side.

    Beyond the outermost units it stays as there.
    """
    middle = field.start + field.size / 2
    places = np.clip((np.arange(size) + 0.5 - middle) / field.stride, 0, units - 1)
    return np.maximum(0, 1 - np.abs(places[:, np.newaxis] - np.arange(units))).astype(np.float32)
