"""Updates on disk are the updates that came, in any encoding and any block; and a peer's lies cost its own update only."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from panfm.config import Encoding
from panfm.errors import ProtocolError
from panfm.protocol import ParcelLabel, SiteUpdate
from panfm.wire.encoding import as_received, encode
from panfm.wire.parcels import Parcel, pack, parcel_of
from server.spool import ANSWER_FILE, RAW_FILE, Spool, SpooledUpdate, _check_announced, room_for
from tests.client.small_study import metrics, same_bits

SMALL = 4_000
"""A parcel's limit at which these tensors travel in several, some in pieces."""


def _tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "trunk.large": (37, 91),
        "trunk.scalar": (),
        "heads.empty": (0, 4),
        "heads.row": (1, 513),
        "organs.brain.bias": (7,),
    }
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    tensors["trunk.odd"] = torch.tensor([-0.0, 1e-40, float("nan"), float("inf")])
    return tensors


def _update(parcels: list[Parcel], **changes: object) -> SiteUpdate:
    update = SiteUpdate(
        run="r",
        round=3,
        site="north",
        task_digest="0" * 64,
        deltas={},
        num_subjects=2,
        organ_subjects={"brain": 2},
        num_steps=1,
        metrics=metrics(loss=0.25),
        audit_head=f"{'a' * 64}:7",
        parcels=tuple(parcel.label for parcel in parcels),
    )
    return replace(update, **changes)  # type: ignore[arg-type]  # fields by name


def _room(tensors: Mapping[str, Tensor]) -> int:
    return room_for({name: tensor.shape for name, tensor in tensors.items()})


def _spooled(
    spool: Spool, parcels: list[Parcel], most_bytes: int, update: SiteUpdate | None = None, limit: int = SMALL
) -> SpooledUpdate:
    arrival = spool.receive(3, "north", update or _update(parcels), most_bytes, limit)
    for parcel in parcels:
        assert arrival.wanted() == parcel.label
        arrival.take(parcel.body)
    assert arrival.wanted() is None
    return arrival.commit()


def _whole(spooled: SpooledUpdate) -> dict[str, Tensor]:
    deltas = spooled.deltas
    shapes = {name: deltas.shape(name) for name in deltas.names()}
    return {name: deltas.block(name, 0, shape.numel()).reshape(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("encoding", list(Encoding))
@pytest.mark.parametrize("level", [0, 1])
def test_spooled_is_what_the_peer_decodes(tmp_path: Path, encoding: Encoding, level: int) -> None:
    tensors = _tensors()
    parcels = list(pack(encode(tensors, encoding), level, SMALL))
    assert len(parcels) > 1
    spooled = _spooled(Spool(tmp_path), parcels, _room(tensors))
    assert list(spooled.deltas.names()) == sorted(tensors)
    expected = as_received(tensors, encoding)
    assert all(
        torch.equal(torch.nan_to_num(_whole(spooled)[name]), torch.nan_to_num(expected[name])) for name in tensors
    )
    if encoding is Encoding.fp32:
        assert same_bits(_whole(spooled), tensors)
    assert spooled.update == _update([])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), encoding=st.sampled_from(list(Encoding)))
def test_any_block_is_that_stretch_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, encoding: Encoding
) -> None:
    tensor = torch.randn(data.draw(st.integers(1, 1500)), generator=torch.Generator().manual_seed(1))
    start = data.draw(st.integers(0, len(tensor)))
    stop = data.draw(st.integers(start, len(tensor)))
    parcels = list(pack(encode({"trunk.x": tensor}, encoding), 0, SMALL))
    spooled = _spooled(Spool(tmp_path_factory.mktemp("spool")), parcels, 100_000)
    block = spooled.deltas.block("trunk.x", start, stop)
    assert block.dtype is torch.float32
    assert torch.equal(block, as_received({"trunk.x": tensor}, encoding)["trunk.x"][start:stop])


def test_digest_is_of_the_answer_and_not_of_how_it_travelled(tmp_path: Path) -> None:
    tensors = _tensors()
    raw = encode(tensors, Encoding.int8)
    few, many = list(pack(raw)), list(pack(raw, 1, SMALL))
    first = _spooled(Spool(tmp_path / "a"), few, _room(tensors), limit=64_000_000)
    again = _spooled(
        Spool(tmp_path / "b"), many, _room(tensors), _update(many, audit_head=f"{'b' * 64}:8"), limit=SMALL
    )
    assert first.digest == again.digest

    changed = dict(tensors) | {"trunk.scalar": tensors["trunk.scalar"] + 1}
    others = list(pack(encode(changed, Encoding.int8)))
    assert _spooled(Spool(tmp_path / "c"), others, _room(tensors), limit=64_000_000).digest != first.digest
    counted = _update(few, num_subjects=3)
    assert _spooled(Spool(tmp_path / "d"), few, _room(tensors), counted, 64_000_000).digest != first.digest


