"""The reports that a site has given on models after a round, kept on its own disk as its updates are (`panfm.site.answers`).

The same task again gets the stored report, and a round is reported once: a coordinator cannot put one model after the other
under one round's name and learn from the differences. A report is committed before it is sent.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path

from panfm.durable import write_folder
from panfm.errors import DataError, ProtocolError
from panfm.protocol import Envelope, SiteReport, expect, from_envelope, to_envelope


class ReportStore:
    """Reports by run and round, below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def digest(self, run: str, round_number: int) -> str | None:
        """Digest of the task that was reported on in this run and round, if any.

        Raises: DataError when the stored report is damaged.
        """
        return self.read(run, round_number).task_digest if self._path(run, round_number).is_file() else None

    def count_since(self, moment: datetime) -> int:
        """Number of reports, of any run, that were committed after a moment; by the file system's clock."""
        return sum(path.stat().st_mtime > moment.timestamp() for path in self._folder.glob("[!.]*/round-[0-9]*/*.json"))

    def read(self, run: str, round_number: int) -> SiteReport:
        """The stored report. Raises: DataError when there is none or it is damaged."""
        try:
            header = self._path(run, round_number).read_text()
            return expect(from_envelope(Envelope(kind="site_report", header=header)), SiteReport)
        except (OSError, ValueError, ProtocolError) as error:
            raise DataError(
                "the stored report on this round cannot be read; restore the site's state from a copy"
            ) from error

    def commit(self, report: SiteReport) -> None:
        """Keep the report; after this returns it survives any crash."""
        header = to_envelope(report).header

        def fill(draft: Path) -> None:
            (draft / "report.json").write_text(header)

        write_folder(self._path(report.run, report.round).parent, fill)

    def _path(self, run: str, round_number: int) -> Path:
        """Runs are named by their coordinator, so the name is hashed before it becomes a path."""
        run_folder = self._folder / hashlib.sha256(run.encode()).hexdigest()[:16]
        return run_folder / f"round-{round_number:04d}" / "report.json"
