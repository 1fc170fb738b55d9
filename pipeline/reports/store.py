"""What a page is drawn from: numbers in one JSON file, arrays in one .npz, beside a stage's record.

From what was measured and stored, pages are drawn again in seconds, with other words and colors.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import CheckpointError
from pipeline.files import write_text, writing

if TYPE_CHECKING:
    from pipeline.arrays import Array

VALUES_FILE = "report_data.json"
ARRAYS_FILE = "report_data.npz"


def write_report_data(
    directory: Path, values: Mapping[str, Any], arrays: Mapping[str, Array] | None = None
) -> None:
    """Store what the pages of a stage are drawn from.

    Args:
        directory: the stage's folder.
        values: what JSON can hold.
        arrays: name -> any shape and dtype but objects.
    """
    import numpy as np

    write_text(directory / VALUES_FILE, json.dumps(values, indent=1))
    with (
        writing(directory / ARRAYS_FILE) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name, array in (arrays or {}).items():
            # Without a date in it, equal arrays make equal bytes.
            with archive.open(_entry(name), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


def read_report_data(directory: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return what `write_report_data` stored in a stage's folder.

    Raises:
        CheckpointError: the files are missing or damaged.
    """
    import numpy as np

    try:
        values = json.loads((directory / VALUES_FILE).read_text(encoding="utf-8"))
        with (
            (directory / ARRAYS_FILE).open("rb") as file,
            np.load(file, allow_pickle=False) as stored,
        ):
            arrays = {name: stored[name] for name in stored.files}
    # What NumPy and zipfile raise for a damaged file is not one family of errors.
    except Exception as error:
        raise CheckpointError(
            f"The report data in {directory} cannot be read ({error})",
            expected=f"{VALUES_FILE} and {ARRAYS_FILE}",
            hint=f"Type the same command with --rerun {directory.name.partition('-')[0]}",
        ) from error
    return values, arrays


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(f"{name}.npy")  # dated 1980, the earliest that the format knows
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry
