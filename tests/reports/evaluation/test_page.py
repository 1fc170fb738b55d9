import html
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from matplotlib import image as png

from pipeline.evaluate.findings import EvaluationFindings, ShownImage, rank_guesses
from pipeline.evaluate.inspection import inspect_network
from pipeline.evaluate.logits import compute_losses_and_confidences, rank_labels
from pipeline.evaluate.metrics import Tally, summarize_tally
from pipeline.evaluate.report_data import store_findings
from pipeline.evaluate.robustness import corrupt_in_every_way, measure_robustness
from pipeline.evaluate.selection import (
    select_confident_mistakes,
    select_unsure_hits,
    spread_indices,
)
from pipeline.evaluate.slices import ErrorSlice, find_slices
from pipeline.reports.evaluation import answer_figures
from pipeline.reports.evaluation.data import load_evaluation_data
from pipeline.reports.evaluation.page import describe_result, draw_evaluation_pages

HARD_NAMES = (
    "<script>alert('x')</script>",
    'two\nlines and "quotes"',
    "$x_1^{$ \\frac",
    "long " + "name " * 39,
    "日本語 \U0001f40d",
    "plain",
)


class Reader(HTMLParser):
    """Collects the cells' text, the images' sources and every tag of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.sources, self.links, self.cells = set(), [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        values = dict(attributes)
        self.links += [
            values[name] for name in ("href", "src", "srcset", "action") if name in values
        ]
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


def read(directory):
    reader = Reader()
    reader.feed((directory / "report.html").read_text(encoding="utf-8"))
    return reader


def logits_of(classes, images=40, right=0.7, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images).astype(np.int32)
    logits = rng.normal(0, 1, (images, classes)).astype(np.float32)
    logits[
        np.arange(images),
        np.where(
            rng.random(images) < right,
            labels,
            rng.integers(0, classes, images),
        ),
    ] += 9
    return logits, labels


def make_findings(logits, labels, names, keys=None, slices=None, **more):
    """Return the findings on some logits as the stage makes them, with gray images."""
    keys = keys or [f"folder/{index}.png" for index in range(len(labels))]
    tally = Tally(len(names), int(np.bincount(labels).argmax()), temperature=1.5)
    tally.add_images(logits, labels)
    wrong = rank_labels(logits, labels) > 0
    _, confidence = compute_losses_and_confidences(logits, labels)

    def describe(indices):
        guesses = rank_guesses(logits[indices]) if indices else []
        return [
            ShownImage(
                at, keys[at], np.full((12, 12, 3), at % 256, np.uint8), int(labels[at]), *own
            )
            for at, own in zip(indices, guesses, strict=True)
        ]

    found = (
        find_slices(wrong, {"class": [names[label] for label in labels]})
        if slices is None
        else slices
    )
    groups = (
        spread_indices(len(labels), 8),
        select_confident_mistakes(wrong, confidence),
        select_unsure_hits(wrong, confidence),
    )
    return EvaluationFindings(
        "test",
        "center crop",
        names,
        "tiny",
        summarize_tally(tally),
        found,
        *map(describe, groups),
        **more,
    )


def write(directory, *arguments, **settings):
    """Store findings in a stage's folder and draw their pages into another one."""
    findings = make_findings(*arguments, **settings)
    stage = directory / "stage"
    stage.mkdir()
    store_findings(stage, findings)
    draw_evaluation_pages(
        SimpleNamespace(directory=stage, model_sha256="a" * 64, dataset_digest="d" * 64), directory
    )
    return findings


def describe(directory, *arguments, **settings):
    """Return the verdict on some logits."""
    store_findings(directory, make_findings(*arguments, **settings))
    return describe_result(load_evaluation_data(directory))


def test_page_is_whole_and_safe_with_hard_names(tmp_path):
    keys = [f"{name} {index}" for index in range(7) for name in HARD_NAMES]
    logits, labels = logits_of(6, images=42)
    findings = write(tmp_path, logits, labels, HARD_NAMES, keys)
    page, found = (tmp_path / "report.html").read_text(encoding="utf-8"), read(tmp_path)
    assert html.escape(describe_result(load_evaluation_data(tmp_path / "stage"))) in page
    assert page.index("Wrong on") < page.index("<table>")
    assert set(HARD_NAMES) <= {cell.rstrip("\n") for cell in found.cells} | set(found.cells)
    assert "script" not in found.tags
    shown = [*findings.samples, *findings.mistakes, *findings.unsure]
    assert {item.key for item in shown} <= set(found.cells)
    assert [len(findings.samples), len(findings.mistakes), len(findings.unsure)] == [8, 8, 8]
    images_written = sorted(path.name for path in tmp_path.glob("*.png"))
    assert images_written == [
        "confusion.png",
        "guesses.png",
        "mistakes.png",
        "reliability.png",
        "slices.png",
        "unsure.png",
    ]
    assert len(found.links) == len(images_written)
    assert all(link.startswith("data:image/png;base64,") for link in found.links)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), dtype=np.uint8)