def test_found_again_after_a_restart(tmp_path: Path) -> None:
    tensors = _tensors()
    spooled = _spooled(Spool(tmp_path), list(pack(tensors, 0, SMALL)), _room(tensors))
    found = Spool(tmp_path).find(3, "north", spooled.digest)
    assert found is not None
    assert found.update == spooled.update
    assert same_bits(_whole(found), tensors)
    assert Spool(tmp_path).find(3, "north", "0" * 64) is None
    assert Spool(tmp_path).find(3, "south", spooled.digest) is None
    assert Spool(tmp_path).find(4, "north", spooled.digest) is None


def test_half_an_update_or_a_damaged_one_is_not_found(tmp_path: Path) -> None:
    tensors = _tensors()
    parcels = list(pack(tensors, 0, SMALL))
    digest = _spooled(Spool(tmp_path / "whole"), parcels, _room(tensors)).digest

    spool = Spool(tmp_path / "half")
    arrival = spool.receive(3, "north", _update(parcels), _room(tensors), SMALL)
    for parcel in parcels:
        arrival.take(parcel.body)
        assert spool.find(3, "north", digest) is None
    arrival.commit()
    raw = tmp_path / "half" / "round-0003" / "north" / RAW_FILE
    content = raw.read_bytes()
    assert spool.find(3, "north", digest) is not None
    for damaged in (content[:-1], bytes([content[0] ^ 1]) + content[1:], b""):
        raw.write_bytes(damaged)
        assert spool.find(3, "north", digest) is None
    raw.write_bytes(content)
    answer = raw.with_name(ANSWER_FILE)
    for words in ("", "{}", "[]", answer.read_text()[:-20], answer.read_text().replace('"offset"', '"where"')):
        whole = answer.read_text()
        answer.write_text(words)
        assert spool.find(3, "north", digest) is None
        answer.write_text(whole)
    assert spool.find(3, "north", digest) is not None


def test_a_new_attempt_starts_afresh_and_drop_forgets_rounds(tmp_path: Path) -> None:
    spool, tensors = Spool(tmp_path), _tensors()
    parcels = list(pack(tensors, 0, SMALL))
    first = _spooled(spool, parcels, _room(tensors))
    arrival = spool.receive(3, "north", _update(parcels), _room(tensors), SMALL)
    assert spool.find(3, "north", first.digest) is None
    arrival.take(parcels[0].body)
    arrival.discard()
    again = _spooled(spool, parcels, _room(tensors))
    spool.drop(before=3)
    assert spool.find(3, "north", again.digest) is not None
    spool.drop(before=4)
    assert list(tmp_path.iterdir()) == []


def _bomb() -> Parcel:
    return parcel_of(zstandard.ZstdCompressor().compress(bytes(100_000_000)))


def _piece(name: str, numbers: int) -> Parcel:
    return parcel_of(save({name: torch.ones(numbers)}))


HONEST = {"trunk.a": torch.ones(600), "trunk.b": torch.ones(3)}

LIES: dict[str, list[Parcel]] = {
    "a zip bomb": [_bomb()],
    "no parcel": [parcel_of(b"words")],
    "nothing": [parcel_of(b"\x00")],
    "a pickle's beginning": [parcel_of(b"\x80\x04\x95" + bytes(40))],
    "too many numbers": [_piece("trunk.a", 90_000)],
    "an endless tensor of which one piece comes": [_piece(f"trunk.a#{10**11}@0", 256)],
    "a side that no machine can hold": [_piece("trunk.a#" + "x".join(["999999999999"] * 8) + "@0", 256)],
    "a piece twice": [_piece("trunk.a#600@0", 256), _piece("trunk.a#600@0", 256)],
    "a piece is missing": [_piece("trunk.a#600@0", 256)],
    "the first piece is missing": [_piece("trunk.a#600@256", 344)],
    "pieces of two shapes": [_piece("trunk.a#600@0", 256), _piece("trunk.a#2x300@256", 344)],
    "a tensor twice": [_piece("trunk.a", 600), _piece("trunk.a", 600)],
    "whole numbers": [parcel_of(save({"trunk.a": torch.ones(600, dtype=torch.int64)}))],
    "double": [parcel_of(save({"trunk.a": torch.ones(600, dtype=torch.float64)}))],
    "int8 without scales": [parcel_of(save({"trunk.a": torch.ones(600, dtype=torch.int8)}))],
    "scales of nothing": [parcel_of(save({"trunk.a#scales": torch.ones(3)}))],
    "scales of fp32": [parcel_of(save({"trunk.a": torch.ones(600), "trunk.a#scales": torch.ones(3)}))],
    "too few scales": [
        parcel_of(save({"trunk.a": torch.ones(600, dtype=torch.int8), "trunk.a#scales": torch.ones(2)}))
    ],
    "a very long name": [_piece("trunk." + "a" * 5000, 1)],
    "ten thousand names": [parcel_of(save({f"trunk.x{number}": torch.ones(0) for number in range(10_000)}))],
}


