"""From files, folders and patterns to a file of answers.

Any number of images, in the order in which they were named.

Names are text, not Path objects: a million of them, which a caller lists to know how much is left
to do, take some 100 MB, twice that where several words may name the same file, and a folder of a
million files 400 MB for the moment in which it is put in order. Nothing else grows with the images:
those that are decoded ahead fill a window of fixed size, and answers are written as they come.

The same files in the same order give the same bytes of output, whatever the number of threads. With
another batch size a network may answer in another last digit. So probabilities are written with
five decimals, the last of which may differ by one then, in one of 300 where it was measured; logits
are written as they are.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import os
import re
import stat
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TextIO, get_args

import numpy as np

from pipeline.data.folder_scan import IMAGE_SUFFIXES, scan_folder
from pipeline.data.names import natural_sort_key, to_printable
from pipeline.data.reference import expand_home
from pipeline.errors import ConfigError, DatasetError

if TYPE_CHECKING:  # TensorFlow is not needed to say that a file is not there
    from pipeline.arrays import Floats
    from pipeline.release.classify import Classifier, Guess

Format = Literal["table", "csv", "jsonl", "parquet"]
Progress = Callable[[int, int | None, int], None]
MAX_BYTES = 100_000_000  # as in data.max_file_bytes
_HEAVY_PIXELS = 32_000_000  # decoding takes some 6 bytes a pixel: below this, 200 MB a thread
_DECIMALS = 5
_EXAMPLES = 5
_ROWS_TOGETHER = 4096  # of Parquet: with 1000 logits a row, 16 MB
_ROWS_MEASURED = 100  # of the table, for the widths of its columns
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Prediction:
    """What the model says of a file, or why it cannot.

    `path` is the file as it was named; bytes that are no UTF-8 are kept as Python's surrogates.
    `guesses` are the likeliest classes, the likeliest first. `logits` are float32 [classes].
    `problem` is empty, or why the file could not be classified; there are no guesses and no logits
    then.
    """

    path: str
    guesses: tuple[Guess, ...] = ()
    logits: Floats | None = field(default=None, compare=False, repr=False)
    problem: str = ""


@dataclass(frozen=True)
class Summary:
    """How many files were done, how many of them could not be classified, and the first of these, with the reasons."""

    done: int
    unusable: int
    examples: tuple[str, ...]

    @property
    def complaint(self) -> str:
        """What a person must know of the files that could not be classified.

        Empty where all could.
        """
        if not self.unusable:
            return ""
        more = (
            f", and {self.unusable - len(self.examples):,} more"
            if self.unusable > len(self.examples)
            else ""
        )
        return (
            f"{self.unusable:,} of {self.done:,} files could not be classified. Expected JPEG, PNG,"
            f" BMP, still GIF or WebP images. Received {'; '.join(self.examples)}{more}. All"
            " others are answered; mend or leave out these."
        )


# -- which files -----------------------------------------------------------------------------------


def expanded(words: Sequence[str]) -> Iterator[str]:
    """Return the files that words name, each once.

    Every word is looked up at once, folders are read as files are asked for.

    Args:
        words: files, which are always tried; folders, of which all is taken that ingest would look
            at, in natural order; and patterns with `*`, `?`, `[...]` and `**`, for what a shell
            would make of them, in natural order.

    Raises:
        ConfigError: a word is an address on the network, or nothing is there for it.
    """
    named = [(word, _roots(word)) for word in words]
    files = itertools.chain.from_iterable(itertools.starmap(_files_of, named))
    return files if sum(len(roots) for _, roots in named) == 1 else _once(files)


def _roots(word: str) -> list[str]:
    """Return the files and folders that a word names, at least one."""
    if _ADDRESS.match(word):
        raise ConfigError(
            f"{shown(word)} is an address on the network. Expected files, folders or patterns on"
            " this machine. Received a URL, and nothing is fetched here. Download it first, and"
            " name the file."
        )
    if not word:  # which pathlib takes for the folder that one is in
        raise _nothing(word, "an empty name")
    path = expand_home(word)
    if _is_there(path):
        return [os.fspath(path)]
    if found := _matches(path) if _MAGIC.search(word) else []:
        return found
    raise _nothing(
        word,
        "a pattern that nothing matches" if _MAGIC.search(word) else "a path that does not exist",
    )


def _nothing(word: str, received: str) -> ConfigError:
    return ConfigError(
        f"There is nothing to classify at '{shown(word)}'. Expected an image file, a folder with"
        f" some, or a pattern such as 'photos/**/*.jpg'. Received {received}. Check its spelling."
    )


def _is_there(path: Path) -> bool:
    """Whether a path names something, be it a link to nothing or out of reach.

    What is wrong with it, reading it says.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return True
    return True


