"""Empirical epsilon stands beside claimed epsilon on the page of a run with privacy."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from panfm.reporting.history import history_of
from panfm.reporting.record import Event, RunStarted, TrainerAudited
from panfm.reporting.run_report import write_run_report
from panfm.reporting.trainer_audit import audit_sentence, audit_table

WriteRecord = Callable[[list[Event]], Path]

AUDIT = TrainerAudited(
    mode="dp_adapters",
    canaries=1000,
    noise_multiplier=2.0,
    sampling_rate=0.25,
    steps=20,
    delta=1e-5,
    claimed=2.8,
    at_least=0.7,
    doubt=0.01,
    signal=0.93,
    signal_band=0.11,
    noise=0.994,
    noise_band=0.033,
)


def _start() -> RunStarted:
    return RunStarted(
        run="r",
        recipe="privacy: {mode: dp_adapters}",
        seed=0,
        rounds=1,
        panfm_version="",
        torch_version="",
        flower_version="",
        group_parameters={},
    )


def test_the_page_shows_what_is_claimed_and_what_is_shown(
    write_record: WriteRecord, read_page: Callable[[Path], Any]
) -> None:
    page = read_page(write_run_report(write_record([_start(), AUDIT])))
    row = page.table("An audit of the trainer")["dp_adapters"]
    assert (row["claimed epsilon"], row["shown: at least"], row["of the claim"], row["found"]) == (
        "2.80",
        "0.700",
        "0.250",
        "nothing",
    )
    assert row["signal, 1 is right"] == "0.930 \u00b1 0.110"
    assert "1,000 made-up subjects, half of them put in by a coin, 20 steps at rate 0.250" in page.words


def test_the_newest_audit_counts_and_what_it_found_is_said() -> None:
    worse = replace(AUDIT, at_least=3.4, found=["bound: epsilon is at least 3.40, and 2.80 was claimed"])
    history = history_of([_start(), AUDIT, worse], name="tried")
    (row,) = audit_table(history).rows
    assert [cell.text for cell in row.cells][1] == "3.40"
    assert row.cells[-1].strong
    assert "2.80 was claimed" in row.cells[-1].text


def test_a_run_that_was_not_audited_says_how(write_record: WriteRecord, read_page: Callable[[Path], Any]) -> None:
    page = read_page(write_run_report(write_record([_start()])))
    assert "was not audited; panfm privacy audit does it" in page.words
    assert audit_sentence(history_of([_start()], name="tried")) == ""
