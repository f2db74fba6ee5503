"""`panfm site audit`: the exit code says whether the log is whole, the line says where it is not."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from panfm.cli.main import app
from panfm.errors import AuditError, ConfigError
from panfm.site.audit_log import LOG, STATE, AuditLog
from panfm.site.onboarding import begin_identity


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    """A log of two runs."""
    log = AuditLog.open(tmp_path, begin_identity(tmp_path, "north").signing_key)
    for run in ("first-1", "second-2"):
        for number in (1, 2):
            log.append("task_received", {"run": run, "round": number, "task_digest": "ab" * 32})
            log.append("answer_sent", {"run": run, "round": number, "tensor_bytes": 4096 + number})
    return log


def _run(folder: Path, verb: str, *words: str) -> Result:
    return CliRunner().invoke(app, ["site", "audit", verb, "--folder", str(folder), *words], env={"COLUMNS": "150"})


def _fails(folder: Path, verb: str, *words: str) -> str:
    result = _run(folder, verb, *words)
    assert isinstance(result.exception, AuditError)
    assert result.exception.exit_code == 9
    return str(result.exception)


def test_whole_log_is_said_to_be_whole(log: AuditLog, tmp_path: Path) -> None:
    result = _run(tmp_path, "verify")
    assert result.exit_code == 0
    assert "9, all as the site wrote them" in result.stdout
    assert str(log.head()) in result.stdout
    assert _run(tmp_path, "verify", "--witness", str(log.head()), "--witness", f"{'0' * 64}:0").exit_code == 0


def test_first_wrong_line_is_named(log: AuditLog, tmp_path: Path) -> None:
    path = tmp_path / STATE / LOG
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"tensor_bytes":4097', b'"tensor_bytes":4099'))
    assert _fails(tmp_path, "verify").startswith("line 3 [edited]: it is not what the site wrote")
    lines = content.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4] + lines[6:]))
    assert _fails(tmp_path, "verify").startswith("line 5 [removed]: lines 5 to 6 are missing")
    path.write_bytes(b"".join(lines[:-1]))
    assert _fails(tmp_path, "verify").startswith("line 9 [cut]: the log ends before it, and the anchored head says")


def test_witness_that_disagrees_is_told(log: AuditLog, tmp_path: Path) -> None:
    head = log.head()
    assert "[cut]" in _fails(tmp_path, "verify", "--witness", f"{head.digest}:{head.length + 1}")
    assert "[rewritten]" in _fails(tmp_path, "verify", "--witness", f"{'0' * 64}:{head.length}")
    assert isinstance(_run(tmp_path, "verify", "--witness", "nonsense").exception, ConfigError)


def test_key_noted_elsewhere_counts_more_than_the_folders(log: AuditLog, tmp_path: Path) -> None:
    """Whoever writes the whole log anew with a key of their own can put its public half into the folder, too."""
    (tmp_path / "forged").mkdir()
    other = begin_identity(tmp_path / "forged", "north").public_key
    assert "line 1 [edited]" in _fails(tmp_path, "verify", "--public-key", other)
    assert isinstance(_run(tmp_path, "verify", "--public-key", "xy").exception, ConfigError)


def test_cut_off_last_line_is_told_and_is_no_fault(log: AuditLog, tmp_path: Path) -> None:
    with (tmp_path / STATE / LOG).open("ab") as stream:
        stream.write(b'{"line":10,"pre')
    result = _run(tmp_path, "verify")
    assert result.exit_code == 0
    assert "a crash cut off a last line after 15 bytes" in result.stdout


def test_entries_are_shown_newest_last(log: AuditLog, tmp_path: Path) -> None:
    rows = [line.split() for line in _run(tmp_path, "show").stdout.splitlines()]
    assert [row[0] for row in rows if row[0].isdigit()] == [str(number) for number in range(1, 10)]
    text = _run(tmp_path, "show", "--run", "second", "--last", "3").stdout
    assert "first-1" not in text
    assert [line.split()[0] for line in text.splitlines() if line.split()[0].isdigit()] == ["7", "8", "9"]
    assert "task digest abababababab" in text
    assert "ab" * 7 not in text, "digests are told by their start"


def test_damaged_log_is_shown_up_to_the_damage(log: AuditLog, tmp_path: Path) -> None:
    path = tmp_path / STATE / LOG
    path.write_bytes(path.read_bytes().replace(b'"tensor_bytes":4097', b'"tensor_bytes":4099'))
    result = _run(tmp_path, "show")
    assert isinstance(result.exception, AuditError)
    assert "task_received" in result.stdout
    assert "4099" not in result.stdout


def test_words_of_a_peer_cannot_move_the_cursor_or_dress_up(log: AuditLog, tmp_path: Path) -> None:
    log.append("task_received", {"run": "\x1b[2J[bold red]x\u202e\nline"})
    shown = _run(tmp_path, "show").stdout
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "[bold red]x" in shown.replace("\n", "")


def test_no_log_is_one_clear_line(tmp_path: Path) -> None:
    assert isinstance(_run(tmp_path, "verify").exception, ConfigError)
    begin_identity(tmp_path, "north")
    (tmp_path / STATE / LOG).unlink()
    assert "there was one: its anchor is still there" in _fails(tmp_path, "verify")
