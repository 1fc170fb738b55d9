"""Facts of an image file that its header gives, without decoding: format, size, orientation."""

from __future__ import annotations

from collections.abc import Iterator

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


# EXIF's tag (CIPA DC-008, 4.6.4 A); 1 is upright, from 5 on the image lies on its side.
_ORIENTATION_TAG = 0x0112


# Segments, blocks or chunks of a header that are read; cameras write some dozens, and a malicious
# file millions.
_MAX_PARTS = 10_000


_OTHER_FORMATS = {
    b"II*\0": "a TIFF file",
    b"MM\0*": "a TIFF file",
    b"%PDF": "a PDF file",
    b"PK\3\4": "a ZIP archive",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 file",
    b"\xff\x4f\xff\x51": "a JPEG 2000 file",
    b"\0\0\1\0": "an icon",
    b"8BPS": "a Photoshop file",
    b"\x1f\x8b": "a gzip archive",
}


def detect_format(encoded: bytes) -> str:
    """Return `jpeg`, `png`, `bmp`, `gif` or `webp` by the first bytes, or an empty text."""
    starts = {
        b"\xff\xd8\xff": "jpeg",
        PNG_SIGNATURE: "png",
        b"BM": "bmp",
        b"GIF87a": "gif",
        b"GIF89a": "gif",
    }
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return "webp"
    return next((name for start, name in starts.items() if encoded.startswith(start)), "")


def read_header_size(encoded: bytes) -> tuple[int, int]:
    """Return (height, width) of an image's header, before it is turned upright.

    Raises:
        ValueError: the bytes are not such a file, or the header is cut off.
    """
    kind = detect_format(encoded)
    if not kind:
        raise ValueError("empty file" if not encoded else "not a JPEG, PNG, BMP, GIF or WebP file")
    if kind == "jpeg":
        return _read_jpeg_size(encoded)
    if kind == "webp":
        return _read_webp_size(encoded)
    if len(encoded) < 26:
        raise ValueError(f"its {kind.upper()} header is cut off")
    if kind == "png":
        return int.from_bytes(encoded[20:24], "big"), int.from_bytes(encoded[16:20], "big")
    if kind == "gif":
        return int.from_bytes(encoded[8:10], "little"), int.from_bytes(encoded[6:8], "little")
    return abs(int.from_bytes(encoded[22:26], "little", signed=True)), int.from_bytes(
        encoded[18:22], "little", signed=True
    )


def require_decodable(encoded: bytes, *, max_side: int, max_pixels: int) -> None:
    """Raise a ValueError with the reason if a file must not be decoded, by its header."""
    if encoded and not detect_format(encoded):
        raise ValueError(_name_other_format(encoded))
    height, width = read_header_size(encoded)
    if height < 1 or width < 1:
        raise ValueError("no pixels")
    if max(height, width) > max_side:
        raise ValueError(f"a side of {max(height, width):,} pixels is longer than {max_side:,}")
    if height * width > max_pixels:
        raise ValueError(f"{width} x {height} pixels are more than {max_pixels:,}")
    if is_animated(encoded):
        raise ValueError("animated: more than one image")


