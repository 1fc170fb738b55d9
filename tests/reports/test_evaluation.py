import html
import json
import re
from html.parser import HTMLParser

import keras
import numpy as np
import pytest
from matplotlib import image as png

from pipeline.evaluate.metrics import Tally, label_ranks, losses_and_confidences, summarize
from pipeline.evaluate.robustness import wear
from pipeline.evaluate.slices import Slice, slices_of
from pipeline.reports import evaluation_figures
from pipeline.reports.evaluation import (
    Chosen,
    Judgment,
    Looks,
    confident_mistakes,
    guesses_of,
    spread_positions,
    unsure_hits,
    verdict,
    write_metrics,
    write_report,
)

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


def judged_of(logits, labels, names, keys=None, slices=None, **more):
    """Judge logits as the stage does, with gray images."""
    keys = keys or [f"folder/{index}.png" for index in range(len(labels))]
    tally = Tally(len(names), int(np.bincount(labels).argmax()), temperature=1.5)
    tally.add(logits, labels)
    wrong, (_, confidence) = label_ranks(logits, labels) > 0, losses_and_confidences(logits, labels)

    def chosen(places):
        return [
            Chosen(
                at, keys[at], np.full((12, 12, 3), at % 256, np.uint8), int(labels[at]), logits[at]
            )
            for at in places
        ]

    found = (
        slices_of(wrong, {"class": [names[label] for label in labels]})
        if slices is None
        else slices
    )
    groups = (
        spread_positions(len(labels), 8),
        confident_mistakes(wrong, confidence),
        unsure_hits(wrong, confidence),
    )
    return Judgment(
        "test",
        "center crop",
        names,
        summarize(tally),
        found,
        *map(chosen, groups),
        "small print",
        **more,
    )


def write(directory, *arguments, **settings):
    judged = judged_of(*arguments, **settings)
    write_report(directory, judged)
    write_metrics(directory, judged)
    return judged


def test_page_is_whole_and_safe_with_hard_names(tmp_path):
    keys = [f"{name} {index}" for index in range(7) for name in HARD_NAMES]
    logits, labels = logits_of(6, images=42)
    judged = write(tmp_path, logits, labels, HARD_NAMES, keys)
    page, found = (tmp_path / "report.html").read_text(encoding="utf-8"), read(tmp_path)
    assert html.escape(verdict(judged)) in page
    assert page.index("Wrong on") < page.index("<table>")
    assert set(HARD_NAMES) <= {cell.rstrip("\n") for cell in found.cells} | set(found.cells)
    assert "script" not in found.tags
    shown = [*judged.samples, *judged.mistakes, *judged.unsure]
    assert {item.key for item in shown} <= set(found.cells)
    assert [len(judged.samples), len(judged.mistakes), len(judged.unsure)] == [8, 8, 8]
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


def test_a_full_page_shows_what_the_network_looks_at(tmp_path, make_model):
    model, (logits, labels) = make_model(classes=4), logits_of(4)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), dtype=np.uint8)
    worn = wear(
        lambda given: given[:, 0, 0, 0] % 4,
        pixels,
        labels,
        np.arange(40),
        seed=0,
        progress=lambda *_: None,
    )
    judged = write(
        tmp_path, logits, labels, list("abcd"), worn=worn, looks=Looks(model, pixels, labels)
    )
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    made = {path.stem for path in tmp_path.glob("*.png")}
    assert {
        "grad_cam",
        "neighbors",
        "filters",
        "patches",
        "activations",
        "robustness",
        "corruptions",
    } <= made
    assert len(read(tmp_path).links) == len(made)
    assert f"Here it is {100 * worn.mean.error:.1f} %" in page
    document = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert document["robustness"]["clean"] == judged.worn.clean
    assert document["robustness"]["mean_corruption_error"] == pytest.approx(
        np.mean([list(e.values()) for e in worn.errors.values()])
    )


