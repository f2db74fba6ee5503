"""Empirical epsilon beside claimed epsilon: what an audit with made-up subjects showed of a run's private trainer."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from panfm.reporting.history import RunHistory
from panfm.reporting.record import TrainerAudited
from panfm.reporting.tables import Cell, Row, Table, count, number

NOTHING_FOUND = "nothing"


def audit_table(history: RunHistory) -> Table:
    """The newest audit of each mode."""
    newest = {audit.mode: audit for audit in history.audits}
    return Table(
        caption="An audit of the trainer, on made-up subjects and at the audit's own noise, rate and steps. In bold: what does "
        "not fit the claim.",
        head=(
            "mode",
            "claimed epsilon",
            "shown: at least",
            "of the claim",
            "signal, 1 is right",
            "noise, 1 is right",
            "found",
        ),
        rows=tuple(Row(header=Cell(text=mode), cells=_cells(newest[mode])) for mode in sorted(newest)),
    )


def audit_sentence(history: RunHistory) -> str:
    """What was audited, and how far it may be believed; empty where nothing was."""
    if not history.audits:
        return ""
    last = history.audits[-1]
    return (
        f"{count(last.canaries)} made-up subjects, half of them put in by a coin, {last.steps} steps at rate "
        f"{number(last.sampling_rate)} with noise multiplier {number(last.noise_multiplier)}, delta {number(last.delta)}; the "
        f"bound is wrong with chance {number(last.doubt)}. A bound far below the claim does not show more privacy than claimed."
    )


def _cells(audit: TrainerAudited) -> tuple[Cell, ...]:
    return (
        Cell(text=number(audit.claimed)),
        Cell(text=number(audit.at_least)),
        Cell(text=number(audit.at_least / audit.claimed) if audit.claimed else number(None)),
        Cell(text=f"{number(audit.signal)} \N{PLUS-MINUS SIGN} {number(audit.signal_band)}"),
        Cell(text=f"{number(audit.noise)} \N{PLUS-MINUS SIGN} {number(audit.noise_band)}"),
        Cell(text="; ".join(audit.found) or NOTHING_FOUND, strong=bool(audit.found)),
    )
