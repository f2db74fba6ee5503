"""On what a table was measured: the line that stands above every table of figures."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path

import torch

_ROOT = Path(__file__).resolve().parents[1]


def provenance() -> str:
    """Machine, commit and day."""
    return f"{machine()}, commit {commit()}, {datetime.date.today()}"


def machine() -> str:
    """Processor, number of cores, Python and torch."""
    return f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"


def commit() -> str:
    """The checkout's commit, and whether it was changed since."""
    head, changes = (
        subprocess.run(["git", *words], cwd=_ROOT, capture_output=True, text=True, check=False).stdout.strip()
        for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain"))
    )
    return f"{head or 'unknown'}{' with changes' if changes else ''}"


def _processor() -> str:
    """Its name where Linux tells it."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
