"""The judgment of a saved model: scored once, counted, looked into, and written down."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pyarrow import parquet

from pipeline.artifacts import DatasetArtifact, EvaluationReport
from pipeline.config.evaluate import EvaluateConfig
from pipeline.data.evaluation_batches import make_evaluation_batches
from pipeline.data.loader import LoadedSplit, load_split
from pipeline.data.shards import index_path
from pipeline.engine.stage import Context
from pipeline.evaluate.external_model import Given
from pipeline.evaluate.metrics import (
    Summary,
    Tally,
    fit_temperature,
    majority_class,
    percent,
    summarize,
)
from pipeline.evaluate.predictions import logits_at, read_columns, read_logits, write_predictions
from pipeline.evaluate.robustness import wear
from pipeline.evaluate.scoring import (
    Network,
    answers,
    images_at,
    load_network,
    on_devices,
    require_counts,
    score,
)
from pipeline.evaluate.slices import Slice, folders_of, numbers_where_they_are, slices_of
from pipeline.evaluate.speed import measure_speed
from pipeline.model.weights import load_model
from pipeline.reports.evaluation import IMAGES as SHOWN
from pipeline.reports.evaluation import (
    Chosen,
    Judgment,
    Looks,
    confident_mistakes,
    spread_positions,
    unsure_hits,
    write_metrics,
    write_report,
)

View = Literal["center", "ten"]
VIEWS: dict[View, str] = {"center": "center crop", "ten": "mean of ten crops"}
# Enough for an error to within two or three points, and a second or two of a small network's time.
_WORN_IMAGES = 500
# What neighbors are looked for among, and what excites the feature maps.
_TRAINING_IMAGES = 2000
# Logits that the temperature is fitted to; more would not move its third digit.
_MAX_NUMBERS = 10_000_000
_HEADLINES = ("loss", "top1_error", "top5_error")
_RECORDED_CLASSES = (
    100  # thousands of single points make a tracking page useless; metrics.json has every class
)


def judge(
    config: EvaluateConfig, dataset: DatasetArtifact, given: Given, context: Context
) -> EvaluationReport:
    """Score a model on a split, write predictions, numbers and the page, and return the record.

    Raises:
        DatasetError: the split is not what its record promises.
        CheckpointError: the model cannot be read, or its logits are not numbers.
    """
    network, images = (
        on_devices(lambda: load_network(given.path, len(dataset.class_names))),
        load_split(dataset, config.split),
    )
    _say_what_is_odd(network, given, dataset, context)
    predictions = context.directory / EvaluationReport.PREDICTIONS_FILE
    digest = _score(network, images, config, context, predictions)
    require_counts(
        read_columns(predictions, "label")[0], dataset.class_counts[config.split], config.split
    )
    temperature = _temperature(network, dataset, config, context)
    judged = _examined(
        network, images, given, config, context, _counted(predictions, dataset, temperature)
    )
    context.progress(1, 1, "pages", "drawing the report")
    write_metrics(context.report_directory, judged)
    write_report(context.report_directory, judged)
    _record(context, judged, config.view, given.sha256)
    values = judged.summary.values
    return EvaluationReport(
        directory=context.directory,
        split=config.split,
        view=judged.view,
        images=judged.summary.images,
        **{
            name: values[name] for name in ("top1_error", "top5_error", "loss", "calibration_error")
        },
        top1_error_interval=judged.summary.top1_error_interval,
        majority_error=judged.summary.majority_error,
        temperature=temperature,
        class_names=dataset.class_names,
        model_sha256=given.sha256,
        dataset_digest=dataset.digest,
        images_sha256=_images_sha256(dataset, config.split),
        predictions_sha256=digest,
    )


def _images_sha256(dataset: DatasetArtifact, split: str) -> str:
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


def _examined(
    network: Network,
    images: LoadedSplit,
    given: Given,
    config: EvaluateConfig,
    context: Context,
    summary: Summary,
) -> Judgment:
    """Return everything that was found.

    The numbers, where it is worse, some images, and of a full report the rest.
    """
    predictions, dataset, full = (
        context.directory / EvaluationReport.PREDICTIONS_FILE,
        images.dataset,
        config.report == "full",
    )
    labels, ranks, confidence = read_columns(predictions, "label", "rank", "confidence")
    groups = {"samples": spread_positions(len(labels), SHOWN)}
    groups |= {
        "mistakes": confident_mistakes(ranks > 0, confidence),
        "unsure": unsure_hits(ranks > 0, confidence),
    }
    worn_at, size = (
        (spread_positions(len(labels), _WORN_IMAGES) if full else []),
        network.model.input_shape[1],
    )
    batches = make_evaluation_batches(images, image_size=size, batch_size=config.global_batch_size)
    pixels = images_at(batches, sorted({*worn_at, *itertools.chain(*groups.values())}))
    # Looked into on one device, by a model that is no copy on several.
    model = network.model if network.strategy is None else load_model(given.path)
    return Judgment(
        split=config.split,
        view=VIEWS[config.view],
        names=dataset.class_names,
        summary=summary,
        slices=_slices(predictions, dataset, config.split),
        footer=_footer(given, dataset, VIEWS[config.view]),
        **{
            name: _chosen(predictions, images.keys, labels, places, pixels)
            for name, places in groups.items()
        },
        worn=_worn(model, labels, worn_at, pixels, context) if full else None,
        speed=measure_speed(model, given.path) if full else None,
        looks=_looks(model, dataset, size) if full else None,
    )


def _say_what_is_odd(
    network: Network, given: Given, dataset: DatasetArtifact, context: Context
) -> None:
    """Tell what is assumed of a model from elsewhere."""
    if network.ends_in_softmax:
        context.say(
            f"{given.path.name} ends in softmax: the logarithms of its probabilities are taken for"
            " logits"
        )
    size, side = network.model.input_shape[1], dataset.short_side
    if given.class_names is None and given.short_side == 0 and size != side:
        context.say(
            f"{given.path.name} sees the middle {size} of {side} pixels; nothing says at which"
            " scale it was trained"
        )


# -- scoring and counting --------------------------------------------------------------------------


def _score(
    network: Network, images: LoadedSplit, config: EvaluateConfig, context: Context, path: Path
) -> str:
    """Score every image of a split, write the predictions, and return their digest."""
    total, classes = len(images.labels), len(images.dataset.class_names)
    batch_size = max(1, min(config.global_batch_size // (10 if config.view == "ten" else 1), total))
    batches = make_evaluation_batches(
        images, image_size=network.model.input_shape[1], batch_size=batch_size, view=config.view
    )

    def progress(done: int, wrong: int) -> None:
        context.progress(
            done, total, "images", f"{images.split}, top-1 error {percent(wrong / done)}"
        )

    chunks = score(network, batches, images.keys, batch_size=batch_size, progress=progress)
    return write_predictions(chunks, classes, path)


def _temperature(
    network: Network, dataset: DatasetArtifact, config: EvaluateConfig, context: Context
) -> float:
    """Return the temperature that fits the validation split, seen as the judged one is."""
    if config.split == "validation":
        return fit_temperature(
            *_some_logits(
                context.directory / EvaluationReport.PREDICTIONS_FILE, len(dataset.class_names)
            )
        )
    path = context.scratch_directory / "validation.parquet"
    _score(network, load_split(dataset, "validation"), config, context, path)
    logits, labels = _some_logits(path, len(dataset.class_names))
    path.unlink()
    return fit_temperature(logits, labels)


def _some_logits(path: Path, classes: int) -> tuple[Any, Any]:
    """Return the logits and labels of the first so many images that they take some 40 MB.

    Stored order is mixed.
    """
    most, parts = max(1000, _MAX_NUMBERS // classes), list[tuple[Any, Any]]()
    for part in read_logits(path):
        parts.append(part)
        if sum(len(labels) for _, labels in parts) >= most:
            break
    return (
        np.concatenate([logits for logits, _ in parts])[:most],
        np.concatenate([labels for _, labels in parts])[:most],
    )


def _counted(predictions: Path, dataset: DatasetArtifact, temperature: float) -> Summary:
    tally = Tally(
        len(dataset.class_names),
        majority_class(dataset.class_counts["train"]),
        temperature=temperature,
    )
    for logits, labels in read_logits(predictions):
        tally.add(logits, labels)
    return summarize(tally)


def _slices(predictions: Path, dataset: DatasetArtifact, split: str) -> list[Slice]:
    """Return the slices by everything that is known of the images."""
    keys, labels, ranks, brightness, contrast = read_columns(
        predictions, "key", "label", "rank", "brightness", "contrast"
    )
    sizes = parquet.read_table(index_path(dataset.directory, split), columns=["height", "width"])
    height, width = (sizes[name].to_numpy().astype(float) for name in ("height", "width"))
    attributes: dict[str, Sequence[Any]] = {
        "class": [dataset.class_names[label] for label in labels]
    }
    attributes |= {"shorter side": np.minimum(height, width), "width / height": width / height}
    attributes |= {"brightness": brightness, "contrast": contrast}
    folders = folders_of(keys)
    if len(set(folders)) != len(dataset.class_names):  # else they are the classes
        attributes["folder"] = folders
    return slices_of(ranks > 0, attributes | _of_the_manifest(dataset, keys))


def _of_the_manifest(dataset: DatasetArtifact, keys: Sequence[str]) -> dict[str, Sequence[Any]]:
    """Return the manifest's other columns, a value an image, in the order of the keys.

    Nothing where it has none.
    """
    path = dataset.directory / DatasetArtifact.ATTRIBUTES_FILE
    if not path.exists():
        return {}
    table = parquet.ParquetFile(path).read()  # `read_table` has names of its own for some columns
    place = {key: row for row, key in enumerate(table["key"].to_pylist())}
    columns = {name: table[name].to_pylist() for name in table.column_names if name != "key"}
    ordered = {
        name: [values[place[key]] if key in place else "" for key in keys]
        for name, values in columns.items()
    }
    return {f"column {name}": numbers_where_they_are(values) for name, values in ordered.items()}


# -- looking into it -------------------------------------------------------------------------------


def _chosen(
    predictions: Path,
    keys: Sequence[str],
    labels: Any,
    places: Sequence[int],
    pixels: dict[int, Any],
) -> list[Chosen]:
    if not places:
        return []
    logits = logits_at(predictions, places)
    return [
        Chosen(place, keys[place], pixels[place], int(labels[place]), own)
        for place, own in zip(places, logits, strict=True)
    ]


def _worn(
    model: Any, labels: Any, places: Sequence[int], pixels: dict[int, Any], context: Context
) -> Any:
    return wear(
        answers(Network(model), min(64, len(places))),
        np.stack([pixels[place] for place in places]),
        labels[list(places)],
        np.asarray(places),
        seed=0,
        progress=lambda done, total: context.progress(
            done, total, "corruptions", "images made worse"
        ),
    )


def _looks(model: Any, dataset: DatasetArtifact, size: int) -> Looks:
    """Return the model with the first training images of the shards, where images lie mixed."""
    images = load_split(dataset, "train", in_memory=False)
    batches = make_evaluation_batches(images, image_size=size, batch_size=100)
    some = list(itertools.islice(batches, _TRAINING_IMAGES // 100))
    pixels, labels = (
        np.concatenate([np.asarray(part[index]) for part in some]) for index in range(2)
    )
    return Looks(model, pixels, labels)


# -- writing it down -------------------------------------------------------------------------------


def _footer(given: Given, dataset: DatasetArtifact, view: str) -> str:
    return (
        f"Model {given.sha256[:12]}, dataset {dataset.name} {dataset.digest[:12]}, {view}, every"
        " image once."
    )


def _record(context: Context, judged: Judgment, view: View, sha256: str) -> None:
    """Record the numbers; those of ten crops under names of their own, so that no table sets unlike views side by side."""
    prefix = judged.split if view == "center" else f"{judged.split}_ten_crops"
    summary = judged.summary
    headline = {name: summary.values[name] for name in _HEADLINES}
    known = {
        "view": judged.view,
        "temperature": f"{summary.temperature:.6g}",
        "model_sha256": sha256,
    }
    context.run.set_tags(known, summary=True)
    context.run.log_metrics(
        {f"{prefix}_{name}": value for name, value in headline.items()}, summary=True
    )
    context.run.log_metrics({f"{prefix}_{name}": value for name, value in details(judged).items()})
    context.run.log_metrics(
        {f"{judged.split}_{name}": value for name, value in by_the_center(judged).items()}
    )


def details(judged: Judgment) -> dict[str, float]:
    """Return everything else that is recorded, under names that a tracking store takes.

    With not too many classes that is also precision, recall and F1 of each. A class is
    `f1/003_sneaker`: numbered, since names may be long, strange or alike once strange letters are
    left out.
    """
    summary = judged.summary
    found = {name: value for name, value in summary.values.items() if name not in _HEADLINES}
    found |= {"majority_error": summary.majority_error}
    found |= {
        "top1_error_low": summary.top1_error_interval[0],
        "top1_error_high": summary.top1_error_interval[1],
    }
    if len(judged.names) <= _RECORDED_CLASSES:
        for measure in ("precision", "recall", "f1"):
            scores = getattr(summary.by_class, measure)
            found |= {
                f"{measure}/{index:03}_{_plain(name)}": float(scores[index])
                for index, name in enumerate(judged.names)
            }
    return found


def by_the_center(judged: Judgment) -> dict[str, float]:
    """Return what is measured by the center crop whatever the view.

    Corrupted images, and the speed of an answer.
    """
    found = {} if judged.worn is None else {"mean_corruption_error": judged.worn.mean.error}
    for batch in judged.speed.batches if judged.speed else ():
        found[f"latency_p95_seconds_batch_{batch.batch}"] = batch.p95_seconds
        found[f"images_per_second_batch_{batch.batch}"] = batch.images_per_second
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", name)[:40].strip("_")
