import csv
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
from pyarrow import parquet

from pipeline.errors import ConfigError, DatasetError
from pipeline.model.weights import save_model
from pipeline.release import predict as module
from pipeline.release.classify import Guess, load_classifier
from pipeline.release.package import Release
from pipeline.release.predict import Prediction, Summary, chosen_format, expanded, predict, write

SIZE, NAMES = 12, ("cat", "dog, big", "=hen", "duck", "ö")
GOOD = [
    Prediction(
        "a.jpg", (Guess("cat", 0, 0.75), Guess("=hen", 2, 1 / 6)), np.asarray([1.5, -2, 0.25], "f4")
    ),
    Prediction(
        '=1+1, "b"\n.jpg',
        (Guess("=hen", 2, 0.123456789), Guess("dog, big", 1, 0.1)),
        np.asarray([0, 1e-8, 3], "f4"),
    ),
]
BAD = Prediction("c.jpg", problem="empty file")


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


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


# -- which files -----------------------------------------------------------------------------------


def test_a_folder_gives_what_ingest_would_look_at_in_natural_order(tmp_path):
    wanted = ["2.jpg", "10.JPEG", "no_suffix", "2/x.png", "10/1.gif", "10/deep/er.webp"]
    unwanted = [
        "notes.txt",
        ".hidden.jpg",
        "__MACOSX/2.jpg",
        ".git/a.jpg",
        "Thumbs.db",
        "mlruns/a.jpg",
        "10/deep/a.zip",
    ]
    touch(*(tmp_path / name for name in [*wanted, *unwanted]))
    assert [os.path.relpath(path, tmp_path) for path in expanded([str(tmp_path)])] == wanted


def test_links_to_folders_end_and_broken_links_are_not_left_out(tmp_path):
    touch(tmp_path / "a" / "1.jpg", tmp_path / "elsewhere" / "2.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "side").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a" / "side_again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "a" / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    assert [os.path.relpath(path, tmp_path / "a") for path in expanded([str(tmp_path / "a")])] == [
        "1.jpg",
        "gone.jpg",
        "side/2.jpg",
    ]


def test_files_are_tried_whatever_they_are_called_and_once(tmp_path, monkeypatch):
    touch(tmp_path / "notes.txt", tmp_path / ".hidden", tmp_path / "b" / "1.jpg")
    monkeypatch.chdir(tmp_path)
    words = [
        "notes.txt",
        ".hidden",
        "b/1.jpg",
        "./notes.txt",
        "b",
        str(tmp_path / "notes.txt"),
        "b/../b/1.jpg",
    ]
    assert list(expanded(words)) == ["notes.txt", ".hidden", "b/1.jpg"]
    assert list(expanded([])) == []


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.jpg", ["2.jpg", "10.jpg"]),
        ("?.jpg", ["2.jpg"]),
        ("*.dat", ["odd.dat"]),
        ("**/*.jpg", ["2.jpg", "10.jpg", "c1/a.jpg", "c1/deep/b.jpg"]),
        ("c[12]", ["c1/a.jpg", "c1/deep/b.jpg", "c2/a.png"]),
        ("c?/*.*", ["c1/a.jpg", "c2/a.png", "c2/notes.txt"]),
        (".hidden/*.jpg", [".hidden/x.jpg"]),
        ("[1].jpg", ["[1].jpg"]),  # a file that is called so
    ],
)
def test_patterns(tmp_path, monkeypatch, pattern, found):
    names = [
        "10.jpg",
        "2.jpg",
        "odd.dat",
        "c1/a.jpg",
        "c1/deep/b.jpg",
        "c2/a.png",
        "c2/notes.txt",
        ".hidden/x.jpg",
    ]
    touch(*(tmp_path / name for name in [*names, *(["[1].jpg"] if pattern == "[1].jpg" else [])]))
    (tmp_path / "c1" / "loop").symlink_to(tmp_path / "c1")
    monkeypatch.chdir(tmp_path)
    assert list(expanded([pattern])) == found
    assert list(expanded([f"{tmp_path}/{pattern}"])) == [f"{tmp_path}/{name}" for name in found]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("https://example.org/a.jpg", "address on the network.*Download it first"),
        ("s3://bucket/a.jpg", "address on the network"),
        ("missing.jpg", "at 'missing.jpg'.*does not exist"),
        ("1.jpg/a.jpg", "does not exist"),
        ("x*.jpg", r"at 'x\*.jpg'.*nothing matches"),
        ("empty", "at 'empty'.*a folder without images"),
        ("emp*", r"at 'emp\*'.*a folder without images"),
        ("a**/x", "is no pattern|nothing matches"),  # Python 3.13 takes it for a*/x
        ("", "an empty name"),
    ],
)
def test_words_that_name_nothing_are_refused(tmp_path, monkeypatch, word, message):
    touch(tmp_path / "1.jpg", tmp_path / "empty" / "notes.txt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        list(expanded(["1.jpg", word]))


def test_a_wrong_word_is_refused_before_the_first_file():
    with pytest.raises(ConfigError, match="missing"):
        expanded([".", "missing"])


def test_a_folder_is_read_only_when_its_turn_comes(tmp_path):
    touch(tmp_path / "a" / "1.jpg", tmp_path / "b" / "1.jpg")
    files = expanded([str(tmp_path / "a"), str(tmp_path / "b")])
    assert next(files).endswith("a/1.jpg")
    touch(tmp_path / "b" / "2.jpg")
    assert [path[-7:] for path in files] == ["b/1.jpg", "b/2.jpg"]


def test_wrong_words_are_refused_without_tensorflow():
    code = "import sys; from pipeline.release import predict; print('tensorflow' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "False\n"
    )


