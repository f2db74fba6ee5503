"""The answers that a site has given, kept on its own disk: a round asked again gets the stored answer, without training again.

An answer is committed (written, flushed, renamed into place) before it is sent, so a crash in between loses nothing.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from panfm.data.dataset import DroppedScan
from panfm.durable import write_folder
from panfm.errors import DataError, ProtocolError
from panfm.protocol import Envelope, SiteUpdate, expect, from_envelope, to_envelope

_DAMAGED = "the stored answer of this round cannot be read; restore the site's state from a copy"


class AnswerStore:
    """Answers by run and round, below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def digest(self, run: str, round_number: int) -> str | None:
        """Digest of the task that was answered in this run and round, if any.

        Raises: DataError when the stored answer is damaged.
        """
        path = self._place(run, round_number) / "answer.json"
        if not path.is_file():
            return None
        try:
            return str(json.loads(path.read_text())["task_digest"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(_DAMAGED) from error

    def count_since(self, moment: datetime) -> int:
        """Number of answers, of any run, that were committed after a moment; by the file system's clock."""
        return sum(
            path.stat().st_mtime > moment.timestamp() for path in self._folder.glob("[!.]*/round-[0-9]*/answer.json")
        )

    def read(self, run: str, round_number: int) -> SiteUpdate:
        """The stored answer. Raises: DataError when there is none or it is damaged."""
        place = self._place(run, round_number)
        try:
            header, tensors = (place / "answer.json").read_text(), load_file(place / "deltas.safetensors")
            return expect(from_envelope(Envelope(kind="site_update", header=header, tensors=tensors)), SiteUpdate)
        except (OSError, ValueError, SafetensorError, ProtocolError) as error:
            raise DataError(_DAMAGED) from error

    def dropped(self, run: str, round_number: int) -> tuple[DroppedScan, ...]:
        """The scans that the stored answer of a round did without; none where there is no answer.

        Raises: DataError when the list is damaged.
        """
        path = self._place(run, round_number) / "dropped.json"
        try:
            return tuple(DroppedScan(**scan) for scan in json.loads(path.read_text())) if path.is_file() else ()
        except (OSError, ValueError, TypeError) as error:
            raise DataError(_DAMAGED) from error

    def commit(self, answer: SiteUpdate, dropped: Sequence[DroppedScan] = ()) -> None:
        """Keep the answer and the scans that it did without; after this returns they survive any crash."""
        envelope = to_envelope(answer)

        def fill(draft: Path) -> None:
            save_file(envelope.tensors, draft / "deltas.safetensors")
            (draft / "answer.json").write_text(envelope.header)
            if dropped:
                (draft / "dropped.json").write_text(json.dumps([asdict(scan) for scan in dropped], indent=1))

        write_folder(self._place(answer.run, answer.round), fill)

    def _place(self, run: str, round_number: int) -> Path:
        """Runs are named by their coordinator, so the name is hashed before it becomes a path."""
        return self._folder / hashlib.sha256(run.encode()).hexdigest()[:16] / f"round-{round_number:04d}"
