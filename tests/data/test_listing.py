"""What is there, found without opening an image: names, folders, links and manifests of every odd
kind."""

# The system's own walk and names of bytes, to compare with.
# ruff: noqa: PTH103, PTH110, PTH118, PTH120, PTH123

import os
import socket
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.data.folders import list_folder
from pipeline.data.manifests import list_manifest, read_attributes
from pipeline.data.names import natural_sort_key
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


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


# -- folders ---------------------------------------------------------------------------------------


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


def test_numbers_in_names_sort_as_numbers():
    assert sorted(["10", "9", "b2", "b10", "B3", "a"], key=natural_sort_key) == [
        "9",
        "10",
        "a",
        "b2",
        "B3",
        "b10",
    ]


# -- manifests -------------------------------------------------------------------------------------


def test_a_manifest_as_spreadsheets_write_it(tmp_path):
    text = (
        '\ufeffpath,label,split,group\r\n"a, b.jpg",cat,val,\r\n ./x//y.jpg , dog'
        " ,,g1\r\n\r\nz.jpg,1.0,,g1\r\n"
    )
    rows = [
        (e.name, e.label, e.split, e.group)
        for e in list_manifest(write(tmp_path / "list.csv", text)).files
    ]
    assert rows == [
        ("a, b.jpg", "cat", "validation", ""),
        ("x/y.jpg", "dog", "", "g1"),
        ("z.jpg", "1.0", "", "g1"),
    ]


def test_columns_may_stand_in_any_order_and_others_are_not_read(tmp_path):
    entries = list_manifest(
        write(tmp_path / "list.tsv", "label\tsize\tpath\na\t3\tone two.jpg\n")
    ).files
    assert [(entry.name, entry.label, entry.path) for entry in entries] == [
        ("one two.jpg", "a", str(tmp_path / "one two.jpg"))
    ]


def test_other_columns_are_what_else_is_known_of_an_image(tmp_path):
    text = "label,camera,path,split,,camera,light\nx, A ,./a//b.jpg,,?,second,1.0\ny,,c.jpg\n"
    names, rows = read_attributes(write(tmp_path / "list.csv", text))
    assert names == ("camera", "light")
    assert list(rows) == [("a/b.jpg", ["A", "1.0"]), ("c.jpg", ["", ""])]
    assert read_attributes(write(tmp_path / "bare.csv", "path,label\na.jpg,x\n"))[0] == ()


def test_other_columns_of_a_parquet_manifest_but_no_lists(tmp_path):
    table = {
        "path": ["a.jpg", "b.jpg"],
        "label": ["x", "y"],
        "lux": [3.0, None],
        "vector": [[1.0], [2.0]],
    }
    parquet.write_table(pa.table(table), tmp_path / "list.parquet")
    names, rows = read_attributes(tmp_path / "list.parquet")
    assert (names, list(rows)) == (("lux",), [("a.jpg", ["3"]), ("b.jpg", [""])])


def test_absolute_and_home_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    entries = list_manifest(
        write(tmp_path / "list.csv", f"path,label\n{tmp_path}/a.jpg,x\n~/b.jpg,y\n")
    ).files
    assert [entry.path for entry in entries] == [
        str(tmp_path / "a.jpg"),
        str(tmp_path / "home" / "b.jpg"),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "lacks the column label, path"),
        ("path\na.jpg\n", "lacks the column label"),
        ("path,label\na.jpg,\n", "Line 2 of .* is not usable"),
        ("path,label\n,x\n", "Line 2 of .* is not usable"),
        ("path,label\na\0b.jpg,x\n", "Line 2 of .* is not usable"),
        (
            "path,label,split\na.jpg,x,dev\n",
            "Line 2 of .*one of train, val, validation, test.*split 'dev'",
        ),
        ("path,label\na.jpg,x\na.jpg,y\n", "Line 3 of .* names 'a.jpg' more than once"),
        ("path,label\na.jpg,x\n./a.jpg,x\n", "Line 3 of .* names 'a.jpg' more than once"),
        (
            "path,label\na,b.jpg,x\n",
            "Line 2 of .* has more cells than the first line. Expected 2. Received 3",
        ),
        ('path,label\n"a.jpg,x\n', "cannot be read .*Correct that line"),
        (
            "path,label,split,group\na,x,train,g\nb,x,test,g\n",
            "Line 3 .* puts the group 'g' into a second split",
        ),
        ("path,label\na.jpg,Cat\nb.jpg,cat\n", "differ only by case"),
    ],
)
def test_a_manifest_that_cannot_be_used_says_where(tmp_path, text, sentence):
    with pytest.raises(DatasetError, match=sentence):
        list_manifest(write(tmp_path / "list.csv", text))


def test_a_manifest_that_is_no_text_or_not_there(tmp_path):
    with pytest.raises(
        DatasetError, match=r"Expected UTF-8 CSV or TSV, or Parquet|lacks the column"
    ):
        list_manifest(write(tmp_path / "list.csv", "path,label\na,b\n", "utf-16"))
    with pytest.raises(DatasetError, match="There is no manifest"):
        list_manifest(tmp_path / "gone.csv")
    with pytest.raises(DatasetError, match="cannot be read"):
        list_manifest(write(tmp_path / "list.parquet", "path,label\n"))


def test_parquet_with_gaps_numbers_and_other_columns(tmp_path):
    table = pa.table(
        {
            "n": [1, 2, 3],
            "label": pa.array([1.0, 2.0, 7.0]),
            "split": ["test", None, ""],
            "path": ["a.jpg", "b.jpg", "c.jpg"],
        }
    )
    parquet.write_table(table, tmp_path / "list.parquet")
    entries = list_manifest(tmp_path / "list.parquet").files
    assert [(e.name, e.label, e.split) for e in entries] == [
        ("a.jpg", "1", "test"),
        ("b.jpg", "2", ""),
        ("c.jpg", "7", ""),
    ]
    parquet.write_table(
        pa.table({"path": ["a.jpg", None], "label": ["x", "y"]}), tmp_path / "gap.parquet"
    )
    with pytest.raises(DatasetError, match="Row 2 of"):
        list_manifest(tmp_path / "gap.parquet")
