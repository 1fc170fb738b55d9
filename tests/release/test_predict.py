import dataclasses
import io
import os
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
from pyarrow import parquet

from pipeline.errors import ConfigError, DatasetError
from pipeline.model.weights import save_model
from pipeline.release import predict as module
from pipeline.release.classify import load_classifier
from pipeline.release.image_paths import expand_paths
from pipeline.release.package import Release
from pipeline.release.predict import Prediction, predict_files
from pipeline.release.prediction_output import write_prediction_output

SIZE, NAMES = 12, ("cat", "dog, big", "=hen", "duck", "ö")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Return a function that opens an untrained network whose logits differ well between images,
    with any batch size."""
    image = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 64, offset=-2.0)(image)
    x = keras.layers.Conv2D(
        4, 5, activation="relu", kernel_initializer=keras.initializers.HeNormal(0)
    )(x)
    logits = keras.layers.Dense(len(NAMES), kernel_initializer=keras.initializers.HeNormal(1))(
        keras.layers.Flatten()(x)
    )
    folder = tmp_path_factory.mktemp("model")
    save_model(keras.Model(image, logits), folder / "model.keras")
    release = Release(
        directory=folder,
        model_file="model.keras",
        name="tiny",
        model_sha256="",
        class_names=NAMES,
        temperature=1.5,
    )
    classifier = load_classifier(release)
    return lambda batch=4: dataclasses.replace(classifier, batch=batch)


def encoded(seed, kind="PNG", side=20):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (side, side + seed % 5, 3), np.uint8)
    ).save(file, kind)
    return file.getvalue()


@pytest.fixture
def images(tmp_path):
    """Write eleven images and return their paths."""
    folder = tmp_path / "images"
    folder.mkdir()
    for place in range(11):
        (folder / f"{place}.png").write_bytes(encoded(place))
    return [str(folder / f"{place}.png") for place in range(11)]


def silent(*_):
    pass


def test_answers_are_those_of_the_classifier_one_by_one_in_order(opened, images):
    found = list(predict_files(opened(), images, top=2, progress=silent))
    assert [item.path for item in found] == images
    for path, item in zip(images, found, strict=True):
        logits = opened(1).predict_logits(
            opened(1).prepare_pixels(Path(path).read_bytes())[np.newaxis]
        )
        np.testing.assert_allclose(item.logits, logits[0], rtol=1e-5, atol=1e-5)
        (guesses,) = opened(1).rank_classes(logits, 2)
        assert [guess.name for guess in item.guesses] == [guess.name for guess in guesses]
        assert [guess.probability for guess in item.guesses] == pytest.approx(
            [guess.probability for guess in guesses], abs=1e-5
        )
    assert len({item.guesses[0].name for item in found}) > 1


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "table"])
def test_the_same_bytes_whatever_the_threads(opened, images, tmp_path, kind):
    made = []
    for threads in (1, 2, 7):
        found = predict_files(
            opened(), [*images, str(tmp_path / "gone")], top=3, threads=threads, progress=silent
        )
        write_prediction_output(
            found, kind, tmp_path / "out", io.StringIO(), guesses=3, with_logits=True
        )
        made.append((tmp_path / "out").read_bytes())
    assert made[0] == made[1] == made[2]


def test_the_same_guesses_whatever_the_batch_size(opened, images):
    made = [
        [item.guesses for item in predict_files(opened(batch), images, top=5, progress=silent)]
        for batch in (1, 4, 32)
    ]
    for other in made[1:]:
        assert [[guess.number for guess in guesses] for guesses in made[0]] == [
            [guess.number for guess in guesses] for guesses in other
        ]
        probabilities = [
            [guess.probability for guesses in one for guess in guesses] for one in (made[0], other)
        ]
        assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-6)


def test_every_bad_file_is_named_with_its_reason_and_the_others_are_answered(
    opened, images, tmp_path, monkeypatch
):
    jpeg = encoded(3, "JPEG", 200)
    bomb = (
        b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"
        + (17_000).to_bytes(4, "big") * 2
        + b"\x08\x02\0\0\0"
        + bytes(50)
    )
    contents = {
        "empty.jpg": b"",
        "text.jpg": b"hello",
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "bomb.png": bomb,
        "gone.jpg": b"",
        "locked.jpg": jpeg,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(100_000_001)
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    reasons = {
        "empty.jpg": "empty file",
        "text.jpg": "text, not an image",
        "cut.jpg": "jpeg",
        "bomb.png": "17000 x 17000 pixels are more than",
        "gone.jpg": "No such file",
        "locked.jpg": "Permission denied",
        "folder.jpg": "a folder, not a file",
        "pipe.jpg": "not a file",
        "large.jpg": "100,000,001 bytes are more than 100,000,000",
        "self.jpg": "symbolic links",
    }
    names = [str(tmp_path / name) for name in reasons]
    assert list(expand_paths(name for name in names if "folder" not in name)) == [
        name for name in names if "folder" not in name
    ]
    (tmp_path / "gone.jpg").unlink()
    monkeypatch.setattr(module, "open", refuse_locked, raising=False)  # root may read everything
    mixed = [path for pair in zip(names, images[:10], strict=True) for path in pair]
    found = list(predict_files(opened(), mixed, top=1, progress=silent))
    assert [item.path for item in found] == mixed
    for item, (name, reason) in zip(found[::2], reasons.items(), strict=True):
        assert reason in item.problem, name
        assert (item.guesses, item.logits) == ((), None)
    alone = list(predict_files(opened(), images[:10], top=1, progress=silent))
    assert [item.guesses[0].number for item in found[1::2]] == [
        item.guesses[0].number for item in alone
    ]
    assert not any(item.problem for item in found[1::2])


def refuse_locked(path, mode):
    if path.endswith("locked.jpg"):
        raise PermissionError(13, "Permission denied", path)
    return Path(path).open(mode)


def test_a_folder_that_may_not_be_read_is_named(opened, tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "1.jpg").touch()
    (tmp_path / "2.png").write_bytes(encoded(2))
    scan = os.scandir

    def refusing(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = list(predict_files(opened(), expand_paths([str(tmp_path)]), top=1, progress=silent))
    assert [(item.path, item.problem) for item in found] == [
        (f"{tmp_path}/2.png", ""),
        (f"{tmp_path}/locked", "Permission denied"),
    ]


def test_strict_ends_at_the_first_bad_file(opened, images, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"bad\.jpg cannot be classified.*empty file"):
        list(
            predict_files(
                opened(),
                [*images[:6], tmp_path / "bad.jpg", *images[6:]],
                top=1,
                strict=True,
                progress=silent,
            )
        )
    assert len(list(predict_files(opened(), images, top=1, strict=True, progress=silent))) == 11


def test_more_guesses_than_classes_are_all_of_them_and_none_are_refused(opened, images):
    (found,) = predict_files(opened(), images[:1], top=99, progress=silent)
    assert sorted(guess.name for guess in found.guesses) == sorted(NAMES)
    assert sum(guess.probability for guess in found.guesses) == pytest.approx(1)
    with pytest.raises(ConfigError, match="at least 1"):
        predict_files(opened(), images, top=0, progress=silent)


def test_progress_counts_files_and_knows_how_many_there_are_of_a_list(opened, images, tmp_path):
    steps = []
    files = [*images[:5], str(tmp_path / "gone")]
    list(predict_files(opened(), files, top=1, progress=lambda *step: steps.append(step)))
    list(predict_files(opened(), iter(files), top=1, progress=lambda *step: steps.append(step)))
    assert steps == [(4, 6, 0), (6, 6, 1), (4, None, 0), (6, None, 1)]
    assert list(predict_files(opened(), [], top=1, progress=silent)) == []


@pytest.mark.parametrize("bad", [False, True])
def test_only_a_window_of_images_is_ahead_of_the_answers(opened, images, tmp_path, bad):
    pixels, lock, counts = opened().prepare_pixels, threading.Lock(), {"looked at": 0, "named": 0}

    def counted(encoded):
        with lock:
            counts["looked at"] += 1
        return pixels(encoded)

    def names():
        for _ in range(600):
            counts["named"] += 1
            yield path

    path = str(tmp_path / "bad.jpg") if bad else images[0]
    (tmp_path / "bad.jpg").write_bytes(b"text")
    watched = Watched(opened().batch, counted, opened().predict_logits, opened().rank_classes)
    most = done = 0
    for done, _ in enumerate(
        predict_files(watched, names(), top=1, threads=2, progress=silent), start=1
    ):
        most = max(most, counts["named"] - done, counts["looked at"] - done)
    assert done == counts["looked at"] == 600
    assert most <= 2 * 4 + 4  # two batches ahead, and the one that is answered


@dataclasses.dataclass
class Watched:
    """A classifier whose calls are counted."""

    batch: int
    prepare_pixels: object
    predict_logits: object
    rank_classes: object


def test_whoever_stops_listening_stops_the_threads(opened, images):
    found = predict_files(opened(), images * 50, top=1, threads=3, progress=silent)
    next(found)
    found.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("predict")]


def test_names_that_are_no_text_are_shown_by_number(opened, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    Path(path).write_bytes(encoded(1))
    files = list(expand_paths([str(tmp_path)]))
    found = list(predict_files(opened(), files, top=1, progress=silent))
    assert (found[0].path, found[0].problem) == (path, "")
    for kind in ("csv", "jsonl", "table"):
        stream = io.StringIO()
        write_prediction_output(found, kind, None, stream, guesses=1)
        assert r"caf\xe9.png" in stream.getvalue().replace(r"\\", "\\")
    write_prediction_output(found, "parquet", tmp_path / "o", io.StringIO(), guesses=1)
    assert parquet.read_table(tmp_path / "o")["path"][0].as_py().endswith(r"caf\xe9.png")
    stream = io.StringIO()
    write_prediction_output(
        [Prediction(path, problem="empty file")], "csv", None, stream, guesses=1
    )
    assert stream.getvalue().count(r"caf\xe9") == 1
