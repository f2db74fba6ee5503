"""Parcels: what goes in comes out bit for bit, no parcel is larger than allowed, and what a liar sends is named as such."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import json
import struct

import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from panfm.config import Encoding
from panfm.errors import ProtocolError
from panfm.wire.encoding import as_received, encode
from panfm.wire.parcels import (
    LIMIT_BYTES,
    Parcel,
    join,
    pack,
    pack_tensors,
    parcel_of,
    pieces,
    unpack,
    unpack_tensors,
)

LIMIT = 4_000


def _tensors(seed: int = 0, scale: float = 0.02) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"trunk.w": (61, 43), "trunk.b": (7,), "heads.s": (), "organs.brain.e": (0, 3), "organs.brain.w": (900,)}
    return {name: torch.randn(shape, generator=draw) * scale for name, shape in shapes.items()}


def _same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[n].dtype == right[n].dtype and left[n].shape == right[n].shape
        and left[n].contiguous().view(-1).view(torch.uint8).tolist() == right[n].contiguous().view(-1).view(torch.uint8).tolist()
        for n in left
    )  # fmt: skip


@pytest.mark.parametrize("encoding", list(Encoding))
@pytest.mark.parametrize("level", [0, 1, 3])
@pytest.mark.parametrize("limit", [LIMIT, LIMIT_BYTES])
def test_raw_tensors_come_out_bit_for_bit(encoding: Encoding, level: int, limit: int) -> None:
    raw = encode(_tensors(), encoding)
    parcels = list(pack(raw, level, limit))
    assert (len(parcels) == 1) == (limit == LIMIT_BYTES)
    assert all(len(parcel.body) <= limit for parcel in parcels)
    assert _same(join(unpack(parcel, limit) for parcel in reversed(parcels)), raw)
    assert _same(unpack_tensors(parcels), as_received(_tensors(), encoding))


@given(data=st.data(), level=st.sampled_from([0, 1]), encoding=st.sampled_from(list(Encoding)))
def test_any_shapes_survive_any_limit(data: st.DataObject, level: int, encoding: Encoding) -> None:
    shapes = data.draw(st.lists(st.lists(st.integers(0, 30), max_size=3), max_size=5))
    tensors = {f"trunk.{n}": torch.randn(*shape) if shape else torch.tensor(1.5) for n, shape in enumerate(shapes)}
    limit = data.draw(st.integers(2_500, 20_000))
    parcels = list(pack_tensors(tensors, encoding, level, limit))
    assert all(len(parcel.body) <= limit for parcel in parcels)
    assert _same(unpack_tensors(parcels), as_received(tensors, encoding))


def test_bodies_depend_on_values_alone() -> None:
    tensors = _tensors()
    shuffled = {name: tensors[name] for name in reversed(list(tensors))}
    bodies = [[p.body for p in pack_tensors(given, Encoding.int8, 1, LIMIT)] for given in (tensors, shuffled)]
    assert bodies[0] == bodies[1]


def test_nothing_still_travels_as_a_parcel() -> None:
    (parcel,) = pack({})
    assert unpack(parcel) == {}


def test_label_names_the_body() -> None:
    (parcel,) = pack(_tensors(), 1)
    assert parcel.label.sha256 == hashlib.sha256(parcel.body).hexdigest()
    assert parcel.label.size_bytes == len(parcel.body)


@pytest.mark.parametrize(("encoding", "at_most"), [(Encoding.fp32, 0.86), (Encoding.bf16, 0.72), (Encoding.int8, 0.95)])
def test_compression_pays(encoding: Encoding, at_most: float) -> None:
    """Of normally distributed numbers, whose exponents hold about 2.5 of 8 bits: fp32 to (24 + 2.5) / 32 = 0.83 at the best."""
    raw = encode({"x": torch.randn(200_000, generator=torch.Generator().manual_seed(0))}, encoding)
    plain, packed = (sum(len(parcel.body) for parcel in pack(raw, level)) for level in (0, 1))
    assert packed / plain < at_most


def test_what_does_not_compress_travels_as_it_is() -> None:
    noise = torch.randint(-128, 128, (100_000,), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    (parcel,) = pack({"x": noise}, 1)
    assert len(parcel.body) < 100_200
    assert torch.equal(unpack(parcel)["x"], noise)


def test_pieces_tell_where_they_belong() -> None:
    raw = {"trunk.w": torch.arange(3_000, dtype=torch.float32).reshape(60, 50), "trunk.b": torch.ones(2)}
    found = [piece for parcel in pack(raw, 0, LIMIT) for piece in pieces(unpack(parcel))]
    assert {piece.name for piece in found} == set(raw)
    assert len(found) > 3
    for piece in found:
        assert piece.shape == raw[piece.name].shape
        assert torch.equal(raw[piece.name].reshape(-1)[piece.start : piece.start + piece.values.numel()], piece.values)


# What a liar sends.


def _framed(plain: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(plain)


def _safetensors(header: object, data: bytes = b"") -> bytes:
    words = json.dumps(header).encode()
    return struct.pack("<Q", len(words)) + words + data


def _entry(dtype: str, shape: list[int], first: int, last: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


LIES: dict[str, bytes] = {
    "nothing": b"",
    "junk": b"\x00" * 40,
    "cut": save({"x": torch.ones(100)})[:-1],
    "longer than its tensors": save({"x": torch.ones(100)}) + b"\0",
    "free words": save({"x": torch.ones(2)}, {"note": "sub-001"}),
    "free words, compressed": _framed(save({"x": torch.ones(2)}, {"note": "sub-001"})),
    "a list": _safetensors([1, 2]),
    "a list, compressed": _framed(_safetensors([1, 2])),
    "overlapping": _framed(_safetensors({n: _entry("F32", [2], 0, 8) for n in "ab"}, b"\0" * 8)),
    "odd bytes": _framed(_safetensors({"a": _entry("F32", [1], 0, 3)}, b"\0" * 3)),
    "outside": _framed(_safetensors({"a": _entry("F32", [2], 0, 8)}, b"\0" * 4)),
    "no offsets": _framed(_safetensors({"a": {"dtype": "F32", "shape": [2]}})),
    "a frame cut short": _framed(save({"x": torch.ones(100)}))[:-3],
    "a second frame": _framed(save({"x": torch.ones(100)})) + _framed(b"more"),
    "bytes behind the frame": _framed(save({"x": torch.ones(100)})) + b"more",
    "a huge header": struct.pack("<Q", 5_000_000) + b'{"a":1' + b" " * 4_999_993 + b"}",
    "deep JSON": struct.pack("<Q", 100_000) + b"[" * 100_000,
}


@pytest.mark.parametrize("body", LIES.values(), ids=LIES)
def test_a_body_that_is_no_parcel_is_named(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="the peer runs other code"):
        unpack(parcel_of(body))


@given(body=st.binary(max_size=300))
def test_any_bytes_are_a_parcel_or_a_protocol_error(body: bytes) -> None:
    for lie in (body, b"\x28\xb5\x2f\xfd" + body, _framed(body)):
        with pytest.raises(ProtocolError):
            unpack(parcel_of(lie))


@given(place=st.integers(0, 10**6), level=st.sampled_from([0, 1]))
def test_a_flipped_bit_is_found(place: int, level: int) -> None:
    (parcel,) = pack(_tensors(), level)
    body = bytearray(parcel.body)
    body[place // 8 % len(body)] ^= 1 << place % 8
    with pytest.raises(ProtocolError, match="not those of its SHA-256"):
        unpack(Parcel(bytes(body), parcel.sha256))


def test_a_bomb_does_not_go_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame of a few kilobytes that would fill memory: refused by what it declares, before anything is unpacked."""
    bomb = _framed(b"\0" * 50_000_000)
    assert len(bomb) < 5_000
    monkeypatch.delattr(zstandard, "ZstdDecompressor")
    with pytest.raises(ProtocolError, match="at most 4000 bytes"):
        unpack(parcel_of(bomb), LIMIT)


