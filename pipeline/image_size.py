"""The height and width of images, as settings, records and sentences write them."""

from __future__ import annotations

import re
from typing import TypeAlias

# Height and width of images in pixels; one number where they are the same.
ImageSize: TypeAlias = int | tuple[int, int]

_WRITTEN = re.compile(r"\s*(\d+)(?:\s*[xX×]\s*(\d+))?\s*", re.ASCII)


def sides_of(size: ImageSize) -> tuple[int, int]:
    """Return the height and width of a size, in pixels."""
    return size if isinstance(size, tuple) else (size, size)


def make_image_size(height: int, width: int) -> ImageSize:
    """Return the size of images of this height and width: one number for a square."""
    return height if height == width else (height, width)


def read_image_size(value: object) -> ImageSize:
    """Return the size that a setting means: `224`, `224x160`, or a pair of numbers.

    Raises:
        ValueError: it is neither.
    """
    written = _WRITTEN.fullmatch(value) if isinstance(value, str) else None
    if written:
        height, width = written.groups()
        return make_image_size(int(height), int(width or height))
    sides = value if isinstance(value, tuple | list) else (value, value)
    if len(sides) == 2 and all(type(side) is int for side in sides):
        return make_image_size(*sides)
    raise ValueError("should be a number of pixels, or height x width such as 224x160")


def write_image_size(size: ImageSize) -> int | str:
    """Return a size as settings hold it: `224`, a number, or `224x160`."""
    return size if isinstance(size, int) else "x".join(map(str, size))


def describe_image_size(size: ImageSize) -> str:
    """Return a size in words: `224 x 160`."""
    return " x ".join(map(str, sides_of(size)))
