"""Parcels: raw tensors packed into bodies of bounded size, each known by the SHA-256 of its bytes.

A body is a safetensors file, or the same compressed by zstd where that makes it smaller; which of the two, its first bytes
say. Before compression the bytes of fp32 and bf16 numbers are sorted by their place in the number, because exponents resemble
each other and mantissas do not. A tensor that is larger than a parcel is cut into pieces, each of which names the tensor, its
shape and the place where the piece begins. A body comes from a peer: it is checked against its digest, never grows beyond the
limit when it is unpacked, and holds nothing but tensors.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import zstandard
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from panfm.config import Encoding
from panfm.errors import ProtocolError
from panfm.protocol import ParcelLabel
from panfm.wire.encoding import BLOCK, decode, encode

LIMIT_BYTES = 64_000_000
"""Most bytes of a parcel, before and after compression."""

_ZSTD = b"\x28\xb5\x2f\xfd"
"""How zstd's frames begin; as the length of a safetensors header it would be 4 GB, so nothing is both."""
_NUMBER_BYTES = {"F32": 4, "BF16": 2}
"""Of the types, in safetensors' words, whose bytes are sorted before compression."""
_PIECE = re.compile(r"(?P<name>.+)#(?P<shape>\d{1,12}(?:x\d{1,12}){0,7})@(?P<start>\d{1,12})")
_MOST_HEADER_BYTES = 4_000_000
"""Of a whole header; the base model's has 100 kB."""
_HEADER_BYTES = 200
"""Allowed for a tensor's entry in the safetensors header, besides its name."""
_WRONG = "the peer runs other code, or the bytes were changed on their way"


@dataclass(frozen=True, slots=True)
class Parcel:
    """Bytes as they travel."""

    body: bytes
    sha256: str
    """Of the body (hex)."""

    @property
    def label(self) -> ParcelLabel:
        """By what the headers of messages name it."""
        return ParcelLabel(sha256=self.sha256, size_bytes=len(self.body))


@dataclass(frozen=True, slots=True)
class Piece:
    """A raw tensor, or a part of one."""

    name: str
    shape: torch.Size
    """Of the whole tensor."""
    start: int
    """Where the part begins, in numbers of the whole in row-major order; a multiple of the encoding's `BLOCK`."""
    values: Tensor
    """1-D."""


def parcel_of(body: bytes) -> Parcel:
    """The parcel with this body."""
    return Parcel(body, hashlib.sha256(body).hexdigest())


def pack(raw: Mapping[str, Tensor], level: int = 0, limit_bytes: int = LIMIT_BYTES) -> Iterator[Parcel]:
    """Parcels of raw tensors, in sorted order of names; one at a time is in memory.

    Args:
        level: zstd's, 1 to 19; 0 does not compress.
        limit_bytes: most bytes of a body.
    """
    for content in _loads(raw, limit_bytes):
        yield parcel_of(_compressed(save(_apart(content)), level))


def unpack(parcel: Parcel, limit_bytes: int = LIMIT_BYTES) -> dict[str, Tensor]:
    """The raw tensors in a parcel; those that were cut stand under the names of their pieces.

    Raises: ProtocolError when the body is not the one of the digest, too large, or no sound parcel.
    """
    if hashlib.sha256(parcel.body).hexdigest() != parcel.sha256:
        raise ProtocolError(f"a parcel's bytes are not those of its SHA-256; {_WRONG}")
    plain = _decompressed(parcel.body, limit_bytes)
    try:
        if "__metadata__" in _header(plain)[1]:  # free words, which no gate would see
            raise ValueError("free words in a parcel")
        return load(plain)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
        raise ProtocolError(f"a parcel cannot be read ({type(error).__name__}); {_WRONG}") from error


def pieces(content: Mapping[str, Tensor]) -> Iterator[Piece]:
    """What a parcel holds, whole tensors as a single piece each.

    Raises: ProtocolError when a piece lies outside its tensor.
    """
    for name, tensor in content.items():
        if (cut := _PIECE.fullmatch(name)) is None:
            yield Piece(name, tensor.shape, 0, tensor.reshape(-1))
        else:
            yield _piece(cut, tensor)