def _matches(pattern: Path) -> list[str]:
    """Return what matches a pattern, in natural order.

    What is hidden must be written out, and `**` follows no links, so that it ends.
    """
    written = set(pattern.parts)
    try:
        found = Path(pattern.anchor).glob(os.fspath(pattern.relative_to(pattern.anchor)))
        seen = [
            os.fspath(path)
            for path in found
            if not any(part.startswith(".") for part in set(path.parts) - written)
        ]
    except ValueError as error:
        raise ConfigError(
            f"{shown(pattern)} is no pattern. Expected `**` to stand alone between slashes, as in"
            f" 'photos/**/*.jpg'. Received {error}. Mend the pattern."
        ) from error
    return sorted(seen, key=natural_sort_key)


def _files_of(word: str, roots: Sequence[str]) -> Iterator[str]:
    """Yield the files that a word names, folder by folder."""
    found = False
    for root in roots:
        for file in _files_below(root) if os.path.isdir(root) else (root,):  # noqa: PTH112 - pathlib's raises where one may not look
            found = True
            yield file
    if not found:
        raise _nothing(word, "a folder without images")


def _files_below(root: str) -> Iterator[str]:
    """Yield what ingest would look at in a folder.

    Its files, then those of the folders in it, both in natural order.

    As in `data.listing`, a link to a folder is followed unless it leads to a folder above it or to
    one that a link led to before. Links to nothing, and folders that cannot be read, are yielded as
    they are: so nothing is left out in silence.
    """
    linked: set[tuple[int, int]] = set()
    waiting: list[tuple[str, bool, tuple[tuple[int, int], ...]]] = [(root, False, ())]
    while waiting:
        folder, is_link, above = waiting.pop()
        try:
            info, found = os.stat(folder), scan_folder(folder)  # noqa: PTH116 - as in data.listing
        except OSError:
            yield folder
            continue
        here = (info.st_dev, info.st_ino)
        if is_link and (here in above or here in linked):
            continue
        if is_link:
            linked.add(here)
        usable = (
            name
            for name in found.files
            if found.problems.get(name) in (None, "broken links") and _is_image_name(name)
        )
        yield from (os.path.join(folder, name) for name in sorted(usable, key=natural_sort_key))  # noqa: PTH118 - a million times
        below = sorted(found.folders, key=natural_sort_key, reverse=True)
        waiting += [
            (os.path.join(folder, name), found.folders[name], (*above, here))  # noqa: PTH118
            for name in below
        ]


def _is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - a million times


def _once(files: Iterable[str]) -> Iterator[str]:
    """Yield each file the first time it is named; two links to a file are two files."""
    seen: set[str] = set()
    for file in files:
        place = os.path.abspath(file)  # noqa: PTH100 - a million times
        if place not in seen:
            seen.add(place)
            yield file


# -- what the model says of them -------------------------------------------------------------------


class _Look(NamedTuple):
    """A file: its pixels, uint8 [image_size, image_size, 3] in [0, 255], or why it has none."""

    path: str
    pixels: Any
    problem: str


def predict(
    classifier: Classifier,
    paths: Iterable[str | os.PathLike[str]],
    *,
    top: int,
    strict: bool = False,
    threads: int = 0,
    progress: Progress,
) -> Iterator[Prediction]:
    """Return what the model says of each file, in the order of the files.

    They are read and decoded ahead, a fixed number of them.

    Args:
        classifier: the model, opened.
        paths: the files; a list has a length, so that progress can say how many are left.
        top: guesses for each image, at least 1; of a model with fewer classes all of them.
        strict: end at the first file that cannot be classified, instead of going on with the
            others.
        threads: how many read and decode; 0: one for each processor that this process may use.
        progress: called with files done, files in all if that is known, and how many of those done
            cannot be classified.

    Raises:
        ConfigError: `top` is less than 1.
        DatasetError: `strict`, and a file cannot be classified.
        CheckpointError: a logit is not a number.
    """
    if top < 1:
        raise ConfigError(
            f"No guess was asked for. Expected at least 1 for each image. Received {top}. Check"
            " --top."
        )
    total = len(paths) if isinstance(paths, Sized) else None
    threads = threads or len(os.sched_getaffinity(0))
    return _predictions(
        classifier, (os.fspath(path) for path in paths), top, strict, threads, total, progress
    )


