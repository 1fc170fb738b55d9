import csv
import io
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from pyarrow import parquet

from pipeline.errors import ConfigError
from pipeline.release import prediction_output
from pipeline.release.classify import Guess
from pipeline.release.predict import Prediction
from pipeline.release.prediction_output import (
    PredictionSummary,
    choose_format,
    write_prediction_output,
)

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


def written(kind, predictions=(GOOD[0], BAD, GOOD[1]), **how):
    stream = io.StringIO()
    write_prediction_output(predictions, kind, None, stream, **{"guesses": 2, **how})
    return stream.getvalue()


def test_csv_reads_back_equal(tmp_path):
    output = tmp_path / "o.csv"
    write_prediction_output([GOOD[0], BAD, GOOD[1]], "csv", output, io.StringIO(), guesses=2)
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
    monkeypatch.setattr(prediction_output, "_ROWS_TOGETHER", 2)
    write_prediction_output(
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
    write_prediction_output(GOOD, "parquet", tmp_path / "o.parquet", io.StringIO(), guesses=2)
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
    lines = prediction_output._make_table_lines(endless)
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
    write_prediction_output([Prediction("日.jpg", problem="x")], "table", None, narrow, guesses=1)
    assert rb"\u65e5.jpg" in narrow.buffer.getvalue()


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
            write_prediction_output(interrupted(), kind, output, io.StringIO(), guesses=2)
        assert [path.name for path in tmp_path.iterdir()] == (["out"] if before else [])
    assert output.read_text() == "as it was"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_killed_process_leaves_the_output_as_it_was(tmp_path, kind):
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        from pipeline.release.predict import Prediction
        from pipeline.release.prediction_output import write_prediction_output

        def deadly():
            for place in range(20_000):
                yield Prediction(f"{place}.jpg", problem="empty file")
            os.kill(os.getpid(), signal.SIGKILL)

        write_prediction_output(deadly(), sys.argv[1], Path(sys.argv[2]), sys.stdout, guesses=1)
    """
    output = tmp_path / "out"
    output.write_text("as it was")
    with subprocess.Popen([sys.executable, "-c", code, kind, output]) as killed:
        assert killed.wait() == -signal.SIGKILL
    assert output.read_text() == "as it was"
    assert [path.suffix for path in tmp_path.iterdir() if path != output] == [f".{killed.pid}"]


def test_an_output_is_replaced_as_a_whole_where_a_link_leads(tmp_path):
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    with (tmp_path / "real.csv").open() as before:
        write_prediction_output(GOOD, "csv", tmp_path / "link.csv", io.StringIO(), guesses=2)
        assert before.read() == "old"  # not written into: whoever reads it sees one or the other
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text().startswith("path,")


def test_the_summary_counts_and_names_the_first_few():
    bad = [Prediction(f"{place}.jpg", problem="empty file") for place in range(1200)]
    summary = write_prediction_output([*GOOD, *bad], "csv", None, io.StringIO(), guesses=1)
    assert summary == PredictionSummary(
        1202, 1200, tuple(f"{place}.jpg (empty file)" for place in range(5))
    )
    assert "1,200 of 1,202 files could not be classified" in summary.warning
    assert "4.jpg (empty file), and 1,195 more" in summary.warning
    assert write_prediction_output(GOOD, "csv", None, io.StringIO(), guesses=1).warning == ""
    assert (
        "more"
        not in write_prediction_output([BAD], "csv", None, io.StringIO(), guesses=1).warning.split(
            "Received"
        )[1]
    )


def test_the_format_is_asked_for_or_is_that_of_the_suffix(tmp_path):
    assert choose_format("", None) == "table"
    assert choose_format("jsonl", None, with_logits=True) == "jsonl"
    assert choose_format("", tmp_path / "a.CSV") == "csv"
    assert choose_format("", tmp_path / "a.parquet", with_logits=True) == "parquet"
    assert choose_format("table", tmp_path / "a.txt") == "table"


@pytest.mark.parametrize(
    ("asked", "name", "with_logits", "message"),
    [
        ("", "a.txt", False, "Unknown format 'txt'.*table, csv, jsonl, parquet"),
        ("", "a", False, "no suffix"),
        ("xml", None, False, "Unknown format 'xml'"),
        ("parquet", None, False, "needs a file"),
        ("csv", None, True, "Logits cannot be written as csv"),
        ("", None, True, "Logits cannot be written as table"),
        ("csv", "missing/a.csv", False, "missing, which does not exist"),
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
        choose_format(asked, tmp_path / name if name else None, with_logits=with_logits)
