"""Tables of numbers in the terminal, as the verbs of privacy print them."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def numbers_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A plain table: the first column to the left, numbers to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(names):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def shown_epsilon(epsilon: float | None) -> str:
    """An epsilon to two digits; a dash where the accountant cannot tell."""
    return "-" if epsilon is None else f"{epsilon:.2f}"