def _predictions(
    classifier: Classifier,
    paths: Iterator[str],
    top: int,
    strict: bool,
    threads: int,
    total: int | None,
    progress: Progress,
) -> Iterator[Prediction]:
    """Yield predictions batch by batch.

    As many files as the classifier answers together, fewer images where some are unusable.
    """
    done = unusable = 0
    with contextlib.closing(_looked_at(classifier, paths, threads)) as looks:
        while group := list(itertools.islice(looks, classifier.batch)):
            bad = [look for look in group if look.problem]
            if strict and bad:
                raise DatasetError(
                    f"{shown(bad[0].path)} cannot be classified. Expected a JPEG, PNG, BMP, still"
                    f" GIF or WebP image. Received {bad[0].problem}. Mend or leave out that file,"
                    " or leave out --strict to answer all others."
                )
            answers = _answered(classifier, group, top)
            done, unusable = done + len(group), unusable + len(bad)
            progress(done, total, unusable)
            yield from answers


def _answered(classifier: Classifier, group: Sequence[_Look], top: int) -> list[Prediction]:
    """Return the predictions of some files, in their order."""
    usable = [look.pixels for look in group if not look.problem]
    if not usable:
        return [Prediction(look.path, problem=look.problem) for look in group]
    logits = classifier.logits(np.stack(usable))
    answers = zip(classifier.guesses(logits, top), logits, strict=True)
    found = []
    for look in group:
        guesses, own = ((), None) if look.problem else next(answers)
        found.append(Prediction(look.path, tuple(guesses), own, look.problem))
    return found


