"""The ways in which a folder says who and what its scans are of; light, for the command line names them before it reads any."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from enum import Enum


class Layout(Enum):
    """How a folder says who and what its scans are of."""

    auto = "auto"
    bids = "bids"
    organs = "organs"
    bodies = "bodies"
    pattern = "pattern"
    table = "table"
    dicom = "dicom"
