"""What may be said of the wire, and what is said when it may not."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from typing import Any

import pytest

from panfm.config import Encoding, WireConfig
from panfm.errors import ConfigError


def test_defaults_change_no_number() -> None:
    wire = WireConfig()
    assert (wire.down, wire.up) == (Encoding.fp32, Encoding.fp32)
    assert wire.parcel_bytes == 64_000_000


@pytest.mark.parametrize(
    "values",
    [
        {"down": Encoding.int8},
        {"zstd_level": -1},
        {"zstd_level": 20},
        {"parcel_mb": 64.1},
        {"parcel_mb": 0.0},
        {"parcel_mb": float("nan")},
    ],
)
def test_what_cannot_be_is_named(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(ConfigError, match=f"federation.wire.{name}"):
        WireConfig(**values)


def test_parcels_are_as_large_as_said() -> None:
    assert WireConfig(parcel_mb=0.05).parcel_bytes == 50_000
