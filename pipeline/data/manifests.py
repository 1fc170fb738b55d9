"""The images that a CSV, TSV or Parquet file names, with their labels, splits and groups."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.data.checked import ImageFile
from pipeline.data.listing import SPLIT_NAMES, FileListing, require_distinct_classes
from pipeline.data.names import to_printable
from pipeline.data.reference import expand_home, missing_manifest_error
from pipeline.errors import DatasetError

_COLUMNS = ("path", "label", "split", "group")
_NO_ATTRIBUTES = frozenset({"", "path", "label", "split", "key"})


class ManifestRow(NamedTuple):
    """One row of a manifest, as text without blanks around it; `number` is such as `Line 2`."""

    number: str
    path: str
    label: str
    split: str
    group: str


class _OpenManifest(NamedTuple):
    """A manifest that is open: its columns, `Line` or `Row`, and (number, cells) row by row."""

    columns: Sequence[str]
    unit: str
    rows: Iterator[tuple[int, Sequence[object]]]


def list_manifest(manifest: Path) -> FileListing:
    """List the images of a CSV, TSV or Parquet file.

    Its columns are `path`, `label` and, if wanted, `split` and `group`. Paths are relative to the
    manifest's own folder. A row without a split is assigned to one by its content, or by its group
    where it names one. Whether the files exist is found by the audit.

    Raises:
        DatasetError: the file cannot be read, a column is missing, or a row is not usable.
    """
    try:
        return _list_rows(manifest)
    except FileNotFoundError as error:
        raise missing_manifest_error(manifest) from error
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"The manifest {to_printable(manifest)} cannot be read",
            expected="UTF-8 CSV or TSV, or Parquet",
            received=f"{str(error) or type(error).__name__:.200}",
            hint="Save it as such",
        ) from error


def _list_rows(manifest: Path) -> FileListing:
    files: list[ImageFile] = []
    seen: set[str] = set()
    labels: dict[str, str] = {}
    groups: dict[str, ImageFile] = {}
    root = os.fspath(manifest.parent)
    for row in read_rows(manifest):
        split = _require_complete(manifest, row)
        if row.path in seen:
            raise DatasetError(
                f"{row.number} of {to_printable(manifest)} names {to_printable(row.path)!r} more"
                " than once",
                expected="one row for each image",
                received="several",
                hint="Remove the others",
            )
        seen.add(row.path)
        first = groups.get(row.group)
        label = labels.setdefault(row.label, row.label)  # one object per label
        file = ImageFile(root, row.path, label, split, first.group if first else row.group)
        if first and first.split != split:
            raise DatasetError(
                f"{row.number} of {to_printable(manifest)} puts the group {row.group!r} into a"
                " second split",
                expected="all of a group in one",
                received=f"{first.split or 'no split'} and {split or 'no split'}",
                hint="Correct the split or the group",
            )
        if file.group and not first:
            groups[file.group] = file
        files.append(file)
    require_distinct_classes(manifest, labels)
    return FileListing(tuple(files))


def _require_complete(manifest: Path, row: ManifestRow) -> str:
    """Return the split that a row names, if any.

    Raises:
        DatasetError: a cell of the row is missing or cannot be used.
    """
    text = row.label + row.split + row.group
    if (
        not row.path
        or not row.label
        or "\0" in row.path
        or (row.split and row.split not in SPLIT_NAMES)
        or text != to_printable(text)
    ):
        raise DatasetError(
            f"{row.number} of {to_printable(manifest)} is not usable",
            expected=(
                "a path, a label in UTF-8, and a split that is empty or one of"
                f" {', '.join(SPLIT_NAMES)}"
            ),
            received=(
                f"path {to_printable(row.path)!r}, label {to_printable(row.label)!r}, split"
                f" {row.split!r}"
            ),
            hint="Correct that row",
        )
    return SPLIT_NAMES.get(row.split, "")


def read_attributes(manifest: Path) -> tuple[tuple[str, ...], Iterator[tuple[str, list[str]]]]:
    """Return the names of a manifest's other columns, and (key, cells) of each row as text.

    Of a manifest that `list_manifest` accepted; columns without a name, and a second one of the
    same name, are left out.
    """
    with _open_manifest(manifest, every_column=True) as table:
        first_of = {
            to_printable(name): index for index, name in reversed([*enumerate(table.columns)])
        }
        names = {
            name: index
            for name, index in sorted(first_of.items(), key=lambda item: item[1])
            if name not in _NO_ATTRIBUTES
        }
        indices, path = list(names.values()), table.columns.index("path")

    def rows() -> Iterator[tuple[str, list[str]]]:
        with _open_manifest(manifest, every_column=True) as (_, _unit, every):
            for _number, cells in every:
                texts = [
                    to_printable(_cell_text(cells[index])) if index < len(cells) else ""
                    for index in indices
                ]
                yield to_printable(_normalize_path(_cell_text(cells[path]))), texts

    return tuple(names), rows()


def read_rows(manifest: Path) -> Iterator[ManifestRow]:
    """Yield the rows of a manifest one by one.

    Raises:
        DatasetError: a column is missing, or a row has too many cells.
    """
    with _open_manifest(manifest) as (columns, unit, rows):
        if missing := {"path", "label"} - set(columns):
            raise DatasetError(
                f"The manifest {to_printable(manifest)} lacks the column"
                f" {', '.join(sorted(missing))}",
                expected="path, label and, if wanted, split and group, with UTF-8 text",
                received=f"{to_printable(', '.join(columns)) or 'nothing':.200}",
                hint="Correct its first line",
            )
        indices = [columns.index(name) if name in columns else len(columns) for name in _COLUMNS]
        for number, cells in rows:
            if any(_cell_text(cell) for cell in cells[len(columns) :]):
                raise DatasetError(
                    f"{unit} {number} of {to_printable(manifest)} has more cells than the first"
                    " line",
                    expected=str(len(columns)),
                    received=str(len(cells)),
                    hint="Put a path with a comma into double quotes",
                )
            path, label, split, group = (
                _cell_text(cells[index]) if index < len(cells) else "" for index in indices
            )
            yield ManifestRow(f"{unit} {number}", _normalize_path(path), label, split, group)


def _cell_text(cell: object) -> str:
    """Return a cell as text without blanks around it.

    `3.0` is `3`, as tables with gaps keep whole numbers; NaN and None are empty.
    """
    if isinstance(cell, str):
        return cell.strip()
    if isinstance(cell, bytes):
        return os.fsdecode(cell).strip()
    if isinstance(cell, float) and (math.isnan(cell) or cell.is_integer()):
        return "" if math.isnan(cell) else str(int(cell))
    return "" if cell is None else str(cell)


def _normalize_path(path: str) -> str:
    """Return a path in one spelling, so that `a//b.jpg` and `./a/b.jpg` are the same row.

    Empty stays empty.
    """
    if path.startswith(("~", "./")) or "//" in path or "/./" in path:
        return os.fspath(expand_home(path))
    return path


def _open_manifest(
    manifest: Path, *, every_column: bool = False
) -> AbstractContextManager[_OpenManifest]:
    """Open a manifest of any kind."""
    if manifest.suffix.lower() == ".parquet":
        return _open_parquet(manifest, every_column)
    return _open_text(manifest)


@contextmanager
def _open_text(manifest: Path) -> Iterator[_OpenManifest]:
    """Open a CSV or TSV file; bytes outside UTF-8 are kept, as they may be in a file's name."""
    with manifest.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        delimiter = "\t" if manifest.suffix.lower() == ".tsv" else ","
        reader = csv.reader(file, strict=True, delimiter=delimiter)

        def rows() -> Iterator[tuple[int, list[str]]]:
            try:
                yield from ((reader.line_num, cells) for cells in reader if cells)
            except csv.Error as error:
                raise DatasetError(
                    f"Line {reader.line_num} of {to_printable(manifest)} cannot be read ({error})",
                    expected="cells with commas, or tabs in a .tsv file, between them",
                    hint="Correct that line",
                ) from error

        every = rows()
        _, first = next(every, (0, []))
        yield _OpenManifest([name.strip() for name in first], "Line", every)


@contextmanager
def _open_parquet(manifest: Path, every_column: bool) -> Iterator[_OpenManifest]:
    """Open a Parquet file; rows are numbered from 1, and columns of lists and the like left out."""
    from pyarrow import parquet, types

    # Without a buffer size a whole column is read at a time.
    with parquet.ParquetFile(manifest, buffer_size=1 << 20) as file:
        every = file.schema_arrow.names
        columns = [name for name in _COLUMNS if name in every]
        if every_column:
            columns = [item.name for item in file.schema_arrow if not types.is_nested(item.type)]
        batches = file.iter_batches(batch_size=8192, columns=columns)
        rows: Iterator[Sequence[Any]] = (
            cells
            for batch in batches
            for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True)
        )
        found = every if {"path", "label"} - set(every) else columns
        yield _OpenManifest(found, "Row", enumerate(rows, start=1))