def test_a_network_of_another_kind_is_reported_without_its_inside(tmp_path):
    image = keras.Input((12, 12, 3), dtype="uint8")
    model = keras.Model(image, keras.layers.Dense(4)(keras.layers.Flatten()(image)))
    pixels, (logits, labels) = np.zeros((40, 12, 12, 3), np.uint8), logits_of(4)
    write(tmp_path, logits, labels, list("abcd"), looks=Looks(model, pixels, labels))
    assert not (tmp_path / "grad_cam.png").exists()
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Where it looks" not in page
    assert "its inside cannot be shown" in page


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_pages_for_few_and_many_classes(tmp_path, classes):
    names = [f"name {index}" for index in range(classes)]
    write(tmp_path, *logits_of(classes, images=120), names)
    cells = read(tmp_path).cells
    assert set(names) <= set(cells)
    assert (tmp_path / "confusion_worst.png").exists() == (
        classes > evaluation_figures.ANNOTATED_CLASSES
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


def test_same_predictions_give_the_same_files(tmp_path):
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, *logits_of(10), list("0123456789"))
        made.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert made[0] == made[1]


def test_verdict_says_the_view_the_interval_and_the_majority():
    labels = np.repeat(np.arange(10), [39, 36, 36, 36, 36, 36, 36, 36, 36, 34])
    logits = np.eye(10, dtype=np.float32)[labels] * 9
    logits[:5] = np.eye(10, dtype=np.float32)[1] * 9
    names = list("abcdefghij")
    assert (
        verdict(judged_of(logits, labels, names, slices=()))
        == "Wrong on 1.4 % of 361 test images, center crop (95 % interval 0.6-3.2 %); always"
        " answering the commonest class would be wrong on 89.2 %."
    )
    useless = judged_of(np.zeros((361, 10), np.float32), labels, names, slices=())
    assert verdict(useless).endswith(
        "would be wrong on 89.2 %. The network is not clearly better than that."
    )


def test_verdict_names_the_worst_slice_that_is_clearly_worse():
    logits, labels = logits_of(3, images=100)
    bad, unsure = (
        Slice("column camera", "b", 50, 0.5, (0.4, 0.6), 0.1),
        Slice("brightness", "3 to 9", 50, 0.2, (0.05, 0.6), 0.1),
    )
    few = Slice("folder", "x", 9, 0.9, (0.6, 0.99), 0.1)
    names = list("abc")
    assert verdict(judged_of(logits, labels, names, slices=[few, bad])).endswith(
        " Worst where: column camera b, wrong on 50.0 % of 50."
    )
    assert "Worst" not in verdict(judged_of(logits, labels, names, slices=[few, unsure]))


def test_metrics_file_holds_the_numbers(tmp_path):
    names = list("0123456789")
    summary = write(tmp_path, *logits_of(10), names).summary
    document = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert document["view"] == "center crop"
    assert {name: document[name] for name in summary.values} == summary.values
    assert document["intervals"]["top1_error"] == list(summary.top1_error_interval)
    assert (
        document["intervals"].keys()
        == document["resampled_intervals"].keys()
        == summary.values.keys()
    )
    assert [row["name"] for row in document["classes"]] == names
    assert [row["f1"] for row in document["classes"]] == summary.by_class.f1.tolist()
    assert sum(row["support"] for row in document["classes"]) == document["images"] == 40
    assert document["most_confused"][0]["images"] >= document["most_confused"][-1]["images"]
    assert sum(document["reliability"]["images"]) == 40


def test_samples_are_spread_mistakes_are_the_surest_and_hits_the_least_sure():
    assert spread_positions(361, 8) == [0, 51, 102, 154, 205, 257, 308, 360]
    assert spread_positions(3, 8) == [0, 1, 2]
    wrong, confidence = np.array([True, True, False, False]), np.array([0.7, 0.9, 0.8, 0.6])
    assert confident_mistakes(wrong, confidence) == [1, 0]
    assert unsure_hits(wrong, confidence) == [3, 2]


def test_guesses_are_ordered_and_add_up():
    (guess,) = guesses_of([Chosen(0, "a", None, 2, np.array([0, 2, 2], np.float32))])
    assert guess.answers == (1, 2, 0)
    assert sum(guess.probabilities) == pytest.approx(1)
    assert guess.probabilities[0] == pytest.approx(np.exp(2) / (2 * np.exp(2) + 1))
