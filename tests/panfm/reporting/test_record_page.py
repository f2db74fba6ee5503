"""The page that documents the record names every event and every field of it, with its type, and nothing else."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

from panfm.reporting import record

PAGE = Path(record.__file__).with_name("RECORD.md")


def _documented() -> dict[str, dict[str, str]]:
    """Event -> field -> type, as the page has them."""
    found: dict[str, dict[str, str]] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"### `(\w+)`", line):
            found[heading.group(1)] = {}
        elif row := re.fullmatch(r"\| `(\w+)` \| (.+?) \| (.+) \|", line):
            found[list(found)[-1]][row.group(1)] = row.group(2)
    return found


def test_the_page_and_the_events_agree() -> None:
    events = {re.sub(r"(?<!^)([A-Z])", r"_\1", cls.__name__).lower(): cls for cls in get_args(record.Event)}
    written = {
        name: {f.name: str(f.type).replace("| None", "or null") for f in fields(cls)} for name, cls in events.items()
    }
    assert _documented() == written, "RECORD.md: add the field's row, or take it out"


def test_the_page_tells_the_schema() -> None:
    assert f"`schema` ({record.SCHEMA})" in PAGE.read_text(encoding="utf-8")
