"""Whether a DICOM file's elements fit into it, looked at before any library takes memory for what they claim.

GDCM allocates what an element's length field says, up to 4 GB, before it notices that the file is shorter; one flipped bit in
a slice of 500 kB then costs seconds and gigabytes. So the fields are walked first, without interpreting any value.
Source of the encodings: DICOM PS3.5, chapter 7 and annex A.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

_PREAMBLE, _MAGIC = 128, b"DICM"
_UNDEFINED = 0xFFFFFFFF
_ITEMS, _ITEM, _SEQUENCE_END = 0xFFFE, 0xE000, 0xE0DD
_PIXELS = (0x7FE0, 0x0010)
_TRANSFER_SYNTAX = (0x0002, 0x0010)
_IMPLICIT, _DEFLATED, _BIG_ENDIAN = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.2"
_UNSTATED = b"not stated"
_SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
"""Value representations with a length of two bytes."""
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""Those with four."""


@dataclass(slots=True)
class _Place:
    """Where the walk is, and how what follows is encoded."""

    at: int
    implicit: bool = False
    order: str = "<"
    syntax: bytes = b""
    in_pixels: bool = False
    """Between the fragments of compressed pixels, which are no elements."""


def elements_fit(path: Path) -> bool:
    """Whether every element of a file, nested ones included, has a known kind and ends within the file.

    A data set that is deflated as a whole is not looked into. Raises: OSError when the file cannot be read.
    """
    size = path.stat().st_size
    if size == 0:
        return False
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = _Place(_PREAMBLE + 4 if content[_PREAMBLE : _PREAMBLE + 4] == _MAGIC else 0)
        while place.at + 8 <= size:
            if place.syntax == _DEFLATED and content[place.at : place.at + 2] != b"\x02\x00":
                return True
            if not _step(content, place, size):
                return False
    return True


def _step(content: mmap.mmap, place: _Place, size: int) -> bool:
    """Go past one element, or into one that holds others; False when it does not fit."""
    meta = content[place.at : place.at + 2] == b"\x02\x00"
    order = "<" if meta else place.order
    group, element = struct.unpack_from(f"{order}HH", content, place.at)
    if group == _ITEMS:
        return _step_item(content, place, size, element)
    if not meta and not place.syntax:  # files older than the meta group, and some that lack its one line
        place.implicit, place.syntax = content[place.at + 4 : place.at + 6] not in _SHORT | _LONG, _UNSTATED
    header, kind, length = _length(content, place.at, order, implicit=place.implicit and not meta)
    if kind is None or (length != _UNDEFINED and place.at + header + length > size):
        return False
    value = place.at + header
    if (group, element) == _TRANSFER_SYNTAX:
        place.syntax = content[value : value + length].rstrip(b"\0 ")
        place.implicit, place.order = place.syntax == _IMPLICIT, ">" if place.syntax == _BIG_ENDIAN else "<"
    nested = length == _UNDEFINED or kind == b"SQ"
    place.in_pixels = length == _UNDEFINED and (group, element) == _PIXELS
    # What is unknown and of undefined length is encoded as if implicit (PS3.5, 6.2.2, note); nothing behind it is walked.
    place.at = size if nested and kind == b"UN" else value if nested else value + length
    return True


def _step_item(content: mmap.mmap, place: _Place, size: int, element: int) -> bool:
    (length,) = struct.unpack_from(f"{place.order}I", content, place.at + 4)
    place.at += 8
    if place.in_pixels and element == _ITEM:
        place.at += length
    elif length != _UNDEFINED and place.at + length > size:
        return False
    place.in_pixels = place.in_pixels and element != _SEQUENCE_END
    return place.at <= size


def _length(content: mmap.mmap, at: int, order: str, *, implicit: bool) -> tuple[int, bytes | None, int]:
    """Bytes before the value, the value representation (None: not one that exists) and the value's length."""
    if implicit:
        return 8, b"", int(struct.unpack_from(f"{order}I", content, at + 4)[0])
    kind = bytes(content[at + 4 : at + 6])
    if kind in _SHORT:
        return 8, kind, int(struct.unpack_from(f"{order}H", content, at + 6)[0])
    if kind in _LONG and at + 12 <= len(content):
        return 12, kind, int(struct.unpack_from(f"{order}I", content, at + 8)[0])
    return 0, None, 0
