"""The small study and a taken port, for the tests of this room."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.client.small_study import finished, hospitals_template, study

__all__ = ["finished", "hospitals_template", "study", "taken_port"]  # fixtures


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which another program listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield int(other.getsockname()[1])