def write_full(directory):
    """Write the full page of a network on noise."""
    logits, labels = logits_of(4)
    robustness = measure_robustness(
        lambda images: images[:, 0, 0, 0] % 4,
        PIXELS,
        labels,
        np.arange(40),
        seed=0,
        progress=lambda *_: None,
    )
    inspection = inspect_network(make_model(), PIXELS[:8], [0] * 8, PIXELS, labels)
    return write(
        directory,
        logits,
        labels,
        list("abcd"),
        robustness=robustness,
        corrupted=corrupt_in_every_way(PIXELS[0], 0, seed=0),
        inspection=inspection,
    )


def make_model(convolution=True):
    image = keras.Input((12, 12, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 64, offset=-2.0)(image) if convolution else image
    if convolution:
        x = keras.layers.Conv2D(8, 5, activation="relu", name="conv1")(x)
    return keras.Model(image, keras.layers.Dense(4)(keras.layers.Flatten()(x)))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Return the folder of a full page and its findings."""
    folder = tmp_path_factory.mktemp("full")
    return folder, write_full(folder)


def test_a_full_page_shows_the_inside_of_the_network(full):
    folder, findings = full
    page = (folder / "report.html").read_text(encoding="utf-8")
    made = {path.stem for path in folder.glob("*.png")}
    assert {
        "grad_cam",
        "neighbors",
        "filters",
        "patches",
        "activations",
        "robustness",
        "corruptions",
    } <= made
    assert len(read(folder).links) == len(made)
    robustness = findings.robustness
    assert f"Here it is {100 * robustness.mean.error:.1f} %" in page
    document = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert document["robustness"]["clean"] == robustness.clean
    assert document["robustness"]["mean_corruption_error"] == pytest.approx(
        np.mean([list(errors.values()) for errors in robustness.errors.values()])
    )


def test_stored_findings_are_read_back(full):
    folder, findings = full
    data = load_evaluation_data(folder / "stage")
    assert data.values == findings.summary.values
    assert np.array_equal(data.confusion, findings.summary.confusion)
    assert [item.top1_error for item in data.slices] == [
        item.top1_error for item in findings.slices
    ]
    assert [image.probabilities for image in data.mistakes] == [
        image.probabilities for image in findings.mistakes
    ]
    assert data.robustness.errors == findings.robustness.errors
    assert np.array_equal(data.robustness.examples["blur"][2], findings.corrupted["blur"][2])
    inspection = findings.inspection
    np.testing.assert_allclose(data.inspection.heat, inspection.heat, atol=5e-4)
    assert np.array_equal(data.inspection.neighbor_pixels, inspection.neighbor_pixels)
    assert np.array_equal(data.inspection.filters, inspection.filters)
    assert np.array_equal(
        data.inspection.patches["conv1"].pixels, inspection.patches["conv1"].pixels
    )
    assert np.array_equal(data.inspection.maps["conv1"].values, inspection.maps["conv1"].values)


def test_a_network_without_maps_is_reported_without_them(tmp_path):
    logits, labels = logits_of(4)
    model = make_model(convolution=False)
    inspection = inspect_network(model, PIXELS[:8], [0] * 8, PIXELS, labels)
    write(tmp_path, logits, labels, list("abcd"), inspection=inspection)
    made = {path.stem for path in tmp_path.glob("*.png")}
    assert "neighbors" in made
    assert not made & {"grad_cam", "filters", "patches", "activations"}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("Not shown for this network: it") == 2
    assert "<h2>First-layer filters</h2>" in page
    assert "<h2>Grad-CAM, exciting patches and feature maps</h2>" in page


def make_residual_model():
    """Return a network whose last units see the whole image, with a residual sum and a gate."""
    image = keras.Input((12, 12, 3), dtype="uint8")
    x = keras.layers.Conv2D(6, 3, padding="same", activation="relu", name="stem")(
        keras.layers.Rescaling(1 / 64, offset=-2.0)(image)
    )
    y = keras.layers.DepthwiseConv2D(13, padding="same", name="depthwise")(x)
    gate = keras.layers.GlobalAveragePooling2D(keepdims=True)(y)
    gate = keras.layers.Conv2D(6, 1, activation="sigmoid")(gate)
    x = keras.layers.Add(name="sum")([x, keras.layers.Multiply()([y, gate])])
    x = keras.layers.Conv2D(8, 13, strides=2, padding="same", name="last")(x)
    x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(image, keras.layers.Dense(4)(keras.layers.Dropout(0.5)(x)))


def test_whole_images_are_stored_with_the_positions_of_units(tmp_path):
    logits, labels = logits_of(4)
    inspection = inspect_network(make_residual_model(), PIXELS[:8], [0] * 8, PIXELS, labels)
    findings = write(tmp_path, logits, labels, list("abcd"), inspection=inspection)
    found = load_evaluation_data(tmp_path / "stage").inspection
    assert list(found.patches) == list(found.maps) == ["stem", "sum", "last"]
    assert [layer.positions is None for layer in found.patches.values()] == [True, True, False]
    last = findings.inspection.patches["last"]
    assert np.array_equal(found.patches["last"].positions, last.positions)
    assert "a ring marks" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_pages_are_drawn_again_without_heavy_libraries(full, tmp_path):
    folder, _ = full
    code = (
        "import sys; from pathlib import Path; from types import SimpleNamespace;"
        "from pipeline.reports.evaluation.page import draw_evaluation_pages;"
        f"folder, again = Path({str(folder)!r}), Path({str(tmp_path)!r});"
        "record = SimpleNamespace(directory=folder / 'stage', model_sha256='a' * 64,"
        " dataset_digest='d' * 64);"
        "draw_evaluation_pages(record, again);"
        "print(sorted({'tensorflow', 'keras', 'mlflow', 'sklearn', 'scipy',"
        " 'pipeline.evaluate'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted(path.name for path in folder.iterdir() if path.is_file())
    for name in written:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    "classes", [2, 60, *(pytest.param(count, marks=pytest.mark.slow) for count in (10, 1000))]
)
def test_pages_for_few_and_many_classes(tmp_path, classes):
    names = [f"name {index}" for index in range(classes)]
    write(tmp_path, *logits_of(classes, images=120), names)
    cells = read(tmp_path).cells
    assert set(names) <= set(cells)
    assert (tmp_path / "confusion_worst.png").exists() == (
        classes > answer_figures.ANNOTATED_CLASSES
    )
    for path in tmp_path.glob("*.png"):
        height, width, _ = png.imread(path).shape
        assert 50 < width < 2500
        assert 50 < height < 2500


def test_page_of_a_model_without_mistakes(tmp_path):
    names = [f"name {index}" for index in range(30)]
    write(tmp_path, *logits_of(30, right=1.0), names)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Wrong on 0.0 % of 40 test images" in page
    assert "No image was answered wrong." in page
    assert not (tmp_path / "mistakes.png").exists()
    assert not (tmp_path / "confusion_worst.png").exists()


def test_page_of_one_image(tmp_path):
    write(tmp_path, *logits_of(2, images=1, right=0.0), ["a", "b"])
    assert " of 1 test image, center crop (" in (tmp_path / "report.html").read_text(
        encoding="utf-8"
    )


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Return the folder of a page of ten classes and its findings."""
    folder = tmp_path_factory.mktemp("digits")
    return folder, write(folder, *logits_of(10), list("0123456789"))


def test_same_predictions_give_the_same_files(digits, tmp_path):
    write(tmp_path, *logits_of(10), list("0123456789"))
    one, two = (
        {
            path.relative_to(folder): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        for folder in (digits[0], tmp_path)
    )
    assert one == two


def test_verdict_says_the_view_the_interval_and_the_majority(tmp_path):
    labels = np.repeat(np.arange(10), [39, 36, 36, 36, 36, 36, 36, 36, 36, 34])
    logits = np.eye(10, dtype=np.float32)[labels] * 9
    logits[:5] = np.eye(10, dtype=np.float32)[1] * 9
    names = list("abcdefghij")
    assert (
        describe(tmp_path, logits, labels, names, slices=())
        == "Wrong on 1.4 % of 361 test images, center crop (95 % interval 0.6-3.2 %); always"
        " answering the commonest class would be wrong on 89.2 %."
    )
    useless = np.zeros((361, 10), np.float32)
    assert describe(tmp_path, useless, labels, names, slices=()).endswith(
        "would be wrong on 89.2 %. The network is not clearly better than that."
    )


def test_verdict_names_the_worst_slice_that_is_clearly_worse(tmp_path):
    logits, labels = logits_of(3, images=100)
    bad, unsure = (
        ErrorSlice("column camera", "b", 50, 0.5, (0.4, 0.6), 0.1),
        ErrorSlice("brightness", "3 to 9", 50, 0.2, (0.05, 0.6), 0.1),
    )
    few = ErrorSlice("folder", "x", 9, 0.9, (0.6, 0.99), 0.1)
    names = list("abc")
    assert describe(tmp_path, logits, labels, names, slices=[few, bad]).endswith(
        " Worst slice: column camera b, wrong on 50.0 % of 50."
    )
    assert "Worst" not in describe(tmp_path, logits, labels, names, slices=[few, unsure])


def test_metrics_file_holds_the_numbers(digits):
    folder, findings = digits
    names, summary = list("0123456789"), findings.summary
    document = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert document["view"] == "center crop"
    assert {name: document[name] for name in summary.values} == summary.values
    assert document["intervals"]["top1_error"] == list(summary.top1_error_interval)
    assert (
        document["intervals"].keys()
        == document["bootstrap_intervals"].keys()
        == summary.values.keys()
    )
    assert [row["name"] for row in document["classes"]] == names
    assert [row["f1"] for row in document["classes"]] == summary.by_class.f1.tolist()
    assert sum(row["support"] for row in document["classes"]) == document["images"] == 40
    assert document["most_confused"][0]["images"] >= document["most_confused"][-1]["images"]
    assert sum(document["reliability"]["images"]) == 40
