import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib import image as png

from pipeline.evaluate import pictures
from pipeline.evaluate.metrics import summarise
from pipeline.evaluate.report import confident_mistakes, guesses_of, sample_positions, verdict, write_metrics, write_report
from pipeline.evaluate.scoring import Predictions

HARD_NAMES = (
    "<script>alert('x')</script>",
    'two\nlines and "quotes"',
    "$x_1^{$ \\frac",
    "long " + "name " * 39,
    "日本語 \U0001f40d",
    "plain",
)


class Reader(HTMLParser):
    """Collects the cells' text, the pictures' sources and every tag of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.sources, self.links, self.cells = set(), [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        values = dict(attributes)
        self.links += [values[name] for name in ("href", "src", "srcset", "action") if name in values]
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


def read(directory):
    reader = Reader()
    reader.feed((directory / "report.html").read_text(encoding="utf-8"))
    return reader


def predictions_of(classes, images=40, right=0.7, names=None, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images).astype(np.int32)
    logits = rng.normal(0, 1, (images, classes)).astype(np.float32)
    logits[np.arange(images), np.where(rng.random(images) < right, labels, rng.integers(0, classes, images))] += 9
    return Predictions(logits, labels, tuple(names or (f"folder/{index}.png" for index in range(images))))


def write(directory, predictions, names):
    counts = np.bincount(predictions.labels, minlength=len(names))
    summary = summarise(predictions.logits, predictions.labels, counts)
    looked = []

    def look(positions):
        looked.extend(positions)
        return {position: np.full((12, 12, 3), position % 256, np.uint8) for position in positions}

    kernel = np.random.default_rng(0).normal(size=(5, 5, 3, 24))
    write_report(
        directory, summary=summary, predictions=predictions, names=names, split="test", look=look, kernel=kernel, footer="small print"
    )
    write_metrics(directory, summary, names, "test")
    return summary, looked


def test_page_is_whole_and_safe_with_hard_names(tmp_path):
    keys = [f"{name} {index}" for index in range(7) for name in HARD_NAMES]
    predictions = predictions_of(6, images=42, names=keys)
    summary, looked = write(tmp_path, predictions, HARD_NAMES)
    page, found = (tmp_path / "report.html").read_text(encoding="utf-8"), read(tmp_path)
    assert html.escape(verdict(summary, "test")) in page
    assert page.index("Wrong on") < page.index("<table>")
    assert set(HARD_NAMES) <= {cell.rstrip("\n") for cell in found.cells} | set(found.cells)
    assert "script" not in found.tags
    assert {predictions.keys[position] for position in looked} <= set(found.cells)
    assert len(looked) == 8 + 8  # samples, then mistakes
    pictures_written = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures_written == ["confusion.png", "filters.png", "guesses.png", "mistakes.png"]
    assert len(found.links) == len(pictures_written)
    assert all(link.startswith("data:image/png;base64,") for link in found.links)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_pages_for_few_and_many_classes(tmp_path, classes):
    names = [f"name {index}" for index in range(classes)]
    write(tmp_path, predictions_of(classes, images=120), names)
    cells = read(tmp_path).cells
    assert set(names) <= set(cells)
    assert (tmp_path / "confusion_worst.png").exists() == (classes > pictures.ANNOTATED_CLASSES)
    for path in tmp_path.glob("*.png"):
        height, width, _ = png.imread(path).shape
        assert 50 < width < 2500
        assert 50 < height < 2500


def test_page_of_a_model_without_mistakes(tmp_path):
    names = [f"name {index}" for index in range(30)]
    write(tmp_path, predictions_of(30, right=1.0), names)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Wrong on 0.0 % of 40 test pictures" in page
    assert "No picture was answered wrong." in page
    assert not (tmp_path / "mistakes.png").exists()
    assert not (tmp_path / "confusion_worst.png").exists()


def test_page_of_one_picture(tmp_path):
    write(tmp_path, predictions_of(2, images=1, right=0.0), ["a", "b"])
    assert " of 1 test picture (" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_same_predictions_give_the_same_files(tmp_path):
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, predictions_of(10), list("0123456789"))
        made.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert made[0] == made[1]


def test_verdict_says_the_interval_and_the_majority():
    labels = np.repeat(np.arange(10), [39, 36, 36, 36, 36, 36, 36, 36, 36, 34])
    logits = np.eye(10, dtype=np.float32)[labels] * 9
    logits[:5] = np.eye(10, dtype=np.float32)[1] * 9
    summary = summarise(logits, labels, np.bincount(labels))
    assert verdict(summary, "test") == (
        "Wrong on 1.4 % of 361 test pictures (95 % interval 0.6-3.2 %); always answering the commonest class would be wrong on 89.2 %."
    )
    useless = summarise(np.zeros((361, 10), np.float32), labels, np.bincount(labels))
    assert verdict(useless, "test").endswith("would be wrong on 89.2 %. The network is not clearly better than that.")


def test_metrics_file_holds_the_numbers(tmp_path):
    names = list("0123456789")
    predictions = predictions_of(10)
    summary = summarise(predictions.logits, predictions.labels, np.ones(10, int))
    write_metrics(tmp_path, summary, names, "test")
    document = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert document["top1_error"] == summary.top1_error
    assert document["loss"] == summary.loss
    assert document["top1_error_interval"] == list(summary.top1_error_interval)
    assert [row["name"] for row in document["classes"]] == names
    assert [row["f1"] for row in document["classes"]] == summary.by_class.f1.tolist()
    assert sum(row["support"] for row in document["classes"]) == document["images"] == 40
    assert document["most_confused"][0]["images"] >= document["most_confused"][-1]["images"]


def test_samples_are_spread_and_mistakes_are_the_surest():
    assert sample_positions(361) == [0, 51, 102, 154, 205, 257, 308, 360]
    assert sample_positions(3) == [0, 1, 2]
    logits = np.array([[3, 0], [5, 0], [0, 1], [4, 0]], np.float32)
    predictions = Predictions(logits, np.array([1, 1, 1, 0], np.int32), tuple("abcd"))
    assert confident_mistakes(predictions) == [1, 0]


def test_guesses_are_ordered_and_add_up():
    predictions = Predictions(np.array([[0, 2, 2]], np.float32), np.array([2], np.int32), ("a",))
    (guess,) = guesses_of(predictions, [0], {0: None})
    assert guess.answers == (1, 2, 0)
    assert sum(guess.probabilities) == pytest.approx(1)
    assert guess.probabilities[0] == pytest.approx(np.exp(2) / (2 * np.exp(2) + 1))


def test_names_in_pictures_are_cut_to_their_room():
    names = ["short", "W" * 200, "two\nlines", "日本語", "", "a$b", "kept start " + "x" * 100 + " kept end"]
    fit = [pictures.fitting(names, index, 100, 9) for index in range(len(names))]
    assert fit[0] == "short"
    assert fit[2:6] == ["two lines", "class 3", "class 4", "a$b"]
    assert re.fullmatch("W+…W+", fit[1])
    assert fit[6].startswith("kept")
    assert fit[6].endswith("end")
    assert all(pictures._text_points(pictures._font(False), text, 9) <= 100 for text in fit)


def test_filters_are_drawn_in_their_colours(tmp_path):
    kernel = np.zeros((5, 5, 3, 3), np.float32)
    kernel[..., 0, 0], kernel[..., 2, 1] = 0.2, -7.0  # one filter wants red, one refuses blue, one is dead
    pictures.draw_filters(kernel, tmp_path / "filters.png")
    image = png.imread(tmp_path / "filters.png")[..., :3]
    middle = image[image.shape[0] // 2]
    seen = {tuple(np.round(colour, 1)) for colour in middle}
    assert {(1.0, 0.5, 0.5), (0.5, 0.5, 0.0), (0.5, 0.5, 0.5)} <= seen
