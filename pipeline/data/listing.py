"""What is there: the files of a folder or a manifest, found with the standard library alone and never changed."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pipeline.config import DataConfig
from pipeline.errors import DatasetError

Kind = Literal["digits", "folder", "manifest", "tfds"]
MANIFESTS = frozenset({".csv", ".tsv", ".parquet"})
# What a file is, its first bytes decide; the name only says whether to look. The second line is looked at to say what cannot be used.
EXTENSIONS = frozenset({"", ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp"}) | frozenset(
    {".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".svg", ".ico", ".psd", ".ppm", ".pgm", ".tga", ".jxl"}
)
# Left by file managers; never a picture of the user's.
_LITTER = frozenset({"thumbs.db", "desktop.ini", "icon\r"})
SPLIT_NAMES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_TFDS_NAME = re.compile(r"[a-z][a-z0-9_]*(/[\w.+-]+)?(:\d+\.\d+\.\d+|:\d+\.\*\.\*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture file that was found; some 150 bytes, so that a million fit.

    `name` is the path below `root`. `split` is `train`, `validation`, `test`, or empty where the source names none; `group` is what a
    manifest says must stay in one split, or empty.
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
    """Every file below a folder or named by a manifest: pictures, and what was left out by reason."""

    entries: tuple[Entry, ...]
    excluded: Mapping[str, int]
    empty_folders: int = 0

    @property
    def found(self) -> int:
        """Return how many files were found."""
        return len(self.entries) + sum(self.excluded.values())


def at(path: str) -> Path:
    """Return a path with a leading `~` replaced by the home it names; one that names nobody's stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - pathlib's raises for nobody's


def kind_of(dataset: str) -> Kind:
    """Say what `--dataset` names; `digits` is always the built-in set (a folder of that name is `./digits`)."""
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
    """Describe the input outside the pipeline, without opening a picture; changed files give another stamp, missing ones no error."""
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
    except (OSError, DatasetError):
        return {kind: "unreadable"}


def _folder_stamp(folder: Path) -> str:
    """Return the SHA-256 of the sorted (path, size, modification time) of every file."""
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    digest = hashlib.sha256()
    for name, info, _ in _walk(os.fspath(folder)):
        _stamp_file(digest, name, info)
    return digest.hexdigest()[:16]


def _manifest_stamp(manifest: Path) -> str:
    """Return the SHA-256 of the manifest's bytes and of its files' (path, size, modification time)."""
    with manifest.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    for entry in list_manifest(manifest).entries:
        try:
            info = os.stat(entry.path)  # noqa: PTH116
        except OSError:
            info = None
        _stamp_file(digest, entry.path, info)
    return digest.hexdigest()[:16]


def _stamp_file(digest: hashlib._Hash, path: str, info: os.stat_result | None) -> None:
    sizes = b"" if info is None else f"{info.st_size}\0{info.st_mtime_ns}".encode()
    digest.update(os.fsencode(path) + b"\0" + sizes + b"\0")


def printable(path: Path | str) -> str:
    """Return a file's name as text that UTF-8 can hold; other bytes are written as hexadecimal numbers."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def natural(name: str) -> tuple[list[str | int], str]:
    """Return a sort key that puts `2` before `10`."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if index % 2 else part.casefold() for index, part in enumerate(parts)], name


def list_folder(folder: Path) -> Listing:
    """List `<class>/<pictures>` or `train|val|validation|test/<class>/<pictures>`, in natural order.

    Raises:
        DatasetError: the folder is not there or cannot be read.
    """
    if not folder.is_dir():
        received = "a file" if folder.exists() else "a path that does not exist"
        raise DatasetError(
            f"There is no folder {folder}. Expected one folder for each class with pictures in it. Received {received}. "
            "Check --dataset; a TFDS name has no leading dot or slash."
        )
    try:
        return _list_folder(folder)
    except OSError as error:
        raise DatasetError(
            f"{error.filename} cannot be read ({error.strerror}). Expected a folder of pictures that you may read. Check its permissions."
        ) from error


