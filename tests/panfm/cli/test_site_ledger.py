"""`panfm site ledger`: spent, left, per run; a statement to plan with; a new cohort only for other people; a new key."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from panfm.cli.main import app
from panfm.data.store import StoreEntry, write_table
from panfm.errors import AuditError, ConfigError
from panfm.privacy.accounting import Budget, NoisySteps, epsilon_rdp
from panfm.privacy.statement import statement_from
from panfm.site.audit_log import STATE, AuditLog
from panfm.site.identity import read_public_key
from panfm.site.ledger import Ledger, Reserved, has_ledger, read_ledger
from panfm.site.ledger_book import Purpose
from panfm.site.onboarding import begin_identity
from panfm.site.policy import PrivacyDemand, PrivacyMode
from panfm.site.policy_file import write_policy
from panfm.site.policy_template import closed_policy

ROUND = NoisySteps(noise_multiplier=1.25, sampling_rate=0.05, steps=25)
BUDGET = Budget(epsilon=8.0, delta=1e-5)


def _charge(ledger: Ledger, run: str, number: int) -> Reserved:
    reserved = ledger.reserve(ROUND, Purpose(run=run, round=number, task_digest="ab" * 32), {"sub-1", "sub-2"}, BUDGET)
    assert isinstance(reserved, Reserved)
    return reserved


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Two answered rounds of one run, and one lost and one undone of another."""
    demand = PrivacyDemand(mode=PrivacyMode.dp, epsilon=8.0, delta=1e-5)
    write_policy(tmp_path, replace(closed_policy("north", ("ab" * 32,), ("brain",)), privacy=demand))
    key = begin_identity(tmp_path, "north").signing_key
    ledger = Ledger.open(tmp_path, key, AuditLog.open(tmp_path, key))
    for number in (1, 2):
        ledger.release(_charge(ledger, "first-1", number))
    _charge(ledger, "second-2", 1)
    ledger.void(_charge(ledger, "second-2", 2))
    return ledger


def _run(folder: Path, *words: str, answer: str = "") -> Result:
    words = ("site", "ledger", *words, "--folder", str(folder))
    return CliRunner().invoke(app, words, env={"COLUMNS": "150"}, input=answer)


def test_spent_left_and_each_run_are_shown(ledger: Ledger, tmp_path: Path) -> None:
    result = _run(tmp_path)
    assert result.exit_code == 0
    assert str(ledger.book().head) in result.stdout
    spent = epsilon_rdp([ROUND.times(3)], 1e-5)
    assert f"spent     {spent:.3f} by RDP" in result.stdout
    assert f"left      {8 - spent:.3f}: 36 more rounds like the last" in result.stdout
    first, second = (line.split() for line in result.stdout.splitlines() if line.startswith(("first-1", "second-2")))
    assert first[:7] == ["first-1", "2", "0", "0", "50", "1.25", "0.05"]
    assert second[:7] == ["second-2", "0", "1", "1", "25", "1.25", "0.05"]
    assert float(first[7]) == pytest.approx(epsilon_rdp([ROUND.times(2)], 1e-5), abs=0.005)
    assert "lost in a crash. Both count" in result.stdout


def test_statement_is_what_planning_reads(ledger: Ledger, tmp_path: Path) -> None:
    result = _run(tmp_path, "--statement")
    found = statement_from(result.stdout)
    assert (found.site, found.budget, found.history) == ("north", BUDGET, (ROUND.times(3),))
    assert json.loads(result.stdout).keys() == {"site", "budget", "history"}, "no run, no date, no count of subjects"


def test_broken_ledger_and_witness_that_disagrees_fail(ledger: Ledger, tmp_path: Path) -> None:
    head = ledger.book().head
    assert _run(tmp_path, "--witness", str(head)).exit_code == 0
    result = _run(tmp_path, "--witness", f"{'0' * 64}:{head.length}")
    assert isinstance(result.exception, AuditError)
    path = tmp_path / STATE / "ledger.log"
    path.write_bytes(path.read_bytes().replace(b'"steps":25', b'"steps":20', 1))
    result = _run(tmp_path)
    assert isinstance(result.exception, AuditError)
    assert "line 2 of the privacy ledger [edited]" in str(result.exception)


def test_site_without_a_budget_or_such_a_cohort_is_told(ledger: Ledger, tmp_path: Path) -> None:
    assert isinstance(_run(tmp_path, "--cohort", "2").exception, ConfigError)
    write_policy(tmp_path, closed_policy("north", ("ab" * 32,), ("brain",)))
    result = _run(tmp_path)
    assert isinstance(result.exception, ConfigError)
    assert "names no budget" in str(result.exception)


def test_run_whose_name_moves_the_cursor_is_shown_harmlessly(ledger: Ledger, tmp_path: Path) -> None:
    _charge(ledger, "\x1b[2Jevil[bold]", 1)
    assert "\x1b" not in _run(tmp_path).stdout


