"""Small folders of scans, for the tests of this room."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from tests.panfm.data.index.site_folders import index, write_volume

__all__ = ["index", "write_volume"]  # fixtures