def _looked_at(classifier: Classifier, paths: Iterator[str], threads: int) -> Generator[_Look]:
    """Yield files in order, read and decoded in threads.

    At most two batches, or two files a thread, are ahead.
    """
    heavy = threading.Lock()
    pool = ThreadPoolExecutor(threads, "predict")
    try:
        begun = (pool.submit(_look_at, classifier, path, heavy) for path in paths)
        waiting = deque(itertools.islice(begun, 2 * max(classifier.batch, threads)))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(itertools.islice(begun, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _look_at(classifier: Classifier, path: str, heavy: threading.Lock) -> _Look:
    """Read and decode a file; whatever is wrong with it is its own problem."""
    from pipeline.release.classify import UnusableError

    try:
        encoded = _read(path)
        with heavy if _is_heavy(encoded) else contextlib.nullcontext():
            return _Look(path, classifier.pixels(encoded), "")
    except UnusableError as error:
        return _Look(path, None, str(error))
    except OSError as error:
        return _Look(path, None, error.strerror or "cannot be read")


def _read(path: str) -> bytes:
    """Return the bytes of a file, as many as it says it has.

    Raises:
        UnusableError: it is no file, or too large.
        OSError: it cannot be read.
    """
    from pipeline.release.classify import UnusableError

    info = os.stat(path)  # noqa: PTH116 - a million Path objects take longer than the call
    if stat.S_ISDIR(info.st_mode):
        with os.scandir(
            path
        ):  # of one that was listed only because it cannot be read, this says why
            raise UnusableError("a folder, not a file")
    if not stat.S_ISREG(info.st_mode):  # opening a pipe would wait for ever
        raise UnusableError("not a file")
    if info.st_size > MAX_BYTES:
        raise UnusableError(f"{info.st_size:,} bytes are more than {MAX_BYTES:,}")
    with open(path, "rb") as file:  # noqa: PTH123 - see above
        return file.read(info.st_size)


def _is_heavy(encoded: bytes) -> bool:
    """Whether decoding a file takes so much memory that one is enough at a time."""
    from pipeline.data.headers import read_header_size

    try:
        height, width = read_header_size(encoded)
    except ValueError:  # no image at all, as its decoding will say
        return False
    return height * width > _HEAVY_PIXELS


# -- where it is written ---------------------------------------------------------------------------


def chosen_format(asked: str, output: Path | None, *, with_logits: bool = False) -> Format:
    """Return the format to write in, after a look at where it is to go.

    Nothing should be classified in vain.

    Args:
        asked: a format, or empty: what the suffix of `output` says, and a table where there is
            none.
        output: the file to write, or None for the terminal or a pipe.
        with_logits: whether every logit is to be written.

    Raises:
        ConfigError: there is no such format, it does not go there, or the file cannot be written
            there.
    """
    suffix = output.suffix.lower().removeprefix(".") if output else "table"
    found = next((name for name in get_args(Format) if name == (asked or suffix)), None)
    if found is None:
        raise ConfigError(
            "Nothing is known of the format"
            f" {shown(asked or suffix) or 'of a file without a suffix'}. Expected"
            f" {', '.join(get_args(Format))}. Check --format, or the suffix of --output."
        )
    if found == "parquet" and output is None:
        raise ConfigError(
            "Parquet needs a file. Expected --output with a name. Received none. Add --output"
            " predictions.parquet."
        )
    if with_logits and found in ("table", "csv"):
        raise ConfigError(
            f"Logits do not fit a {found}. Expected --format jsonl or parquet. Received {found}."
            " Choose one of these."
        )
    if output is not None:
        _require_place(output)
    return found


def _require_place(output: Path) -> None:
    """Refuse a file that could only be written by replacing something else, such as a folder or a device."""
    if output.is_dir() or (output.exists() and not output.is_file()):
        received = "a folder" if output.is_dir() else "a device or a pipe"
        raise ConfigError(
            f"{shown(output)} cannot be replaced. Expected the name of a file. Received {received}."
            " Check --output."
        )
    if not output.resolve().parent.is_dir():
        raise ConfigError(
            f"{shown(output)} cannot be written. Expected a folder that is there. Received"
            f" {shown(output.parent)}, which is not. Make it, or check --output."
        )


def write(
    predictions: Iterable[Prediction],
    kind: Format,
    output: Path | None,
    stream: TextIO,
    *,
    guesses: int,
    with_logits: bool = False,
) -> Summary:
    """Write predictions as they come, and return how many there were.

    Args:
        predictions: in the order in which they are written.
        kind: as `chosen_format` says.
        output: the file; complete in the end or, whatever ended the program, what it was before.
            None: `stream`.
        stream: where text goes that has no file of its own.
        guesses: the most that a prediction has: columns of a CSV file.
        with_logits: whether JSON lines and Parquet hold every logit.
    """
    counts: Counter[str] = Counter()
    examples: list[str] = []

    def counted() -> Iterator[Prediction]:
        for prediction in predictions:
            counts["done"] += 1
            if prediction.problem:
                counts["unusable"] += 1
                if len(examples) < _EXAMPLES:
                    examples.append(f"{shown(prediction.path)} ({prediction.problem})")
            yield prediction

    if output is None:
        _write_text(_lines(counted(), kind, guesses, with_logits), stream)
    else:
        with _replacing(output) as partial:
            if kind == "parquet":
                _write_parquet(counted(), partial, with_logits)
            else:
                with partial.open("w", encoding="utf-8", newline="") as file:
                    file.writelines(_lines(counted(), kind, guesses, with_logits))
    return Summary(counts["done"], counts["unusable"], tuple(examples))


@contextlib.contextmanager
def _replacing(output: Path) -> Iterator[Path]:
    """Give the name of a file to write beside another, and put it in that one's place when it is complete."""
    final = output.resolve()  # where a link leads, not the link
    partial = final.with_name(f".{final.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)


def _write_text(lines: Iterable[str], stream: TextIO) -> None:
    """Write lines at once, for whoever reads at the other end.

    What the terminal's encoding lacks is written by number.
    """
    encoding = getattr(stream, "encoding", None) or "utf-8"
    for line in lines:
        stream.write(line.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()


def _lines(
    predictions: Iterator[Prediction], kind: Format, guesses: int, with_logits: bool
) -> Iterator[str]:
    if kind == "csv":
        return _csv_lines(predictions, guesses)
    return _json_lines(predictions, with_logits) if kind == "jsonl" else _table_lines(predictions)


def _csv_lines(predictions: Iterator[Prediction], guesses: int) -> Iterator[str]:
    """Yield the records of a CSV file as RFC 4180 has it, the first with the names of the columns.

    A name that begins with `=`, `+`, `-` or `@` stays as it is, although a spreadsheet may take it
    for a formula: it must lead back to the file, and whoever reads the column with another program
    must not find another name.
    """
    columns = [
        name + (f"_{place}" if place > 1 else "")
        for place in range(1, guesses + 1)
        for name in ("class", "probability")
    ]
    yield _csv_record(["path", *columns, "error"])
    for item in predictions:
        cells = [
            cell
            for guess in item.guesses
            for cell in (guess.name, f"{guess.probability:.{_DECIMALS}f}")
        ]
        yield _csv_record(
            [to_printable(item.path), *cells, *[""] * (len(columns) - len(cells)), item.problem]
        )


def _csv_record(cells: Sequence[str]) -> str:
    record = io.StringIO(newline="")
    csv.writer(record).writerow(cells)
    return record.getvalue()


def _json_lines(predictions: Iterator[Prediction], with_logits: bool) -> Iterator[str]:
    """Yield one JSON object for each file, on a line of its own."""
    for item in predictions:
        top = [
            {
                "class": guess.name,
                "number": guess.number,
                "probability": round(guess.probability, _DECIMALS),
            }
            for guess in item.guesses
        ]
        found: dict[str, Any] = {
            "path": to_printable(item.path),
            "top": top,
            "error": item.problem or None,
        }
        if with_logits:
            found["logits"] = None if item.logits is None else item.logits.tolist()
        yield json.dumps(found, allow_nan=False) + "\n"


def _table_lines(predictions: Iterator[Prediction]) -> Iterator[str]:
    """Yield lines for a person; the first hundred files decide how wide the columns are, so that later ones need not be waited for."""
    from rich.cells import cell_len, set_cell_size

    first = [_table_row(item) for item in itertools.islice(predictions, _ROWS_MEASURED)]
    heading = ("path", "class", "probability", "then")
    widths = [max(cell_len(row[column]) for row in (heading, *first)) for column in range(3)]
    for row in itertools.chain((heading,), first, map(_table_row, predictions)):
        cells = [
            set_cell_size(cell, max(width, cell_len(cell)))
            for cell, width in zip(row[:3], widths, strict=True)
        ]
        yield f"{'  '.join(cells)}  {row[3]}".rstrip() + "\n"


def _table_row(item: Prediction) -> tuple[str, str, str, str]:
    """Return the cells of a line: path, class, probability, and the next guesses or the problem."""
    if item.problem:
        return shown(item.path), "", "", f"not classified: {item.problem}"
    first, *others = item.guesses
    then = ", ".join(f"{_on_one_line(guess.name)} {guess.probability:.2%}" for guess in others)
    return shown(item.path), _on_one_line(first.name), f"{first.probability:>7.2%}", then


def shown(path: Path | str) -> str:
    """Return a file's name for a terminal.

    Text that UTF-8 can hold, on one line, without the control characters that could command it.
    """
    return _on_one_line(to_printable(path))


def _on_one_line(text: str) -> str:
    return "".join(
        mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text
    )


def _write_parquet(predictions: Iterator[Prediction], path: Path, with_logits: bool) -> None:
    """Write a Parquet file with some thousand rows a group.

    Path, classes, probabilities, logits if asked for, error.

    Logits are lists of any length, although all have the same: pyarrow 25 cannot read lists of a
    fixed length of which some are missing.
    """
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {
        "path": pa.string(),
        "classes": pa.list_(pa.string()),
        "probabilities": pa.list_(pa.float64()),
    }
    kinds |= {"logits": pa.list_(pa.float32())} if with_logits else {}
    schema = pa.schema(kinds | {"error": pa.string()})
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while group := list(itertools.islice(predictions, _ROWS_TOGETHER)):
            writer.write_batch(pa.RecordBatch.from_pydict(_columns(group), schema=schema))


def _columns(group: Sequence[Prediction]) -> Mapping[str, list[Any]]:
    """Return the cells of a row group by column; those that the schema lacks are not written."""
    return {
        "path": [to_printable(item.path) for item in group],
        "classes": [[guess.name for guess in item.guesses] for item in group],
        "probabilities": [
            [round(guess.probability, _DECIMALS) for guess in item.guesses] for item in group
        ],
        "logits": [item.logits for item in group],
        "error": [item.problem or None for item in group],
    }