def _write_store(folder: Path, *subjects: str) -> None:
    (folder / "store").mkdir(exist_ok=True)
    entries = [
        StoreEntry(
            subject=subject,
            visit="",
            organ="brain",
            file=f"brain/{subject}.npy",
            shape=(8, 8, 8),
            spacing_mm=(1.0, 1.0, 1.0),
            source_digest="0" * 64,
            digest="0" * 64,
        )
        for subject in subjects
    ]
    write_table(folder / "store", entries)


def test_cohort_is_opened_by_a_person_for_other_people_only(ledger: Ledger, tmp_path: Path) -> None:
    _write_store(tmp_path, "sub-8", "sub-9")
    assert _run(tmp_path, "open-cohort", answer="n\n").exit_code != 0
    assert _run(tmp_path, "open-cohort").exit_code != 0, "nobody answered"
    assert ledger.book().newest_cohort == 1
    result = _run(tmp_path, "open-cohort", answer="y\n")
    assert result.exit_code == 0
    assert "cohort 2 is open, at zero; cohorts 1 to 1 keep what they have spent" in result.stdout
    assert "spent     0.000 by RDP" in _run(tmp_path).stdout
    assert "spent     0.000 by RDP" not in _run(tmp_path, "--cohort", "1").stdout
    _write_store(tmp_path, "sub-2", "sub-10")
    refused = _run(tmp_path, "open-cohort", answer="y\n")
    assert isinstance(refused.exception, ConfigError)
    assert "of these 2, 1 were" in str(refused.exception)


@pytest.fixture
def moved(ledger: Ledger, tmp_path: Path) -> Path:
    """The site has begun anew with another key; what it had lies in `earlier/`."""
    (tmp_path / "earlier").mkdir()
    for name in ("keys", STATE):
        (tmp_path / name).rename(tmp_path / "earlier" / name)
    begin_identity(tmp_path, "north")
    return tmp_path / "earlier"


def test_ledger_goes_on_under_a_new_key(ledger: Ledger, moved: Path, tmp_path: Path) -> None:
    before = read_ledger(moved, read_public_key(moved))
    result = _run(tmp_path, "carry-over", "--earlier", str(moved), "--witness", str(before.head))
    assert result.exit_code == 0, result.output
    assert f"carried over {before.head.length} lines, with head {before.head}" in result.stdout
    shown = _run(tmp_path).stdout
    assert f"spent     {before.spent(1, 1e-5):.3f} by RDP" in shown
    assert f"carried   {before.head.length} of these were written under the earlier key" in shown
    assert statement_from(_run(tmp_path, "--statement").stdout).history == before.history(1)
    assert _run(tmp_path, "carry-over", "--earlier", str(moved)).exit_code == 0, "it is safe to run again"


def test_lost_key_must_be_said(ledger: Ledger, moved: Path, tmp_path: Path) -> None:
    public_key = read_public_key(moved)
    (moved / "keys" / "signing.key").unlink()
    assert isinstance(_run(tmp_path, "carry-over", "--earlier", str(moved)).exception, ConfigError)
    wrong = _run(tmp_path, "carry-over", "--earlier", str(moved), "--key-is-lost", "--public-key", "ab" * 32)
    assert isinstance(wrong.exception, AuditError), "another key's ledger"
    assert not has_ledger(tmp_path)
    result = _run(tmp_path, "carry-over", "--earlier", str(moved), "--key-is-lost", "--public-key", public_key)
    assert result.exit_code == 0
    assert "4 charges and 1 cohort(s) stand in the new ledger" in result.stdout


def test_broken_ledger_is_not_carried_over(ledger: Ledger, moved: Path, tmp_path: Path) -> None:
    path = moved / STATE / "ledger.log"
    path.write_bytes(path.read_bytes().replace(b'"steps":25', b'"steps":20', 1))
    result = _run(tmp_path, "carry-over", "--earlier", str(moved))
    assert isinstance(result.exception, AuditError)
    assert "line 2 of the privacy ledger [edited]" in str(result.exception)
    assert not has_ledger(tmp_path)


def test_earlier_key_has_a_passphrase_of_its_own(tmp_path: Path) -> None:
    begin_identity(tmp_path, "north")
    (tmp_path / "earlier").mkdir()
    key = begin_identity(tmp_path / "earlier", "north", "an old passphrase").signing_key
    _charge(Ledger.open(tmp_path / "earlier", key, AuditLog.open(tmp_path / "earlier", key)), "first-1", 1)
    secret = tmp_path / "passphrase"
    secret.write_text("an old passphrase\n")
    secret.chmod(0o600)
    words = ("carry-over", "--earlier", str(tmp_path / "earlier"))
    assert isinstance(_run(tmp_path, *words).exception, ConfigError), "nobody can be asked"
    assert _run(tmp_path, *words, "--passphrase-file", str(secret)).exit_code == 0
