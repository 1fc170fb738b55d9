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

from pipeline.evaluate.layer_outputs import build_outputs, run_in_batches
from pipeline.evaluate.map_layers import list_depth_layers
from pipeline.evaluate.receptive_field import (
    Field,
    ReceptiveField,
    compute_receptive_field,
    spread_evenly,
)
from pipeline.evaluate.scoring import MIN_PROBABILITY, ScoringModel

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
    activations there; `pixels` uint8 [maps, patches, height, width, 4], RGBA in [0, 255],
    transparent outside the image.

    `positions` are None, or float32 [maps, patches, 2], the row and column of each unit's middle
    in the pixels of a whole image: where units see all of it, or where what they see is not
    defined, the image is not cut.
    """

    maps: Integers
    images: Integers
    peaks: Floats
    pixels: Images
    positions: Floats | None = None


def find_strongest_maps(
    model: Network, pixels: Images, layers: Sequence[str], count: int
) -> dict[str, FeatureMaps]:
    """Return the feature maps with the largest mean activation, for each layer and image.

    Equal ones in order of their numbers.

    Args:
        model: takes `pixels`.
        pixels: uint8 [images, height, width, 3] in [0, 255], at least one image.
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

    Each is cut to the pixels that the exciting unit can see; it is the whole image, with the
    unit's position, where every unit sees all of it (a receptive field of twice the image's
    sides) or the receptive field is not defined.

    The first map is the one whose largest activation varies most between the images; a map that is
    the same for all shows nothing. Each other varies most in what the ones before it do not show,
    so that six maps show six things. Each image is cut once a map, around its largest activation.

    Args:
        model: takes `pixels`.
        pixels: uint8 [images, height, width, 3] in [0, 255], a sample, at least one image.
        layers: names, such as `list_depth_layers` gives.
        maps: a layer.
        patches: a map; one for each image if there are fewer.
    """
    outputs = build_outputs(model, layers)
    shapes = [model.get_layer(name).output.shape[1:3] for name in layers]

    def find_peaks(batch: Tensor) -> list[Tensor]:
        found = []
        for values in outputs(batch):
            rows = tf.reshape(values, (len(batch), -1, values.shape[-1]))
            found += [tf.reduce_max(rows, axis=1), tf.argmax(rows, axis=1, output_type=tf.int32)]
        return found

    arrays = run_in_batches(find_peaks, pixels)
    found = {}
    for name, shape, heights, units in zip(layers, shapes, arrays[::2], arrays[1::2], strict=True):
        chosen = linalg.qr(
            heights - heights.mean(axis=0, dtype=np.float64), mode="r", pivoting=True
        )[1][:maps]
        order = np.argsort(-heights[:, chosen], axis=0, kind="stable")[:patches].T
        peaks = heights[order, chosen[:, np.newaxis]]
        corners = np.stack(np.divmod(units[order, chosen[:, np.newaxis]], shape[1]), axis=-1)
        sides, field = pixels.shape[1:3], compute_receptive_field(model, name)
        if field is None or all(
            along.size >= 2 * side for along, side in zip(field, sides, strict=True)
        ):
            whole = np.full((*order.shape, *sides, 4), 255, np.uint8)
            whole[..., :3] = pixels[order]
            positions = _locate_units(corners, _place_units(field, sides, shape), sides)
            found[name] = TopPatches(chosen, order, peaks, whole, positions)
        else:
            cut = _cut_patches(pixels, order, corners, field)
            found[name] = TopPatches(chosen, order, peaks, cut)
    return found


def compute_grad_cam(model: Network, pixels: Images, classes: Labels) -> Floats:
    """Return the evidence of the last feature maps for a class, by pixel of each image.

    Grad-CAM (Selvaraju and others, 2017): the maps are added up, each weighted with the mean
    gradient of the class's logit by it, and evidence against the class is left out. Between the
    units the sum is interpolated bilinearly. They lie at the middles of their receptive fields,
    which are followed along the graph; where these are not defined, they are spread evenly over
    the image.

    Args:
        model: takes `pixels`; `list_depth_layers` finds maps in it, of which the last are read.
        pixels: uint8 [images, height, width, 3] in [0, 255], at least one image.
        classes: int [images], for each image the class that is explained.

    Returns:
        float32 [images, height, width] in [0, 1], 1 at the largest of each image; all 0 where no
        evidence for the class is found.
    """
    layer = list_depth_layers(model)[-1]
    middle = model.get_layer(layer).output
    body, head = keras.Model(model.input, middle), keras.Model(middle, model.output)
    ends_in_softmax = ScoringModel(model).ends_in_softmax

    def compute_cam(batch: Tensor, asked: Tensor) -> list[Tensor]:
        values = body(batch, training=False)
        with tf.GradientTape() as tape:
            tape.watch(
                values
            )  # by itself it watches only trainable weights, and a network may be frozen
            logits = tf.cast(head(values, training=False), tf.float32)
            if ends_in_softmax:
                logits = tf.math.log(tf.maximum(logits, MIN_PROBABILITY))
            score = tf.gather(logits, asked, batch_dims=1)
        weights = tf.reduce_mean(
            tf.cast(tape.gradient(score, values), tf.float32), axis=(1, 2), keepdims=True
        )
        return [tf.nn.relu(tf.reduce_sum(weights * tf.cast(values, tf.float32), axis=-1))]

    (found,) = run_in_batches(compute_cam, pixels, np.asarray(classes, np.int32))
    sides, units = pixels.shape[1:3], found.shape[1:3]
    rows, columns = (
        _build_interpolation(side, count, along)
        for side, count, along in zip(
            sides,
            units,
            _place_units(compute_receptive_field(model, layer), sides, units),
            strict=True,
        )
    )
    heat = rows @ found @ columns.T
    largest = heat.max(axis=(1, 2), keepdims=True)
    return heat / np.where(largest > 0, largest, 1)


def _place_units(field: Field | None, sides: Sequence[int], units: Sequence[int]) -> Field:
    """Return what units see, or an even share of the image where that is not defined."""
    if field is not None:
        return field
    rows, columns = (spread_evenly(side, count) for side, count in zip(sides, units, strict=True))
    return rows, columns


def _locate_units(corners: Integers, field: Field, sides: Sequence[int]) -> Floats:
    """Return the middles of some units' fields inside the image, float32 [..., 2], in pixels.

    Args:
        corners: int [..., 2], the row and column of each unit.
        field: of the units.
        sides: height and width of the image.
    """
    start, stride, size = (
        np.array([getattr(along, name) for along in field]) for name in ("start", "stride", "size")
    )
    middle = start + stride * corners + size / 2
    return np.clip(middle, 0, np.asarray(sides)).astype(np.float32)


def _cut_patches(pixels: Images, images: Integers, corners: Integers, field: Field) -> Images:
    """Return the pixels that some units see, uint8 [maps, patches, height, width, 4].

    Args:
        pixels: uint8 [images, height, width, 3].
        images: int [maps, patches], the index of each unit's image.
        corners: int [maps, patches, 2], the row and column of each unit.
        field: the receptive field of the units, in whole pixels.
    """
    sides = np.asarray(pixels.shape[1:3])
    first, stride, size = (
        np.array([getattr(along, name) for along in field], np.int64)
        for name in ("start", "stride", "size")
    )
    cut = np.zeros((*images.shape, *size, 4), np.uint8)
    for index in np.ndindex(images.shape):
        start = first + stride * corners[index]
        top, left = np.maximum(start, 0)
        bottom, right = np.minimum(start + size, sides)
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
