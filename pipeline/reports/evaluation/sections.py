"""Sections of the evaluation's page that show its errors: text, tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.reports.evaluation.answer_figures import (
    ANNOTATED_CLASSES,
    draw_confusion,
    draw_confusion_overview,
    draw_guesses,
)
from pipeline.reports.evaluation.charts import (
    draw_corruptions,
    draw_reliability,
    draw_robustness,
    draw_slices,
)
from pipeline.reports.evaluation.data import (
    ConfusionRow,
    CorruptionErrors,
    EvaluationData,
    GuessedImage,
)
from pipeline.reports.evaluation.tables import (
    tabulate_confusions,
    tabulate_guesses,
    tabulate_robustness,
    tabulate_slices,
)
from pipeline.reports.html import PageImage, PageSection
from pipeline.reports.numbers import format_count, format_percent

_TABLE_SLICES, _DRAWN_SLICES = 30, 15
_SAMPLES_TEXT = (
    "Images spread evenly over the split, whatever the answers. Under each image its correct class,"
    " then the first guesses: the correct one is blue, bold and ticked, a wrong first guess is"
    " orange and crossed."
)
_MISTAKES_TEXT = (
    "Wrong first guesses with the highest probabilities. Look for wrong labels, images with two"
    " objects, and classes that cannot be told apart."
)
_UNSURE_TEXT = (
    "Right first guesses with the lowest probabilities: the next ones to go wrong when images"
    " change."
)
_SLICE_TEXT = (
    "Images that have something in common, the worst first: ordered by the lower end of the"
    " interval, so that a few unlucky images do not come first. Among many slices some look worse"
    " by chance. Numbers are cut at their quartiles; brightness and contrast are mean and standard"
    " deviation of the scored pixels (levels 0-255), sizes are those of the files (pixels)."
)
_CALIBRATION_TEXT = (
    "Of images answered with a probability of 80 %, 80 % should be right. Dots below the line are"
    " overconfident. The calibration error is the mean distance from the line; it is a little above"
    " 0 even for a perfect network, as chance moves every dot."
)
_ROBUSTNESS_TEXT = (
    "The same images with noise, blur and so on, at three severities. The mean corruption error"
    " is the plain mean over all of them, to compare networks on the same images with; the"
    " published one of ImageNet-C is another number."
)


def build_confusion_section(folder: Path, data: EvaluationData) -> PageSection:
    """Return the confusion matrix, whole if it can be read, else an overview and its worst part."""
    pairs, names = data.most_confused, data.class_names
    tables = [tabulate_confusions(data)] if pairs else []
    text = (
        "Each row is a correct class, each column an answer."
        if pairs
        else "No image was answered wrong."
    )
    path = folder / "confusion.png"
    if len(names) <= ANNOTATED_CLASSES:
        draw_confusion(data.confusion, names, path)
        caption = (
            "Images by correct class and answer: right answers blue, wrong ones orange, deeper"
            " for a larger fraction of the row."
        )
        return PageSection("Confusions", text, tables, [PageImage(path, caption)])
    step = draw_confusion_overview(data.confusion, path)
    size = "one class" if step == 1 else f"{step} classes"
    images = [
        PageImage(
            path,
            f"Wrong answers only; each square is {size} wide. Class numbers are those of the table"
            " of classes.",
        )
    ]
    if pairs:
        worst = folder / "confusion_worst.png"
        draw_confusion(data.confusion, names, worst, _list_classes(pairs))
        caption = (
            "Only the classes of the most frequent wrong answers: right ones blue, wrong ones"
            " orange by their fraction of the whole row."
        )
        images.append(PageImage(worst, caption))
    return PageSection("Confusions", text, tables, images)


def _list_classes(pairs: Sequence[ConfusionRow]) -> list[int]:
    """Return the classes of the first pairs, as many as can be drawn, in order of class id."""
    classes: set[int] = set()
    for pair in pairs:
        if len(classes | {pair.label, pair.answer}) <= ANNOTATED_CLASSES - 5:
            classes |= {pair.label, pair.answer}
    return sorted(classes)


def build_slice_sections(folder: Path, data: EvaluationData) -> list[PageSection]:
    """Return the worst slices; an empty list without any."""
    if not data.slices:
        return []
    path = folder / "slices.png"
    draw_slices(data.slices[:_DRAWN_SLICES], data.values["top1_error"], path)
    caption = (
        "The worst slices with the number of their images; orange where the whole interval lies"
        " above the error of the others."
    )
    more = len(data.slices) - _TABLE_SLICES
    text = _SLICE_TEXT + (f" {format_count(more)} more are in metrics.json." if more > 0 else "")
    tables = [tabulate_slices(data.slices[:_TABLE_SLICES])]
    return [PageSection("Slices", text, tables, [PageImage(path, caption)])]


def build_calibration_section(folder: Path, data: EvaluationData) -> PageSection:
    """Return how the probabilities compare with the fraction that is right."""
    path = folder / "reliability.png"
    draw_reliability(data.reliability, data.calibrated_reliability, path)
    before, after = (
        format_percent(data.values[name])
        for name in ("calibration_error", "calibrated_calibration_error")
    )
    if data.temperature == 1:
        fitted = (
            "No temperature was fitted: every validation image is answered right, so nothing shows"
            " how sure is too sure."
        )
    else:
        source = "these very images" if data.split == "validation" else "the validation split"
        fitted = (
            f"Dividing the logits by a temperature of {data.temperature:.3f}, fitted on {source},"
            f" changes no guess; it takes the calibration error from {before} to {after}."
        )
    caption = "Above: right answers by probability. Below: number of images."
    return PageSection(
        "Calibration", f"{_CALIBRATION_TEXT} {fitted}", images=[PageImage(path, caption)]
    )


def build_guess_sections(folder: Path, data: EvaluationData) -> list[PageSection]:
    """Return the sample images, the most confident mistakes and the least confident hits."""
    groups = (
        ("guesses.png", "Images and first guesses", _SAMPLES_TEXT, data.samples),
        ("mistakes.png", "Most confident mistakes", _MISTAKES_TEXT, data.mistakes),
        ("unsure.png", "Least confident hits", _UNSURE_TEXT, data.unsure),
    )
    return [
        _build_guess_section(folder / name, heading, text, images, data.class_names)
        for name, heading, text, images in groups
        if images
    ]


def _build_guess_section(
    path: Path, heading: str, text: str, images: Sequence[GuessedImage], names: Sequence[str]
) -> PageSection:
    """Return images with their guesses, drawn and as a table that has every name whole."""
    draw_guesses(images, names, path)
    caption = f"{heading}, left to right in the order of the table."
    return PageSection(heading, text, [tabulate_guesses(images, names)], [PageImage(path, caption)])


def build_robustness_section(folder: Path, robustness: CorruptionErrors) -> PageSection:
    """Return the errors on corrupted images, and an image in every corruption."""
    curves, examples = folder / "robustness.png", folder / "corruptions.png"
    draw_robustness(robustness.clean, robustness.errors, curves)
    draw_corruptions(robustness.examples, examples)
    text = (
        f"{_ROBUSTNESS_TEXT} Here it is {format_percent(robustness.mean)}, by the center crop, on"
        f" {format_count(robustness.images, 'image')}, of which {format_percent(robustness.clean)}"
        " are answered wrong as they are."
    )
    severities = ", ".join(map(str, robustness.severities))
    images = [
        PageImage(
            curves, "Top-1 error by severity; the gray line is the error of the clean images."
        ),
        PageImage(examples, f"An image at severities {severities}, from top to bottom."),
    ]
    return PageSection("Corrupted images", text, [tabulate_robustness(robustness)], images)
