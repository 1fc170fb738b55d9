"""Odd and broken image files, each with the verdict that the audit must give: nothing where it is
accepted, else words of the reason."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)
PIXELS = np.kron(RNG.integers(0, 256, (6, 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8))  # 48 x 64


def saved(kind, mode="RGB", **how):
    """Return the bytes of an image as Pillow writes them."""
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, kind, **how)
    return file.getvalue()


def oriented(kind, number):
    exif = Image.Exif()
    exif[0x0112] = number
    return saved(kind, exif=exif)


def animated(kind):
    frames = [Image.fromarray(np.roll(PIXELS, shift * 9, 1)) for shift in range(3)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


def sixteen_bits():
    file = io.BytesIO()
    Image.fromarray((PIXELS[:, :, 0].astype(np.uint16) << 8) + 77).save(file, "PNG")
    return file.getvalue()


def png(width, height, rows=b"", color_type=2):
    """Return a PNG with any header."""

    def chunk(name, content):
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def transparent():
    """Return uint8 [48, 64, 4] of every opacity."""
    return np.dstack([PIXELS, np.arange(48 * 64).reshape(48, 64) % 256]).astype(np.uint8)


def with_alpha(kind, **how):
    file = io.BytesIO()
    Image.fromarray(transparent()).save(file, kind, **how)
    return file.getvalue()


JPEG, PNG, BMP, GIF, WEBP = (
    saved("JPEG", quality=90),
    saved("PNG"),
    saved("BMP"),
    saved("GIF"),
    saved("WEBP", lossless=True),
)


def flipped(data, at):
    changed = bytearray(data)
    changed[at] ^= 0xFF
    return bytes(changed)


CORPUS = {
    "plain.jpg": (JPEG, ""),
    "plain.png": (PNG, ""),
    "plain.bmp": (BMP, ""),
    "still.gif": (GIF, ""),
    "plain.webp": (WEBP, ""),
    "lossy.webp": (saved("WEBP", quality=80), ""),
    "gray.jpg": (saved("JPEG", "L"), ""),
    "gray.png": (saved("PNG", "L"), ""),
    "gray.bmp": (saved("BMP", "L"), ""),
    "black_and_white.png": (saved("PNG", "1"), ""),
    "sixteen_bits.png": (sixteen_bits(), ""),
    "cmyk.jpg": (saved("JPEG", "CMYK"), ""),
    "progressive.jpg": (saved("JPEG", progressive=True), ""),
    "palette.png": (saved("PNG", "P"), ""),
    "alpha.png": (with_alpha("PNG"), ""),
    "gray_alpha.png": (saved("PNG", "LA"), ""),
    "alpha.webp": (with_alpha("WEBP", lossless=True), ""),
    "alpha.bmp": (saved("BMP", "RGBA"), ""),
    "turned.jpg": (oriented("JPEG", 6), ""),
    "turned.png": (oriented("PNG", 3), ""),
    "turned.webp": (oriented("WEBP", 8), ""),
    "nonsense_orientation.jpg": (oriented("JPEG", 9), ""),
    "renamed_png.jpg": (PNG, ""),
    "renamed_jpeg.gif": (JPEG, ""),
    "bytes_after_the_end.jpg": (JPEG + b"hello" * 100, ""),
    "one_pixel.png": (png(1, 1, b"\0abc"), ""),
    "long.png": (png(3000, 1, b"\0" + b"abc" * 3000), ""),
    "empty.jpg": (b"", "empty file"),
    "one_byte.jpg": (b"\xff", "not a JPEG"),
    "only_magic.jpg": (b"\xff\xd8\xff", "header is damaged"),
    "only_magic.png": (b"\x89PNG\r\n\x1a\n", "header is cut off"),
    "only_magic.gif": (b"GIF89a", "header is cut off"),
    "only_magic.webp": (b"RIFF\x10\0\0\0WEBPVP8 ", "header is damaged"),
    "text.jpg": (b"not an image\n", "text, not an image"),
    "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
    "drawing.svg": (
        b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
        "an SVG or XML file",
    ),
    "drawing.png": (b"<svg/>", "an SVG or XML file"),
    "scan.tif": (saved("TIFF"), "a TIFF file"),
    "photo.avif": (b"\0\0\0\x1cftypavif" + bytes(16), "an AVIF or HEIF file"),
    "photo.jp2": (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 file"),
    "icon.ico": (saved("ICO"), "an icon"),
    "paper.jpg": (b"%PDF-1.7\n", "a PDF file"),
    "archive.jpg": (b"PK\x03\x04" + bytes(26), "a ZIP archive"),
    "map.ppm": (saved("PPM"), "not a JPEG"),
    "zeros.jpg": (bytes(5000), "not a JPEG"),
    "animated.gif": (animated("GIF"), "animated"),
    "animated.png": (animated("PNG"), "animated"),
    "animated.webp": (animated("WEBP"), "animated"),
    "cut.jpg": (JPEG[: len(JPEG) // 2], "jpeg"),
    "cut_at_the_end.jpg": (JPEG[:-40], "jpeg"),
    "cut.png": (PNG[: len(PNG) // 2], "PNG"),
    "cut.bmp": (BMP[: len(BMP) // 2], "Input size should match"),
    "cut.gif": (GIF[: len(GIF) // 2], "Invalid GIF data"),
    "cut.webp": (WEBP[: len(WEBP) // 2], "WebP"),
    "damaged_header.jpg": (flipped(JPEG, 20), "header is damaged"),
    "damaged_checksum.png": (flipped(PNG, len(PNG) // 2), "PNG"),
    "no_pixels.png": (png(0, 10), "no pixels"),
    "bomb.png": (png(17_000, 17_000), "17000 x 17000 pixels are more than"),
    "wide_bomb.png": (png(70_000, 1), "a side of 70,000 pixels"),
}
