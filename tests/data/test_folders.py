"""Folders of images, found without opening one: names, folders and links of every odd kind."""

# The system's own walk and names of bytes, to compare with.
# ruff: noqa: PTH103, PTH110, PTH118, PTH120, PTH123

import os
import socket
import unicodedata

import numpy as np
import pytest

from pipeline.data.folders import list_folder
from pipeline.errors import DatasetError


def touch(root, *names):
    for name in names:
        path = os.fsencode(root) + b"/" + (name if isinstance(name, bytes) else name.encode())
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb"):
            pass
    return root


def names_of(listing):
    return [entry.name for entry in listing.files]


def test_order_is_that_of_names_in_each_folder_whatever_the_disk_says(tmp_path):
    touch(
        tmp_path, "b/2.jpg", "a/z.jpg", "a/Z.jpg", "a/10.jpg", "a/9.jpg", "a/é.jpg", "a/sub/1.jpg"
    )
    assert names_of(list_folder(tmp_path)) == [
        "a/10.jpg",
        "a/9.jpg",
        "a/Z.jpg",
        "a/z.jpg",
        "a/é.jpg",
        "a/sub/1.jpg",
        "b/2.jpg",
    ]


def test_what_lies_deeper_belongs_to_the_class(tmp_path):
    touch(tmp_path, "cat/2019/may/1.jpg", "cat/2.jpg", "dog/3.jpg")
    assert {entry.name: entry.label for entry in list_folder(tmp_path).files} == {
        "cat/2019/may/1.jpg": "cat",
        "cat/2.jpg": "cat",
        "dog/3.jpg": "dog",
    }


def test_every_reason_is_counted_and_named(tmp_path):
    touch(
        tmp_path,
        "a/1.jpg",
        "b/1.jpg",
        "a/.hidden.jpg",
        ".git/x.jpg",
        "__MACOSX/a/1.jpg",
        "a/Thumbs.db",
        "a/notes.txt",
        "a/film.mp4",
    )
    touch(tmp_path, "readme.txt", "lost.jpg")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "a" / "s.jpg"))
        (tmp_path / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
        (tmp_path / "a" / "self.jpg").symlink_to("self.jpg")
        listing = list_folder(tmp_path)
    assert names_of(listing) == ["a/1.jpg", "b/1.jpg"]
    assert listing.excluded == {
        "broken links": 2,
        "hidden": 4,
        "not a file": 2,
        "other extension": 2,
        "outside the class folders": 2,
    }
    assert listing.examples["other extension"] == ["a/film.mp4", "a/notes.txt"]
    assert listing.found == 2 + 12


def test_links_are_followed_once_and_not_in_a_circle(tmp_path):
    root = touch(tmp_path / "p", "a/1.jpg", "b/2.jpg")
    elsewhere = touch(tmp_path / "elsewhere", "3.jpg")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "here").symlink_to(root / "a")
    (root / "a" / "more").symlink_to(elsewhere)
    (root / "b" / "again").symlink_to(elsewhere)
    (root / "b" / "one.jpg").symlink_to(root / "a" / "1.jpg")
    listing = list_folder(root)
    assert names_of(listing) == ["a/1.jpg", "a/more/3.jpg", "b/2.jpg", "b/one.jpg"]
    assert listing.excluded == {"folders linked twice": 1, "links in a loop": 2}


@pytest.mark.parametrize(
    "name",
    [
        "a/line\nbreak.jpg",
        "a/-rf.jpg",
        "a/" + "x" * 250 + ".jpg",
        "a/ü %s {} $HOME.jpg",
        "a/tab\t.jpg",
        "a/..jpg.jpg",
    ],
)
def test_odd_names_are_names(tmp_path, name):
    touch(tmp_path, name, "b/1.jpg")
    listing = list_folder(tmp_path)
    expected = [] if name.startswith("a/.") else [name]
    assert names_of(listing) == [*expected, "b/1.jpg"]
    assert [os.path.exists(entry.path) for entry in listing.files] == [True] * len(listing.files)


