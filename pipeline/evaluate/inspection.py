"""Inspection of a network: everything that the report shows of its inside, measured once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.evaluate.chain import (
    can_explain,
    find_feature_layer,
    list_depth_layers,
    read_first_filters,
)
from pipeline.evaluate.explain import (
    FeatureMaps,
    TopPatches,
    compute_grad_cam,
    find_strongest_maps,
    find_top_patches,
)
from pipeline.evaluate.neighbors import compute_features, find_nearest

if TYPE_CHECKING:
    from pipeline.arrays import Floats, Images, Labels, Network

NEIGHBORS = 6  # of each image, as in the paper's figure 4
_MAPS_PER_LAYER = 8  # of each layer and image
_MAPPED_IMAGES = 2
_PATCH_IMAGES = 512  # training images in which exciting patches are looked for


@dataclass(frozen=True)
class NetworkInspection:
    """The inside of a network that can be explained, on some images of a split.

    `heat` is float32 [images, size, size] in [0, 1], Grad-CAM of the first guess. `neighbor_pixels`
    are uint8 [images, neighbors, size, size, 3], `neighbor_labels` int [images, neighbors], of the
    nearest training images, the nearest first. `filters` are float32 [height, width, 3, filters].
    `maps` are those of the first images, `patches` those of training images, both by layer.
    """

    heat: Floats
    neighbor_pixels: Images
    neighbor_labels: Labels
    filters: Floats
    towers: int
    patches: Mapping[str, TopPatches]
    maps: Mapping[str, FeatureMaps]
    training_images: int
    patch_images: int


def inspect_network(
    model: Network,
    pixels: Images,
    answers: Sequence[int],
    training_pixels: Images,
    training_labels: Labels,
) -> NetworkInspection | None:
    """Return the inside of a network, or None for one that cannot be explained.

    Args:
        model: takes `pixels`, on one device.
        pixels: uint8 [images, size, size, 3] in [0, 255], at least one image of the split.
        answers: the first guess for each of them.
        training_pixels: uint8 [images, size, size, 3] in [0, 255], a sample of the training split.
        training_labels: int [images].
    """
    if not can_explain(model):
        return None
    heat = compute_grad_cam(model, pixels, np.asarray(answers))
    layer = find_feature_layer(model)
    known = compute_features(model, [(training_pixels, None)], layer)
    queries = compute_features(model, [(pixels, None)], layer)
    nearest, _ = find_nearest(known, queries, min(NEIGHBORS, len(known)))
    filters, towers = read_first_filters(model)
    layers = list_depth_layers(model)
    searched = training_pixels[:_PATCH_IMAGES]
    return NetworkInspection(
        heat=heat,
        neighbor_pixels=training_pixels[nearest],
        neighbor_labels=training_labels[nearest],
        filters=filters,
        towers=towers,
        patches=find_top_patches(model, searched, layers),
        maps=find_strongest_maps(model, pixels[:_MAPPED_IMAGES], layers, _MAPS_PER_LAYER),
        training_images=len(training_pixels),
        patch_images=len(searched),
    )
