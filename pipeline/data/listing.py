"""What is there: the files of a folder or a manifest, found with the standard library alone and never opened or changed."""

from __future__ import annotations

import csv
import hashlib
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.config.data import DataConfig
from pipeline.errors import DatasetError

Kind = Literal["digits", "folder", "manifest", "tfds"]
MANIFESTS = frozenset({".csv", ".tsv", ".parquet"})
# What a file is, its first bytes decide; the name only says whether to look. The second line is
# looked at to say what cannot be used.
EXTENSIONS = frozenset(
    {"", ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp"}
) | frozenset(
    {
        ".tif",
        ".tiff",
        ".avif",
        ".heic",
        ".heif",
        ".jp2",
        ".svg",
        ".ico",
        ".psd",
        ".ppm",
        ".pgm",
        ".tga",
        ".jxl",
    }
)
# Left by file managers, and the pipeline's own results when the dataset is the current folder:
# never images of the user's.
_LITTER = frozenset({"__macosx", "thumbs.db", "desktop.ini", "icon\r", "mlruns"})
SPLIT_NAMES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_COLUMNS = ("path", "label", "split", "group")
_NO_ATTRIBUTES = frozenset({"", "path", "label", "split", "key"})
_EXAMPLES = 3
_TFDS_NAME = re.compile(r"[a-z][a-z0-9_]*(/[\w.+-]+)?(:\d+\.\d+\.\d+|:\d+\.\*\.\*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Entry:
    """One image file that was found; some 150 bytes, so that a million fit.

    `name` is the path below `root`. `split` is `train`, `validation`, `test`, or empty where the
    source names none; `group` is what a manifest says must stay in one split, or empty.
    """

    root: str
    name: str
    label: str
    split: str
    group: str = ""

    @property
    def path(self) -> str:
        """Where the file is; bytes that are no UTF-8 are kept as Python's surrogates."""
        return os.path.join(self.root, self.name)  # noqa: PTH118 - a million Path objects take longer than the walk

    @property
    def key(self) -> str:
        """The name as printable text."""
        return printable(self.name)


@dataclass(frozen=True)
class Listing:
    """Every file below a folder or named by a manifest.

    Images, and how many were left out for which reason.

    `examples` names the first few files of each reason, and `empty` the folders of classes without
    an image.
    """

    entries: tuple[Entry, ...]
    excluded: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, Sequence[str]] = field(default_factory=dict)
    empty: tuple[str, ...] = ()

    @property
    def found(self) -> int:
        """Return how many files were found; a hidden folder counts as one."""
        return len(self.entries) + sum(self.excluded.values())

    @property
    def empty_folders(self) -> int:
        """Return how many classes have a folder and no image."""
        return len(self.empty)


def at(path: str) -> Path:
    """Return a path with a leading `~` replaced by the home it names.

    One that names nobody's stays as it is.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111 - pathlib's raises for nobody's


def kind_of(dataset: str) -> Kind:
    """Say what `--dataset` names.

    `digits` is always the built-in set (a folder of that name is `./digits`).
    """
    path = at(dataset)
    if dataset == "digits":
        return "digits"
    if path.is_dir():
        return "folder"
    if path.suffix.lower() in MANIFESTS:
        return "manifest"
    return "tfds" if _TFDS_NAME.fullmatch(dataset) else "folder"


def require_source(config: DataConfig) -> None:
    """Refuse a folder or a manifest that is not there, before anything heavy is loaded or anything is written.

    Raises:
        DatasetError: there is nothing at the path.
    """
    path, kind = at(config.dataset), kind_of(config.dataset)
    if kind == "folder" and not path.is_dir():
        list_folder(path)
    elif kind == "manifest" and not path.is_file():
        list_manifest(path)


def source_stamp(config: DataConfig) -> Mapping[str, str]:
    """Describe the input outside the pipeline, without opening an image.

    Changed files give another stamp, missing ones no error.
    """
    kind = kind_of(config.dataset)
    if kind == "digits":
        return {"scikit-learn": metadata.version("scikit-learn")}
    if kind == "tfds":
        return {"tensorflow-datasets": metadata.version("tensorflow-datasets")}
    path = at(config.dataset)
    try:
        return {kind: _folder_stamp(path) if kind == "folder" else _manifest_stamp(path)}
    except FileNotFoundError:
        return {kind: "missing"}
    except (OSError, ValueError, DatasetError):
        return {kind: "unreadable"}


def _folder_stamp(folder: Path) -> str:
    """Return the SHA-256 of the (path, size, modification time) of every file but hidden ones, in the walk's order."""
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    digest = hashlib.sha256()
    root = os.fspath(folder)
    for name, why in _walk(root):
        if why != "hidden":  # a file manager's notes, and our own results, make no other dataset
            _stamp_file(digest, root, name)
    return digest.hexdigest()[:16]


def _manifest_stamp(manifest: Path) -> str:
    """Return the SHA-256 of the manifest's bytes and of its files' (path, size, modification time)."""
    with manifest.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    root = os.fspath(manifest.parent)
    for row in _rows(manifest):
        _stamp_file(digest, root, row.path)
    return digest.hexdigest()[:16]


def _stamp_file(digest: hashlib._Hash, root: str, name: str) -> None:
    try:
        info = os.stat(os.path.join(root, name))  # noqa: PTH116, PTH118 - pathlib takes three times as long
        sizes = f"{info.st_size}\0{info.st_mtime_ns}".encode()
    except (OSError, ValueError):  # not there, not for us, or no possible name
        sizes = b""
    digest.update(os.fsencode(name) + b"\0" + sizes + b"\0")


def printable(path: Path | str) -> str:
    """Return a file's name as text that UTF-8 can hold.

    Other bytes are written as hexadecimal numbers.
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def natural(name: str) -> tuple[list[str | int], str]:
    """Return a sort key that puts `2` before `10`."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if index % 2 else part.casefold() for index, part in enumerate(parts)], name


def list_folder(folder: Path) -> Listing:
    """List `<class>/<images>` or `train|val|validation|test/<class>/<images>`, each folder's files in the order of their names.

    What lies in folders below a class belongs to the class. Links are followed, each target once.

    Raises:
        DatasetError: the folder is not there, cannot be read, or has classes that differ by case or
            blanks alone.
    """
    if not folder.is_dir():
        received = "a file" if folder.exists() else "a path that does not exist"
        raise DatasetError(
            f"There is no folder {printable(folder)}. Expected one folder for each class with"
            f" images in it. Received {received}. Check --dataset; a TFDS name has no leading dot"
            " or slash."
        )
    try:
        return _list_folder(folder)
    except OSError as error:
        raise DatasetError(
            f"{printable(error.filename or folder)} cannot be read ({error.strerror}). Expected a"
            " folder of images that you may read. Check its permissions."
        ) from error


def _list_folder(folder: Path) -> Listing:
    in_splits = _has_split_folders(folder)
    label_at = 1 if in_splits else 0
    root = os.fspath(folder)
    entries: list[Entry] = []
    labels: dict[str, str] = {}
    used: set[tuple[str, ...]] = set()
    excluded: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for name, reason in _walk(root):
        parts = name.split("/")
        if (
            why := reason
            or _out_of_place(parts, label_at, in_splits)
            or _other_extension(parts[-1])
        ):
            excluded[why] += 1
            if excluded[why] <= _EXAMPLES:
                examples.setdefault(why, []).append(printable(name))
            continue
        label = labels.get(parts[label_at]) or labels.setdefault(
            parts[label_at], _without_blanks(printable(parts[label_at]))
        )
        entries.append(Entry(root, name, label, SPLIT_NAMES[parts[0]] if in_splits else ""))
        used.add(tuple(parts[: label_at + 1]))
    _require_different(folder, labels)
    empty = sorted(
        (printable("/".join(parts)) for parts in _class_folders(folder, in_splits) - used),
        key=natural,
    )
    return Listing(
        tuple(entries), dict(sorted(excluded.items())), dict(sorted(examples.items())), tuple(empty)
    )


def _out_of_place(parts: Sequence[str], label_at: int, in_splits: bool) -> str:
    """Return why a file belongs to no class, or nothing."""
    outside = len(parts) < label_at + 2 or (in_splits and parts[0] not in SPLIT_NAMES)
    return "outside the class folders" if outside else ""


def _other_extension(name: str) -> str:
    return "" if os.path.splitext(name)[1].lower() in EXTENSIONS else "other extension"  # noqa: PTH122 - a million times


def _without_blanks(name: str) -> str:
    """Return a class name without blanks around it, which nobody can see.

    One of blanks alone stays.
    """
    return name.strip() or name


def _require_different(where: Path, names: Iterable[str]) -> None:
    """Refuse `Cat` beside `cat`: nearly always one class by mistake, and one folder on another system."""
    alike: dict[str, list[str]] = {}
    for name in sorted(names):
        alike.setdefault(
            unicodedata.normalize("NFC", printable(name).strip().casefold()), []
        ).append(name)
    clashing = [several for several in alike.values() if len(several) > 1]
    if clashing:
        shown = ", ".join(repr(printable(name)) for name in clashing[0])
        raise DatasetError(
            f"Classes of {printable(where)} differ only by case, blanks or the way an accent is"
            f" written. Expected names that differ on every system. Received {shown:.200}. Put"
            " their images together, or rename one, such as `A` to `A_upper`."
        )


def _has_split_folders(folder: Path) -> bool:
    """Say whether the folder holds `train/<class>/`.

    A class that is called `train` has images in it, not folders.
    """
    train = folder / "train"
    return train.is_dir() and bool(scan(os.fspath(train)).folders)


def _class_folders(folder: Path, in_splits: bool) -> set[tuple[str, ...]]:
    """Return the relative parts of every folder that stands for a class."""
    above = [(name,) for name in SPLIT_NAMES if (folder / name).is_dir()] if in_splits else [()]
    return {
        (*parts, name)
        for parts in above
        for name in scan(os.fspath(folder.joinpath(*parts))).folders
    }


class _Found(NamedTuple):
    """What a folder holds: names of files, why some of them cannot be used, and folders, true for those that are links."""

    files: list[str]
    odd: dict[str, str]
    folders: dict[str, bool]


def _walk(root: str) -> Iterator[tuple[str, str]]:
    """Yield every file as (path below root, why it cannot be used or nothing), the same order on every system.

    A link to a folder is followed unless it leads to a folder above it or to one that a link led to
    before, so that the walk ends.
    """
    linked: set[tuple[int, int]] = set()
    waiting: list[tuple[str, bool, tuple[tuple[int, int], ...]]] = [("", False, ())]
    while waiting:
        below, is_link, above = waiting.pop()
        where = os.path.join(root, below)  # noqa: PTH118
        info = os.stat(where)  # noqa: PTH116
        here = (info.st_dev, info.st_ino)
        if is_link and (here in above or here in linked):
            yield below, "links in a loop" if here in above else "folders linked twice"
            continue
        if is_link:
            linked.add(here)
        start = f"{below}/" if below else ""
        found = scan(where)
        for name in sorted(found.files):
            yield start + name, found.odd.get(name, "")
        waiting += [
            (start + name, found.folders[name], (*above, here))
            for name in sorted(found.folders, reverse=True)
        ]


def scan(folder: str) -> _Found:
    """Look at one folder; only names are kept, so that a million files in it fit."""
    found = _Found([], {}, {})
    with os.scandir(folder) as children:
        for child in children:
            kind = _kind_of_file(child)
            if kind == "folder":
                found.folders[child.name] = child.is_symlink()
                continue
            found.files.append(child.name)
            if kind:
                found.odd[child.name] = kind
    return found


def _kind_of_file(child: os.DirEntry[str]) -> str:
    """Return `folder`, why a file cannot be used, or nothing.

    Files are neither opened nor, where the system tells, looked up.
    """
    if child.name.startswith(".") or child.name.lower() in _LITTER:
        return "hidden"
    try:
        if child.is_file():
            return ""
        if child.is_dir():
            return "folder"
        child.stat()
    except OSError:  # a link to nothing, to itself, or to where we may not look
        return "broken links"
    return "not a file"


# -- manifests -------------------------------------------------------------------------------------


def list_manifest(manifest: Path) -> Listing:
    """List the rows of a CSV, TSV or Parquet file with the columns `path`, `label` and, if wanted, `split` and `group`.

    Paths are relative to the manifest's own folder. A row without a split is dealt by its content,
    or by its group where it names one. Whether the files are there, the audit says.

    Raises:
        DatasetError: the file cannot be read, a column is missing, or a row is not usable.
    """
    try:
        return _list_manifest(manifest)
    except FileNotFoundError as error:
        raise DatasetError(
            f"There is no manifest {printable(manifest)}. Expected a CSV, TSV or Parquet file."
            " Received a path that does not exist. Check --dataset."
        ) from error
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"The manifest {printable(manifest)} cannot be read. Expected UTF-8 CSV or TSV, or"
            f" Parquet. Received {str(error) or type(error).__name__:.200}. Save it as such."
        ) from error


