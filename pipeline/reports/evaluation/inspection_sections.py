"""Sections of the evaluation's page that show the inside of the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.reports.evaluation.data import EvaluationData, GuessedImage, InspectionData
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
    "The evidence of the last feature maps for the answer (Grad-CAM, Selvaraju and others 2017)."
    " A network whose evidence lies beside the object has learned something else, such as the"
    " background."
)
_NEIGHBOR_TEXT = (
    "Test images, and the training images whose features, the input of the last layer, are nearest"
    " to theirs, as in the paper's figure 4: alike for the network, although the pixels may differ."
    " Blue frames are of the same class."
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
_WHOLE_TEXT = " Where units see the whole image, a ring marks the position of the exciting one."
_MAPS_TEXT = (
    "The strongest feature maps of each layer for two images; bright is active. Deeper maps are"
    " coarser and sparser."
)


def build_inspection_sections(folder: Path, data: EvaluationData) -> list[PageSection]:
    """Return the inside of the network, from its answers to its first layer.

    Nothing for a short report; a sentence for each part that this network does not have.
    """
    inspection = data.inspection
    if inspection is None:
        return []
    sections = [
        _build_grad_cam_section(folder, data.samples, data.class_names, inspection),
        _build_neighbor_section(folder, data.samples, data.class_names, inspection),
        _build_filter_section(folder, inspection),
        _build_patch_section(folder, inspection),
        _build_map_section(folder, data.samples, inspection),
    ]
    return [
        *(section for section in sections if section is not None),
        *(
            PageSection(heading, f"Not shown for this network: {reason}.")
            for heading, reason in inspection.omitted.items()
        ),
    ]


def _build_grad_cam_section(
    folder: Path,
    samples: Sequence[GuessedImage],
    names: Sequence[str],
    inspection: InspectionData,
) -> PageSection | None:
    if inspection.heat is None:
        return None
    path = folder / "grad_cam.png"
    pixels = np.stack([sample.pixels for sample in samples])
    labels = np.array([sample.label for sample in samples])
    answers = np.array([sample.answers[0] for sample in samples])
    draw_grad_cam(pixels, inspection.heat, labels, answers, names, path)
    caption = "The sample images, and the evidence for the answer."
    return PageSection("Grad-CAM", _GRAD_CAM_TEXT, images=[PageImage(path, caption)])


def _build_neighbor_section(
    folder: Path,
    samples: Sequence[GuessedImage],
    names: Sequence[str],
    inspection: InspectionData,
) -> PageSection:
    path = folder / "neighbors.png"
    draw_neighbors(
        np.stack([sample.pixels for sample in samples]),
        np.array([sample.label for sample in samples]),
        inspection.neighbor_pixels,
        inspection.neighbor_labels,
        names,
        path,
    )
    caption = f"The nearest of {format_count(inspection.training_images, 'training image')}."
    return PageSection("Nearest training images", _NEIGHBOR_TEXT, images=[PageImage(path, caption)])


def _build_filter_section(folder: Path, inspection: InspectionData) -> PageSection | None:
    if inspection.filters is None:
        return None
    path = folder / "filters.png"
    draw_filters(inspection.filters, inspection.towers, path)
    caption = "Gray is zero. Compare the paper's figure 3."
    return PageSection("First-layer filters", _FILTERS_TEXT, images=[PageImage(path, caption)])


def _build_patch_section(folder: Path, inspection: InspectionData) -> PageSection | None:
    if not inspection.patches:
        return None
    path = folder / "patches.png"
    draw_patches(inspection.patches, path)
    caption = f"Found in {format_count(inspection.patch_images, 'training image')}."
    whole = any(layer.positions is not None for layer in inspection.patches.values())
    text = _PATCHES_TEXT + (_WHOLE_TEXT if whole else "")
    return PageSection("Most exciting patches", text, images=[PageImage(path, caption)])


def _build_map_section(
    folder: Path, samples: Sequence[GuessedImage], inspection: InspectionData
) -> PageSection | None:
    if not inspection.maps:
        return None
    path = folder / "activations.png"
    mapped = next(iter(inspection.maps.values())).indices.shape[0]
    pixels = np.stack([sample.pixels for sample in samples[:mapped]])
    draw_activations(pixels, inspection.maps, path)
    caption = "From the first layer with maps, above, to the last."
    return PageSection("Feature maps", _MAPS_TEXT, images=[PageImage(path, caption)])
