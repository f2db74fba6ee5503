"""A device that is not there is said in one line, before anything is read."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from panfm.errors import ConfigError
from panfm.models.device import check_device


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU", "cpu:0", "cuda:0\n"])
def test_what_names_no_device_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cpu, cuda or cuda:N"):
        check_device(name)


@pytest.mark.parametrize(
    ("gpus", "there", "not_there"), [(0, "cpu", "cuda"), (1, "cuda", "cuda:1"), (2, "cuda:1", "cuda:2")]
)
def test_gpu_must_be_there(monkeypatch: pytest.MonkeyPatch, gpus: int, there: str, not_there: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    check_device(there)
    with pytest.raises(ConfigError, match=f"{not_there} was asked for"):
        check_device(not_there)
