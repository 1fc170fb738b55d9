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


class _Row(NamedTuple):
    """One row of a manifest, as text without blanks around it; `where` is such as `Line 2`."""

    where: str
    path: str
    label: str
    split: str
    group: str


class _Table(NamedTuple):
    """A manifest that is open: its columns, what a row is called, and (number, cells) of each row as they are asked for."""

    columns: Sequence[str]
    unit: str
    rows: Iterator[tuple[int, Sequence[Any]]]


def list_manifest(manifest: Path) -> FileListing:
    """List the rows of a CSV, TSV or Parquet file with the columns `path`, `label` and, if wanted, `split` and `group`.

    Paths are relative to the manifest's own folder. A row without a split is dealt by its content,
    or by its group where it names one. Whether the files are there, the audit says.

    Raises:
        DatasetError: the file cannot be read, a column is missing, or a row is not usable.
    """
    try:
        return _list_manifest(manifest)
    except FileNotFoundError as error:
        raise missing_manifest_error(manifest) from error
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"The manifest {to_printable(manifest)} cannot be read. Expected UTF-8 CSV or TSV, or"
            f" Parquet. Received {str(error) or type(error).__name__:.200}. Save it as such."
        ) from error


def _list_manifest(manifest: Path) -> FileListing:
    entries: list[ImageFile] = []
    seen: set[str] = set()
    labels: dict[str, str] = {}
    groups: dict[str, ImageFile] = {}
    root = os.fspath(manifest.parent)
    for row in read_rows(manifest):
        split = _require_usable(manifest, row)
        if row.path in seen:
            raise DatasetError(
                f"{row.where} of {to_printable(manifest)} names {to_printable(row.path)!r} more than"
                " once. Expected one row for each image. Received several. Remove the others."
            )
        seen.add(row.path)
        first = groups.get(row.group)
        entry = ImageFile(
            root,
            row.path,
            labels.setdefault(row.label, row.label),
            split,
            first.group if first else row.group,
        )
        if first and first.split != split:
            raise DatasetError(
                f"{row.where} of {to_printable(manifest)} puts the group {row.group!r} into a second"
                f" split. Expected all of a group in one. Received {first.split or 'no split'} and"
                f" {split or 'no split'}. Mend the split or the group."
            )
        if entry.group and not first:
            groups[entry.group] = entry
        entries.append(entry)
    require_distinct_classes(manifest, labels)
    return FileListing(tuple(entries))


def _require_usable(manifest: Path, row: _Row) -> str:
    """Return the split that a row names, if any, or raise a DatasetError that says which row cannot be used."""
    text = row.label + row.split + row.group
    if (
        not row.path
        or not row.label
        or "\0" in row.path
        or (row.split and row.split not in SPLIT_NAMES)
        or text != to_printable(text)
    ):
        raise DatasetError(
            f"{row.where} of {to_printable(manifest)} is not usable. Expected a path, a label in"
            f" UTF-8, and a split that is empty or one of {', '.join(SPLIT_NAMES)}. Received path"
            f" {to_printable(row.path)!r}, label {to_printable(row.label)!r}, split {row.split!r}. Mend"
            " that row."
        )
    return SPLIT_NAMES.get(row.split, "")


def read_attributes(manifest: Path) -> tuple[tuple[str, ...], Iterator[tuple[str, list[str]]]]:
    """Return what else a manifest says of its images.

    The names of its other columns, and (key, cells) of each row as text.

    A manifest that `list_manifest` accepted; columns without a name, and a second one of the same
    name, are left out.
    """
    with _open_table(manifest, every_column=True) as table:
        every = {to_printable(name): place for place, name in reversed([*enumerate(table.columns)])}
        names = {
            name: place
            for name, place in sorted(every.items(), key=lambda item: item[1])
            if name not in _NO_ATTRIBUTES
        }
        at_column, path = list(names.values()), table.columns.index("path")

    def rows() -> Iterator[tuple[str, list[str]]]:
        with _open_table(manifest, every_column=True) as (_, _unit, every):
            for _number, cells in every:
                texts = [
                    to_printable(_text(cells[index])) if index < len(cells) else ""
                    for index in at_column
                ]
                yield to_printable(_plain(_text(cells[path]))), texts

    return tuple(names), rows()


