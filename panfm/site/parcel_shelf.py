"""Where a site puts the parcels of a task that go ahead of it, until the task has come and is answered.

What lies here was signed by a coordinator of the policy (`panfm.site.admission.admit_parcel`), which is asked before anything
is kept. The shelf is bounded all the same: a newer round of a run pushes out its older ones, what lay for a week is thrown away,
and a full shelf takes nothing.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from panfm.durable import write_file
from panfm.errors import ProtocolError
from panfm.protocol import ParcelLabel
from panfm.wire.parcels import LIMIT_BYTES, Parcel

MOST_BYTES = 16_000_000_000
"""Of all parcels together; student and teacher of the large model with seven organs in fp32 take 3 GB."""
MOST_PARCELS = 4096
"""Of all runs together."""
_WEEK_S = 7 * 86_400.0


class ShelfError(ProtocolError):
    """Parcels that are not here, or that there is no room for; `code` is the refusal's word."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class ParcelShelf:
    """Parcels by run, round and digest, below one folder."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES, most_parcels: int = MOST_PARCELS) -> None:
        self._folder = folder
        self._most_bytes, self._most_parcels = most_bytes, most_parcels

    def keep(self, run: str, round_number: int, parcel: Parcel) -> None:
        """Put a parcel on the shelf; those of the run's other rounds are thrown away.

        Raises: ProtocolError when its bytes are not those of its digest or too many, ShelfError when the shelf is full.
        """
        if len(parcel.body) > LIMIT_BYTES or hashlib.sha256(parcel.body).hexdigest() != parcel.sha256:
            raise ProtocolError("a parcel is larger than parcels are, or its bytes are not those of its SHA-256")
        place = self._place(run, round_number)
        for other in self._folder.glob("*/round-*"):
            if other != place and (other.parent == place.parent or other.stat().st_mtime < time.time() - _WEEK_S):
                shutil.rmtree(other)
        if not (place / parcel.sha256).is_file():
            self._check_room(len(parcel.body))
            place.mkdir(parents=True, exist_ok=True)
            write_file(place / parcel.sha256, parcel.body)

    def take(self, run: str, round_number: int, labels: Sequence[ParcelLabel]) -> list[Parcel]:
        """The parcels of these labels. Raises: ShelfError when one is not here."""
        place = self._place(run, round_number)
        try:
            return [Parcel((place / label.sha256).read_bytes(), label.sha256) for label in labels]
        except FileNotFoundError as error:
            raise ShelfError("a parcel of the task did not come, or was thrown away", "parcels_missing") from error

    def clear(self, run: str, round_number: int) -> None:
        """Throw away what came for a round."""
        place = self._place(run, round_number)
        if place.is_dir():
            shutil.rmtree(place.parent)

    def _check_room(self, more_bytes: int) -> None:
        sizes = [path.stat().st_size for path in self._folder.glob("*/round-*/*")]
        if len(sizes) >= self._most_parcels or sum(sizes) + more_bytes > self._most_bytes:
            raise ShelfError(
                f"there is no room for another parcel beside {len(sizes)} others in {self._folder}; "
                "parcels of runs that are over can be deleted there",
                "parcels_full",
            )

    def _place(self, run: str, round_number: int) -> Path:
        """Runs are named by their coordinator, so the name is hashed before it becomes a path."""
        return self._folder / hashlib.sha256(run.encode()).hexdigest()[:16] / f"round-{round_number:04d}"