def _list_manifest(manifest: Path) -> Listing:
    entries: list[Entry] = []
    seen: set[str] = set()
    labels: dict[str, str] = {}
    groups: dict[str, Entry] = {}
    root = os.fspath(manifest.parent)
    for row in _rows(manifest):
        split = _require_usable(manifest, row)
        if row.path in seen:
            raise DatasetError(
                f"{row.where} of {printable(manifest)} names {printable(row.path)!r} more than"
                " once. Expected one row for each image. Received several. Remove the others."
            )
        seen.add(row.path)
        first = groups.get(row.group)
        entry = Entry(
            root,
            row.path,
            labels.setdefault(row.label, row.label),
            split,
            first.group if first else row.group,
        )
        if first and first.split != split:
            raise DatasetError(
                f"{row.where} of {printable(manifest)} puts the group {row.group!r} into a second"
                f" split. Expected all of a group in one. Received {first.split or 'no split'} and"
                f" {split or 'no split'}. Mend the split or the group."
            )
        if entry.group and not first:
            groups[entry.group] = entry
        entries.append(entry)
    _require_different(manifest, labels)
    return Listing(tuple(entries))


class _Row(NamedTuple):
    """One row of a manifest, as text without blanks around it; `where` is such as `Line 2`."""

    where: str
    path: str
    label: str
    split: str
    group: str


