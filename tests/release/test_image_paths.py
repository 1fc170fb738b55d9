import os
import subprocess
import sys

import pytest

from pipeline.errors import ConfigError
from pipeline.release.image_paths import expand_paths


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


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
    assert [os.path.relpath(path, tmp_path) for path in expand_paths([str(tmp_path)])] == wanted


def test_links_to_folders_end_and_broken_links_are_not_left_out(tmp_path):
    touch(tmp_path / "a" / "1.jpg", tmp_path / "elsewhere" / "2.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "side").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a" / "side_again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "a" / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    assert [
        os.path.relpath(path, tmp_path / "a") for path in expand_paths([str(tmp_path / "a")])
    ] == [
        "1.jpg",
        "gone.jpg",
        "side/2.jpg",
    ]


def test_files_are_tried_whatever_they_are_called_and_once(tmp_path, monkeypatch):
    touch(tmp_path / "notes.txt", tmp_path / ".hidden", tmp_path / "b" / "1.jpg")
    monkeypatch.chdir(tmp_path)
    arguments = [
        "notes.txt",
        ".hidden",
        "b/1.jpg",
        "./notes.txt",
        "b",
        str(tmp_path / "notes.txt"),
        "b/../b/1.jpg",
    ]
    assert list(expand_paths(arguments)) == ["notes.txt", ".hidden", "b/1.jpg"]
    assert list(expand_paths([])) == []


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
    assert list(expand_paths([pattern])) == found
    assert list(expand_paths([f"{tmp_path}/{pattern}"])) == [f"{tmp_path}/{name}" for name in found]


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
        ("a**/x", "is not a valid pattern|nothing matches"),  # Python 3.13 takes it for a*/x
        ("", "an empty name"),
    ],
)
def test_arguments_that_name_nothing_are_refused(tmp_path, monkeypatch, word, message):
    touch(tmp_path / "1.jpg", tmp_path / "empty" / "notes.txt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        list(expand_paths(["1.jpg", word]))


def test_a_wrong_word_is_refused_before_the_first_file():
    with pytest.raises(ConfigError, match="missing"):
        expand_paths([".", "missing"])


def test_a_folder_is_read_only_when_its_turn_comes(tmp_path):
    touch(tmp_path / "a" / "1.jpg", tmp_path / "b" / "1.jpg")
    files = expand_paths([str(tmp_path / "a"), str(tmp_path / "b")])
    assert next(files).endswith("a/1.jpg")
    touch(tmp_path / "b" / "2.jpg")
    assert [path[-7:] for path in files] == ["b/1.jpg", "b/2.jpg"]


def test_wrong_arguments_are_refused_without_tensorflow():
    code = (
        "import sys; from pipeline.release import image_paths, predict, prediction_output;"
        " print('tensorflow' in sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "False\n"
    )
