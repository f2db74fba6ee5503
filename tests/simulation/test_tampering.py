"""Answers spoilt on their way: every digest is right, and only the content is wrong, in each number format."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from panfm.config import Encoding, FaultKind
from panfm.errors import ProtocolError
from panfm.wire.encoding import BLOCK, as_received
from panfm.wire.parcels import LIMIT_BYTES, pack_tensors, parcel_of, unpack, unpack_tensors
from simulation.tampering import HUGE, SPOILT, is_update, tampered

DELTAS = {
    "heads.weight": torch.linspace(-1, 1, 600).reshape(20, 30),
    "organs.liver.bias": torch.linspace(0.5, 1, 8),
    "trunk.weight": torch.linspace(-2, 3, 300).reshape(10, 30),
}

ENCODINGS = pytest.mark.parametrize("encoding", list(Encoding))


def _content(encoding: Encoding, kind: str = "site_update", limit_bytes: int = LIMIT_BYTES) -> RecordDict:
    parcel = next(pack_tensors(DELTAS, encoding, level=3, limit_bytes=limit_bytes))
    labels = [{"sha256": parcel.sha256, "size_bytes": len(parcel.body)}, {"sha256": "0" * 64, "size_bytes": 5}]
    header = json.dumps({"round": 7, "site": "a", "parcels": labels})
    body = Array(np.frombuffer(parcel.body, dtype=np.uint8))
    envelope = ConfigRecord({"kind": kind, "header": header})
    return RecordDict({"envelope": envelope, "parcel": ArrayRecord({"body": body})})


def _header(content: RecordDict) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(str(content.config_records["envelope"]["header"]))
    return header


def _body(content: RecordDict) -> bytes:
    return content.array_records["parcel"]["body"].numpy().tobytes()


def _received(content: RecordDict) -> dict[str, Tensor]:
    return unpack_tensors([parcel_of(_body(content))])


@ENCODINGS
@pytest.mark.parametrize("kind", list(SPOILT))
def test_the_first_label_fits_and_nothing_else_of_the_header_changed(kind: FaultKind, encoding: Encoding) -> None:
    honest = _content(encoding)
    before = _header(honest), _body(honest)
    came = tampered(honest, kind)
    header = _header(came)
    label = {"sha256": hashlib.sha256(_body(came)).hexdigest(), "size_bytes": len(_body(came))}
    assert header["parcels"] == [label, before[0]["parcels"][1]]
    assert header | {"parcels": 0} == before[0] | {"parcels": 0}
    assert (_header(honest), _body(honest)) == before, "what is spoilt is a copy"
    assert _body(came) != before[1]


@ENCODINGS
def test_one_number_is_none(encoding: Encoding) -> None:
    came = _received(tampered(_content(encoding), FaultKind.not_a_number))
    spoilt = sum(int(tensor.isnan().sum()) for tensor in came.values())
    assert spoilt == (BLOCK if encoding is Encoding.int8 else 1)  # a scale is shared by a block


@ENCODINGS
@pytest.mark.parametrize(("kind", "factor"), [(FaultKind.sign_flip, -1.0), (FaultKind.huge_norm, HUGE)])
def test_every_number_is_scaled(kind: FaultKind, factor: float, encoding: Encoding) -> None:
    came = _received(tampered(_content(encoding), kind))
    for name, tensor in as_received(DELTAS, encoding).items():
        torch.testing.assert_close(came[name], tensor * factor, rtol=1e-2, atol=0.0)  # bf16 keeps 8 bits
        assert bool(came[name].isfinite().all())


@ENCODINGS
def test_a_tensor_lacks_its_shape(encoding: Encoding) -> None:
    came = tampered(_content(encoding), FaultKind.wrong_shape)
    try:
        shapes = {name: tuple(tensor.shape) for name, tensor in _received(came).items()}
    except ProtocolError:  # scales of another number
        assert encoding is Encoding.int8
        return
    assert shapes == {name: tuple(tensor.shape) for name, tensor in DELTAS.items()} | {"heads.weight": (599,)}


@ENCODINGS
def test_a_tensor_is_missing_or_too_many(encoding: Encoding) -> None:
    assert _received(tampered(_content(encoding), FaultKind.missing_key)).keys() == DELTAS.keys() - {"heads.weight"}
    extra = _received(tampered(_content(encoding), FaultKind.extra_key)).keys() - DELTAS.keys()
    assert extra == {"trunk.not_asked_for"}


def test_a_stale_answer_says_the_round_before() -> None:
    honest = _content(Encoding.fp32)
    came = tampered(honest, FaultKind.stale_round)
    assert _header(came) == _header(honest) | {"round": 6}
    assert _body(came) == _body(honest)
    assert not math.isnan(sum(float(tensor.sum()) for tensor in _received(came).values()))


@pytest.mark.parametrize("kind", list(SPOILT))
def test_of_an_update_in_many_parcels_the_first_is_spoilt(kind: FaultKind) -> None:
    honest = _content(Encoding.fp32, limit_bytes=800 + 4 * BLOCK)
    before = unpack(parcel_of(_body(honest)))
    assert any("@" in name for name in before), "a tensor in pieces"
    came = tampered(honest, kind)
    assert _header(came)["parcels"][0]["sha256"] == hashlib.sha256(_body(came)).hexdigest()
    after = unpack(parcel_of(_body(came)))
    assert after.keys() != before.keys() or any(not torch.equal(after[name], before[name]) for name in before)


def test_only_updates_can_be_spoilt() -> None:
    assert is_update(_content(Encoding.fp32))
    assert not is_update(_content(Encoding.fp32, kind="refusal"))
    assert not is_update(RecordDict())