def read_rows(manifest: Path) -> Iterator[_Row]:
    """Yield the rows of a manifest one by one."""
    with _open_table(manifest) as (columns, unit, rows):
        if missing := {"path", "label"} - set(columns):
            raise DatasetError(
                f"The manifest {to_printable(manifest)} lacks the column {', '.join(sorted(missing))}."
                " Expected path, label and, if wanted, split and group, with UTF-8 text. Received"
                f" {to_printable(', '.join(columns)) or 'nothing':.200}. Mend its first line."
            )
        at_column = [columns.index(name) if name in columns else len(columns) for name in _COLUMNS]
        for number, cells in rows:
            if any(_text(cell) for cell in cells[len(columns) :]):
                raise DatasetError(
                    f"{unit} {number} of {to_printable(manifest)} has more cells than the first line."
                    f" Expected {len(columns)}. Received {len(cells)}. Put a path with a comma into"
                    " double quotes."
                )
            path, label, split, group = (
                _text(cells[index]) if index < len(cells) else "" for index in at_column
            )
            yield _Row(f"{unit} {number}", _plain(path), label, split, group)


def _text(cell: Any) -> str:
    """Return a cell as text without blanks around it.

    `3.0` is `3`, as tables with gaps keep whole numbers, and no number is nothing.
    """
    if isinstance(cell, str):
        return cell.strip()
    if isinstance(cell, bytes):
        return os.fsdecode(cell).strip()
    if isinstance(cell, float) and (math.isnan(cell) or cell.is_integer()):
        return "" if math.isnan(cell) else str(int(cell))
    return "" if cell is None else str(cell)


def _plain(path: str) -> str:
    """Return a path in one way of writing, so that `a//b.jpg` and `./a/b.jpg` are the same row.

    Empty stays empty.
    """
    if path.startswith(("~", "./")) or "//" in path or "/./" in path:
        return os.fspath(expand_home(path))
    return path


def _open_table(manifest: Path, *, every_column: bool = False) -> AbstractContextManager[_Table]:
    """Open a manifest of any kind."""
    return (
        _parquet_table(manifest, every_column)
        if manifest.suffix.lower() == ".parquet"
        else _text_table(manifest)
    )


@contextmanager
def _text_table(manifest: Path) -> Iterator[_Table]:
    """Open a CSV or TSV file; bytes that are no UTF-8 are kept in paths, where they may be a file's name."""
    with manifest.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(
            file, strict=True, delimiter="\t" if manifest.suffix.lower() == ".tsv" else ","
        )

        def rows() -> Iterator[tuple[int, list[str]]]:
            try:
                yield from ((reader.line_num, cells) for cells in reader if cells)
            except csv.Error as error:
                raise DatasetError(
                    f"Line {reader.line_num} of {to_printable(manifest)} cannot be read ({error})."
                    " Expected cells with commas, or tabs in a .tsv file, between them. Mend that"
                    " line."
                ) from error

        every = rows()
        _, first = next(every, (0, []))
        yield _Table([name.strip() for name in first], "Line", every)


@contextmanager
def _parquet_table(manifest: Path, every_column: bool) -> Iterator[_Table]:
    """Open a Parquet file; rows are numbered from 1.

    Of columns that hold lists or the like none is read.
    """
    from pyarrow import parquet, types

    with parquet.ParquetFile(
        manifest, buffer_size=1 << 20
    ) as file:  # else a whole column is read at a time
        every = file.schema_arrow.names
        columns = [name for name in _COLUMNS if name in every]
        if every_column:
            columns = [item.name for item in file.schema_arrow if not types.is_nested(item.type)]
        batches = file.iter_batches(batch_size=8192, columns=columns)
        rows = (
            cells
            for batch in batches
            for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True)
        )
        yield _Table(
            every if {"path", "label"} - set(every) else columns, "Row", enumerate(rows, start=1)
        )