def _require_usable(manifest: Path, row: _Row) -> str:
    """Return the split that a row names, if any, or raise a DatasetError that says which row cannot be used."""
    text = row.label + row.split + row.group
    if (
        not row.path
        or not row.label
        or "\0" in row.path
        or (row.split and row.split not in SPLIT_NAMES)
        or text != printable(text)
    ):
        raise DatasetError(
            f"{row.where} of {printable(manifest)} is not usable. Expected a path, a label in"
            f" UTF-8, and a split that is empty or one of {', '.join(SPLIT_NAMES)}. Received path"
            f" {printable(row.path)!r}, label {printable(row.label)!r}, split {row.split!r}. Mend"
            " that row."
        )
    return SPLIT_NAMES.get(row.split, "")


class _Table(NamedTuple):
    """A manifest that is open: its columns, what a row is called, and (number, cells) of each row as they are asked for."""

    columns: Sequence[str]
    unit: str
    rows: Iterator[tuple[int, Sequence[Any]]]


def _opened(manifest: Path, *, every_column: bool = False) -> AbstractContextManager[_Table]:
    """Open a manifest of any kind."""
    return (
        _parquet_table(manifest, every_column)
        if manifest.suffix.lower() == ".parquet"
        else _text_table(manifest)
    )


def attributes(manifest: Path) -> tuple[tuple[str, ...], Iterator[tuple[str, list[str]]]]:
    """Return what else a manifest says of its images.

    The names of its other columns, and (key, cells) of each row as text.

    A manifest that `list_manifest` accepted; columns without a name, and a second one of the same
    name, are left out.
    """
    with _opened(manifest, every_column=True) as table:
        every = {printable(name): place for place, name in reversed([*enumerate(table.columns)])}
        names = {
            name: place
            for name, place in sorted(every.items(), key=lambda item: item[1])
            if name not in _NO_ATTRIBUTES
        }
        at_column, path = list(names.values()), table.columns.index("path")

    def rows() -> Iterator[tuple[str, list[str]]]:
        with _opened(manifest, every_column=True) as (_, _unit, every):
            for _number, cells in every:
                texts = [
                    printable(_text(cells[index])) if index < len(cells) else ""
                    for index in at_column
                ]
                yield printable(_plain(_text(cells[path]))), texts

    return tuple(names), rows()


def _rows(manifest: Path) -> Iterator[_Row]:
    """Yield the rows of a manifest one by one."""
    with _opened(manifest) as (columns, unit, rows):
        if missing := {"path", "label"} - set(columns):
            raise DatasetError(
                f"The manifest {printable(manifest)} lacks the column {', '.join(sorted(missing))}."
                " Expected path, label and, if wanted, split and group, with UTF-8 text. Received"
                f" {printable(', '.join(columns)) or 'nothing':.200}. Mend its first line."
            )
        at_column = [columns.index(name) if name in columns else len(columns) for name in _COLUMNS]
        for number, cells in rows:
            if any(_text(cell) for cell in cells[len(columns) :]):
                raise DatasetError(
                    f"{unit} {number} of {printable(manifest)} has more cells than the first line."
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
        return os.fspath(at(path))
    return path


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
                    f"Line {reader.line_num} of {printable(manifest)} cannot be read ({error})."
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