# -- what the model says of them -------------------------------------------------------------------


def test_answers_are_those_of_the_classifier_one_by_one_in_order(opened, images):
    found = list(predict(opened(), images, top=2, progress=silent))
    assert [item.path for item in found] == images
    for path, item in zip(images, found, strict=True):
        logits = opened(1).logits(opened(1).pixels(Path(path).read_bytes())[np.newaxis])
        np.testing.assert_allclose(item.logits, logits[0], rtol=1e-5, atol=1e-5)
        (guesses,) = opened(1).guesses(logits, 2)
        assert [guess.name for guess in item.guesses] == [guess.name for guess in guesses]
        assert [guess.probability for guess in item.guesses] == pytest.approx(
            [guess.probability for guess in guesses], abs=1e-5
        )
    assert len({item.guesses[0].name for item in found}) > 1


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "table"])
def test_the_same_bytes_whatever_the_threads(opened, images, tmp_path, kind):
    made = []
    for threads in (1, 2, 7):
        found = predict(
            opened(), [*images, str(tmp_path / "gone")], top=3, threads=threads, progress=silent
        )
        write(found, kind, tmp_path / "out", io.StringIO(), guesses=3, with_logits=True)
        made.append((tmp_path / "out").read_bytes())
    assert made[0] == made[1] == made[2]