@pytest.mark.parametrize("lie", LIES)
def test_lie_is_a_protocol_error_and_takes_no_room(tmp_path: Path, lie: str) -> None:
    with pytest.raises(ProtocolError):
        _spooled(Spool(tmp_path), LIES[lie], _room(HONEST), limit=64_000_000)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 5_000
    assert not list(tmp_path.rglob(ANSWER_FILE))


def test_the_same_told_honestly_is_taken(tmp_path: Path) -> None:
    """Otherwise the lies could be refused for another reason than their own."""
    both = parcel_of(save({"trunk.a#600@256": torch.ones(344), "trunk.b": torch.ones(3)}))
    spooled = _spooled(Spool(tmp_path), [both, _piece("trunk.a#600@0", 256)], _room(HONEST), limit=64_000_000)
    assert same_bits(_whole(spooled), HONEST)


@pytest.mark.parametrize("change", ["another parcel", "a byte changed", "a byte less"])
def test_parcel_must_be_the_one_that_was_announced(tmp_path: Path, change: str) -> None:
    parcel, other = _piece("trunk.a", 600), _piece("trunk.a", 601)
    sent = {
        "another parcel": other.body,
        "a byte changed": parcel.body[:-1] + bytes([parcel.body[-1] ^ 1]),
        "a byte less": parcel.body[:-1],
    }[change]
    arrival = Spool(tmp_path).receive(3, "north", _update([parcel]), _room(HONEST))
    with pytest.raises(ProtocolError):
        arrival.take(sent)


def test_more_parcels_than_announced_are_not_taken(tmp_path: Path) -> None:
    parcel = _piece("trunk.a", 600)
    arrival = Spool(tmp_path).receive(3, "north", _update([parcel]), _room(HONEST))
    arrival.take(parcel.body)
    with pytest.raises(ProtocolError):
        arrival.take(parcel.body)


def test_endless_parcels_are_refused_before_the_first(tmp_path: Path) -> None:
    label = ParcelLabel(sha256=hashlib.sha256(b"").hexdigest(), size_bytes=100)
    for labels in ((label,) * 10_000, (replace(label, size_bytes=SMALL + 1),)):
        with pytest.raises(ProtocolError, match="announces"):
            Spool(tmp_path).receive(3, "north", replace(_update([]), parcels=labels), _room(HONEST), SMALL)
    assert list(tmp_path.iterdir()) == []


@given(numbers=st.lists(st.integers(0, 3000), min_size=1, max_size=30), limit=st.integers(2_000, 60_000))
def test_no_honest_update_announces_too_much(numbers: list[int], limit: int) -> None:
    tensors = {f"trunk.{place}": torch.zeros(number) for place, number in enumerate(numbers)}
    for encoding in Encoding:
        parcels = list(pack(encode(tensors, encoding), 0, limit))
        _check_announced([parcel.label for parcel in parcels], _room(tensors), limit)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.one_of(
            st.sampled_from(["trunk.a", "trunk.a#scales", "trunk.a#600@0", "trunk.a#600@256", "#scales", ""]),
            st.from_regex(r"trunk\.[ab](#[0-9]{1,20}(x[0-9]{1,20})?@[0-9]{1,20})?(#scales)?", fullmatch=True),
        ),
        st.tuples(
            st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.int32]),
            st.sampled_from([0, 1, 3, 256, 344, 600]),
        ),
        max_size=4,
    )
)
def test_any_tensors_are_spooled_or_a_protocol_error(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, tuple[torch.dtype, int]]
) -> None:
    parcel = parcel_of(save({name: torch.ones(n).to(dtype) for name, (dtype, n) in content.items()}))
    try:
        spooled = _spooled(Spool(tmp_path_factory.mktemp("any")), [parcel], _room(HONEST), limit=64_000_000)
    except ProtocolError:
        return
    assert all(tensor.dtype is torch.float32 for tensor in _whole(spooled).values())


def test_nothing_is_pickled(tmp_path: Path) -> None:
    tensors = _tensors()
    _spooled(Spool(tmp_path), list(pack(tensors, 0, SMALL)), _room(tensors))
    folder = tmp_path / "round-0003" / "north"
    assert {path.name for path in folder.iterdir()} == {RAW_FILE, ANSWER_FILE}
    assert set(json.loads((folder / ANSWER_FILE).read_text())) == {"header", "stretches", "digest"}
    assert (folder / RAW_FILE).stat().st_size == sum(tensor.numel() * 4 for tensor in tensors.values())
