"""The evaluation's page and its numbers: the verdict first, then where the network is wrong, then what it looks at."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluate.metrics import Average, Confusion, Summary, answer_probabilities, log_probabilities, most_confused
from pipeline.evaluate.pictures import (
    ANNOTATED_CLASSES,
    Guesses,
    draw_confusion,
    draw_confusion_overview,
    draw_filters,
    draw_guesses,
)
from pipeline.evaluate.scoring import Predictions
from pipeline.page import Picture, Section, Table, render

_PICTURES = 8  # as in the paper's figure 4
_PAIRS = 20


def write_report(
    directory: Path,
    *,
    summary: Summary,
    predictions: Predictions,
    names: Sequence[str],
    split: str,
    look: Callable[[Sequence[int]], Mapping[int, Any]],
    kernel: Any,
    footer: str,
) -> None:
    """Write report.html and the PNG files that it shows.

    Args:
        directory: an existing folder.
        summary: what was counted.
        predictions: what the network said of each picture.
        names: of the classes, in the order of the logits.
        split: which pictures, `test` or `validation`.
        look: gives position -> uint8 [size, size, 3] in [0, 255] for positions in stored order.
        kernel: the first layer's weights, float [height, width, 3, filters].
        footer: small print.
    """
    samples, mistakes = sample_positions(summary.images), confident_mistakes(predictions)
    pixels = look([*samples, *mistakes])
    pairs = most_confused(summary.confusion, _PAIRS)
    sections = [
        Section("In numbers", tables=[headline_table(summary, len(names))]),
        _confusion_section(directory, summary, pairs, names),
        _guess_section(
            directory / "guesses.png", "Pictures and first guesses", _SAMPLES_TEXT, guesses_of(predictions, samples, pixels), names
        ),
    ]
    if mistakes:
        shown = guesses_of(predictions, mistakes, pixels)
        sections.append(_guess_section(directory / "mistakes.png", "Most confident mistakes", _MISTAKES_TEXT, shown, names))
    draw_filters(kernel, directory / "filters.png")
    sections += [
        Section("Classes, the worst first", tables=[class_table(summary, names)]),
        Section("What the first layer looks for", _FILTERS_TEXT, pictures=[Picture(directory / "filters.png", _filters_caption(kernel))]),
    ]
    page = render(f"Evaluation on the {split} split", verdict(summary, split), sections, footer)
    (directory / "report.html").write_text(page, encoding="utf-8")


def write_metrics(directory: Path, summary: Summary, names: Sequence[str], split: str) -> None:
    """Write metrics.json: every number of the page for programs to read."""
    whole = ("images", "loss", "top1_error", "top5_error", "top1_error_interval", "majority_error", "balanced_accuracy")
    document = {"split": split} | {name: getattr(summary, name) for name in whole}
    document |= {"macro": asdict(summary.macro), "weighted": asdict(summary.weighted)}
    columns = {name: values.tolist() for name, values in asdict(summary.by_class).items()}
    document["classes"] = [{"name": name} | {key: values[index] for key, values in columns.items()} for index, name in enumerate(names)]
    document["most_confused"] = [asdict(pair) for pair in most_confused(summary.confusion, _PAIRS)]
    (directory / "metrics.json").write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")


def verdict(summary: Summary, split: str) -> str:
    """Return the result in one sentence, with how sure it is and what guessing would give."""
    low, high = summary.top1_error_interval
    pictures = "picture" if summary.images == 1 else "pictures"
    doubt = "" if high < summary.majority_error else " The network is not clearly better than that."
    return (
        f"Wrong on {percent(summary.top1_error)} of {summary.images:,} {split} {pictures} (95 % interval {100 * low:.1f}-{percent(high)}); "
        f"always answering the commonest class would be wrong on {percent(summary.majority_error)}.{doubt}"
    )


def percent(share: float) -> str:
    """Return a share in [0, 1] as `1.4 %`."""
    return f"{100 * share:.1f} %"


def headline_table(summary: Summary, classes: int) -> Table:
    """Return the numbers about the whole split."""

    def three(average: Average) -> str:
        return f"{percent(average.precision)}, {percent(average.recall)}, {percent(average.f1)}"

    low, high = summary.top1_error_interval
    return Table(
        ("measure", "value"),
        [
            ("pictures", f"{summary.images:,}"),
            ("classes", f"{classes:,}"),
            ("top-1 error: first guess wrong", percent(summary.top1_error)),
            ("its 95 % interval (Wilson)", f"{100 * low:.1f}-{percent(high)}"),
            (
                "top-5 error: first five guesses all wrong",
                percent(summary.top5_error) + (" (five guesses name every class)" if classes <= 5 else ""),
            ),
            ("error of always answering the commonest training class", percent(summary.majority_error)),
            ("loss: mean cross-entropy", f"{summary.loss:.4f} nats"),
            ("balanced accuracy: mean recall of the classes", percent(summary.balanced_accuracy)),
            ("precision, recall, F1: each class counts the same (macro)", three(summary.macro)),
            ("precision, recall, F1: each picture counts the same (weighted)", three(summary.weighted)),
        ],
    )


def class_table(summary: Summary, names: Sequence[str]) -> Table:
    """Return a row a class, the lowest F1 first; classes without pictures last."""
    scores = summary.by_class
    order = sorted(range(len(names)), key=lambda index: (scores.support[index] == 0, scores.f1[index], index))
    return Table(
        ("class", "number", "pictures", "answered", "precision", "recall", "F1"),
        [
            (
                names[index],
                str(index),
                f"{scores.support[index]:,}",
                f"{scores.answered[index]:,}",
                *(percent(values[index]) for values in (scores.precision, scores.recall, scores.f1)),
            )
            for index in order
        ],
    )


def pair_table(pairs: Sequence[Confusion], summary: Summary, names: Sequence[str]) -> Table:
    """Return the most frequent wrong answers."""
    rows = [
        (names[pair.label], names[pair.answer], f"{pair.images:,}", percent(pair.images / summary.by_class.support[pair.label]))
        for pair in pairs
    ]
    return Table(("correct class", "answered", "pictures", "share of the class"), rows)


def sample_positions(images: int) -> list[int]:
    """Return up to eight positions spread evenly over the split, chosen without a look at the answers."""
    return sorted({int(position) for position in np.linspace(0, images - 1, _PICTURES)})


def confident_mistakes(predictions: Predictions) -> list[int]:
    """Return up to eight positions whose first guess is wrong, the surest first."""
    wrong = np.flatnonzero(predictions.logits.argmax(axis=1) != predictions.labels)
    if len(wrong) == 0:
        return []
    order = np.argsort(-answer_probabilities(predictions.logits[wrong]), kind="stable")
    return [int(position) for position in wrong[order[:_PICTURES]]]


def guesses_of(predictions: Predictions, positions: Sequence[int], pixels: Mapping[int, Any]) -> list[Guesses]:
    """Return the first five guesses for some pictures, equal ones in order of class number."""
    chosen = predictions.logits[list(positions)]
    order = np.argsort(-chosen, axis=1, kind="stable")[:, :5]
    probabilities = np.exp(np.take_along_axis(log_probabilities(chosen), order, axis=1))
    return [
        Guesses(predictions.keys[position], pixels[position], int(predictions.labels[position]), tuple(answers), tuple(shares))
        for position, answers, shares in zip(positions, order.tolist(), probabilities.tolist(), strict=True)
    ]


_SAMPLES_TEXT = (
    "Pictures spread evenly over the split, not chosen by result. Under each its correct class, then the first guesses: "
    "the correct one is blue, bold and ticked, a wrong first guess is orange and crossed."
)
_MISTAKES_TEXT = (
    "Wrong first guesses that the network was surest of. Look for wrong labels, pictures with two things in them, and classes that "
    "nobody could tell apart."
)
_FILTERS_TEXT = (
    "The paper's network learned smooth edges and blobs of colour; filters that look like noise have changed little in training."
)


def _filters_caption(kernel: Any) -> str:
    height, width, _, filters = kernel.shape
    return (
        f"The {filters} filters of conv1, {height} x {width} pixels each, in colour. Grey is zero; "
        "each is stretched to its own largest weight. Compare the paper's figure 3."
    )


def _guess_section(path: Path, heading: str, text: str, pictures: Sequence[Guesses], names: Sequence[str]) -> Section:
    """Return pictures with their guesses, drawn and as a table that has every name whole."""
    draw_guesses(pictures, names, path)
    rows = [(item.key, names[item.label], names[item.answers[0]], percent(item.probabilities[0])) for item in pictures]
    table = Table(("picture", "correct class", "first guess", "its probability"), rows)
    return Section(heading, text, [table], [Picture(path, f"{heading}, left to right in the order of the table.")])


def _confusion_section(directory: Path, summary: Summary, pairs: Sequence[Confusion], names: Sequence[str]) -> Section:
    """Return who is taken for whom: all classes in one square if they can be read, else an overview and the worst of them."""
    tables = [pair_table(pairs, summary, names)] if pairs else []
    text = "Each row is a correct class, each column an answer." if pairs else "No picture was answered wrong."
    path = directory / "confusion.png"
    if len(names) <= ANNOTATED_CLASSES:
        draw_confusion(summary.confusion, names, path)
        caption = "Pictures by correct class and answer: right answers blue, wrong ones orange, deeper for a larger share of the row."
        return Section("What is taken for what", text, tables, [Picture(path, caption)])
    step = draw_confusion_overview(summary.confusion, path)
    size = "one class" if step == 1 else f"{step} classes"
    pictures = [Picture(path, f"Wrong answers only; each square is {size} wide. Class numbers are those of the table of classes.")]
    if pairs:
        worst = directory / "confusion_worst.png"
        draw_confusion(summary.confusion, names, worst, _classes_of(pairs))
        caption = "Only the classes of the most frequent wrong answers: right ones blue, wrong ones orange by their share of the whole row."
        pictures.append(Picture(worst, caption))
    return Section("What is taken for what", text, tables, pictures)


def _classes_of(pairs: Sequence[Confusion]) -> list[int]:
    """Return the classes of the first pairs, as many as can be drawn, in order of their numbers."""
    classes: set[int] = set()
    for pair in pairs:
        if len(classes | {pair.label, pair.answer}) <= ANNOTATED_CLASSES - 5:
            classes |= {pair.label, pair.answer}
    return sorted(classes)