def _name_other_format(encoded: bytes) -> str:
    """Return what a file is that is not an accepted image."""
    for start, name in _OTHER_FORMATS.items():
        if encoded.startswith(start):
            return f"{name}, not a JPEG, PNG, BMP, GIF or WebP file"
    if encoded[4:8] == b"ftyp":
        return "an AVIF or HEIF file, not a JPEG, PNG, BMP, GIF or WebP file"
    text = encoded[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<html" in text or b"<!doctype html" in text:
        return "an HTML page, not an image"
    if b"<svg" in text or text.startswith(b"<?xml"):
        return "an SVG or XML file, not a JPEG, PNG, BMP, GIF or WebP file"
    if text and not text.translate(None, bytes(range(32, 127)) + b"\t\r\n"):
        return "text, not an image"
    return "not a JPEG, PNG, BMP, GIF or WebP file"


def _read_jpeg_size(encoded: bytes) -> tuple[int, int]:
    """Return (height, width) from a JPEG's frame header (ITU T.81, B.2.2)."""
    for marker, segment in _iterate_jpeg_segments(encoded):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(segment) >= 5:
            return int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
    raise ValueError("its JPEG header is damaged")


def _iterate_jpeg_segments(encoded: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (marker, content) of a JPEG's segments up to the first scan."""
    offset = 2
    for _ in range(_MAX_PARTS):
        if offset + 4 > len(encoded) or encoded[offset] != 0xFF:
            return
        marker = encoded[offset + 1]
        if marker == 0xFF:  # a fill byte
            offset += 1
            continue
        length = int.from_bytes(encoded[offset + 2 : offset + 4], "big")
        yield marker, encoded[offset + 4 : offset + 2 + length]
        if marker == 0xDA or length < 2:
            return
        offset += 2 + length


def _read_webp_size(encoded: bytes) -> tuple[int, int]:
    """Return (height, width) from a WebP's first chunk.

    Google's container specification; VP8 is RFC 6386, 9.1.
    """
    kind, content = encoded[12:16], encoded[20:30]
    if len(content) == 10:
        if kind == b"VP8X":
            return (
                int.from_bytes(content[7:10], "little") + 1,
                int.from_bytes(content[4:7], "little") + 1,
            )
        if kind == b"VP8L":
            bits = int.from_bytes(content[1:5], "little")
            return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
        if kind == b"VP8 ":
            return (
                int.from_bytes(content[8:10], "little") & 0x3FFF,
                int.from_bytes(content[6:8], "little") & 0x3FFF,
            )
    raise ValueError("its WebP header is damaged")


def is_animated(encoded: bytes) -> bool:
    """Return whether a GIF, PNG or WebP file holds more than one image."""
    kind = detect_format(encoded)
    if kind == "webp":
        return encoded[12:16] == b"VP8X" and len(encoded) > 20 and bool(encoded[20] & 2)
    if kind == "png":
        return any(name == b"acTL" for name, _ in _iterate_chunks(encoded, 8, "big"))
    return kind == "gif" and _count_gif_frames(encoded) > 1


def _count_gif_frames(encoded: bytes) -> int:
    """Return the number of images of a GIF, at most two, from its blocks (GIF89a, 17-26)."""
    offset = 13 + _measure_palette(encoded[10:11])
    frames = 0
    for _ in range(_MAX_PARTS):
        if offset >= len(encoded) or frames > 1:
            break
        block = encoded[offset]
        if block == 0x2C:
            frames += 1
            offset += 11 + _measure_palette(encoded[offset + 9 : offset + 10])
        elif block == 0x21:
            offset += 2
        else:
            break
        while offset < len(encoded) and encoded[offset]:
            offset += 1 + encoded[offset]
        offset += 1
    return frames


def _measure_palette(flags: bytes) -> int:
    """Return the bytes of the color table that a block's flags announce."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _iterate_chunks(encoded: bytes, offset: int, order: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield (name, content) of the chunks of a PNG (`big`) up to its pixels, or WebP (`little`)."""
    for _ in range(_MAX_PARTS):
        if offset + 8 > len(encoded):
            return
        if order == "big":
            length, name = (
                int.from_bytes(encoded[offset : offset + 4], "big"),
                encoded[offset + 4 : offset + 8],
            )
            following = offset + 12 + length
        else:
            length, name = (
                int.from_bytes(encoded[offset + 4 : offset + 8], "little"),
                encoded[offset : offset + 4],
            )
            following = offset + 8 + length + length % 2
        if name == b"IDAT":
            return
        yield name, encoded[offset + 8 : offset + 8 + length]
        offset = following


def read_orientation(encoded: bytes) -> int:
    """Return the EXIF orientation of a JPEG, PNG or WebP file, 1..8.

    1, upright, where it is missing or nonsense.
    """
    kind = detect_format(encoded)
    found: Iterator[bytes] = iter(())
    if kind == "jpeg":
        found = (
            content[6:]
            for marker, content in _iterate_jpeg_segments(encoded)
            if marker == 0xE1 and content[:6] == b"Exif\0\0"
        )
    elif kind == "png":
        found = (content for name, content in _iterate_chunks(encoded, 8, "big") if name == b"eXIf")
    elif kind == "webp":
        found = (
            content.removeprefix(b"Exif\0\0")
            for name, content in _iterate_chunks(encoded, 12, "little")
            if name == b"EXIF"
        )
    return _read_tiff_orientation(next(found, b""))


def _read_tiff_orientation(exif: bytes) -> int:
    """Return the orientation from EXIF's first directory of tags (TIFF 6.0, section 2)."""
    if exif[:2] not in (b"II", b"MM"):
        return 1

    def number(offset: int, length: int) -> int:
        return int.from_bytes(
            exif[offset : offset + length], "little" if exif[:2] == b"II" else "big"
        )

    directory = number(4, 4)
    for entry in range(min(number(directory, 2), 1000)):
        offset = directory + 2 + 12 * entry
        if number(offset, 2) == _ORIENTATION_TAG:
            value = number(offset + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1
