"""Store what the dataset card shows: numbers, some images, and a preview of augmentation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config.data import DataConfig
from pipeline.data.augment import (
    compute_color_scale,
    draw_color_shifts,
    find_principal_colors,
    shift_colors,
)
from pipeline.data.crops import center_crops, cut_crops, draw_crops
from pipeline.data.decoding import CROP_FRACTION
from pipeline.data.prepared import PreparedDataset
from pipeline.data.statistics import MEASURED_IMAGES, DatasetStatistics
from pipeline.reports.store import write_report_data

if TYPE_CHECKING:
    from pipeline.arrays import Array, Images
    from pipeline.artifacts import Fit

# The standard deviation of the color noise of 2012 (section 4.1 of the paper).
COLOR_NOISE = 0.1
_PREVIEWED_IMAGES, _PREVIEWED_EPOCHS = 4, 3


def write_card_data(
    prepared: PreparedDataset,
    statistics: DatasetStatistics,
    config: DataConfig,
    fit: Fit,
    directory: Path,
) -> None:
    """Store what the dataset card is drawn from in the stage's folder.

    Values: `card` as `collect_card_values` says, `measured_images`, `preview_columns` (headings),
    `crop_fraction` and `color_noise` of the preview, and `principal_std` in levels.

    Arrays: `examples` uint8 [images, side, side, 3] with `example_labels` int [images];
    `mean_image` float32 [side, side, 3] in [0, 255]; `principal_directions` float64 [3, 3], one a
    row; `preview` uint8 [columns, images, crop, crop, 3]; `duplicates` uint8 [groups, 2, 64, 64,
    3].
    """
    labels = [label for label, images in sorted(statistics.examples.items()) for _ in images]
    stds, directions = find_principal_colors(statistics.channel_covariance)
    preview = preview_augmentation(statistics, config.short_side)
    values = {
        "card": collect_card_values(prepared, statistics, config, fit),
        "measured_images": MEASURED_IMAGES,
        "preview_columns": list(preview),
        "crop_fraction": "/".join(map(str, CROP_FRACTION)),
        "color_noise": COLOR_NOISE,
        "principal_std": stds.tolist(),
    }
    arrays: dict[str, Array] = {
        "examples": np.stack(
            [image for _, images in sorted(statistics.examples.items()) for image in images]
        ),
        "example_labels": np.asarray(labels, np.int32),
        "mean_image": statistics.mean_image,
        "principal_directions": directions,
        "preview": np.stack(list(preview.values())),
        "duplicates": np.asarray(prepared.duplicate_thumbnails, np.uint8).reshape(-1, 2, 64, 64, 3),
    }
    write_report_data(directory, values, arrays)


def collect_card_values(
    prepared: PreparedDataset, statistics: DatasetStatistics, config: DataConfig, fit: Fit
) -> dict[str, Any]:
    """Return the numbers and names of the card, as values that JSON can hold.

    `found` = `accepted` + `quarantined` + `excluded_duplicates` + the sum of `excluded`.
    """
    accepted = sum(sum(counts) for counts in statistics.class_counts.values())
    sides = {"height": statistics.heights, "width": statistics.widths}
    return {
        "name": prepared.name,
        "digest": statistics.digest,
        "found": prepared.found if prepared.found is not None else accepted,
        "accepted": accepted,
        "quarantined": [{"file": key, "reason": reason} for key, reason in prepared.quarantined],
        "excluded_duplicates": list(prepared.excluded_duplicates),
        "duplicates": {
            "groups": [list(group) for group in prepared.duplicate_groups],
            "groups_in_several_splits": prepared.groups_in_several_splits,
            "equal_images_with_several_labels": [list(group) for group in prepared.label_conflicts],
        },
        "excluded": dict(prepared.excluded),
        "empty_folders": prepared.empty_folders,
        "how_split": prepared.how_split,
        "reads": dict(prepared.reads),
        "class_names": list(prepared.class_names),
        "class_counts": {split: list(counts) for split, counts in statistics.class_counts.items()},
        "original_pixels": {
            name: [int(np.min(v)), int(np.median(v)), int(np.max(v))] for name, v in sides.items()
        },
        "short_side": config.short_side,
        "fit": fit,
        "asked_fit": config.fit,
        "cut_fraction": statistics.cut_fraction,
        "channel_mean": list(statistics.channel_mean),
        "channel_std": [
            math.sqrt(statistics.channel_covariance[channel][channel]) for channel in range(3)
        ],
        "channel_covariance": [list(row) for row in statistics.channel_covariance],
        "contents_in_several_splits": statistics.contents_in_several_splits,
        "contents_with_several_labels": statistics.contents_with_several_labels,
    }


def preview_augmentation(statistics: DatasetStatistics, short_side: int) -> Mapping[str, Images]:
    """Return some training images as evaluation sees them, then cropped, then with color noise.

    They are drawn and changed by the functions that training uses.

    Returns:
        heading -> uint8 [images, crop, crop, 3] in [0, 255].
    """
    pixels = np.stack(
        [statistics.examples[label][0] for label in sorted(statistics.examples)[:_PREVIEWED_IMAGES]]
    )
    part, whole = CROP_FRACTION
    count, size = len(pixels), short_side * part // whole
    surplus = (short_side - size, short_side - size)
    crops = {"center": center_crops(count, surplus)}
    for epoch in range(_PREVIEWED_EPOCHS):
        crops[f"crop {epoch + 1}"] = draw_crops(
            count, surplus, seed=0, epoch=epoch, random_crop=True, flip=True
        )
    shown = {
        name: cut_crops(pixels, np.arange(count), crop.top, crop.left, crop.mirrored, size)
        for name, crop in crops.items()
    }
    scale = compute_color_scale(COLOR_NOISE, "code")
    for epoch in range(_PREVIEWED_EPOCHS):
        shifts = draw_color_shifts(
            count,
            statistics.channel_covariance,
            seed=0,
            epoch=epoch,
            noise=COLOR_NOISE,
            mode="code",
        )
        shown[f"and color {epoch + 1}"] = shift_colors(
            shown[f"crop {epoch + 1}"], shifts, statistics.channel_mean, scale
        ).numpy()
    return shown