def test_a_bomb_that_keeps_its_size_to_itself_does_not_go_off(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = zstandard.ZstdCompressor(write_content_size=False).compress(b"\0" * 50_000_000)
    monkeypatch.delattr(zstandard, "ZstdDecompressor")
    with pytest.raises(ProtocolError):
        unpack(parcel_of(quiet), LIMIT)


def test_larger_than_agreed_is_refused() -> None:
    (parcel,) = pack(_tensors(), 0)
    with pytest.raises(ProtocolError, match="at most 4000 bytes"):
        unpack(parcel, LIMIT)


def _cut(start: int, numel: int, shape: str = "1000") -> dict[str, Tensor]:
    return {f"x#{shape}@{start}": torch.zeros(numel)}


@pytest.mark.parametrize(
    "contents",
    [
        [_cut(0, 256)],
        [_cut(0, 256), _cut(256, 488)],
        [_cut(0, 256), _cut(512, 488)],
        [_cut(0, 256), _cut(0, 256), _cut(256, 744)],
        [_cut(0, 256), _cut(256, 744, "10x100")],
        [_cut(0, 256), {"x#1000@256": torch.zeros(744, dtype=torch.bfloat16)}],
        [_cut(0, 300), _cut(300, 700)],
        [_cut(0, 512), _cut(512, 489)],
        [_cut(0, 256), _cut(256, 744), {"x": torch.zeros(1000)}],
        [{"x": torch.zeros(3)}, {"x": torch.zeros(3)}],
        [{"x": torch.zeros(3)}, _cut(0, 3, "3")],
        [{"x#1000@0": torch.zeros(2, 128)}],
        [_cut(0, 256, "999999999999x999999999999")],
        [_cut(0, 0, "0")],
    ],
    ids=[
        "alone", "end missing", "a gap", "twice", "two shapes", "two types", "not at a block", "too long", "and whole",
        "whole twice", "whole and one piece", "2-D", "huge", "empty",
    ],
)  # fmt: skip
def test_pieces_that_do_not_fit_together_are_named(contents: list[dict[str, Tensor]]) -> None:
    with pytest.raises(ProtocolError):
        join(contents)
