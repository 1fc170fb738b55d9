"""Tables of the evaluation's page."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.reports.evaluation.data import (
    CorruptionErrors,
    EvaluationData,
    GuessedImage,
    SliceRow,
    SpeedReading,
)
from pipeline.reports.html import Table
from pipeline.reports.numbers import (
    format_bytes,
    format_count,
    format_decimal,
    format_milliseconds,
    format_percent,
    format_percent_interval,
    format_significant,
)

# Names of the headline numbers, in the order in which they are shown.
MEASURES = (
    ("top1_error", "top-1 error: first guess wrong"),
    ("top5_error", "top-5 error: first five guesses all wrong"),
    ("loss", "loss: mean cross-entropy, nats"),
    ("balanced_accuracy", "balanced accuracy: mean recall of the classes"),
    ("macro_precision", "precision, each class counts the same (macro)"),
    ("macro_recall", "recall, macro"),
    ("macro_f1", "F1, macro"),
    ("weighted_precision", "precision, each image counts the same (weighted)"),
    ("weighted_recall", "recall, weighted"),
    ("weighted_f1", "F1, weighted"),
    ("calibration_error", "expected calibration error, 15 bins"),
    ("calibrated_calibration_error", "the same with the fitted temperature"),
    ("calibrated_loss", "loss with the fitted temperature, nats"),
)


def tabulate_headline(data: EvaluationData) -> Table:
    """Return the numbers of the whole split, each with its interval."""
    rows = [
        ("images", format_count(data.images), ""),
        ("classes", format_count(len(data.class_names)), ""),
    ]
    for name, label in MEASURES:
        low, high = data.intervals[name]
        trivial = name == "top5_error" and len(data.class_names) <= 5
        note = " (five guesses name every class)" if trivial else ""
        if name.endswith("loss"):
            value = format_decimal(data.values[name])
            interval = f"{format_decimal(low)} to {format_decimal(high)}"
        else:
            value = format_percent(data.values[name])
            interval = format_percent_interval((low, high))
        # Without a spread nothing is known of the number's uncertainty.
        rows.append((label + note, value, interval if low < high and not trivial else ""))
    rows.append(
        (
            "error of always answering the commonest training class",
            format_percent(data.majority_error),
            "",
        )
    )
    return Table(("measure", "value", "95 % interval"), rows)


def tabulate_classes(data: EvaluationData) -> Table:
    """Return one row per class, the lowest F1 first; classes without images last."""
    order = sorted(
        range(len(data.classes)),
        key=lambda index: (data.classes[index].support == 0, data.classes[index].f1, index),
    )
    return Table(
        ("class", "number", "images", "answered", "precision", "recall", "F1"),
        [
            (
                row.name,
                str(index),
                format_count(row.support),
                format_count(row.answered),
                *(format_percent(value) for value in (row.precision, row.recall, row.f1)),
            )
            for index, row in ((index, data.classes[index]) for index in order)
        ],
    )


def tabulate_confusions(data: EvaluationData) -> Table:
    """Return the most frequent wrong answers."""
    rows = [
        (
            data.class_names[pair.label],
            data.class_names[pair.answer],
            format_count(pair.images),
            format_percent(pair.images / data.classes[pair.label].support),
        )
        for pair in data.most_confused
    ]
    return Table(("correct class", "answered", "images", "fraction of the class"), rows)


def tabulate_slices(slices: Sequence[SliceRow]) -> Table:
    """Return one row per slice."""
    rows = [
        (
            item.attribute,
            item.value,
            format_count(item.images),
            format_percent(item.top1_error),
            format_percent_interval(item.interval),
            format_percent(item.others_top1_error),
        )
        for item in slices
    ]
    return Table(
        (
            "attribute",
            "value",
            "images",
            "top-1 error",
            "95 % interval",
            "top-1 error of the others",
        ),
        rows,
    )


def tabulate_guesses(images: Sequence[GuessedImage], names: Sequence[str]) -> Table:
    """Return one row per image: its whole name, its class and the first guess."""
    rows = [
        (
            image.key,
            names[image.label],
            names[image.answers[0]],
            format_percent(image.probabilities[0]),
        )
        for image in images
    ]
    return Table(("image", "correct class", "first guess", "its probability"), rows)


def tabulate_robustness(robustness: CorruptionErrors) -> Table:
    """Return one row per corruption: the error at each severity."""
    rows = [
        (kind, *(format_percent(error) for error in own.values()))
        for kind, own in robustness.errors.items()
    ]
    headings = (f"severity {severity}" for severity in robustness.severities)
    return Table(("corruption", *headings), rows)


def tabulate_speed(speed: SpeedReading) -> Table:
    """Return one row per reading of the clock and the memory."""
    rows = [("device", f"{speed.device}; {format_count(speed.processors, 'processor')}")]
    for item in speed.batches:
        images = format_count(item.batch, "image")
        latency = ", ".join(
            format_milliseconds(value)
            for value in (item.p50_seconds, item.p95_seconds, item.p99_seconds)
        )
        rows.append((f"latency, {images} a call: p50, p95, p99 of {item.calls:,} calls", latency))
        rate = format_significant(item.images_per_second, digits=0)
        rows.append((f"rate, {images} a call", f"{rate} images/s"))
    largest = format_count(max(item.batch for item in speed.batches), "image")
    sizes = (
        ("model file", speed.model_bytes),
        (f"peak memory that a call of {largest} adds: tensors", speed.tensor_bytes),
        (f"peak memory that a call of {largest} adds: the whole process", speed.resident_bytes),
    )
    rows += [
        (measure, "not known here" if size is None else format_bytes(size))
        for measure, size in sizes
    ]
    return Table(("measure", "value"), rows)
