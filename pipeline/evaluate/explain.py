"""Explanations of a network: its strongest feature maps, what excites them, and Grad-CAM.

A network is read as it was saved: not compiled, and unchanged afterwards. Whatever it computes in,
results are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf
from scipy import linalg

from pipeline.evaluate.chain import ReceptiveField, compute_receptive_field, list_depth_layers
from pipeline.evaluate.layer_outputs import build_outputs, run_in_batches

if TYPE_CHECKING:
    from pipeline.arrays import Floats, Images, Integers, Labels, Network, Tensor


@dataclass(frozen=True)
class FeatureMaps:
    """The strongest feature maps of one layer for each image, the strongest first.

    `indices` are int32 [images, count], the maps' numbers; `values` float32 [images, count, height,
    width], unbounded, their activations.
    """

    indices: Integers
    values: Floats


@dataclass(frozen=True)
class TopPatches:
    """The parts of images that excite some feature maps of one layer most.

    `maps` are int [maps], the maps' numbers; `images` int [maps, patches], the indices of the
    images that are cut, the most exciting first; `peaks` float32 [maps, patches], the
    activations there; `pixels` uint8 [maps, patches, field, field, 4], RGBA in [0, 255],
    transparent outside the image.
    """

    maps: Integers
    images: Integers
    peaks: Floats
    pixels: Images


def find_strongest_maps(
    model: Network, pixels: Images, layers: Sequence[str], count: int
) -> dict[str, FeatureMaps]:
    """Return the feature maps with the largest mean activation, for each layer and image.

    Equal ones in order of their numbers.

    Args:
        model: takes `pixels`.
        pixels: uint8 [images, size, size, 3] in [0, 255], at least one image.
        layers: names, such as `list_depth_layers` gives.
        count: maps an image; all of a layer that has fewer.
    """
    outputs = build_outputs(model, layers)

    def find_strongest(batch: Tensor) -> list[Tensor]:
        found = []
        for values in outputs(batch):
            order = tf.math.top_k(
                tf.reduce_mean(values, axis=(1, 2)), min(count, values.shape[-1])
            ).indices
            found += [order, tf.gather(tf.transpose(values, (0, 3, 1, 2)), order, batch_dims=1)]
        return found

    arrays = run_in_batches(find_strongest, pixels)
    return {
        name: FeatureMaps(*arrays[2 * index : 2 * index + 2]) for index, name in enumerate(layers)
    }


def find_top_patches(
    model: Network, pixels: Images, layers: Sequence[str], *, maps: int = 6, patches: int = 5
) -> dict[str, TopPatches]:
    """Return, for each layer, the parts of images that excite a few of its feature maps most.

    Each is cut to the pixels that the exciting unit can see.

    The first map is the one whose largest activation varies most between the images; a map that is
    the same for all shows nothing. Each other varies most in what the ones before it do not show,
    so that six maps show six things. Each image is cut once a map, around its largest activation.

    Args:
        model: takes `pixels`.
        pixels: uint8 [images, size, size, 3] in [0, 255], a sample, at least one image.
        layers: names, such as `list_depth_layers` gives.
        maps: a layer.
        patches: a map; one for each image if there are fewer.
    """
    outputs = build_outputs(model, layers)
    widths = [model.get_layer(name).output.shape[2] for name in layers]

    def find_peaks(batch: Tensor) -> list[Tensor]:
        found = []
        for values in outputs(batch):
            rows = tf.reshape(values, (len(batch), -1, values.shape[-1]))
            found += [tf.reduce_max(rows, axis=1), tf.argmax(rows, axis=1, output_type=tf.int32)]
        return found

    arrays = run_in_batches(find_peaks, pixels)
    found = {}
    for name, width, heights, units in zip(layers, widths, arrays[::2], arrays[1::2], strict=True):
        chosen = linalg.qr(
            heights - heights.mean(axis=0, dtype=np.float64), mode="r", pivoting=True
        )[1][:maps]
        order = np.argsort(-heights[:, chosen], axis=0, kind="stable")[:patches].T
        corners = np.stack(np.divmod(units[order, chosen[:, np.newaxis]], width), axis=-1)
        cut = _cut_patches(pixels, order, corners, compute_receptive_field(model, name))
        found[name] = TopPatches(chosen, order, heights[order, chosen[:, np.newaxis]], cut)
    return found


def compute_grad_cam(model: Network, pixels: Images, classes: Labels) -> Floats:
    """Return the evidence of the last convolution for a class, by pixel of each image.

    Grad-CAM (Selvaraju and others, 2017): the maps are added up, each weighted with the mean
    gradient of the class's logit by it, and evidence against the class is left out. Between the
    units, which lie at the middles of their receptive fields, the sum is interpolated bilinearly.

    Args:
        model: takes `pixels`.
        pixels: uint8 [images, size, size, 3] in [0, 255], at least one image.
        classes: int [images], for each image the class that is explained.

    Returns:
        float32 [images, size, size] in [0, 1], 1 at the largest of each image; all 0 where no
        evidence for the class is found.
    """
    layer = list_depth_layers(model)[-1]
    middle = model.get_layer(layer).output
    body, head = keras.Model(model.input, middle), keras.Model(middle, model.output)

    def compute_cam(batch: Tensor, asked: Tensor) -> list[Tensor]:
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

    (found,) = run_in_batches(compute_cam, pixels, np.asarray(classes, np.int32))
    spread = _build_interpolation(
        model.input_shape[1], found.shape[1], compute_receptive_field(model, layer)
    )
    heat = spread @ found @ spread.T
    largest = heat.max(axis=(1, 2), keepdims=True)
    return heat / np.where(largest > 0, largest, 1)


def _cut_patches(
    pixels: Images, images: Integers, corners: Integers, field: ReceptiveField
) -> Images:
    """Return the pixels that some units see, uint8 [maps, patches, size, size, 4].

    Args:
        pixels: uint8 [images, size, size, 3].
        images: int [maps, patches], the index of each unit's image.
        corners: int [maps, patches, 2], the row and column of each unit.
        field: the receptive field of the units.
    """
    side, shape = pixels.shape[1], images.shape
    cut = np.zeros((*shape, field.size, field.size, 4), np.uint8)
    for index in np.ndindex(shape):
        start = field.start + field.stride * corners[index]
        top, left = np.maximum(start, 0)
        bottom, right = np.minimum(start + field.size, side)
        inside = cut[index][top - start[0] : bottom - start[0], left - start[1] : right - start[1]]
        inside[..., :3], inside[..., 3] = pixels[images[index]][top:bottom, left:right], 255
    return cut


def _build_interpolation(size: int, units: int, field: ReceptiveField) -> Floats:
    """Return the weight of each unit in each pixel along a side, float32 [size, units].

    Beyond the outermost units it stays as there.
    """
    middle = field.start + field.size / 2
    positions = np.clip((np.arange(size) + 0.5 - middle) / field.stride, 0, units - 1)
    return np.maximum(0, 1 - np.abs(positions[:, np.newaxis] - np.arange(units))).astype(np.float32)
