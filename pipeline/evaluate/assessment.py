"""Assessment of a saved model: score a split once, measure everything else, store the findings."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pyarrow import parquet

from pipeline.artifacts import DatasetArtifact, EvaluationReport
from pipeline.config.evaluate import EvaluateConfig
from pipeline.data.evaluation_batches import View, make_evaluation_batches
from pipeline.data.loader import LoadedSplit, load_split
from pipeline.data.shards import index_path
from pipeline.engine.stage import Context
from pipeline.evaluate.attributes import slice_predictions
from pipeline.evaluate.calibration import fit_temperature
from pipeline.evaluate.corruptions import CORRUPTIONS, SEVERITIES
from pipeline.evaluate.external_model import ExternalModel
from pipeline.evaluate.findings import EvaluationFindings, ShownImage, rank_guesses
from pipeline.evaluate.inspection import NetworkInspection, inspect_network
from pipeline.evaluate.map_layers import flatten_graph
from pipeline.evaluate.metrics import SplitSummary, Tally, find_majority_class, summarize_tally
from pipeline.evaluate.predictions import (
    read_columns,
    read_logits,
    read_logits_at,
    write_predictions,
)
from pipeline.evaluate.recording import record_findings
from pipeline.evaluate.report_data import store_findings
from pipeline.evaluate.robustness import (
    CorruptionResult,
    corrupt_in_every_way,
    measure_robustness,
)
from pipeline.evaluate.scoring import (
    ScoringModel,
    compile_first_guesses,
    load_network,
    load_on_devices,
    read_images_at,
    require_class_counts,
    score_batches,
)
from pipeline.evaluate.selection import (
    SHOWN_IMAGES,
    select_confident_mistakes,
    select_unsure_hits,
    spread_indices,
)
from pipeline.evaluate.speed import measure_speed
from pipeline.image_size import ImageSize
from pipeline.model.batch_limit import limit_batch
from pipeline.model.macs import count_macs
from pipeline.model.weights import load_model
from pipeline.reports.numbers import format_percent

if TYPE_CHECKING:
    from pipeline.arrays import Image, Labels, Logits, Network

VIEW_NAMES: Mapping[View, str] = {"center": "center crop", "ten": "mean of ten crops"}
# 500 images tell an error to within two or three points. Of a large network fewer are corrupted:
# two minutes on two processor cores, at 20 GMACs a second.
_FEWEST_CORRUPTED, _MOST_CORRUPTED = 100, 500
_CORRUPTION_MACS = 2.4e12
# Neighbors and exciting patches are looked for among the first so many.
_MAX_TRAINING_IMAGES = 2000
# Logits that the temperature is fitted to; more would not change its third digit.
_MAX_TEMPERATURE_LOGITS = 10_000_000
_CORRUPTION_SEED = 0


def assess_model(
    config: EvaluateConfig, dataset: DatasetArtifact, external: ExternalModel, context: Context
) -> EvaluationReport:
    """Score a model on a split, store predictions and findings, and return the record.

    Raises:
        DatasetError: the split has other images than its record promises.
        CheckpointError: the model cannot be read, or its logits are not finite.
    """
    network, images = (
        load_on_devices(lambda: load_network(external.path, len(dataset.class_names))),
        load_split(dataset, config.split),
    )
    _warn_of_assumptions(network, external, dataset, context)
    predictions = context.directory / EvaluationReport.PREDICTIONS_FILE
    digest = _write_scores(network, images, config, context, predictions)
    require_class_counts(
        read_columns(predictions, "label")[0], dataset.class_counts[config.split], config.split
    )
    temperature = _fit_validation_temperature(network, dataset, config, context)
    summary = _summarize_predictions(predictions, dataset, temperature)
    findings = _measure_findings(network, images, external, config, context, summary)
    store_findings(context.directory, findings)
    record_findings(context, findings, config.view, external.sha256)
    return EvaluationReport(
        directory=context.directory,
        split=config.split,
        view=findings.view,
        images=summary.images,
        **{
            name: summary.values[name]
            for name in ("top1_error", "top5_error", "loss", "calibration_error")
        },
        top1_error_interval=summary.top1_error_interval,
        majority_error=summary.majority_error,
        temperature=temperature,
        class_names=dataset.class_names,
        model_sha256=external.sha256,
        dataset_digest=dataset.digest,
        images_sha256=_hash_images(dataset, config.split),
        predictions_sha256=digest,
    )


def _warn_of_assumptions(
    network: ScoringModel, external: ExternalModel, dataset: DatasetArtifact, context: Context
) -> None:
    """Warn of what is assumed of a model from elsewhere."""
    if network.ends_in_softmax:
        context.notify(
            f"{external.path.name} ends in softmax: the logarithms of its probabilities are used as"
            " logits"
        )
    (height, width), side = network.model.input_shape[1:3], dataset.short_side
    if external.class_names is None and external.short_side == 0 and min(height, width) != side:
        size = height if height == width else f"{height} x {width}"
        context.notify(
            f"{external.path.name} sees the middle {size} of {side} pixels; the scale at which it"
            " was trained is not recorded"
        )


def _hash_images(dataset: DatasetArtifact, split: str) -> str:
    """Return the SHA-256 over name, label and content of each image of a split.

    Two evaluations of equal ones may be compared.
    """
    digest = hashlib.sha256()
    with parquet.ParquetFile(index_path(dataset.directory, split)) as index:
        for batch in index.iter_batches(columns=["key", "label", "sha256"]):
            for key, label, content in zip(
                *(column.to_pylist() for column in batch.columns), strict=True
            ):
                digest.update(json.dumps([key, label, content.hex()]).encode())
    return digest.hexdigest()


# -- scoring and counting --------------------------------------------------------------------------


def _write_scores(
    network: ScoringModel, images: LoadedSplit, config: EvaluateConfig, context: Context, path: Path
) -> str:
    """Score every image of a split, write the predictions, and return their digest."""
    total, classes = len(images.labels), len(images.dataset.class_names)
    wanted = limit_batch(flatten_graph(network.model), config.global_batch_size)
    batch_size = max(1, min(wanted // (10 if config.view == "ten" else 1), total))
    batches = make_evaluation_batches(
        images, image_size=network.model.input_shape[1:3], batch_size=batch_size, view=config.view
    )

    def report_progress(done: int, wrong: int) -> None:
        context.progress(
            done, total, "images", f"{images.split}, top-1 error {format_percent(wrong / done)}"
        )

    chunks = score_batches(
        network, batches, images.keys, batch_size=batch_size, progress=report_progress
    )
    return write_predictions(chunks, classes, path)


def _fit_validation_temperature(
    network: ScoringModel, dataset: DatasetArtifact, config: EvaluateConfig, context: Context
) -> float:
    """Return the temperature that fits the validation split, in the view of the evaluation."""
    if config.split == "validation":
        predictions = context.directory / EvaluationReport.PREDICTIONS_FILE
        return fit_temperature(*_read_first_logits(predictions, len(dataset.class_names)))
    path = context.scratch_directory / "validation.parquet"
    _write_scores(network, load_split(dataset, "validation"), config, context, path)
    logits, labels = _read_first_logits(path, len(dataset.class_names))
    path.unlink()
    return fit_temperature(logits, labels)


def _read_first_logits(path: Path, classes: int) -> tuple[Logits, Labels]:
    """Return logits and labels of the first images, as many as take about 40 MB.

    Images are stored in mixed order.
    """
    max_images = max(1000, _MAX_TEMPERATURE_LOGITS // classes)
    parts: list[tuple[Logits, Labels]] = []
    for part in read_logits(path):
        parts.append(part)
        if sum(len(labels) for _, labels in parts) >= max_images:
            break
    return (
        np.concatenate([logits for logits, _ in parts])[:max_images],
        np.concatenate([labels for _, labels in parts])[:max_images],
    )


def _summarize_predictions(
    predictions: Path, dataset: DatasetArtifact, temperature: float
) -> SplitSummary:
    tally = Tally(
        len(dataset.class_names),
        find_majority_class(dataset.class_counts["train"]),
        temperature=temperature,
    )
    for logits, labels in read_logits(predictions):
        tally.add_images(logits, labels)
    return summarize_tally(tally)


# -- everything else -------------------------------------------------------------------------------


def _measure_findings(
    network: ScoringModel,
    images: LoadedSplit,
    external: ExternalModel,
    config: EvaluateConfig,
    context: Context,
    summary: SplitSummary,
) -> EvaluationFindings:
    """Return the slices and some images, and for a full report the rest of the findings."""
    dataset, predictions = (
        images.dataset,
        context.directory / EvaluationReport.PREDICTIONS_FILE,
    )
    labels, ranks, confidence = read_columns(predictions, "label", "rank", "confidence")
    groups = {
        "samples": spread_indices(len(labels), SHOWN_IMAGES),
        "mistakes": select_confident_mistakes(ranks > 0, confidence),
        "unsure": select_unsure_hits(ranks > 0, confidence),
    }
    full, size = config.report == "full", network.model.input_shape[1:3]
    corrupted = spread_indices(len(labels), count_corrupted_images(network.model)) if full else []
    batches = make_evaluation_batches(images, image_size=size, batch_size=config.global_batch_size)
    pixels = read_images_at(batches, sorted({*corrupted, *itertools.chain(*groups.values())}))
    shown = {
        name: _describe_images(predictions, images.keys, labels, indices, pixels)
        for name, indices in groups.items()
    }
    findings = EvaluationFindings(
        split=config.split,
        view=VIEW_NAMES[config.view],
        class_names=dataset.class_names,
        dataset_name=dataset.name,
        summary=summary,
        slices=slice_predictions(predictions, dataset, config.split),
        samples=shown["samples"],
        mistakes=shown["mistakes"],
        unsure=shown["unsure"],
    )
    if not full:
        return findings
    # Measured on one device, by a model that is not replicated on several.
    model = network.model if network.strategy is None else load_model(external.path)
    robustness = _measure_corruptions(model, labels, corrupted, pixels, context)
    speed = measure_speed(model, external.path)
    context.progress(1, 1, "networks", "inspecting the network")
    inspection = _inspect_model(model, findings.samples, dataset, size)
    first = findings.samples[0]
    return replace(
        findings,
        robustness=robustness,
        corrupted=corrupt_in_every_way(first.pixels, first.index, seed=_CORRUPTION_SEED),
        speed=speed,
        inspection=inspection,
    )


def _describe_images(
    predictions: Path,
    keys: Sequence[str],
    labels: Labels,
    indices: Sequence[int],
    pixels: Mapping[int, Image],
) -> list[ShownImage]:
    if not indices:
        return []
    guesses = rank_guesses(read_logits_at(predictions, indices))
    return [
        ShownImage(index, keys[index], pixels[index], int(labels[index]), answers, probabilities)
        for index, (answers, probabilities) in zip(indices, guesses, strict=True)
    ]


def count_corrupted_images(model: Network) -> int:
    """Return how many images are corrupted: 500, or fewer where a network needs many MACs."""
    macs = sum(count_macs(layer) for layer in flatten_graph(model).layers)
    views = 1 + len(CORRUPTIONS) * len(SEVERITIES)
    affordable = int(_CORRUPTION_MACS / (views * max(1, macs)))
    return min(max(affordable, _FEWEST_CORRUPTED), _MOST_CORRUPTED)


def _measure_corruptions(
    model: Network,
    labels: Labels,
    indices: Sequence[int],
    pixels: Mapping[int, Image],
    context: Context,
) -> CorruptionResult:
    return measure_robustness(
        compile_first_guesses(ScoringModel(model), min(64, len(indices))),
        np.stack([pixels[index] for index in indices]),
        labels[list(indices)],
        np.asarray(indices),
        seed=_CORRUPTION_SEED,
        progress=lambda done, total: context.progress(
            done, total, "corruptions", "corrupted images"
        ),
    )


def _inspect_model(
    model: Network, samples: Sequence[ShownImage], dataset: DatasetArtifact, size: ImageSize
) -> NetworkInspection:
    """Inspect a model with the first training images of the shards, where images lie mixed."""
    images = load_split(dataset, "train", in_memory=False)
    batches = make_evaluation_batches(images, image_size=size, batch_size=100)
    first = list(itertools.islice(batches, _MAX_TRAINING_IMAGES // 100))
    pixels, labels = (
        np.concatenate([np.asarray(batch[index]) for batch in first]) for index in range(2)
    )
    return inspect_network(
        model,
        np.stack([sample.pixels for sample in samples]),
        [sample.answers[0] for sample in samples],
        pixels,
        labels,
    )
