"""Predictions as a table for the terminal, CSV, JSON lines or a Parquet file.

They are written as they come. Probabilities are written with five decimals, the last of which may
differ by one with another batch size, in one of 300 where it was measured; logits are written as
they are.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, get_args

from pipeline.data.names import to_printable
from pipeline.errors import ConfigError
from pipeline.files import writing
from pipeline.release.image_paths import format_on_one_line, format_path

if TYPE_CHECKING:
    from pipeline.release.predict import Prediction

PredictionFormat = Literal["table", "csv", "jsonl", "parquet"]
_DECIMALS = 5
_MAX_EXAMPLES = 5
_ROWS_TOGETHER = 4096  # of Parquet: with 1000 logits a row, 16 MB
_ROWS_MEASURED = 100  # of the table, for the widths of its columns


@dataclass(frozen=True)
class PredictionSummary:
    """Counts of predicted files.

    Attributes:
        done: all files.
        unusable: those that could not be classified.
        examples: the first of these, with the reasons.
    """

    done: int
    unusable: int
    examples: tuple[str, ...]

    @property
    def warning(self) -> str:
        """A sentence on the files that could not be classified; empty where all could."""
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
            " others are answered; repair or leave out these."
        )


def choose_format(name: str, output: Path | None, *, with_logits: bool = False) -> PredictionFormat:
    """Return the format to write in, and check the output before anything is classified.

    Args:
        name: a format. Empty: that of the suffix of `output`, and a table without an output.
        output: the file to write, or None for the terminal or a pipe.
        with_logits: whether every logit is to be written.

    Raises:
        ConfigError: the format is unknown or cannot be written there, or the file cannot.
    """
    suffix = output.suffix.lower().removeprefix(".") if output else "table"
    found = next((known for known in get_args(PredictionFormat) if known == (name or suffix)), None)
    if found is None:
        raise ConfigError(
            f"Unknown format '{format_path(name or suffix)}'"
            if name or suffix
            else "The file has no suffix to choose the format by",
            expected=", ".join(get_args(PredictionFormat)),
            hint="Check --format, or the suffix of --output",
        )
    if found == "parquet" and output is None:
        raise ConfigError(
            "Parquet needs a file",
            expected="--output with a name",
            received="none",
            hint="Add --output predictions.parquet",
        )
    if with_logits and found in ("table", "csv"):
        raise ConfigError(
            f"Logits cannot be written as {found}",
            expected="--format jsonl or parquet",
            received=found,
            hint="Choose one of these",
        )
    if output is not None:
        _require_writable(output)
    return found


def _require_writable(output: Path) -> None:
    """Refuse an output that exists and is not a file, or whose folder does not exist."""
    if output.is_dir() or (output.exists() and not output.is_file()):
        received = "a folder" if output.is_dir() else "a device or a pipe"
        raise ConfigError(
            f"{format_path(output)} cannot be replaced",
            expected="the name of a file",
            received=received,
            hint="Check --output",
        )
    if not output.resolve().parent.is_dir():
        raise ConfigError(
            f"{format_path(output)} cannot be written",
            expected="an existing folder",
            received=f"{format_path(output.parent)}, which does not exist",
            hint="Make it, or check --output",
        )


def write_prediction_output(
    predictions: Iterable[Prediction],
    kind: PredictionFormat,
    output: Path | None,
    stream: TextIO,
    *,
    guesses: int,
    with_logits: bool = False,
) -> PredictionSummary:
    """Write predictions as they come, and return how many there were.

    Args:
        predictions: in the order in which they are written.
        kind: as `choose_format` returns it.
        output: the file; complete at the end or, whatever ended the program, what it was before.
            None: `stream`.
        stream: where text is written without an output.
        guesses: the largest number of guesses of a prediction, for the columns of a CSV file.
        with_logits: whether JSON lines and Parquet hold every logit.
    """
    counts: Counter[str] = Counter()
    examples: list[str] = []

    def count_predictions() -> Iterator[Prediction]:
        for prediction in predictions:
            counts["done"] += 1
            if prediction.problem:
                counts["unusable"] += 1
                if len(examples) < _MAX_EXAMPLES:
                    examples.append(f"{format_path(prediction.path)} ({prediction.problem})")
            yield prediction

    if output is None:
        _write_lines(_make_lines(count_predictions(), kind, guesses, with_logits), stream)
    else:
        with writing(output.resolve()) as partial:  # where a link leads, not the link
            if kind == "parquet":
                _write_parquet(count_predictions(), partial, with_logits)
            else:
                with partial.open("w", encoding="utf-8", newline="") as file:
                    file.writelines(_make_lines(count_predictions(), kind, guesses, with_logits))
    return PredictionSummary(counts["done"], counts["unusable"], tuple(examples))


def _write_lines(lines: Iterable[str], stream: TextIO) -> None:
    """Write lines and flush each, so that a reader of a pipe gets it at once.

    A character that the terminal's encoding lacks is written as its code.
    """
    encoding = getattr(stream, "encoding", None) or "utf-8"
    for line in lines:
        stream.write(line.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()


def _make_lines(
    predictions: Iterator[Prediction], kind: PredictionFormat, guesses: int, with_logits: bool
) -> Iterator[str]:
    if kind == "csv":
        return _make_csv_lines(predictions, guesses)
    return (
        _make_json_lines(predictions, with_logits)
        if kind == "jsonl"
        else _make_table_lines(predictions)
    )


def _make_csv_lines(predictions: Iterator[Prediction], guesses: int) -> Iterator[str]:
    """Yield the records of a CSV file as RFC 4180 has it, the first with the names of the columns.

    A name that begins with `=`, `+`, `-` or `@` stays as it is, although a spreadsheet may read it
    as a formula: another program must find the file by it.
    """
    columns = [
        name + (f"_{rank}" if rank > 1 else "")
        for rank in range(1, guesses + 1)
        for name in ("class", "probability")
    ]
    yield _format_csv_record(["path", *columns, "error"])
    for item in predictions:
        cells = [
            cell
            for guess in item.guesses
            for cell in (guess.name, f"{guess.probability:.{_DECIMALS}f}")
        ]
        yield _format_csv_record(
            [to_printable(item.path), *cells, *[""] * (len(columns) - len(cells)), item.problem]
        )


def _format_csv_record(cells: Sequence[str]) -> str:
    record = io.StringIO(newline="")
    csv.writer(record).writerow(cells)
    return record.getvalue()


def _make_json_lines(predictions: Iterator[Prediction], with_logits: bool) -> Iterator[str]:
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


def _make_table_lines(predictions: Iterator[Prediction]) -> Iterator[str]:
    """Yield the lines of a table; the first hundred files decide the widths of its columns."""
    from rich.cells import cell_len, set_cell_size

    first = [_format_table_row(item) for item in itertools.islice(predictions, _ROWS_MEASURED)]
    heading = ("path", "class", "probability", "then")
    widths = [max(cell_len(row[column]) for row in (heading, *first)) for column in range(3)]
    for row in itertools.chain((heading,), first, map(_format_table_row, predictions)):
        cells = [
            set_cell_size(cell, max(width, cell_len(cell)))
            for cell, width in zip(row[:3], widths, strict=True)
        ]
        yield f"{'  '.join(cells)}  {row[3]}".rstrip() + "\n"


def _format_table_row(item: Prediction) -> tuple[str, str, str, str]:
    """Return the cells of a line: path, class, probability, and the next guesses or the problem."""
    if item.problem:
        return format_path(item.path), "", "", f"not classified: {item.problem}"
    first, *others = item.guesses
    then = ", ".join(
        f"{format_on_one_line(guess.name)} {guess.probability:.2%}" for guess in others
    )
    return (
        format_path(item.path),
        format_on_one_line(first.name),
        f"{first.probability:>7.2%}",
        then,
    )


def _write_parquet(predictions: Iterator[Prediction], path: Path, with_logits: bool) -> None:
    """Write a Parquet file: path, classes, probabilities, logits if requested, error.

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
            writer.write_batch(pa.RecordBatch.from_pydict(_make_columns(group), schema=schema))


def _make_columns(group: Sequence[Prediction]) -> Mapping[str, list[Any]]:
    """Return the cells of a row group by column; columns that the schema lacks are not written."""
    return {
        "path": [to_printable(item.path) for item in group],
        "classes": [[guess.name for guess in item.guesses] for item in group],
        "probabilities": [
            [round(guess.probability, _DECIMALS) for guess in item.guesses] for item in group
        ],
        "logits": [item.logits for item in group],
        "error": [item.problem or None for item in group],
    }