def _list_folder(folder: Path) -> Listing:
    in_splits = _has_split_folders(folder)
    label_at = 1 if in_splits else 0
    excluded: Counter[str] = Counter()
    root = os.fspath(folder)
    entries, used = [], set()
    for name, info, reason in _walk(root):
        parts = name.split("/")
        split = SPLIT_NAMES.get(parts[0], "") if in_splits else ""
        outside = len(parts) < label_at + 2 or (in_splits and not split)
        if why := reason or _unwanted(parts, info) or ("outside the class folders" if outside else ""):
            excluded[why] += 1
            continue
        entries.append(Entry(root, name, sys.intern(printable(parts[label_at])), split))
        used.add(tuple(parts[: label_at + 1]))
    _require_different(folder, {entry.label for entry in entries})
    return Listing(tuple(entries), dict(sorted(excluded.items())), len(_class_folders(folder, in_splits) - used))


def _require_different(where: Path, labels: set[str]) -> None:
    """Refuse `Cat` beside `cat`: nearly always one class by mistake, and one folder on another system."""
    alike: dict[str, list[str]] = {}
    for label in sorted(labels):
        alike.setdefault(label.strip().casefold(), []).append(label)
    if clashing := [names for names in alike.values() if len(names) > 1]:
        raise DatasetError(
            f"Classes of {where} differ only by case or blanks: {', '.join(map(repr, clashing[0])):.200}. Expected other names. "
            "Put the pictures together, or rename one."
        )


def _has_split_folders(folder: Path) -> bool:
    """Say whether the folder holds `train/<class>/`; a class that is called `train` has pictures in it, not folders."""
    train = folder / "train"
    return train.is_dir() and bool(_folders_in(train))


def _class_folders(folder: Path, in_splits: bool) -> set[tuple[str, ...]]:
    """Return the relative parts of every folder that stands for a class."""
    roots = [folder / name for name in SPLIT_NAMES if (folder / name).is_dir()] if in_splits else [folder]
    return {path.relative_to(folder).parts for root in roots for path in _folders_in(root)}


def _folders_in(folder: Path) -> list[Path]:
    with os.scandir(folder) as found:
        return [Path(entry.path) for entry in found if entry.is_dir() and not _hidden(entry.name)]


def _walk(root: str, below: str = "", above: tuple[tuple[int, int], ...] = ()) -> Iterator[tuple[str, os.stat_result | None, str]]:
    """Yield every file as (path below root, what stat says, reason to leave it out), sorted by bytes, without following loops of links."""
    here = os.stat(os.path.join(root, below))  # noqa: PTH116, PTH118
    identity = (here.st_dev, here.st_ino)
    if identity in above:
        yield below, None, "links in a loop"
        return
    with os.scandir(os.path.join(root, below)) as found:  # noqa: PTH118
        children = sorted((os.fsencode(child.name), child) for child in found)
    for _, child in children:
        name = f"{below}/{child.name}" if below else child.name
        try:
            info = child.stat()
        except OSError:  # points to nothing, or to itself
            yield name, None, "broken links"
            continue
        if stat.S_ISDIR(info.st_mode):
            yield from _walk(root, name, (*above, identity))
        else:
            yield name, info, ""


def _hidden(name: str) -> bool:
    # `mlruns`: the pipeline's own results must not become pictures when the dataset is the current folder.
    return name.startswith(".") or name in ("__MACOSX", "mlruns")


def _unwanted(parts: Sequence[str], info: os.stat_result | None) -> str:
    """Return why a file is not a picture of ours, or nothing."""
    if any(_hidden(part) for part in parts) or parts[-1].lower() in _LITTER:
        return "hidden"
    if info is None or not stat.S_ISREG(info.st_mode):
        return "not a file"
    return "" if os.path.splitext(parts[-1])[1].lower() in EXTENSIONS else "other extension"  # noqa: PTH122


