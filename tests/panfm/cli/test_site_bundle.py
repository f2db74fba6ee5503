"""`panfm bundle`, `panfm site review`, `panfm site approve`: what a person sees, and what is on record afterwards."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from panfm.cli.main import app
from panfm.errors import ConfigError, ProtocolError
from panfm.site import bundling
from panfm.site.approvals import approvals, is_approved
from panfm.site.audit_log import inspect_folder
from panfm.site.bundles import read_bundle
from panfm.site.identity import read_public_key
from panfm.site.onboarding import begin_identity
from tests.panfm.site.made_bundles import GOOD, bundled

NEW = {**GOOD, "client/app.py": b"app = 2\x1b[2K\n", "panfm/__init__.py": b"mine = 1\n"}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    begin_identity(tmp_path, "north")
    (tmp_path / "good.fab").write_bytes(bundled(GOOD))
    (tmp_path / "new.fab").write_bytes(bundled(NEW))
    return tmp_path


def _run(*words: str | Path) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_first_review_shows_every_file_whole(site: Path) -> None:
    told = _run("site", "review", site / "good.fab", "--folder", site)
    assert "       10  pyproject.toml" in told
    assert "no bundle is approved yet" in told
    assert "+app = 1" in told
    assert told.rstrip().endswith(f"SHA-256 {hashlib.sha256(bundled(GOOD)).hexdigest()}")


def test_review_after_an_approval_shows_the_difference_and_what_is_not_loaded(site: Path) -> None:
    _run("site", "approve", site / "good.fab", "--folder", site, "--by", "Ada")
    told = _run("site", "review", site / "new.fab", "--folder", site)
    assert f"Difference to {hashlib.sha256(bundled(GOOD)).hexdigest()} of " in told
    assert "-app = 1\n+app = 2\\x1b[2K\n" in told
    assert "\x1b" not in told
    assert "not loaded from this bundle: panfm" in told
    assert "[project]" not in told, "what did not change is not shown"
    assert "This bundle is approved." in _run("site", "review", site / "good.fab", "--folder", site)


def test_approval_is_recorded_with_who_and_in_the_audit_log(site: Path) -> None:
    digest = hashlib.sha256(bundled(GOOD)).hexdigest()
    told = _run("site", "approve", site / "good.fab", "--folder", site, "--by", "Ada", "--sha256", digest.upper())
    public = read_public_key(site)
    (given,) = approvals(site, public)
    assert told == f"approved by Ada at {given.at}: {digest}\n"
    assert is_approved(site, digest, (), public)
    last = inspect_folder(site, public).entries[-1]
    assert (last.event, last.about) == ("bundle_approved", {"bundle": digest, "by": "Ada"})


def test_name_of_the_account_stands_in(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "grace")
    assert _run("site", "approve", site / "good.fab", "--folder", site).startswith("approved by grace at ")


def test_other_bundle_than_reviewed_is_not_approved(site: Path) -> None:
    with pytest.raises(ConfigError, match="review this one before"):
        _run("site", "approve", site / "new.fab", "--folder", site, "--sha256", "0" * 64)
    assert approvals(site, read_public_key(site)) == []


def test_hostile_or_missing_bundle_is_neither_shown_nor_approved(site: Path) -> None:
    (site / "evil.fab").write_bytes(bundled({**GOOD, "../evil.py": b""}))
    for verb in ("review", "approve"):
        with pytest.raises(ProtocolError, match="not a plain relative path"):
            _run("site", verb, site / "evil.fab", "--folder", site)
        with pytest.raises(ConfigError, match="cannot be read"):
            _run("site", verb, site / "none.fab", "--folder", site)


def test_site_that_cannot_record_does_not_approve(site: Path) -> None:
    (site / "state" / "audit.log").unlink()
    with pytest.raises(Exception, match=r"audit\.log"):
        _run("site", "approve", site / "good.fab", "--folder", site)
    assert approvals(site, read_public_key(site)) == []


def test_bundle_is_built_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundling, "build_bundle", lambda tree: read_bundle(bundled(GOOD)))
    told = _run("bundle", tmp_path, "--out", tmp_path / "out.fab")
    assert told == f"{hashlib.sha256(bundled(GOOD)).hexdigest()}  {tmp_path / 'out.fab'}\n"
    assert (tmp_path / "out.fab").read_bytes() == bundled(GOOD)
