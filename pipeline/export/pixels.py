"""From an image file to the pixels that the network was trained on, with Pillow and NumPy alone.

A copy of this file is beside every ONNX and LiteRT export, for programs without TensorFlow. Its
pixels differ from those of training by half a level of 256 on average: the same square, halved by
libjpeg as often, sampled at the same points. Other resizing methods differ by several levels. CMYK
and 16-bit images differ from training.
"""

from collections.abc import Sequence
from os import PathLike
from typing import IO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

_ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
# Left, top, right and bottom of a part of an image, in pixels.
_Box: TypeAlias = tuple[int, int, int, int]


def read_pixels(
    file: str | PathLike[str] | IO[bytes],
    short_side: int,
    image_size: int | Sequence[int],
    fit: str = "crop",
) -> NDArray[np.uint8]:
    """Return the pixels of an image file, uint8 [1, height, width, 3] RGB in [0, 255].

    Args:
        file: a path, or a binary file.
        short_side: as the export's `short_side`.
        image_size: as the export's `image_size`, one number or height and width.
        fit: as the export's `fit`.
    """
    with Image.open(file) as stored:
        if fit == "pad":
            # The longer side of a padded image is 7/8 of its square, rounded.
            longer_side = (7 * short_side + 4) // 8
            image, box, sides = _find_whole(stored, longer_side)
            square = _pad_to_square(_resize(image, box, sides), short_side)
        else:
            image, box = _find_central_square(stored, short_side)
            square = np.asarray(_resize(image, box, (short_side, short_side)))
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    top, left = (short_side - height) // 2, (short_side - width) // 2
    return square[np.newaxis, top : top + height, left : left + width]


def _resize(image: Image.Image, box: _Box, sides: tuple[int, int]) -> Image.Image:
    """Return a part of an image with other sides: width and height."""
    if max(box[2] - box[0], box[3] - box[1]) >= 2 * max(sides):
        return image.resize(sides, Image.Resampling.BILINEAR, box)
    # Sampled without the filter that Pillow's resize would apply.
    return image.transform(sides, Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)


def _find_central_square(stored: Image.Image, short_side: int) -> tuple[Image.Image, _Box]:
    """Return an upright image in three colors, and its central square."""
    image, (width, height), ratio = _open_upright(stored, (short_side, short_side))
    side = min(width, height)
    # Cropped in the file's pixels and divided afterwards: a shift of half a pixel would show.
    left, top, side = (width - side) // 2 // ratio, (height - side) // 2 // ratio, side // ratio
    return image, (left, top, left + side, top + side)


def _find_whole(stored: Image.Image, longer_side: int) -> tuple[Image.Image, _Box, tuple[int, int]]:
    """Return an upright image in three colors, all of it, and the sides that it is resized to."""
    wide = stored.width >= stored.height
    wanted = (longer_side, 1) if wide else (1, longer_side)
    image, (width, height), ratio = _open_upright(stored, wanted)
    longer = max(width, height)
    sides = [max(1, (2 * side * longer_side + longer) // (2 * longer)) for side in (width, height)]
    box = (0, 0, max(1, width // ratio), max(1, height // ratio))
    return image, box, (sides[0], sides[1])


def _open_upright(
    stored: Image.Image, wanted: tuple[int, int]
) -> tuple[Image.Image, tuple[int, int], int]:
    """Return an upright image in three colors, the file's width and height, and their ratio to it.

    A JPEG that is twice, four or eight times as large as wanted is decoded smaller.
    """
    (width, height), ratio, image = stored.size, 1, stored
    if stored.getexif().get(_ORIENTATION, 1) == 1:
        stored.draft("RGB", wanted)
        ratio = round(max(width, height) / max(stored.size))
    else:
        image = ImageOps.exif_transpose(stored)
        width, height = image.size
    return _flatten_on_white(image), (width, height), ratio


def _pad_to_square(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """Return an image in the middle of a square of the mean color of its four edges."""
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).astype(np.int64)
    height, width = pixels.shape[:2]
    square = np.empty((side, side, 3), np.uint8)
    square[:] = (2 * border.sum(axis=0) + len(border)) // (2 * len(border))
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square


def _flatten_on_white(image: Image.Image) -> Image.Image:
    """Return an image in three colors, with white behind its transparent pixels."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    color = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", color.size, "white"), color).convert("RGB")