def join(contents: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Raw tensors of several parcels, the cut ones whole again.

    Raises: ProtocolError when something comes twice or a piece is missing.
    """
    whole: dict[str, Tensor] = {}
    cut: dict[str, list[Piece]] = {}
    for content in contents:
        for piece in pieces(content):
            if piece.name in whole:
                raise ProtocolError(f"{piece.name!r:.80} came twice; {_WRONG}")
            if piece.values.numel() == math.prod(piece.shape):
                whole[piece.name] = piece.values.reshape(piece.shape)
            else:
                cut.setdefault(piece.name, []).append(piece)
    if both := sorted(whole.keys() & cut.keys()):
        raise ProtocolError(f"{both[0]!r:.80} came whole and in pieces; {_WRONG}")
    return whole | {name: _joined(parts) for name, parts in cut.items()}


def pack_tensors(
    tensors: Mapping[str, Tensor], encoding: Encoding, level: int = 0, limit_bytes: int = LIMIT_BYTES
) -> Iterator[Parcel]:
    """Parcels of fp32 tensors."""
    return pack(encode(tensors, encoding), level, limit_bytes)


def unpack_tensors(parcels: Iterable[Parcel]) -> dict[str, Tensor]:
    """The fp32 tensors of all parcels of a message, by name.

    Raises: ProtocolError, as `unpack`, `join` and `decode` do.
    """
    return decode(join(unpack(parcel) for parcel in parcels))


def _loads(raw: Mapping[str, Tensor], limit_bytes: int) -> Iterator[dict[str, Tensor]]:
    """What goes into each parcel; at least one, if an empty one."""
    content: dict[str, Tensor] = {}
    size = 0
    for name, tensor in _cut(raw, limit_bytes):
        needed = _size_bytes(name, tensor)
        if content and size + needed > limit_bytes:
            yield content
            content, size = {}, 0
        content[name] = tensor
        size += needed
    yield content


def _cut(raw: Mapping[str, Tensor], limit_bytes: int) -> Iterator[tuple[str, Tensor]]:
    """Tensors that fit, and pieces of those that do not, each of whole blocks."""
    for name, tensor in sorted(raw.items()):
        if _size_bytes(name, tensor) <= limit_bytes:
            yield name, tensor.contiguous()
            continue
        room = limit_bytes - _size_bytes(name, tensor[:0]) - _HEADER_BYTES
        step = max(1, room // (tensor.element_size() * BLOCK)) * BLOCK
        flat, shape = tensor.reshape(-1), "x".join(map(str, tensor.shape))
        for start in range(0, flat.numel(), step):
            yield f"{name}#{shape}@{start}", flat[start : start + step]


def _apart(content: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, none of which is another: safetensors refuses them, and a first teacher may well be the student."""
    owners: dict[int, str] = {}
    return {
        name: tensor if owners.setdefault(tensor.data_ptr(), name) == name else tensor.clone()
        for name, tensor in content.items()
    }


def _size_bytes(name: str, tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size() + len(json.dumps(name)) + _HEADER_BYTES


def _compressed(plain: bytes, level: int) -> bytes:
    """The smaller of the two."""
    if not level:
        return plain
    packed = zstandard.ZstdCompressor(level=level).compress(_sorted_bytes(plain, back=False))
    return packed if len(packed) < len(plain) else plain


def _decompressed(body: bytes, limit_bytes: int) -> bytes:
    """A body of at most the limit: what zstd's frame declares is looked at before a byte is made room for."""
    size = len(body)
    try:
        if packed := body.startswith(_ZSTD):
            size = zstandard.frame_content_size(body)
        if not 0 <= size <= limit_bytes:
            raise ProtocolError(f"a parcel should hold at most {limit_bytes} bytes; {_WRONG}")
        if not packed:
            return body
        plain = zstandard.ZstdDecompressor().decompress(body, max_output_size=limit_bytes, allow_extra_data=False)
        return _sorted_bytes(plain, back=True)
    except (zstandard.ZstdError, ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
        raise ProtocolError(f"a parcel cannot be unpacked ({type(error).__name__}); {_WRONG}") from error


def _sorted_bytes(plain: bytes, *, back: bool) -> bytes:
    """A safetensors file with the bytes of each tensor sorted by their place in the number, or back again.

    Raises: ValueError, KeyError, TypeError or AttributeError when the header is none.
    """
    start, header = _header(plain)
    done, end = np.frombuffer(plain, np.uint8).copy(), start
    for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
        first, last = (start + offset for offset in entry["data_offsets"])
        if not end <= first <= last <= done.size:  # also: no byte is worked on twice, however many tensors are claimed
            raise ValueError("tensors overlap")
        if width := _NUMBER_BYTES.get(entry["dtype"]):
            numbers = done[first:last].reshape((width, -1) if back else (-1, width))
            done[first:last] = np.ascontiguousarray(numbers.T).reshape(-1)
        end = last
    return done.tobytes()


def _header(plain: bytes) -> tuple[int, dict[str, Any]]:
    """Where the numbers begin, and what safetensors' header says of them."""
    start = 8 + int.from_bytes(plain[:8], "little")
    header = json.loads(plain[8:start]) if start <= _MOST_HEADER_BYTES else None  # read, it takes ten times the room
    if not isinstance(header, dict):
        raise ValueError("no header")
    return start, header


def _piece(cut: re.Match[str], tensor: Tensor) -> Piece:
    shape, start = torch.Size(int(side) for side in cut["shape"].split("x")), int(cut["start"])
    inside = tensor.ndim == 1 and tensor.numel() >= 1 and start + tensor.numel() <= math.prod(shape)
    if not inside or start % BLOCK:
        raise ProtocolError(f"a piece of {cut['name']!r:.80} lies outside its tensor; {_WRONG}")
    return Piece(cut["name"], shape, start, tensor)


def _joined(parts: list[Piece]) -> Tensor:
    first = parts[0]
    parts = sorted(parts, key=lambda part: part.start)
    same = all((part.shape, part.values.dtype) == (first.shape, first.values.dtype) for part in parts)
    ends = [0, *(part.start + part.values.numel() for part in parts)]
    if not same or [*(part.start for part in parts), math.prod(first.shape)] != ends:
        raise ProtocolError(f"pieces of {first.name!r:.80} are missing or do not fit together; {_WRONG}")
    return torch.cat([part.values for part in parts]).reshape(first.shape)
