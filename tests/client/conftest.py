"""The small study, for the tests of this room."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from tests.client.small_study import finished, hospitals_template, study

__all__ = ["finished", "hospitals_template", "study"]  # fixtures