def test_the_same_guesses_whatever_the_batch_size(opened, images):
    made = [
        [item.guesses for item in predict(opened(batch), images, top=5, progress=silent)]
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
    assert list(expanded(name for name in names if "folder" not in name)) == [
        name for name in names if "folder" not in name
    ]
    (tmp_path / "gone.jpg").unlink()
    monkeypatch.setattr(module, "open", refuse_locked, raising=False)  # root may read everything
    mixed = [path for pair in zip(names, images[:10], strict=True) for path in pair]
    found = list(predict(opened(), mixed, top=1, progress=silent))
    assert [item.path for item in found] == mixed
    for item, (name, reason) in zip(found[::2], reasons.items(), strict=True):
        assert reason in item.problem, name
        assert (item.guesses, item.logits) == ((), None)
    alone = list(predict(opened(), images[:10], top=1, progress=silent))
    assert [item.guesses[0].number for item in found[1::2]] == [
        item.guesses[0].number for item in alone
    ]
    assert not any(item.problem for item in found[1::2])


def refuse_locked(path, mode):
    if path.endswith("locked.jpg"):
        raise PermissionError(13, "Permission denied", path)
    return Path(path).open(mode)


def test_a_folder_that_may_not_be_read_is_named(opened, tmp_path, monkeypatch):
    touch(tmp_path / "locked" / "1.jpg")
    (tmp_path / "2.png").write_bytes(encoded(2))
    scan = os.scandir

    def refusing(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = list(predict(opened(), expanded([str(tmp_path)]), top=1, progress=silent))
    assert [(item.path, item.problem) for item in found] == [
        (f"{tmp_path}/2.png", ""),
        (f"{tmp_path}/locked", "Permission denied"),
    ]


def test_strict_ends_at_the_first_bad_file(opened, images, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"bad\.jpg cannot be classified.*empty file"):
        list(
            predict(
                opened(),
                [*images[:6], tmp_path / "bad.jpg", *images[6:]],
                top=1,
                strict=True,
                progress=silent,
            )
        )
    assert len(list(predict(opened(), images, top=1, strict=True, progress=silent))) == 11


def test_more_guesses_than_classes_are_all_of_them_and_none_are_refused(opened, images):
    (found,) = predict(opened(), images[:1], top=99, progress=silent)
    assert sorted(guess.name for guess in found.guesses) == sorted(NAMES)
    assert sum(guess.probability for guess in found.guesses) == pytest.approx(1)
    with pytest.raises(ConfigError, match="at least 1"):
        predict(opened(), images, top=0, progress=silent)


def test_progress_counts_files_and_knows_how_many_there_are_of_a_list(opened, images, tmp_path):
    steps = []
    files = [*images[:5], str(tmp_path / "gone")]
    list(predict(opened(), files, top=1, progress=lambda *step: steps.append(step)))
    list(predict(opened(), iter(files), top=1, progress=lambda *step: steps.append(step)))
    assert steps == [(4, 6, 0), (6, 6, 1), (4, None, 0), (6, None, 1)]
    assert list(predict(opened(), [], top=1, progress=silent)) == []


@pytest.mark.parametrize("bad", [False, True])
def test_only_a_window_of_images_is_ahead_of_the_answers(opened, images, tmp_path, bad):
    pixels, lock, counts = opened().pixels, threading.Lock(), {"looked at": 0, "named": 0}

    def counted(encoded):
        with lock:
            counts["looked at"] += 1
        return pixels(encoded)

    def names():
        for _ in range(3000):
            counts["named"] += 1
            yield path

    path = str(tmp_path / "bad.jpg") if bad else images[0]
    (tmp_path / "bad.jpg").write_bytes(b"text")
    watched = Watched(opened().batch, counted, opened().logits, opened().guesses)
    most = done = 0
    for done, _ in enumerate(predict(watched, names(), top=1, threads=2, progress=silent), start=1):
        most = max(most, counts["named"] - done, counts["looked at"] - done)
    assert done == counts["looked at"] == 3000
    assert most <= 2 * 4 + 4  # two batches ahead, and the one that is answered


@dataclasses.dataclass
class Watched:
    """A classifier whose calls are counted."""

    batch: int
    pixels: object
    logits: object
    guesses: object


def test_whoever_stops_listening_stops_the_threads(opened, images):
    found = predict(opened(), images * 50, top=1, threads=3, progress=silent)
    next(found)
    found.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("predict")]


# -- where it is written ---------------------------------------------------------------------------


def written(kind, predictions=(GOOD[0], BAD, GOOD[1]), **how):
    stream = io.StringIO()
    write(predictions, kind, None, stream, **{"guesses": 2, **how})
    return stream.getvalue()


def test_csv_reads_back_equal(tmp_path):
    output = tmp_path / "o.csv"
    write([GOOD[0], BAD, GOOD[1]], "csv", output, io.StringIO(), guesses=2)
    with output.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, strict=True))
    assert rows == [
        ["path", "class", "probability", "class_2", "probability_2", "error"],
        ["a.jpg", "cat", "0.75000", "=hen", "0.16667", ""],
        ["c.jpg", "", "", "", "", "empty file"],
        ['=1+1, "b"\n.jpg', "=hen", "0.12346", "dog, big", "0.10000", ""],
    ]
    assert output.read_bytes().startswith(
        b"path,class,probability,class_2,probability_2,error\r\na.jpg,cat,"
    )
    assert written("csv").encode() == output.read_bytes()


