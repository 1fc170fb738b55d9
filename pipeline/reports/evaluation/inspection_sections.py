"""Sections of the evaluation's page that show the inside of the network."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.reports.evaluation.data import EvaluationData
from pipeline.reports.evaluation.inspection_figures import (
    draw_activations,
    draw_filters,
    draw_grad_cam,
    draw_neighbors,
    draw_patches,
)
from pipeline.reports.html import PageImage, PageSection
from pipeline.reports.numbers import format_count

_GRAD_CAM_TEXT = (
    "The evidence of the last convolution for the answer (Grad-CAM, Selvaraju and others 2017)."
    " A network whose evidence lies beside the object has learned something else, such as the"
    " background."
)
_NEIGHBOR_TEXT = (
    "Test images, and the training images whose last hidden layer is nearest to theirs, as in"
    " the paper's figure 4: alike for the network, although the pixels may differ. Blue frames are"
    " of the same class."
)
_FILTERS_TEXT = (
    "The first layer's filters in color. The paper's network learned smooth edges in the first"
    " half and blobs of color in the second; filters that look like noise have changed little in"
    " training."
)
_PATCHES_TEXT = (
    "For some feature maps of each layer, the parts of training images that excite them most."
    " From layer to layer they show more of the image and more of its meaning: edges, textures,"
    " shapes, objects."
)
_MAPS_TEXT = (
    "The strongest feature maps of each layer for two images; bright is active. Deeper maps are"
    " coarser and sparser."
)
_UNEXPLAINED_TEXT = (
    "This network is not a chain of known layers, as those of this pipeline are, so its inside"
    " cannot be shown."
)


def build_inspection_sections(folder: Path, data: EvaluationData) -> list[PageSection]:
    """Return the inside of the network, from its answers to its first layer.

    Nothing for a short report; one sentence for a network that cannot be explained.
    """
    if not data.explainable:
        return [PageSection("Inside the network", _UNEXPLAINED_TEXT)]
    inspection = data.inspection
    if inspection is None:
        return []
    names, samples = data.class_names, data.samples
    pixels = np.stack([sample.pixels for sample in samples])
    labels = np.array([sample.label for sample in samples])
    answers = np.array([sample.answers[0] for sample in samples])
    paths = {
        name: folder / f"{name}.png"
        for name in ("grad_cam", "neighbors", "filters", "patches", "activations")
    }
    draw_grad_cam(pixels, inspection.heat, labels, answers, names, paths["grad_cam"])
    draw_neighbors(
        pixels,
        labels,
        inspection.neighbor_pixels,
        inspection.neighbor_labels,
        names,
        paths["neighbors"],
    )
    draw_filters(inspection.filters, inspection.towers, paths["filters"])
    draw_patches(inspection.patches, paths["patches"])
    mapped = next(iter(inspection.maps.values())).indices.shape[0]
    draw_activations(pixels[:mapped], inspection.maps, paths["activations"])
    known, searched = (
        format_count(count, "training image")
        for count in (inspection.training_images, inspection.patch_images)
    )
    return [
        _build_section(heading, text, PageImage(paths[name], caption))
        for heading, text, name, caption in (
            (
                "Grad-CAM",
                _GRAD_CAM_TEXT,
                "grad_cam",
                "The sample images, and the evidence for the answer.",
            ),
            ("Nearest training images", _NEIGHBOR_TEXT, "neighbors", f"The nearest of {known}."),
            (
                "First-layer filters",
                _FILTERS_TEXT,
                "filters",
                "Gray is zero. Compare the paper's figure 3.",
            ),
            ("Most exciting patches", _PATCHES_TEXT, "patches", f"Found in {searched}."),
            (
                "Feature maps",
                _MAPS_TEXT,
                "activations",
                "From the first convolution, above, to the last.",
            ),
        )
    ]


def _build_section(heading: str, text: str, image: PageImage) -> PageSection:
    return PageSection(heading, text, images=[image])
