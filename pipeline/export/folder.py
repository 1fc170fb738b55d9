"""The folder of an export: published complete, or not at all."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.export.record import FORMATS, PARITY_FILE
from pipeline.files import publish_folder, write_text


@contextlib.contextmanager
def writing_export(folder: Path, format_name: str) -> Iterator[Path]:
    """Yield a folder to write into, which is published as `folder` if nothing fails.

    An earlier export there is replaced only then.

    Raises:
        ConfigError: the path holds anything but an export, or cannot be written.
    """
    partial, old = (folder.with_name(f"{folder.name}.{suffix}") for suffix in ("partial", "old"))
    for path in (folder, partial, old):
        _require_export_or_free(path)
    try:
        if old.exists() and not folder.exists():
            old.rename(folder)  # a process was killed between the two renames of publish_folder
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror})",
            expected="a path in a folder of your own",
            hint="Name another with --output",
        ) from error
    try:
        # Marks the folder as an export, so that the next one may remove it.
        write_text(partial / PARITY_FILE, json.dumps({"format": format_name}))
        yield partial
        publish_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _require_export_or_free(path: Path) -> None:
    """Raise a ConfigError if a path holds anything but an export, complete or begun, or nothing."""
    if not path.exists():
        return
    if path.is_dir():
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if (
                not any(path.iterdir())
                or json.loads((path / PARITY_FILE).read_text(encoding="utf-8")).get("format")
                in FORMATS
            ):
                return
    raise ConfigError(
        f"{path} exists already, and is not an export",
        expected="a new folder, or an earlier export",
        hint="Name another with --output",
    )
