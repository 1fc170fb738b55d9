"""Data of the evaluation's page: what the stage measured, read back from its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.reports.store import read_report_data

if TYPE_CHECKING:
    from pipeline.arrays import Array, Floats, Image, Images, Integers, Labels


@dataclass(frozen=True)
class ClassRow:
    """Name, scores in [0, 1] and image counts of a class.

    `support` are its images, `answered` those that were answered with it.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    answered: int


@dataclass(frozen=True)
class ConfusionRow:
    """Number of images of class `label` that were answered `answer`: class ids."""

    label: int
    answer: int
    images: int


@dataclass(frozen=True)
class SliceRow:
    """Images that have one value of an attribute: their error in [0, 1], and that of the others."""

    attribute: str
    value: str
    images: int
    top1_error: float
    interval: tuple[float, float]
    others_top1_error: float

    @property
    def clearly_worse(self) -> bool:
        """Whether the whole interval lies above the error of the other images."""
        return self.interval[0] > self.others_top1_error


@dataclass(frozen=True)
class ReliabilityCurve:
    """Images, mean confidence and accuracy of each bin of confidence, float64 [bins] all three."""

    images: Floats
    confidence: Floats
    accuracy: Floats


@dataclass(frozen=True)
class GuessedImage:
    """An image with its first guesses, the likeliest first.

    `pixels` are uint8 [height, width, 3] in [0, 255], `label` and `answers` class ids,
    `probabilities` in [0, 1].
    """

    key: str
    pixels: Image
    label: int
    answers: tuple[int, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class CorruptionErrors:
    """Top-1 errors in [0, 1] on corrupted images, and one image as each corruption leaves it.

    `errors` are by corruption and severity, `clean` is the error of the same images as they are,
    `mean` the mean corruption error. `examples` are uint8 [height, width, 3], the mildest first.
    """

    images: int
    clean: float
    mean: float
    errors: Mapping[str, Mapping[int, float]]
    severities: Sequence[int]
    examples: Mapping[str, Sequence[Image]]


@dataclass(frozen=True)
class BatchReading:
    """Latency quantiles in seconds, and images per second, of calls with one batch size."""

    batch: int
    calls: int
    p50_seconds: float
    p95_seconds: float
    p99_seconds: float
    images_per_second: float


@dataclass(frozen=True)
class SpeedReading:
    """Speed and memory on the machine that evaluated; sizes in bytes, None where not counted."""

    device: str
    processors: int
    model_bytes: int
    batches: tuple[BatchReading, ...]
    tensor_bytes: int | None
    resident_bytes: int | None


@dataclass(frozen=True)
class LayerMaps:
    """The strongest feature maps of a layer for some images, the strongest first.

    `indices` are int [images, count], the maps' numbers; `values` float [images, count, height,
    width], unbounded, their activations.
    """

    indices: Integers
    values: Floats


@dataclass(frozen=True)
class LayerPatches:
    """The parts of images that excite some feature maps of a layer most.

    `maps` are int [maps], their numbers; `pixels` uint8 [maps, patches, height, width, 4], RGBA in
    [0, 255], transparent outside the image, the most exciting first. Where they are whole images,
    `positions` float [maps, patches, 2] are the row and column of the exciting unit, in pixels.
    """

    maps: Integers
    pixels: Images
    positions: Floats | None = None


@dataclass(frozen=True)
class InspectionData:
    """The inside of a network: see `pipeline.reports.evaluation.inspection_figures` for shapes.

    `omitted` says, by heading, why a part is missing: `heat` and `filters` are None then, `patches`
    and `maps` are empty.
    """

    heat: Floats | None
    neighbor_pixels: Images
    neighbor_labels: Labels
    filters: Floats | None
    towers: int
    patches: Mapping[str, LayerPatches]
    maps: Mapping[str, LayerMaps]
    training_images: int
    patch_images: int
    omitted: Mapping[str, str]


@dataclass(frozen=True)
class EvaluationData:
    """Everything that the page of an evaluation shows.

    `metrics` and `speed_readings` are the documents of metrics.json and speed.json. `values` and
    `intervals` hold the headline numbers by name. `robustness`, `speed` and `inspection` are None
    for a short report.
    """

    metrics: Mapping[str, Any]
    speed_readings: Mapping[str, Any] | None
    dataset_name: str
    class_names: Sequence[str]
    split: str
    view: str
    images: int
    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    majority_error: float
    temperature: float
    classes: Sequence[ClassRow]
    confusion: Integers
    most_confused: Sequence[ConfusionRow]
    slices: Sequence[SliceRow]
    reliability: ReliabilityCurve
    calibrated_reliability: ReliabilityCurve
    samples: Sequence[GuessedImage]
    mistakes: Sequence[GuessedImage]
    unsure: Sequence[GuessedImage]
    robustness: CorruptionErrors | None
    speed: SpeedReading | None
    inspection: InspectionData | None


def load_evaluation_data(directory: Path) -> EvaluationData:
    """Return the report data in the folder of an evaluation.

    Raises:
        CheckpointError: the files are missing or damaged.
    """
    stored, arrays = read_report_data(directory)
    metrics, speed = stored["metrics"], stored["speed"]
    return EvaluationData(
        metrics=metrics,
        speed_readings=speed,
        dataset_name=stored["dataset_name"],
        class_names=stored["class_names"],
        split=metrics["split"],
        view=metrics["view"],
        images=metrics["images"],
        values={name: metrics[name] for name in metrics["intervals"]},
        intervals={name: (low, high) for name, (low, high) in metrics["intervals"].items()},
        majority_error=metrics["majority_error"],
        temperature=metrics["temperature"],
        classes=[ClassRow(**row) for row in metrics["classes"]],
        confusion=arrays["confusion"].astype(np.int64),
        most_confused=[ConfusionRow(**row) for row in metrics["most_confused"]],
        slices=[
            SliceRow(**{**row, "interval": tuple(row["interval"])}) for row in metrics["slices"]
        ],
        reliability=_read_reliability(metrics["reliability"]),
        calibrated_reliability=_read_reliability(metrics["calibrated_reliability"]),
        samples=_read_images(stored["samples"], arrays.get("samples_pixels")),
        mistakes=_read_images(stored["mistakes"], arrays.get("mistakes_pixels")),
        unsure=_read_images(stored["unsure"], arrays.get("unsure_pixels")),
        robustness=_read_robustness(stored, arrays) if "robustness" in metrics else None,
        speed=None if speed is None else _read_speed(speed),
        inspection=_read_inspection(stored["inspection"], arrays),
    )


def _read_reliability(bins: Mapping[str, Sequence[float]]) -> ReliabilityCurve:
    return ReliabilityCurve(**{name: np.asarray(values) for name, values in bins.items()})


def _read_images(rows: Sequence[Mapping[str, Any]], pixels: Images | None) -> list[GuessedImage]:
    return [
        GuessedImage(
            row["key"], own, row["label"], tuple(row["answers"]), tuple(row["probabilities"])
        )
        for row, own in zip(rows, () if pixels is None else pixels, strict=True)
    ]


def _read_robustness(stored: Mapping[str, Any], arrays: Mapping[str, Array]) -> CorruptionErrors:
    robustness = stored["metrics"]["robustness"]
    return CorruptionErrors(
        images=robustness["images"],
        clean=robustness["clean"],
        mean=robustness["mean_corruption_error"],
        errors={
            kind: {int(severity): error for severity, error in own.items()}
            for kind, own in robustness["errors"].items()
        },
        severities=stored["severities"],
        examples=dict(zip(stored["corruptions"], arrays["corrupted"], strict=True)),
    )


def _read_speed(speed: Mapping[str, Any]) -> SpeedReading:
    batches = tuple(BatchReading(**batch) for batch in speed["batches"])
    return SpeedReading(**{**speed, "batches": batches})


def _read_inspection(
    inspection: Mapping[str, Any] | None, arrays: Mapping[str, Array]
) -> InspectionData | None:
    if inspection is None:
        return None
    return InspectionData(
        heat=arrays["heat"].astype(np.float32) if "heat" in arrays else None,
        neighbor_pixels=arrays["neighbor_pixels"],
        neighbor_labels=arrays["neighbor_labels"],
        filters=arrays.get("filters"),
        towers=inspection["towers"],
        patches={
            name: LayerPatches(
                arrays[f"patches_{index}_maps"],
                arrays[f"patches_{index}_pixels"],
                arrays.get(f"patches_{index}_positions"),
            )
            for index, name in enumerate(inspection["patch_layers"])
        },
        maps={
            name: LayerMaps(arrays[f"maps_{index}_indices"], arrays[f"maps_{index}_values"])
            for index, name in enumerate(inspection["map_layers"])
        },
        training_images=inspection["training_images"],
        patch_images=inspection["patch_images"],
        omitted=inspection.get("omitted", {}),
    )
