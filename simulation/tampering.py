"""Answers spoilt on their way: what a hospital's gate let out is not what arrives.

Works on an answer as it travels: a header, and the parcel that comes with it. The parcel is opened, changed, closed and
labelled again, so that every digest is right and only the content is wrong. Of an answer in several parcels only the first is
changed; one spoilt number is enough for all of it to be left out.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from panfm.config import FaultKind
from panfm.wire.encoding import SCALES
from panfm.wire.parcels import Parcel, pack, parcel_of, unpack

HUGE = 1e9
"""Times which an update becomes longer with huge_norm: far beyond any bound, and still finite in fp32."""

Raw = dict[str, Tensor]


def is_update(content: RecordDict) -> bool:
    """Whether this is an answer that can be tampered with."""
    return "envelope" in content.config_records and content.config_records["envelope"]["kind"] == "site_update"


def tampered(content: RecordDict, kind: FaultKind) -> RecordDict:
    """An update as it arrives after a fault of this kind; the given content is left unchanged.

    Args:
        content: for which `is_update` holds.
        kind: stale_round, or one of `SPOILT`.
    """
    header = json.loads(str(content.config_records["envelope"]["header"]))
    parcel = parcel_of(content.array_records["parcel"]["body"].numpy().tobytes())
    if kind is FaultKind.stale_round:
        header["round"] -= 1
    else:
        parcel = _packed(SPOILT[kind](unpack(parcel)))
        header["parcels"][0] = {"sha256": parcel.sha256, "size_bytes": len(parcel.body)}
    return _content(header, parcel)


def _packed(raw: Raw) -> Parcel:
    """In one parcel, for its label takes the place of one."""
    (parcel,) = pack(raw, limit_bytes=2**31)
    return parcel


def _content(header: Mapping[str, Any], parcel: Parcel) -> RecordDict:
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    body = Array(np.frombuffer(parcel.body, dtype=np.uint8))
    envelope = ConfigRecord({"kind": "site_update", "header": text})
    return RecordDict({"envelope": envelope, "parcel": ArrayRecord({"body": body})})


def _with_not_a_number(raw: Raw) -> Raw:
    name = min(name for name, tensor in raw.items() if tensor.is_floating_point())
    spoilt = raw[name].clone()
    spoilt.view(-1)[0] = math.nan
    return raw | {name: spoilt}


def _with_wrong_shape(raw: Raw) -> Raw:
    name = _first(raw)
    return raw | {name: raw[name].reshape(-1)[:-1].clone()}


def _with_missing_key(raw: Raw) -> Raw:
    lost = _first(raw)
    return {name: tensor for name, tensor in raw.items() if name not in (lost, lost + SCALES)}


def _with_extra_key(raw: Raw) -> Raw:
    return raw | {"trunk.not_asked_for": torch.zeros(1)}


def _scaled(factor: float) -> Callable[[Raw], Raw]:
    """Of int8 tensors it is enough to scale the scales."""
    return lambda raw: {name: tensor * factor if tensor.is_floating_point() else tensor for name, tensor in raw.items()}


def _first(raw: Raw) -> str:
    """The first tensor by name that has more than one number."""
    return min(name for name, tensor in raw.items() if not name.endswith(SCALES) and tensor.numel() > 1)


SPOILT: dict[FaultKind, Callable[[Raw], Raw]] = {
    FaultKind.not_a_number: _with_not_a_number,
    FaultKind.wrong_shape: _with_wrong_shape,
    FaultKind.missing_key: _with_missing_key,
    FaultKind.extra_key: _with_extra_key,
    FaultKind.huge_norm: _scaled(HUGE),
    FaultKind.sign_flip: _scaled(-1.0),
}
"""What becomes of the raw tensors in the parcel."""