def test_json_lines_read_back_equal_with_logits_if_asked():
    rows = [json.loads(line) for line in written("jsonl").splitlines()]
    assert rows[0] == {
        "path": "a.jpg",
        "top": [
            {"class": "cat", "number": 0, "probability": 0.75},
            {"class": "=hen", "number": 2, "probability": 0.16667},
        ],
        "error": None,
    }
    assert rows[1] == {"path": "c.jpg", "top": [], "error": "empty file"}
    assert rows[2]["path"] == GOOD[1].path
    rows = [json.loads(line) for line in written("jsonl", with_logits=True).splitlines()]
    np.testing.assert_array_equal(np.asarray(rows[2]["logits"], "f4"), GOOD[1].logits)
    assert rows[1]["logits"] is None


def test_parquet_reads_back_equal_in_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ROWS_TOGETHER", 2)
    write(
        [GOOD[0], BAD, GOOD[1]],
        "parquet",
        tmp_path / "o.parquet",
        io.StringIO(),
        guesses=2,
        with_logits=True,
    )
    rows = parquet.read_table(tmp_path / "o.parquet").to_pylist()
    assert [row["path"] for row in rows] == ["a.jpg", "c.jpg", GOOD[1].path]
    assert rows[0]["classes"] == ["cat", "=hen"]
    assert rows[0]["probabilities"] == [0.75, 0.16667]
    assert rows[1] == {
        "path": "c.jpg",
        "classes": [],
        "probabilities": [],
        "logits": None,
        "error": "empty file",
    }
    np.testing.assert_array_equal(np.asarray(rows[2]["logits"], "f4"), GOOD[1].logits)
    assert parquet.ParquetFile(tmp_path / "o.parquet").num_row_groups == 2
    write(GOOD, "parquet", tmp_path / "o.parquet", io.StringIO(), guesses=2)
    assert parquet.read_schema(tmp_path / "o.parquet").names == [
        "path",
        "classes",
        "probabilities",
        "error",
    ]


def test_the_table_is_aligned_and_streams_after_its_first_rows():
    lines = written("table", [GOOD[0], BAD]).splitlines()
    assert lines == [
        "path   class  probability  then",
        "a.jpg  cat     75.00%      =hen 16.67%",
        "c.jpg                      not classified: empty file",
    ]
    asked = []
    endless = (asked.append(place) or GOOD[0] for place in range(10_000))
    lines = module._table_lines(endless)
    next(lines)
    assert len(asked) == 100
    assert sum(1 for _ in lines) == 10_000


def test_a_name_cannot_command_the_terminal():
    text = written(
        "table",
        [
            Prediction("a\x1b[2J\r\nb.jpg", GOOD[0].guesses),
            Prediction("日本.jpg", problem="empty file"),
        ],
    )
    assert "\x1b" not in text
    assert r"a\x1b[2J\r\nb.jpg" in text
    assert len(text.splitlines()) == 3
    narrow = io.TextIOWrapper(io.BytesIO(), "ascii")
    write([Prediction("日.jpg", problem="x")], "table", None, narrow, guesses=1)
    assert rb"\u65e5.jpg" in narrow.buffer.getvalue()