def list_manifest(manifest: Path) -> Listing:
    """List the rows of a CSV, TSV or Parquet file with the columns `path`, `label` and, if wanted, `split` and `group`.

    Paths are relative to the manifest's own folder. A row without a split is dealt by its content, or by its group where it names one.

    Raises:
        DatasetError: the file cannot be read, a column is missing, or a row is not usable.
    """
    try:
        return _listed(manifest)
    except FileNotFoundError as error:
        raise DatasetError(
            f"There is no manifest {manifest}. Expected a CSV, TSV or Parquet file. Received a path that does not exist. Check --dataset."
        ) from error
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError(
            f"The manifest {manifest} cannot be read ({str(error) or type(error).__name__:.200}). Expected UTF-8 CSV or TSV, or Parquet. "
            "Save it as such."
        ) from error


def _listed(manifest: Path) -> Listing:
    entries: list[Entry] = []
    seen: set[str] = set()
    splits: dict[str, str] = {}
    root = os.fspath(manifest.parent)
    for line, path, label, named, group in _rows(manifest):
        if not path or not label or "\0" in path or (named and named not in SPLIT_NAMES):
            raise DatasetError(
                f"Line {line} of {manifest} is not usable. Expected a path, a label, and a split that is empty or one of "
                f"{', '.join(SPLIT_NAMES)}. Received path {path!r}, label {label!r}, split {named!r}. Mend that line."
            )
        if path in seen:
            raise DatasetError(
                f"Line {line} of {manifest} names {path!r} more than once. Expected one row for each picture. Received several. Remove the "
                "others."
            )
        seen.add(path)
        split = SPLIT_NAMES.get(named, "")
        if group and splits.setdefault(group, split) != split:
            raise DatasetError(
                f"Line {line} of {manifest} puts the group {group!r} into a second split. Expected all of a group in one. Received "
                f"{splits[group] or 'no split'} and {split or 'no split'}. Mend the split or the group."
            )
        entries.append(Entry(root, os.fspath(at(path)), sys.intern(label), split, sys.intern(group)))
    _require_different(manifest, {entry.label for entry in entries})
    return Listing(tuple(entries), {})


def _rows(manifest: Path) -> Iterator[tuple[int, str, str, str, str]]:
    """Yield (line, path, label, split, group) of each row, all as text without blanks around it."""
    with (_parquet_table if manifest.suffix.lower() == ".parquet" else _text_table)(manifest) as (columns, rows):
        if missing := {"path", "label"} - set(columns):
            raise DatasetError(
                f"The manifest {manifest} lacks the column {', '.join(sorted(missing))}. Expected path, label and, if wanted, split and "
                f"group. Received {', '.join(columns) or 'nothing'}. Mend its first line."
            )
        for line, row in rows:
            values = (row.get(name) for name in ("path", "label", "split", "group"))
            path, label, split, group = ("" if value is None else str(value).strip() for value in values)
            yield line, path, label, split, group


Table = tuple[Sequence[str], Iterator[tuple[int, Mapping[str, Any]]]]


@contextmanager
def _text_table(manifest: Path) -> Iterator[Table]:
    """Open a CSV or TSV file: its columns, and (line, row) of each row as they are asked for."""
    with manifest.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True, delimiter="\t" if manifest.suffix.lower() == ".tsv" else ",")
        yield tuple(reader.fieldnames or ()), ((reader.line_num, row) for row in reader)


@contextmanager
def _parquet_table(manifest: Path) -> Iterator[Table]:
    """Open a Parquet file: its columns, and (number, row) of each row as they are asked for."""
    from pyarrow import parquet

    with parquet.ParquetFile(manifest) as file:
        columns = tuple(file.schema_arrow.names)
        wanted = [name for name in ("path", "label", "split", "group") if name in columns]
        rows = (row for batch in file.iter_batches(columns=wanted) for row in batch.to_pylist())
        yield columns, enumerate(rows, start=1)
