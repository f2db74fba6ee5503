"""One federation for all attacks that need Flower's programs: starting them is most of the time that an attack takes."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.attacks.federation import Federation, federation


@pytest.fixture(scope="session")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A hostile coordinator, a hospital on plain Flower and one of ours."""
    with federation(tmp_path_factory.mktemp("attacked")) as started:
        yield started