def test_names_that_are_no_text_are_shown_by_number(opened, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    Path(path).write_bytes(encoded(1))
    files = list(expanded([str(tmp_path)]))
    found = list(predict(opened(), files, top=1, progress=silent))
    assert (found[0].path, found[0].problem) == (path, "")
    for kind in ("csv", "jsonl", "table"):
        assert r"caf\xe9.png" in written(kind, found, guesses=1).replace(r"\\", "\\")
    write(found, "parquet", tmp_path / "o", io.StringIO(), guesses=1)
    assert parquet.read_table(tmp_path / "o")["path"][0].as_py().endswith(r"caf\xe9.png")
    assert written("csv", [dataclasses.replace(BAD, path=path)], guesses=1).count(r"caf\xe9") == 1


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "table"])
def test_an_interrupted_output_is_what_it_was_before(tmp_path, kind):
    def interrupted():
        yield from GOOD
        raise KeyboardInterrupt

    output = tmp_path / "out"
    for before in (None, "as it was"):
        if before:
            output.write_text(before)
        with pytest.raises(KeyboardInterrupt):
            write(interrupted(), kind, output, io.StringIO(), guesses=2)
        assert [path.name for path in tmp_path.iterdir()] == (["out"] if before else [])
    assert output.read_text() == "as it was"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_killed_process_leaves_the_output_as_it_was(tmp_path, kind):
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        from pipeline.release.predict import Prediction, write

        def deadly():
            for place in range(20_000):
                yield Prediction(f"{place}.jpg", problem="empty file")
            os.kill(os.getpid(), signal.SIGKILL)

        write(deadly(), sys.argv[1], Path(sys.argv[2]), sys.stdout, guesses=1)
    """
    output = tmp_path / "out"
    output.write_text("as it was")
    assert (
        subprocess.run([sys.executable, "-c", code, kind, output], check=False).returncode
        == -signal.SIGKILL
    )
    assert output.read_text() == "as it was"
    assert [path.suffix for path in tmp_path.iterdir() if path != output] == [".partial"]


def test_an_output_is_replaced_as_a_whole_where_a_link_leads(tmp_path):
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    with (tmp_path / "real.csv").open() as before:
        write(GOOD, "csv", tmp_path / "link.csv", io.StringIO(), guesses=2)
        assert before.read() == "old"  # not written into: whoever reads it sees one or the other
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text().startswith("path,")


def test_the_summary_counts_and_names_the_first_few():
    bad = [Prediction(f"{place}.jpg", problem="empty file") for place in range(1200)]
    summary = write([*GOOD, *bad], "csv", None, io.StringIO(), guesses=1)
    assert summary == Summary(1202, 1200, tuple(f"{place}.jpg (empty file)" for place in range(5)))
    assert "1,200 of 1,202 files could not be classified" in summary.complaint
    assert "4.jpg (empty file), and 1,195 more" in summary.complaint
    assert write(GOOD, "csv", None, io.StringIO(), guesses=1).complaint == ""
    assert (
        "more"
        not in write([BAD], "csv", None, io.StringIO(), guesses=1).complaint.split("Received")[1]
    )


def test_the_format_is_asked_for_or_is_that_of_the_suffix(tmp_path):
    assert chosen_format("", None) == "table"
    assert chosen_format("jsonl", None, with_logits=True) == "jsonl"
    assert chosen_format("", tmp_path / "a.CSV") == "csv"
    assert chosen_format("", tmp_path / "a.parquet", with_logits=True) == "parquet"
    assert chosen_format("table", tmp_path / "a.txt") == "table"


@pytest.mark.parametrize(
    ("asked", "name", "with_logits", "message"),
    [
        ("", "a.txt", False, "Nothing is known of the format txt.*table, csv, jsonl, parquet"),
        ("", "a", False, "without a suffix"),
        ("xml", None, False, "format xml"),
        ("parquet", None, False, "needs a file"),
        ("csv", None, True, "Logits do not fit a csv"),
        ("", None, True, "Logits do not fit a table"),
        ("csv", "missing/a.csv", False, "missing, which is not"),
        ("csv", "folder", False, "Received a folder"),
        ("csv", "pipe", False, "a device or a pipe"),
    ],
)
def test_outputs_that_cannot_be_are_refused_before_anything_is_done(
    tmp_path, asked, name, with_logits, message
):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=message):
        chosen_format(asked, tmp_path / name if name else None, with_logits=with_logits)
