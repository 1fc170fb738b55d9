"""Report data of an evaluation: its findings as `pipeline.reports.evaluation` draws them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluate.class_scores import find_most_confused
from pipeline.evaluate.corruptions import SEVERITIES
from pipeline.evaluate.findings import EvaluationFindings, ShownImage
from pipeline.evaluate.inspection import NetworkInspection
from pipeline.reports.store import write_report_data

if TYPE_CHECKING:
    from pipeline.arrays import Array

_CONFUSED_PAIRS = 20
_MAX_CONFUSION = 300  # classes; of more, metrics.json has only the pairs that are confused most


def store_findings(directory: Path, findings: EvaluationFindings) -> None:
    """Write everything that the pages are drawn from into a stage's folder."""
    groups = {name: getattr(findings, name) for name in ("samples", "mistakes", "unsure")}
    values: dict[str, Any] = {
        "dataset_name": findings.dataset_name,
        "class_names": list(findings.class_names),
        "metrics": build_metrics_document(findings),
        "speed": None if findings.speed is None else asdict(findings.speed),
        "severities": list(SEVERITIES),
        "corruptions": list(findings.corrupted or ()),
        "inspection": None,
    }
    values |= {name: [_describe_image(image) for image in own] for name, own in groups.items()}
    confusion = findings.summary.confusion
    arrays: dict[str, Array] = {
        "confusion": confusion.astype(np.min_scalar_type(int(confusion.max())))
    }
    arrays |= {
        f"{name}_pixels": np.stack([image.pixels for image in own])
        for name, own in groups.items()
        if own
    }
    if findings.corrupted is not None:
        arrays["corrupted"] = np.stack([np.stack(own) for own in findings.corrupted.values()])
    if findings.inspection is not None:
        values["inspection"], own_arrays = _describe_inspection(findings.inspection)
        arrays |= own_arrays
    write_report_data(directory, values, arrays)


def build_metrics_document(findings: EvaluationFindings) -> dict[str, Any]:
    """Return every number of the page but the speed, for programs."""
    summary = findings.summary
    document: dict[str, Any] = {
        "split": findings.split,
        "view": findings.view,
        "images": summary.images,
        **summary.values,
    }
    document |= {"majority_error": summary.majority_error, "temperature": summary.temperature}
    document |= {"intervals": summary.intervals, "bootstrap_intervals": summary.bootstrap_intervals}
    columns = {name: values.tolist() for name, values in asdict(summary.by_class).items()}
    document["classes"] = [
        {"name": name} | {key: values[index] for key, values in columns.items()}
        for index, name in enumerate(findings.class_names)
    ]
    if len(findings.class_names) <= _MAX_CONFUSION:
        document["confusion"] = summary.confusion.tolist()
    pairs = find_most_confused(summary.confusion, _CONFUSED_PAIRS)
    document["most_confused"] = [asdict(pair) for pair in pairs]
    document["slices"] = [asdict(item) for item in findings.slices]
    for name, bins in (
        ("reliability", summary.reliability),
        ("calibrated_reliability", summary.calibrated_reliability),
    ):
        document[name] = {what: values.tolist() for what, values in asdict(bins).items()}
    if findings.robustness is not None:
        document["robustness"] = asdict(findings.robustness) | {
            "mean_corruption_error": findings.robustness.mean.error
        }
    return document


def _describe_image(image: ShownImage) -> dict[str, Any]:
    return {
        "index": image.index,
        "key": image.key,
        "label": image.label,
        "answers": image.answers,
        "probabilities": image.probabilities,
    }


def _describe_inspection(
    inspection: NetworkInspection,
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return values and arrays of an inspection; arrays of layers are numbered from 0."""
    patches, maps = inspection.patches, inspection.maps
    values = {
        "towers": inspection.towers,
        "training_images": inspection.training_images,
        "patch_images": inspection.patch_images,
        "omitted": dict(inspection.omitted),
        "patch_layers": list(patches),
        "map_layers": list(maps),
    }
    arrays: dict[str, Array] = {
        "neighbor_pixels": inspection.neighbor_pixels,
        "neighbor_labels": inspection.neighbor_labels,
    }
    if inspection.heat is not None:
        arrays["heat"] = inspection.heat.astype(np.float16)
    if inspection.filters is not None:
        arrays["filters"] = inspection.filters
    for index, layer in enumerate(patches.values()):
        arrays |= {f"patches_{index}_maps": layer.maps, f"patches_{index}_pixels": layer.pixels}
        if layer.positions is not None:
            arrays[f"patches_{index}_positions"] = layer.positions
    for index, own in enumerate(maps.values()):
        arrays |= {f"maps_{index}_indices": own.indices, f"maps_{index}_values": own.values}
    return values, arrays
