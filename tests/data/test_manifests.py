"""Manifests of every odd kind."""

# The system's own walk and names of bytes, to compare with.

import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.data.manifests import list_manifest, read_attributes
from pipeline.errors import DatasetError


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


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
