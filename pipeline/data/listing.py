"""What is there: the files of a folder or a manifest, found with the standard library alone and never changed."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from pipeline.config import DataConfig
from pipeline.errors import DatasetError

Kind = Literal["digits", "folder", "manifest", "tfds"]
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp"})
SPLIT_NAMES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_TFDS_NAME = re.compile(r"[a-z][a-z0-9_]*(/[\w.+-]+)?(:\d+\.\d+\.\d+|:\d+\.\*\.\*)?", re.ASCII)


@dataclass(frozen=True)
class Entry:
    """One picture file that was found.

    `key` and `label` are printable; `split` is `train`, `validation`, `test`, or empty where the source names none.
    """

    path: Path
    key: str
    label: str
    split: str


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
    if path.suffix.lower() == ".csv":
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
    for path, info in sorted((path, info) for path, info, _ in _walk(folder)):
        _stamp_file(digest, path, info)
    return digest.hexdigest()[:16]


def _manifest_stamp(manifest: Path) -> str:
    """Return the SHA-256 of the manifest's bytes and of its files' (path, size, modification time)."""
    digest = hashlib.sha256(manifest.read_bytes())
    for entry in list_manifest(manifest).entries:
        _stamp_file(digest, entry.path, entry.path.stat() if entry.path.exists() else None)
    return digest.hexdigest()[:16]


def _stamp_file(digest: hashlib._Hash, path: Path, info: os.stat_result | None) -> None:
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
    excluded: Counter[str] = Counter()
    entries, used = [], set()
    for path, info, reason in _walk(folder):
        parts = path.relative_to(folder).parts
        split = SPLIT_NAMES.get(parts[0], "") if in_splits else ""
        label_at = 1 if in_splits else 0
        why = (
            reason
            or _unwanted(parts, info)
            or ("outside the class folders" if len(parts) < label_at + 2 or (in_splits and not split) else "")
        )
        if why:
            excluded[why] += 1
            continue
        entries.append(Entry(path, printable(Path(*parts)), printable(parts[label_at]), split))
        used.add(parts[: label_at + 1])
    entries.sort(key=lambda entry: natural(entry.key))
    return Listing(tuple(entries), dict(sorted(excluded.items())), len(_class_folders(folder, in_splits) - used))


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


def _walk(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[tuple[Path, os.stat_result | None, str]]:
    """Yield every file below a folder as (path, what stat says, reason to leave it out), without following a loop of links."""
    here = folder.stat()
    identity = (here.st_dev, here.st_ino)
    if identity in above:
        yield folder, None, "links in a loop"
        return
    with os.scandir(folder) as found:
        children = sorted(found, key=lambda child: os.fsencode(child.name))
    for child in children:
        try:
            info = child.stat()
        except OSError:  # points to nothing, or to itself
            yield Path(child.path), None, "broken links"
            continue
        if stat.S_ISDIR(info.st_mode):
            yield from _walk(Path(child.path), (*above, identity))
        else:
            yield Path(child.path), info, ""


def _hidden(name: str) -> bool:
    # `mlruns`: the pipeline's own results must not become pictures when the dataset is the current folder.
    return name.startswith(".") or name in ("__MACOSX", "mlruns")


def _unwanted(parts: tuple[str, ...], info: os.stat_result | None) -> str:
    """Return why a file is not a picture of ours, or nothing."""
    if any(_hidden(part) for part in parts):
        return "hidden"
    if info is None or not stat.S_ISREG(info.st_mode):
        return "not a file"
    return "" if Path(parts[-1]).suffix.lower() in EXTENSIONS else "other extension"


def list_manifest(manifest: Path) -> Listing:
    """List the rows of a CSV file with the columns `path`, `label` and, if wanted, `split`.

    Paths are relative to the CSV's own folder. A row without a split is dealt by its content.

    Raises:
        DatasetError: the file cannot be read, a column is missing, or a row is not usable.
    """
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = tuple(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except FileNotFoundError as error:
        raise DatasetError(
            f"There is no manifest {manifest}. Expected a CSV file. Received a path that does not exist. Check --dataset."
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"The manifest {manifest} cannot be read ({error}). Expected a CSV file in UTF-8. Save it as such.") from error
    if missing := {"path", "label"} - set(columns):
        raise DatasetError(
            f"The manifest {manifest} lacks the column {', '.join(sorted(missing))}. Expected path, label and, if wanted, split. "
            f"Received {', '.join(columns) or 'nothing'}. Mend its first line."
        )
    entries = [_manifest_entry(manifest, line, row) for line, row in rows]
    if twice := [key for key, times in Counter(entry.key for entry in entries).items() if times > 1]:
        raise DatasetError(
            f"The manifest {manifest} names {twice[0]!r} more than once. Expected one row for each picture. Received {len(twice)} pictures "
            "with several rows. Remove the others."
        )
    return Listing(tuple(sorted(entries, key=lambda entry: natural(entry.key))), {})


def _manifest_entry(manifest: Path, line: int, row: Mapping[str, str | None]) -> Entry:
    """Return the picture that one row names."""
    path, label, split = ((row.get(name) or "").strip() for name in ("path", "label", "split"))
    if not path or not label or "\0" in path or (split and split not in SPLIT_NAMES):
        raise DatasetError(
            f"Line {line} of {manifest} is not usable. Expected a path, a label, and a split that is empty or one of "
            f"{', '.join(SPLIT_NAMES)}. Received path {path!r}, label {label!r}, split {split!r}. Mend that line."
        )
    return Entry(manifest.parent / at(path), printable(path), label, SPLIT_NAMES.get(split, ""))
