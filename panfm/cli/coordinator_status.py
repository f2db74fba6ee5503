"""`panfm coordinator status`: sites, runs, coverage and what must be renewed soon; reads, and changes nothing."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from panfm.errors import RunError

if TYPE_CHECKING:
    from panfm.coordinator.flower import Node


def status(
    folder: Annotated[Path, typer.Option(help="The coordinator's folder.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for other programs.")] = False,
) -> None:
    """Show how the study stands."""
    from panfm.coordinator import status as study

    found = study.coordinator_status(folder, _nodes(folder), datetime.now(UTC))
    if as_json:
        print(json.dumps(study.as_json(found), indent=1))
        return
    for line in study.lines_of(found):
        print(line.rstrip())


def _nodes(folder: Path) -> list[Node] | None:
    """What the SuperLink lists; None where it is not up, or does not answer."""
    from panfm.coordinator.flower import FlowerCommand
    from panfm.coordinator.registration import is_up
    from panfm.coordinator.settings import FLOWER_HOME

    if not is_up(folder):
        return None
    try:
        return FlowerCommand(folder.resolve() / FLOWER_HOME).nodes()
    except RunError:
        return None
