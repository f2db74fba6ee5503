"""A budget statement comes back as it was, and what is none is refused in one line."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm.errors import ConfigError
from panfm.privacy.accounting import Budget, NoisySteps
from panfm.privacy.statement import BudgetStatement, read_statement, statement_from

entries = st.builds(
    NoisySteps, noise_multiplier=st.floats(0.01, 1e6), sampling_rate=st.floats(1e-9, 1.0), steps=st.integers(1, 10**9)
)
statements = st.builds(
    BudgetStatement,
    site=st.text(max_size=20),
    budget=st.builds(Budget, epsilon=st.floats(0.01, 10), delta=st.floats(1e-12, 1e-3)),
    history=st.lists(entries, max_size=4).map(tuple),
)


@given(statements)
def test_statement_comes_back_as_it_was(statement: BudgetStatement) -> None:
    assert statement_from(statement.to_json()) == statement


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "null", '{"site": "a", "budget": 3, "history": []}', "[" * 100_000),
        '{"site": "a", "budget": {"epsilon": 3, "delta": 1e-5}, "history": [{"noise_multiplier": 0}]}',
    ],
)
def test_what_is_no_statement_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="ledger --statement"):
        statement_from(text)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"north\.json cannot be read"):
        read_statement(tmp_path / "north.json")
