"""The figures of benchmarks/house.py, on a made-up tree that is small enough to count by hand."""

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "house.py"
SHARED = "".join(f"    total += {number}\n" for number in range(7))
FILES = {
    "pipeline/__init__.py": "",
    "pipeline/engine.py": """
        def stage(**words):
            return lambda function: function


        def code_parts(module):
            return {f"code {module}": "1", "code pipeline.data.source": "2", "package numpy": "2"}
        """,
    "pipeline/data/__init__.py": "",
    "pipeline/data/stage.py": """
        from pipeline.engine import stage

        NAMES = ("a", "b")


        @stage()
        def ingest(config: "Any"):
            from pipeline.data import source

            return source.read_all(config)
        """,
    "pipeline/data/source.py": """
        from __future__ import annotations

        from collections.abc import Mapping
        from typing import TYPE_CHECKING, Any

        if TYPE_CHECKING:
            from pipeline.data.listing import Listing

        NAMES: tuple[str, ...] = ()


        class Table:
            def __init__(self, rows: Any):
                self.rows = rows

            def add(self, row: Mapping[str, Any], *, checked: bool = True, **extra: Any) -> None:
                self.rows.append(row)


        def read_all(config, number_of_rows_at_most: int = 100, message: str = "reading") -> Any:
            from .checks import looks_right

            return looks_right(config)
        """,
    "pipeline/data/checks.py": """
        import pipeline.data.source


        def looks_right(config: Any) -> bool:
            return bool(config)
        """,
    # Imported by source.py for type checkers only, so these two are no circle.
    "pipeline/data/listing.py": "import pipeline.data.source\n\n\nclass Listing:\n    names = ()\n",
    "pipeline/train/__init__.py": "",
    "pipeline/train/loop.py": (
        f"class Table:\n    pass\n\n\ndef _add(total):\n{SHARED}    return total\n"
    ),
    "pipeline/train/other.py": f"def add_again(total):\n    # alike\n{SHARED}    return -total\n",
    "tests/test_nothing.py": f"WIDE = '{'x' * 100}'\n" + "LONG = 1\n" * 400,
}


def written_tree(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip("\n"), encoding="utf-8")
    return folder


def printed(*words):
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return written_tree(tmp_path_factory.mktemp("tree"), FILES)


@pytest.fixture(scope="module")
def figures(tree):
    return json.loads(printed(tree, "--json"))


def test_size(figures):
    size = figures["size"]
    assert size["files"] == {"in pipeline": 10, "in tests": 1}
    assert size["lines_over_100_columns"] == {"in pipeline": 0, "in tests": 1, "in benchmarks": 0}
    assert size["large_files_and_their_lines"] == {"tests/test_nothing.py": 401}
    assert (size["files_over_400_lines"], size["files_over_600_lines"]) == (1, 0)


def test_function_profile_is_that_of_the_formatted_code(figures):
    # As written: 2, 2, 4, 2, 2, 4, 2, 9, 10. At 88 columns `add` takes 4 lines and `read_all` 6.
    assert figures["functions_at_88_columns"] == {
        "functions_and_methods": 9,
        "median_lines": 4,
        "90th_percentile_of_lines": 10,
        "percent_over_60_lines": 0.0,
        "longest_as_written": {
            "pipeline/train/other.py:1 add_again": 10,
            "pipeline/train/loop.py:5 _add": 9,
            "pipeline/data/source.py:20 read_all": 4,
            "pipeline/data/stage.py:7 ingest": 4,
            "pipeline/data/checks.py:4 looks_right": 2,
        },
    }


def test_names(figures):
    names = figures["names"]
    assert names["percent_of_functions_named_by_one_word"] == 50.0  # stage, ingest, add, _add of 8
    assert names["duplicated_top_level_names"] == {
        "NAMES: data.source, data.stage": 2,
        "Table: data.source, train.loop": 2,
    }
    # stage, code_parts, ingest, NAMES, Table, read_all, looks_right, Listing, _add, add_again
    assert names["distinct_top_level_names"] == 10
    assert names["percent_of_top_level_names_in_several_modules"] == 20.0
    assert names["duplicated_class_names"] == {"Table: data.source, train.loop": 2}


def test_types(figures):
    # Any: ingest, __init__, **extra and looks_right; row is a Mapping[str, Any].
    assert figures["types"] == {
        "parameters": 13,
        "parameters_that_are_any": 4,
        "percent_of_parameters_that_are_any": 30.8,
        "percent_by_folder": {"pipeline": 0.0, "pipeline/data": 44.4, "pipeline/train": 0.0},
        "double_star_parameters_that_are_any": 1,
    }


def test_imports(figures):
    imports = figures["imports"]
    assert imports["circles_and_their_modules"] == {"pipeline/data: data.checks, data.source": 2}
    assert (imports["circles_inside_folders"], imports["circles_across_folders"]) == (1, 0)
    assert imports["imports_between_modules"] == 5


def test_circle_across_folders(tree, tmp_path):
    files = {
        "pipeline/data/a.py": "def load():\n    from pipeline.train import b\n",
        "pipeline/train/b.py": "from pipeline.data.a import load\n",
    }
    imports = json.loads(printed(written_tree(tmp_path, files), "--json"))["imports"]
    assert imports["circles_and_their_modules"] == {"across folders: data.a, train.b": 2}
    assert imports["circles_inside_folders"] == 0


def test_fingerprints(figures, tmp_path):
    assert figures["fingerprints"]["modules_covered"] == {"data.stage": 2}
    files = {"pipeline/engine/fingerprint.py": FILES["pipeline/engine.py"]}
    files |= {"pipeline/data/stage.py": "@engine.stage()\ndef ingest():\n    pass\n"}
    moved = json.loads(printed(written_tree(tmp_path, files), "--json"))["fingerprints"]
    assert moved["modules_covered"] == {"data.stage": 2}


def test_duplicated_code(figures):
    assert figures["duplicated_code"] == {
        "pairs_of_places_that_share_6_lines": 1,
        "pairs_at_88_columns": 1,
        "largest_and_their_lines": {"pipeline/train/loop.py:6 = pipeline/train/other.py:3": 7},
    }


def test_code_that_cannot_be_read_does_not_fail(tmp_path):
    files = {"pipeline/a.py": "def broken(:\n", "pipeline/b.py": "def whole():\n    pass\n"}
    found = json.loads(printed(written_tree(tmp_path, files), "--json"))
    assert found["size"]["files_that_are_not_valid_python"] == 1
    assert list(found["functions_at_88_columns"]) == ["not_measured"]
    assert list(found["fingerprints"]) == ["not_measured"]
    assert found["names"]["distinct_top_level_names"] == 1


def test_table(tree, tmp_path):
    lines = printed(tree, "--verbose").splitlines()
    assert max(map(len, lines)) <= 100
    assert "    NAMES: data.source, data.stage" in [line[:34] for line in lines]
    assert "NAMES" not in printed(tree)


def test_two_checkouts_side_by_side(tree, tmp_path):
    other = written_tree(tmp_path, {**FILES, "pipeline/train/loop.py": "class Table:\n    pass\n"})
    lines = printed(other, "--compare", tree).splitlines()
    assert lines[0].split() == ["figure", "before", "after"]
    assert max(map(len, lines)) <= 100
    rows = [line.split() for line in lines]
    assert ["functions", "and", "methods", "9", "8"] in rows
    assert ["pipeline/train/loop.py:5", "_add", "9", "-"] in rows
