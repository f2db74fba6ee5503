"""The small study, for the tests of this room."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import pytest

from tests.client.small_study import SmallStudy, SpyGrid, copy_study, make_template


@pytest.fixture(scope="session")
def hospitals_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by whichever room is tested first, and found by the others."""
    folder = tmp_path_factory.getbasetemp() / "small-study"
    return folder if folder.is_dir() else make_template(folder)


@pytest.fixture
def study(hospitals_template: Path, tmp_path: Path) -> SmallStudy:
    """A study of three hospitals in a folder of its own."""
    return copy_study(hospitals_template, tmp_path)


@pytest.fixture(scope="session")
def finished(hospitals_template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallStudy, SpyGrid]:
    """A study that went to its end, with the grid that carried it: to look at, not to change."""
    done = copy_study(hospitals_template, tmp_path_factory.mktemp("finished"))
    return done, done.conduct()
