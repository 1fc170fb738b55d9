"""The evaluation's page and its numbers.

The verdict first, then where the network is wrong, then what it looks at.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluate import explain, looks
from pipeline.evaluate.corruptions import SEVERITIES
from pipeline.evaluate.metrics import (
    MEASURES,
    Confusion,
    Summary,
    log_probabilities,
    most_confused,
    percent,
)
from pipeline.evaluate.robustness import Worn, specimens
from pipeline.evaluate.slices import Slice
from pipeline.evaluate.speed import Speed, table_rows
from pipeline.reports.evaluation_charts import (
    draw_corrupted,
    draw_reliability,
    draw_robustness,
    draw_slices,
)
from pipeline.reports.evaluation_figures import (
    ANNOTATED_CLASSES,
    Guesses,
    draw_confusion,
    draw_confusion_overview,
    draw_guesses,
)
from pipeline.reports.html import PageImage, PageSection, Table, render_page

IMAGES = 8  # as in the paper's figure 4
NEIGHBORS = 6  # likewise
_PAIRS = 20
_SLICES, _DRAWN_SLICES = 30, 15
_MAPS = 8
_WHOLE_CONFUSION = 300  # classes; of more, only the pairs that are confused most
_MIN_SURE = 40  # images; the worst slice of fewer says nothing


@dataclass(frozen=True)
class Chosen:
    """An image that is shown: place in the split, name, uint8 [size, size, 3] in [0, 255], right class, and float32 logits [classes]."""

    position: int
    key: str
    pixels: Any
    label: int
    logits: Any


@dataclass(frozen=True)
class Looks:
    """What is needed to show what the network looks at: the model, and some training images.

    `pixels` are uint8 [images, size, size, 3] in [0, 255], `labels` int [images].
    """

    model: Any
    pixels: Any
    labels: Any


@dataclass(frozen=True)
class Judgment:
    """Everything that was found of a model on a split.

    `worn`, `speed` and `looks` are left out of a short report.
    """

    split: str
    view: str
    names: Sequence[str]
    summary: Summary
    slices: Sequence[Slice]
    samples: Sequence[Chosen]
    mistakes: Sequence[Chosen]
    unsure: Sequence[Chosen]
    footer: str
    worn: Worn | None = None
    speed: Speed | None = None
    looks: Looks | None = None


def write_report(directory: Path, judged: Judgment) -> None:
    """Write report.html and the PNG files that it shows into an existing folder."""
    sections = [
        PageSection(
            "In numbers",
            f"By the {judged.view}, every image once.",
            tables=[headline_table(judged)],
        ),
        _confusion_section(directory, judged.summary, judged.names),
        PageSection("Classes, the worst first", tables=[class_table(judged.summary, judged.names)]),
        *_slice_sections(directory, judged),
        _calibration_section(directory, judged.summary, judged.split),
        _guess_section(
            directory / "guesses.png",
            "Images and first guesses",
            _SAMPLES_TEXT,
            judged.samples,
            judged.names,
        ),
    ]
    if judged.mistakes:
        sections.append(
            _guess_section(
                directory / "mistakes.png",
                "Most confident mistakes",
                _MISTAKES_TEXT,
                judged.mistakes,
                judged.names,
            )
        )
    if judged.unsure:
        sections.append(
            _guess_section(
                directory / "unsure.png",
                "Least confident hits",
                _UNSURE_TEXT,
                judged.unsure,
                judged.names,
            )
        )
    if judged.looks is not None and explain.explainable(judged.looks.model):
        sections += _look_sections(directory, judged, judged.looks)
    elif judged.looks is not None:
        sections.append(PageSection("What it looks at", _NO_LOOKS_TEXT))
    if judged.worn is not None:
        sections.append(_robustness_section(directory, judged.samples[0], judged.worn))
    if judged.speed is not None:
        sections.append(
            PageSection(
                "How fast it answers",
                _SPEED_TEXT,
                [Table(("measure", "value"), table_rows(judged.speed))],
            )
        )
    page = render_page(
        f"Evaluation on the {judged.split} split", verdict(judged), sections, judged.footer
    )
    (directory / "report.html").write_text(page, encoding="utf-8")


def write_metrics(directory: Path, judged: Judgment) -> None:
    """Write metrics.json, every number of the page for programs to read.

    And speed.json, which is another one each time.
    """
    summary = judged.summary
    document: dict[str, Any] = {
        "split": judged.split,
        "view": judged.view,
        "images": summary.images,
        **summary.values,
    }
    document |= {"majority_error": summary.majority_error, "temperature": summary.temperature}
    document |= {"intervals": summary.intervals, "resampled_intervals": summary.resampled_intervals}
    columns = {name: values.tolist() for name, values in asdict(summary.by_class).items()}
    document["classes"] = [
        {"name": name} | {key: values[place] for key, values in columns.items()}
        for place, name in enumerate(judged.names)
    ]
    if len(judged.names) <= _WHOLE_CONFUSION:
        document["confusion"] = summary.confusion.tolist()
    document["most_confused"] = [asdict(pair) for pair in most_confused(summary.confusion, _PAIRS)]
    document["slices"] = [asdict(item) for item in judged.slices]
    for name, bins in (
        ("reliability", summary.reliability),
        ("calibrated_reliability", summary.calibrated_reliability),
    ):
        document[name] = {what: values.tolist() for what, values in asdict(bins).items()}
    if judged.worn is not None:
        document["robustness"] = asdict(judged.worn) | {
            "mean_corruption_error": judged.worn.mean.error
        }
    (directory / "metrics.json").write_text(
        json.dumps(document, indent=1, allow_nan=False), encoding="utf-8"
    )
    if judged.speed is not None:
        (directory / "speed.json").write_text(
            json.dumps(asdict(judged.speed), indent=1, allow_nan=False), encoding="utf-8"
        )


# -- in words and numbers --------------------------------------------------------------------------


def verdict(judged: Judgment) -> str:
    """Return the result in a few sentences.

    How often it is wrong, how sure that is, what guessing would give, and where it is worst.
    """
    summary = judged.summary
    low, high = summary.top1_error_interval
    images = "image" if summary.images == 1 else "images"
    doubt = "" if high < summary.majority_error else " The network is not clearly better than that."
    return (
        f"Wrong on {percent(summary.top1_error)} of {summary.images:,} {judged.split} {images},"
        f" {judged.view} (95 % interval {100 * low:.1f}-{percent(high)}); always answering the"
        " commonest class would be wrong on"
        f" {percent(summary.majority_error)}.{doubt}{_worst(judged.slices)}"
    )


def _worst(slices: Sequence[Slice]) -> str:
    """Name the worst slice if it is clearly worse, and large enough to be more than the unluckiest of many."""
    for item in slices:
        if item.attribute != "class" and item.clearly_worse and item.images >= _MIN_SURE:
            where = f"{item.attribute} {item.value}" if len(item.value) <= 40 else item.attribute
            return f" Worst where: {where}, wrong on {percent(item.top1_error)} of {item.images:,}."
    return ""


def headline_table(judged: Judgment) -> Table:
    """Return the numbers about the whole split, each with its interval."""
    summary = judged.summary
    rows = [("images", f"{summary.images:,}", ""), ("classes", f"{len(judged.names):,}", "")]
    for name, words in MEASURES:
        note = (
            " (five guesses name every class)"
            if name == "top5_error" and len(judged.names) <= 5
            else ""
        )
        shown = _number if name.endswith("loss") else percent
        low, high = summary.intervals[name]
        interval = (
            f"{shown(low)} to {shown(high)}" if low < high and not note else ""
        )  # without a spread nothing is known of it
        rows.append((words + note, shown(summary.values[name]), interval))
    rows.append(
        (
            "error of always answering the commonest training class",
            percent(summary.majority_error),
            "",
        )
    )
    return Table(("measure", "value", "95 % interval"), rows)


def _number(value: float) -> str:
    return f"{value:.4f}"


def class_table(summary: Summary, names: Sequence[str]) -> Table:
    """Return a row a class, the lowest F1 first; classes without images last."""
    scores = summary.by_class
    order = sorted(
        range(len(names)), key=lambda index: (scores.support[index] == 0, scores.f1[index], index)
    )
    return Table(
        ("class", "number", "images", "answered", "precision", "recall", "F1"),
        [
            (
                names[index],
                str(index),
                f"{scores.support[index]:,}",
                f"{scores.answered[index]:,}",
                *(
                    percent(values[index])
                    for values in (scores.precision, scores.recall, scores.f1)
                ),
            )
            for index in order
        ],
    )


def pair_table(pairs: Sequence[Confusion], summary: Summary, names: Sequence[str]) -> Table:
    """Return the most frequent wrong answers."""
    rows = [
        (
            names[pair.label],
            names[pair.answer],
            f"{pair.images:,}",
            percent(pair.images / summary.by_class.support[pair.label]),
        )
        for pair in pairs
    ]
    return Table(("correct class", "answered", "images", "share of the class"), rows)


def slice_table(slices: Sequence[Slice]) -> Table:
    """Return a row a slice."""
    rows = [
        (
            item.attribute,
            item.value,
            f"{item.images:,}",
            percent(item.top1_error),
            f"{percent(item.interval[0])} to {percent(item.interval[1])}",
            percent(item.others),
        )
        for item in slices
    ]
    return Table(
        ("of", "value", "images", "top-1 error", "95 % interval", "error of the others"), rows
    )


# -- which images are shown ------------------------------------------------------------------------


def spread_positions(images: int, count: int) -> list[int]:
    """Return up to `count` positions spread evenly over a split, chosen without a look at the answers."""
    return sorted({int(position) for position in np.linspace(0, images - 1, count)})


def confident_mistakes(wrong: Any, confidence: Any) -> list[int]:
    """Return up to eight positions whose first guess is wrong, the surest first.

    Bool and float [images] are given.
    """
    places = np.flatnonzero(wrong)
    return [int(place) for place in places[np.argsort(-confidence[places], kind="stable")[:IMAGES]]]


def unsure_hits(wrong: Any, confidence: Any) -> list[int]:
    """Return up to eight positions whose first guess is right, the least sure first."""
    places = np.flatnonzero(~wrong)
    return [int(place) for place in places[np.argsort(confidence[places], kind="stable")[:IMAGES]]]


def guesses_of(images: Sequence[Chosen]) -> list[Guesses]:
    """Return the first five guesses for some images, equal ones in order of class number."""
    logits = np.stack([image.logits for image in images])
    order = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    probabilities = np.exp(np.take_along_axis(log_probabilities(logits), order, axis=1))
    return [
        Guesses(image.key, image.pixels, image.label, tuple(answers), tuple(shares))
        for image, answers, shares in zip(
            images, order.tolist(), probabilities.tolist(), strict=True
        )
    ]


# -- sections --------------------------------------------------------------------------------------


_SAMPLES_TEXT = (
    "Images spread evenly over the split, not chosen by result. Under each its correct class,"
    " then the first guesses: the correct one is blue, bold and ticked, a wrong first guess is"
    " orange and crossed."
)
_MISTAKES_TEXT = (
    "Wrong first guesses that the network was surest of. Look for wrong labels, images with two"
    " things in them, and classes that nobody could tell apart."
)
_UNSURE_TEXT = (
    "Right first guesses that the network was least sure of: the next ones to go wrong when"
    " images change."
)
_SLICE_TEXT = (
    "Images that have something in common, the worst first: ordered by the lower end of the"
    " interval, so that a few unlucky images do not come first. Among many slices some look worse"
    " by chance. Numbers are cut at their quartiles; brightness and contrast are mean and deviation"
    " of the scored pixels, sizes are those of the files."
)
_CALIBRATION_TEXT = (
    "Of images answered with a probability of 80 %, 80 % should be right. Dots below the line are"
    " too sure of themselves. The calibration error is the mean distance from the line; it is a"
    " little above 0 even for a perfect network, as chance moves every dot."
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
    "What the strongest feature maps of each layer see in two images; bright is active. Deeper"
    " maps are coarser and sparser."
)
_GRAD_CAM_TEXT = (
    "Where the last convolution's maps argue for the answer (Grad-CAM, Selvaraju and others 2017)."
    " A network that looks beside the object has learned something else, such as the background."
)
_NEIGHBOR_TEXT = (
    "Test images, and the training images whose last hidden layer is nearest to theirs, as in"
    " the paper's figure 4: what the network takes for alike, although the pixels may differ. Blue"
    " frames are of the same class."
)
_NO_LOOKS_TEXT = (
    "This network is not a chain of the layers that are known here, as those of this pipeline are,"
    " so its inside cannot be shown."
)
_WORN_TEXT = (
    "The same images with noise, blur and so on, at three severities. The mean corruption error"
    " is the plain mean over all of them, to compare networks on the same images with; the"
    " published one of ImageNet-C is another number."
)
_SPEED_TEXT = (
    "Read off the clock of the machine that evaluated; other programs may have used it, too."
)


def _guess_section(
    path: Path, heading: str, text: str, images: Sequence[Chosen], names: Sequence[str]
) -> PageSection:
    """Return images with their guesses, drawn and as a table that has every name whole."""
    guesses = guesses_of(images)
    draw_guesses(guesses, names, path)
    rows = [
        (item.key, names[item.label], names[item.answers[0]], percent(item.probabilities[0]))
        for item in guesses
    ]
    table = Table(("image", "correct class", "first guess", "its probability"), rows)
    return PageSection(
        heading,
        text,
        [table],
        [PageImage(path, f"{heading}, left to right in the order of the table.")],
    )


def _confusion_section(directory: Path, summary: Summary, names: Sequence[str]) -> PageSection:
    """Return who is taken for whom.

    All classes in one square if they can be read, else an overview and the worst of them.
    """
    pairs = most_confused(summary.confusion, _PAIRS)
    tables = [pair_table(pairs, summary, names)] if pairs else []
    text = (
        "Each row is a correct class, each column an answer."
        if pairs
        else "No image was answered wrong."
    )
    path = directory / "confusion.png"
    if len(names) <= ANNOTATED_CLASSES:
        draw_confusion(summary.confusion, names, path)
        caption = (
            "Images by correct class and answer: right answers blue, wrong ones orange, deeper"
            " for a larger share of the row."
        )
        return PageSection("What is taken for what", text, tables, [PageImage(path, caption)])
    step = draw_confusion_overview(summary.confusion, path)
    size = "one class" if step == 1 else f"{step} classes"
    images = [
        PageImage(
            path,
            f"Wrong answers only; each square is {size} wide. Class numbers are those of the table"
            " of classes.",
        )
    ]
    if pairs:
        worst = directory / "confusion_worst.png"
        draw_confusion(summary.confusion, names, worst, _classes_of(pairs))
        caption = (
            "Only the classes of the most frequent wrong answers: right ones blue, wrong ones"
            " orange by their share of the whole row."
        )
        images.append(PageImage(worst, caption))
    return PageSection("What is taken for what", text, tables, images)


def _classes_of(pairs: Sequence[Confusion]) -> list[int]:
    """Return the classes of the first pairs, as many as can be drawn, in order of their numbers."""
    classes: set[int] = set()
    for pair in pairs:
        if len(classes | {pair.label, pair.answer}) <= ANNOTATED_CLASSES - 5:
            classes |= {pair.label, pair.answer}
    return sorted(classes)


def _slice_sections(directory: Path, judged: Judgment) -> list[PageSection]:
    if not judged.slices:
        return []
    path = directory / "slices.png"
    draw_slices(judged.slices[:_DRAWN_SLICES], judged.summary.top1_error, path)
    caption = (
        "The worst slices with the number of their images; orange where the whole interval lies"
        " above the error of the others."
    )
    more = len(judged.slices) - _SLICES
    text = _SLICE_TEXT + (f" {more:,} more are in metrics.json." if more > 0 else "")
    return [
        PageSection(
            "Where it is worse",
            text,
            [slice_table(judged.slices[:_SLICES])],
            [PageImage(path, caption)],
        )
    ]


def _calibration_section(directory: Path, summary: Summary, split: str) -> PageSection:
    path = directory / "reliability.png"
    draw_reliability(summary.reliability, summary.calibrated_reliability, path)
    before, after = (
        percent(summary.values[name])
        for name in ("calibration_error", "calibrated_calibration_error")
    )
    if summary.temperature == 1:
        fitted = (
            "No temperature was fitted: no validation image is answered wrong, so nothing says"
            " how sure is too sure."
        )
    else:
        whose = "these very images" if split == "validation" else "the validation split"
        fitted = (
            f"Dividing the logits by a temperature of {summary.temperature:.3f}, fitted on {whose},"
            f" changes no guess; it takes the calibration error from {before} to {after}."
        )
    text = f"{_CALIBRATION_TEXT} {fitted}"
    return PageSection(
        "How far its probabilities can be trusted",
        text,
        images=[PageImage(path, "Above: right answers by probability. Below: how many.")],
    )


def _look_sections(directory: Path, judged: Judgment, given: Looks) -> list[PageSection]:
    """Return what the network looks at, from the pixels to the last hidden layer."""
    model, samples = given.model, judged.samples
    pixels, labels = (
        np.stack([item.pixels for item in samples]),
        np.array([item.label for item in samples]),
    )
    answers = np.array([int(item.logits.argmax()) for item in samples])
    paths = {
        name: directory / f"{name}.png"
        for name in ("grad_cam", "neighbors", "filters", "patches", "activations")
    }
    looks.draw_grad_cam(
        pixels,
        explain.grad_cam(model, pixels, answers),
        labels,
        answers,
        judged.names,
        paths["grad_cam"],
    )
    layer = explain.feature_layer(model)
    known = explain.features(model, [(given.pixels, given.labels)], layer)
    nearest, _ = explain.nearest(
        known, explain.features(model, [(pixels, labels)], layer), min(NEIGHBORS, len(known))
    )
    looks.draw_neighbors(
        pixels,
        labels,
        given.pixels[nearest],
        given.labels[nearest],
        judged.names,
        paths["neighbors"],
    )
    looks.draw_filters(*explain.filters_by_tower(model), paths["filters"])
    layers = explain.depth_layers(model)
    looks.draw_patches(explain.top_patches(model, given.pixels[:512], layers), paths["patches"])
    looks.draw_activations(
        pixels[:2], explain.strongest_maps(model, pixels[:2], layers, _MAPS), paths["activations"]
    )
    of = f"{len(given.pixels):,} training images"
    return [
        PageSection(
            "Where it looks",
            _GRAD_CAM_TEXT,
            images=[
                PageImage(paths["grad_cam"], "The sample images, and what argues for the answer.")
            ],
        ),
        PageSection(
            "What it takes for alike",
            _NEIGHBOR_TEXT,
            images=[PageImage(paths["neighbors"], f"The nearest of {of}.")],
        ),
        PageSection(
            "What the first layer looks for",
            _FILTERS_TEXT,
            images=[PageImage(paths["filters"], "Gray is zero. Compare the paper's figure 3.")],
        ),
        PageSection(
            "From edges to objects",
            _PATCHES_TEXT,
            images=[
                PageImage(
                    paths["patches"], f"Found in {min(512, len(given.pixels)):,} training images."
                )
            ],
        ),
        PageSection(
            "What each layer sees",
            _MAPS_TEXT,
            images=[
                PageImage(paths["activations"], "From the first convolution, above, to the last.")
            ],
        ),
    ]


def _robustness_section(directory: Path, sample: Chosen, worn: Worn) -> PageSection:
    curves, examples = directory / "robustness.png", directory / "corruptions.png"
    draw_robustness(worn.clean, worn.errors, curves)
    draw_corrupted(specimens(sample.pixels, sample.position, seed=0), examples)
    rows = [
        (kind, *(percent(value) for value in of_kind.values()))
        for kind, of_kind in worn.errors.items()
    ]
    table = Table(("corruption", *(f"severity {severity}" for severity in SEVERITIES)), rows)
    of = f"{worn.images:,} images, of which {percent(worn.clean)} are answered wrong as they are"
    text = f"{_WORN_TEXT} Here it is {percent(worn.mean.error)}, by the center crop, on {of}."
    images = [
        PageImage(
            curves, "Top-1 error by severity; the gray line is the error of the clean images."
        ),
        PageImage(
            examples,
            f"An image at severities {', '.join(map(str, SEVERITIES))}, from top to bottom.",
        ),
    ]
    return PageSection("When images are worse", text, [table], images)
