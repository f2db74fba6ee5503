"""Where a model computes: a device that a person named, and whether this machine has it."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re

import torch

from panfm.errors import ConfigError


def check_device(name: str) -> None:
    """Raises: ConfigError when it is not cpu, cuda or cuda:N, or this machine has no such GPU."""
    if re.fullmatch(r"cpu|cuda(:\d+)?", name) is None:
        raise ConfigError(f"a device should be cpu, cuda or cuda:N, got {name!r:.80}")
    if name == "cpu":
        return
    if not torch.cuda.is_available():
        raise ConfigError(
            f"{name} was asked for, and torch {torch.__version__} sees no GPU: take cpu, or install torch's CUDA build and the "
            "GPU's driver"
        )
    if (torch.device(name).index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"{name} was asked for, and there are {torch.cuda.device_count()} GPUs, counted from 0")
