"""Inspection of a network: everything that the report shows of its inside, measured once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.evaluate.explain import (
    FeatureMaps,
    TopPatches,
    compute_grad_cam,
    find_strongest_maps,
    find_top_patches,
)
from pipeline.evaluate.map_layers import (
    find_embedding_layer,
    find_first_convolution,
    flatten_graph,
    list_depth_layers,
    read_first_filters,
)
from pipeline.evaluate.neighbors import compute_features, find_nearest

if TYPE_CHECKING:
    from pipeline.arrays import Floats, Images, Labels, Network

NEIGHBORS = 6  # of each image, as in the paper's figure 4
_MAPS_PER_LAYER = 8  # of each layer and image
_MAPPED_IMAGES = 2
_WITHOUT_COLOR = "its first convolution does not read the three colors of the image"
_WITHOUT_MAPS = (
    "it has no layer with maps of more than one position through which every path to the answer"
    " passes"
)
_PATCH_IMAGES = 512  # training images in which exciting patches are looked for


@dataclass(frozen=True)
class NetworkInspection:
    """The inside of a network on some images of a split, as far as its graph can be explained.

    `heat` is float32 [images, height, width] in [0, 1], Grad-CAM of the first guess, or None.
    `neighbor_pixels` are uint8 [images, neighbors, height, width, 3], `neighbor_labels` int
    [images, neighbors], of the nearest training images, the nearest first. `filters` are float32
    [height, width, 3, filters], or None. `maps` are those of the first images, `patches` those of
    training images, both by layer, of as many layers as there are; empty without any. `omitted`
    says, by the name of its heading, why a part is missing.
    """

    heat: Floats | None
    neighbor_pixels: Images
    neighbor_labels: Labels
    filters: Floats | None
    towers: int
    patches: Mapping[str, TopPatches]
    maps: Mapping[str, FeatureMaps]
    training_images: int
    patch_images: int
    omitted: Mapping[str, str]


def inspect_network(
    model: Network,
    pixels: Images,
    answers: Sequence[int],
    training_pixels: Images,
    training_labels: Labels,
) -> NetworkInspection:
    """Return the inside of a network.

    Args:
        model: takes `pixels`, on one device.
        pixels: uint8 [images, height, width, 3] in [0, 255], at least one image of the split.
        answers: the first guess for each of them.
        training_pixels: uint8 [images, height, width, 3] in [0, 255], a sample of the training
            split.
        training_labels: int [images].
    """
    model = flatten_graph(model)
    layer = find_embedding_layer(model)
    known = compute_features(model, [(training_pixels, None)], layer)
    queries = compute_features(model, [(pixels, None)], layer)
    nearest, _ = find_nearest(known, queries, min(NEIGHBORS, len(known)))
    layers, searched = list_depth_layers(model), training_pixels[:_PATCH_IMAGES]
    colored, omitted = find_first_convolution(model) is not None, {}
    filters, towers = read_first_filters(model) if colored else (None, 1)
    if not colored:
        omitted["First-layer filters"] = _WITHOUT_COLOR
    if not layers:
        omitted["Grad-CAM, exciting patches and feature maps"] = _WITHOUT_MAPS
    return NetworkInspection(
        heat=compute_grad_cam(model, pixels, np.asarray(answers)) if layers else None,
        neighbor_pixels=training_pixels[nearest],
        neighbor_labels=training_labels[nearest],
        filters=filters,
        towers=towers,
        patches=find_top_patches(model, searched, layers) if layers else {},
        maps=(
            find_strongest_maps(model, pixels[:_MAPPED_IMAGES], layers, _MAPS_PER_LAYER)
            if layers
            else {}
        ),
        training_images=len(training_pixels),
        patch_images=len(searched),
        omitted=omitted,
    )