def test_names_that_are_no_utf8_are_kept_and_shown_by_number(tmp_path):
    touch(tmp_path, b"a/\xff\xfe.jpg", b"b/1.jpg")
    first = list_folder(tmp_path).files[0]
    assert os.path.exists(first.path)
    assert first.key == "a/\\xff\\xfe.jpg"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Cat", "cat"),
        ("cat", "cat "),
        (unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")),
    ],
)
def test_classes_that_differ_by_case_blanks_or_accents_are_refused(tmp_path, one, other):
    touch(tmp_path, f"{one}/1.jpg", f"{other}/1.jpg", "dog/1.jpg")
    with pytest.raises(
        DatasetError, match="differ only by case, blanks or the way an accent is written"
    ):
        list_folder(tmp_path)


def test_blanks_around_a_class_are_no_part_of_it(tmp_path):
    touch(tmp_path, " cat /1.jpg", "dog/1.jpg")
    assert [entry.label for entry in list_folder(tmp_path).files] == ["cat", "dog"]


def test_classes_without_an_image_are_named(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/1.jpg", "10/x.txt")
    (tmp_path / "9").mkdir()
    assert list_folder(tmp_path).empty_classes == ("9", "10")


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_split_folders(tmp_path, validation):
    touch(
        tmp_path,
        "train/a/1.jpg",
        "train/b/deep/2.jpg",
        f"{validation}/a/3.jpg",
        "test/b/4.jpg",
        "other/a/5.jpg",
        "train/lost.jpg",
    )
    (tmp_path / "test" / "c").mkdir()
    listing = list_folder(tmp_path)
    found = {(entry.split, entry.label, entry.name.rpartition("/")[2]) for entry in listing.files}
    assert found == {
        ("train", "a", "1.jpg"),
        ("train", "b", "2.jpg"),
        ("validation", "a", "3.jpg"),
        ("test", "b", "4.jpg"),
    }
    assert listing.excluded == {"outside the class folders": 2}
    assert listing.empty_classes == ("test/c",)


def test_a_class_called_train_is_a_class(tmp_path):
    touch(tmp_path, "train/1.jpg", "plane/2.jpg")
    assert [(entry.split, entry.label) for entry in list_folder(tmp_path).files] == [
        ("", "plane"),
        ("", "train"),
    ]


def test_a_file_and_nothing_are_no_folder(tmp_path):
    for path, received in (
        (touch(tmp_path, "x") / "x", "a file"),
        (tmp_path / "gone", "a path that does not exist"),
    ):
        with pytest.raises(DatasetError, match=f"There is no folder .*{received}"):
            list_folder(path)


def test_random_trees_are_counted_to_the_last_file(tmp_path):
    rng = np.random.default_rng(0)
    pieces = ["a", "b", "train", "test", ".h", "__MACOSX", "é", "x y", "mlruns"]
    ends = ["1.jpg", "2.PNG", "3.txt", "Thumbs.db", ".x.jpg", "noend", "4.webp"]
    for tree in range(25):
        root = tmp_path / str(tree)
        for _ in range(40):
            parts = [pieces[index] for index in rng.integers(0, len(pieces), rng.integers(0, 4))]
            touch(root, "/".join([*parts, ends[rng.integers(len(ends))]]))
        listing = list_folder(root)
        hidden = {".h", "__MACOSX", "mlruns"}
        files = set()
        for folder, folders, names in os.walk(root):
            below = os.path.relpath(folder, root)
            files |= {os.path.normpath(os.path.join(below, name)) for name in names}
            files |= {
                os.path.normpath(os.path.join(below, name)) for name in set(folders) & hidden
            }  # a hidden folder counts as one
            folders[:] = sorted(set(folders) - hidden)
        assert listing.found == len(listing.files) + sum(listing.excluded.values()) == len(files), (
            tree
        )
        assert len(set(names_of(listing))) == len(listing.files)
        assert set(names_of(listing)) <= files


def test_listing_keeps_to_its_folder(folder):
    assert {entry.split for entry in list_folder(folder).files} == {""}
    assert [entry.key for entry in list_folder(folder).files][:3] == [
        "1/0.jpg",
        "1/1.png",
        "1/10.png",
    ]
