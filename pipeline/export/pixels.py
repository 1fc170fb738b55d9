"""From an image file to the pixels that the network was trained on, with Pillow and NumPy alone.

A copy of this file is beside every ONNX and LiteRT export, for programs without TensorFlow. Its
pixels differ from those of training by half a level of 256 on average: the same square, halved by
libjpeg as often, sampled at the same points. Other resizing methods differ by several levels. CMYK
and 16-bit images differ from training.
"""

from collections.abc import Sequence
from os import PathLike
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

_ORIENTATION = 0x0112  # EXIF's tag; 1 is upright


def read_pixels(
    file: str | PathLike[str] | IO[bytes], short_side: int, image_size: int | Sequence[int]
) -> NDArray[np.uint8]:
    """Return the pixels of an image file, uint8 [1, height, width, 3] RGB in [0, 255].

    Args:
        file: a path, or a binary file.
        short_side: as the export's `short_side`.
        image_size: as the export's `image_size`, one number or height and width.
    """
    with Image.open(file) as stored:
        image, box = _find_central_square(stored, short_side)
    square = (short_side, short_side)
    if box[2] - box[0] >= 2 * short_side:
        image = image.resize(square, Image.Resampling.BILINEAR, box)
    else:  # sampled without the filter that Pillow's resize would apply
        image = image.transform(square, Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    top, left = (short_side - height) // 2, (short_side - width) // 2
    return np.asarray(image)[np.newaxis, top : top + height, left : left + width]


def _find_central_square(
    stored: Image.Image, short_side: int
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Return an upright image in three colors, and its central square.

    The square is left, top, right and bottom in pixels.
    """
    (width, height), ratio, image = stored.size, 1, stored
    if stored.getexif().get(_ORIENTATION, 1) == 1:
        # A JPEG that is twice, four or eight times as large is decoded smaller.
        stored.draft("RGB", (short_side, short_side))
        ratio = round(width / stored.width)
    else:
        image = ImageOps.exif_transpose(stored)
        width, height = image.size
    side = min(width, height)
    # Cropped in the file's pixels and divided afterwards: a shift of half a pixel would show.
    left, top, side = (width - side) // 2 // ratio, (height - side) // 2 // ratio, side // ratio
    return _flatten_on_white(image), (left, top, left + side, top + side)


def _flatten_on_white(image: Image.Image) -> Image.Image:
    """Return an image in three colors, with white behind its transparent pixels."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    color = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", color.size, "white"), color).convert("RGB")
