"""Names of files and classes as text, and their natural order."""

from __future__ import annotations

import os
import re
from pathlib import Path


def to_printable(path: Path | str) -> str:
    """Return a file's name as text that UTF-8 can hold; other bytes in hexadecimal."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def natural_sort_key(name: str) -> tuple[list[str | int], str]:
    """Return a sort key that puts `2` before `10`."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if index % 2 else part.casefold() for index, part in enumerate(parts)], name
