"""Checks of a picture's file that Pillow does not make: whether it is whole, and not too much work to decode."""

import re
import struct
from collections.abc import Iterator

from imagetext import limits


def check_whole(format: str, data: bytes) -> None:
    """Raise ValueError for a truncated picture and for a JPEG with too many scans.

    Pillow accepts truncated pictures if the pixels of the first frame are complete.
    """
    try:
        if format == "JPEG":
            is_whole = True
            if data.count(b"\xff\xda") > limits.SCANS and (scans := _jpeg_scans(data)) > limits.SCANS:
                raise ValueError(
                    f"JPEG picture of {scans:,} scans, more than {limits.SCANS}: each takes time to decode"
                )
        elif format == "PNG":
            is_whole = _png_end(data) <= len(data)
        elif format == "GIF":
            is_whole = _gif_end(data) <= len(data)
        else:
            is_whole = format != "JPEG2000" or b"\xff\xd9" in data
    except (struct.error, IndexError):
        is_whole = False
    if not is_whole:
        raise ValueError(f"{format} picture is truncated: no end mark in {len(data)} bytes")


def _jpeg_scans(data: bytes) -> int:
    """The number of scans before the end of the first picture (ITU-T T.81, B.1.1)."""
    scans, position = 0, 2
    while (marker := re.compile(rb"\xff[^\0\xff\xd0-\xd7]").search(data, position)) and marker[0] != b"\xff\xd9":
        scans += marker[0] == b"\xff\xda"
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return scans


def _png_chunks(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield start, end and kind of each chunk up to IEND (PNG specification, 5.3); struct.error if the data end."""
    start, kind, count = 8, b"", 0
    while kind != b"IEND":
        if (count := count + 1) > limits.CHUNKS:
            raise ValueError(f"PNG picture of more than {limits.CHUNKS:,} chunks")
        (length,), kind = struct.unpack_from(">I", data, start), data[start + 4 : start + 8]
        yield start, (start := start + 12 + length), kind


def _png_end(data: bytes) -> int:
    """Offset of the end of the IEND chunk, which may be behind the end of the data (PNG specification, 11.2.5)."""
    return max(end for _, end, _ in _png_chunks(data))


def without_texts(png: bytes) -> bytes:
    """The PNG without its text and profile chunks, except texts that may hold the orientation.

    Pillow unpacks these chunks, and refuses the whole picture if they are large.
    """
    try:
        texts = [
            (start, end)
            for start, end, kind in _png_chunks(png)
            if kind in (b"iCCP", b"tEXt", b"zTXt", b"iTXt")
            and not png.startswith((b"XML:com.adobe.xmp\0", b"Raw profile type exif\0"), start + 8)
        ]
    except struct.error:  # the file is cut; Pillow raises an error for it
        return png
    edges = [0, *(edge for text in texts for edge in text), len(png)]
    return b"".join(png[start:end] for start, end in zip(edges[::2], edges[1::2])) if texts else png


def _gif_end(data: bytes) -> int:
    """Offset of the end of the trailer (GIF89a specification, 27)."""

    def colour_table_size(flags: int) -> int:
        return 6 << (flags & 7) if flags & 128 else 0

    position = 13 + colour_table_size(data[10])
    while (kind := data[position]) != 0x3B:
        if kind == 0x21:  # extension
            position += 2
        elif kind == 0x2C:  # frame
            position += 11 + colour_table_size(data[position + 9])
        else:
            position += 1
            continue
        while data[position]:
            position += 1 + data[position]
        position += 1
    return position + 1
