"""A recipe's privacy settings: by default none, and no value that would protect nobody."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from panfm.config import PrivacyConfig, PrivacyMode
from panfm.errors import ConfigError


def test_default_is_no_privacy() -> None:
    assert PrivacyConfig().mode is PrivacyMode.none


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", ["clip_norm", "noise_multiplier", "denominator"])
def test_amount_that_is_none_is_refused(name: str, value: float) -> None:
    settings = PrivacyConfig()
    setattr(settings, name, value)
    with pytest.raises(ConfigError, match=rf"privacy\.{name}"):
        replace(settings)


def test_each_subject_is_seen_at_least_once() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.views must be at least 1, got 0"):
        PrivacyConfig(views=0)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.01, math.nan])
def test_rate_that_is_no_chance_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.sampling_rate"):
        PrivacyConfig(sampling_rate=rate)
