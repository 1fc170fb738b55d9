"""Facts of an image file that its header gives, without decoding: format, size, orientation."""

from __future__ import annotations

from collections.abc import Iterator

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


# EXIF calls it tag 0x0112 (CIPA DC-008, 4.6.4 A); 1 is upright, from 5 on the image lies on its
# side.
_ORIENTATION_TAG = 0x0112


# Segments, blocks or chunks of a header that are looked at; cameras write some dozens, and a file
# made to keep us busy millions.
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
    """Return `jpeg`, `png`, `bmp`, `gif` or `webp` by the first bytes, or nothing for other files."""
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
    """Return (height, width) as an image's header says, before it is turned upright.

    Raises:
        ValueError: the bytes are no such file, or the header is cut off.
    """
    kind = detect_format(encoded)
    if not kind:
        raise ValueError("empty file" if not encoded else "not a JPEG, PNG, BMP, GIF or WebP file")
    if kind == "jpeg":
        return _jpeg_size(encoded)
    if kind == "webp":
        return _webp_size(encoded)
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
    """Refuse, by its header, a file that must not be decoded.

    Raises:
        ValueError: the reason.
    """
    if encoded and not detect_format(encoded):
        raise ValueError(_what_else(encoded))
    height, width = read_header_size(encoded)
    if height < 1 or width < 1:
        raise ValueError("no pixels")
    if max(height, width) > max_side:
        raise ValueError(f"a side of {max(height, width):,} pixels is longer than {max_side:,}")
    if height * width > max_pixels:
        raise ValueError(f"{width} x {height} pixels are more than {max_pixels:,}")
    if is_animated(encoded):
        raise ValueError("animated: more than one image")


def _what_else(encoded: bytes) -> str:
    """Name a file that is no image of ours."""
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


def _jpeg_size(encoded: bytes) -> tuple[int, int]:
    """Return (height, width) from a JPEG's frame header (ITU T.81, B.2.2)."""
    for marker, segment in _jpeg_segments(encoded):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(segment) >= 5:
            return int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
    raise ValueError("its JPEG header is damaged")


def _jpeg_segments(encoded: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (marker, content) of a JPEG's segments up to the first scan."""
    at = 2
    for _ in range(_MAX_PARTS):
        if at + 4 > len(encoded) or encoded[at] != 0xFF:
            return
        marker = encoded[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        length = int.from_bytes(encoded[at + 2 : at + 4], "big")
        yield marker, encoded[at + 4 : at + 2 + length]
        if marker == 0xDA or length < 2:
            return
        at += 2 + length


def _webp_size(encoded: bytes) -> tuple[int, int]:
    """Return (height, width) from a WebP's first chunk (Google's container specification; VP8 is RFC 6386, 9.1)."""
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
    """Say whether a GIF, PNG or WebP file holds more than one image."""
    kind = detect_format(encoded)
    if kind == "webp":
        return encoded[12:16] == b"VP8X" and len(encoded) > 20 and bool(encoded[20] & 2)
    if kind == "png":
        return any(name == b"acTL" for name, _ in _chunks(encoded, 8, "big"))
    return kind == "gif" and _gif_frames(encoded) > 1


def _gif_frames(encoded: bytes) -> int:
    """Return how many images a GIF holds, two for more, by walking over its blocks (GIF89a, 17-26)."""
    at = 13 + _palette_bytes(encoded[10:11])
    frames = 0
    for _ in range(_MAX_PARTS):
        if at >= len(encoded) or frames > 1:
            break
        block = encoded[at]
        if block == 0x2C:
            frames += 1
            at += 11 + _palette_bytes(encoded[at + 9 : at + 10])
        elif block == 0x21:
            at += 2
        else:
            break
        while at < len(encoded) and encoded[at]:
            at += 1 + encoded[at]
        at += 1
    return frames


def _palette_bytes(flags: bytes) -> int:
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _chunks(encoded: bytes, at: int, order: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield (name, content) of the chunks of a PNG (`big`) up to its pixels, or of a WebP (`little`)."""
    for _ in range(_MAX_PARTS):
        if at + 8 > len(encoded):
            return
        if order == "big":
            length, name = int.from_bytes(encoded[at : at + 4], "big"), encoded[at + 4 : at + 8]
            following = at + 12 + length
        else:
            length, name = int.from_bytes(encoded[at + 4 : at + 8], "little"), encoded[at : at + 4]
            following = at + 8 + length + length % 2
        if name == b"IDAT":
            return
        yield name, encoded[at + 8 : at + 8 + length]
        at = following


def read_orientation(encoded: bytes) -> int:
    """Return the EXIF orientation of a JPEG, PNG or WebP file, 1..8.

    1, upright, where it says none or nonsense.
    """
    kind = detect_format(encoded)
    found: Iterator[bytes] = iter(())
    if kind == "jpeg":
        found = (
            content[6:]
            for marker, content in _jpeg_segments(encoded)
            if marker == 0xE1 and content[:6] == b"Exif\0\0"
        )
    elif kind == "png":
        found = (content for name, content in _chunks(encoded, 8, "big") if name == b"eXIf")
    elif kind == "webp":
        found = (
            content.removeprefix(b"Exif\0\0")
            for name, content in _chunks(encoded, 12, "little")
            if name == b"EXIF"
        )
    return _tiff_orientation(next(found, b""))


def _tiff_orientation(exif: bytes) -> int:
    """Return the orientation from EXIF's first directory of tags (TIFF 6.0, section 2)."""
    if exif[:2] not in (b"II", b"MM"):
        return 1

    def number(at: int, length: int) -> int:
        return int.from_bytes(exif[at : at + length], "little" if exif[:2] == b"II" else "big")

    directory = number(4, 4)
    for entry in range(min(number(directory, 2), 1000)):
        at = directory + 2 + 12 * entry
        if number(at, 2) == _ORIENTATION_TAG:
            value = number(at + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1
