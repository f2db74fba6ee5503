"""The words of a refusal: one table, fit to travel, and complete for the code that uses it."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from panfm.site import refusals
from panfm.site.policy import bounded_names
from panfm.site.refusals import reason_of, sayable

ROOT = Path(__file__).resolve().parents[3]


def test_every_reason_is_one_plain_line_that_fits_a_record() -> None:
    for code, reason in sayable():
        assert re.fullmatch(r"[a-z_]{1,40}", code)
        assert reason.isprintable()
        assert reason.isascii()
        assert len(f"{code}: {reason}") <= 200, "the coordinator cuts what is longer"
        assert not re.search(r"[/\\]|sub-|\d{4}", reason)


def test_only_the_name_of_a_recipes_setting_varies() -> None:
    by_code: dict[str, set[str]] = {}
    for code, reason in sayable():
        by_code.setdefault(code, set()).add(reason)
    assert {code for code, reasons in by_code.items() if len(reasons) > 1} == {"recipe_out_of_bounds"}
    named = {reason.split("'s ")[1].split(" is ")[0] for reason in by_code["recipe_out_of_bounds"]}
    assert named == {"", *bounded_names()}


def test_unknown_code_is_a_defect() -> None:
    with pytest.raises(KeyError):
        reason_of("because")


def test_every_code_that_the_site_uses_is_in_the_table_and_none_is_idle() -> None:
    used: set[str] = set()
    for room in ("panfm/site", "client", "deploy/site"):
        for path in (ROOT / room).rglob("*.py"):
            if path != Path(refusals.__file__):
                words = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
                used |= {word.value for word in words if isinstance(word.value, str)}
    table = {code for code, _ in sayable()}
    assert table <= used, "codes that nobody says"
    looks_like_one = {word for word in used if re.fullmatch(r"site_[a-z]+", word)}
    assert looks_like_one - table <= {"site_update", "site_report"}, "kinds of message, and no codes"
