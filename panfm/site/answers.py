"""The answers that a site has given, kept on its own disk: a round asked again gets the stored answer, without training again.

An answer is stored as it travels, in its parcels, and together with what the site keeps for later rounds: the residual of its
encoding and the optimiser's moments. All of it is committed at once (written, flushed, renamed into place) before anything is
sent, so a crash in between loses nothing, and no residual goes with another answer than its own.

    answer.json               the answer without its tensors; kept for good, for a round is answered once
    dropped.json              scans that the round did without, if any; kept for good
    parcel-000, ...           the deltas as they travel
    kept.safetensors          residual and moments, if any; they never leave

What has become old is removed when a newer answer is committed: parcels and what was kept of all rounds but the last few, and
but those in which an update of this site last had a vote, which is what the coordinator may refer to.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from panfm.data.dataset import DroppedScan
from panfm.durable import write_folder
from panfm.errors import DataError, ProtocolError
from panfm.groups import group_of
from panfm.protocol import Envelope, ParcelLabel, SiteUpdate, expect, from_envelope, to_envelope
from panfm.wire.parcels import Parcel, parcel_of

LAST_ROUNDS = 3
"""Of a run that are kept whole: a coordinator that goes on from an older checkpoint asks for the last ones again."""
OTHER_RUNS_S = 30 * 86_400.0
"""How long those of other runs are, after their last answer: a run may rest."""

_DAMAGED = "the stored answer of this round cannot be read; restore the site's state from a copy"
_KEPT = "kept.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a site keeps of a round for a later one, by parameter name."""

    residual: Mapping[str, Tensor] = field(default_factory=dict)
    """What the encoding rounded away."""
    moments: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Of the optimiser, by their names there."""


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
        """The stored answer; its deltas are in its parcels. Raises: DataError when there is none or it is damaged."""
        try:
            header = (self._place(run, round_number) / "answer.json").read_text()
            return expect(from_envelope(Envelope(kind="site_update", header=header)), SiteUpdate)
        except (OSError, ValueError, ProtocolError) as error:
            raise DataError(_DAMAGED) from error

    def find(self, run: str, round_number: int) -> SiteUpdate | None:
        """The stored answer, if there is one. Raises: DataError when it is damaged."""
        return self.read(run, round_number) if self.digest(run, round_number) is not None else None

    def is_whole(self, run: str, round_number: int) -> bool:
        """Whether the stored answer still has its parcels."""
        answer = self.read(run, round_number)
        return all(self._parcel_path(answer, number).is_file() for number in range(len(answer.parcels)))

    def parcels(self, answer: SiteUpdate) -> tuple[Parcel, ...]:
        """All parcels of a stored answer. Raises: DataError when they are damaged, or were removed as old."""
        return tuple(_read_parcel(self._parcel_path(answer, n), label) for n, label in enumerate(answer.parcels))

    def parcel(self, run: str, round_number: int, sha256: str) -> Parcel | None:
        """One parcel of the answer to a round, by its digest; None where there is none.

        Raises: DataError when it is damaged.
        """
        answer = self.find(run, round_number)
        if answer is None:
            return None
        named = (
            _read_parcel(path, label)
            for number, label in enumerate(answer.parcels)
            if label.sha256 == sha256 and (path := self._parcel_path(answer, number)).is_file()
        )
        return next(named, None)

    def dropped(self, run: str, round_number: int) -> tuple[DroppedScan, ...]:
        """The scans that the stored answer of a round did without; none where there is no answer.

        Raises: DataError when the list is damaged.
        """
        path = self._place(run, round_number) / "dropped.json"
        try:
            return tuple(DroppedScan(**scan) for scan in json.loads(path.read_text())) if path.is_file() else ()
        except (OSError, ValueError, TypeError) as error:
            raise DataError(_DAMAGED) from error

    def kept(self, run: str, voted: Mapping[str, int]) -> Kept:
        """What was kept of each group in the round in which its update last had a vote; nothing where that is gone.

        Args:
            voted: group -> round.
        Raises: DataError when what was kept is damaged.
        """
        residual: dict[str, Tensor] = {}
        moments: dict[str, dict[str, Tensor]] = {}
        for number in sorted(set(voted.values())):
            groups = [group for group, last in voted.items() if last == number]
            for kind, name, tensor in self._kept_of(run, number, groups):
                (residual if kind == "residual" else moments.setdefault(kind, {}))[name] = tensor
        return Kept(residual=residual, moments=moments)

    def commit(
        self,
        answer: SiteUpdate,
        parcels: Sequence[Parcel],
        kept: Kept | None = None,
        dropped: Sequence[DroppedScan] = (),
        voted: Collection[int] = (),
    ) -> None:
        """Keep an answer and what belongs to it; after this returns they survive any crash.

        Args:
            answer: without its deltas, which are in the parcels.
            dropped: the scans that it did without.
            voted: rounds of this run in which an update of the site had the last vote on some group.
        """
        header = to_envelope(answer).header
        files = {} if kept is None else _flat(kept)

        def fill(draft: Path) -> None:
            for number, parcel in enumerate(parcels):
                (draft / f"parcel-{number:03d}").write_bytes(parcel.body)
            if files:
                save_file(files, draft / _KEPT)
            (draft / "answer.json").write_text(header)
            if dropped:
                (draft / "dropped.json").write_text(json.dumps([asdict(scan) for scan in dropped], indent=1))

        write_folder(self._place(answer.run, answer.round), fill)
        self._remove_old(answer.run, {*voted, *range(answer.round - LAST_ROUNDS + 1, answer.round + 1)})

    def _kept_of(self, run: str, round_number: int, groups: Collection[str]) -> Iterator[tuple[str, str, Tensor]]:
        """(kind, parameter, tensor) of what was kept of these groups."""
        path = self._place(run, round_number) / _KEPT
        if not path.is_file():
            return
        try:
            with safe_open(path, "pt") as file:
                for key in sorted(file.keys()):
                    kind, _, name = key.partition("/")
                    if group_of(name) in groups:
                        yield kind, name, file.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise DataError(_DAMAGED) from error

    def _remove_old(self, run: str, rounds: Collection[int]) -> None:
        """Leave of a round only what is kept for good, unless it is one of these; a crash within leaves some of the rest."""
        own, since = self._run_folder(run), time.time() - OTHER_RUNS_S
        for folder in self._folder.glob("[!.]*"):
            if folder != own and _last_answer(folder) > since:
                continue
            for place in folder.glob("round-[0-9]*"):
                if folder == own and int(place.name.removeprefix("round-")) in rounds:
                    continue
                for path in (*place.glob("parcel-*"), place / _KEPT):
                    path.unlink(missing_ok=True)

    def _run_folder(self, run: str) -> Path:
        """Runs are named by their coordinator, so the name is hashed before it becomes a path."""
        return self._folder / hashlib.sha256(run.encode()).hexdigest()[:16]

    def _place(self, run: str, round_number: int) -> Path:
        return self._run_folder(run) / f"round-{round_number:04d}"

    def _parcel_path(self, answer: SiteUpdate, number: int) -> Path:
        return self._place(answer.run, answer.round) / f"parcel-{number:03d}"


def _read_parcel(path: Path, label: ParcelLabel) -> Parcel:
    try:
        parcel = parcel_of(path.read_bytes())
    except OSError as error:
        raise DataError(_DAMAGED) from error
    if parcel.sha256 != label.sha256:
        raise DataError(_DAMAGED)
    return parcel


def _flat(kept: Kept) -> dict[str, Tensor]:
    files = {f"residual/{name}": tensor for name, tensor in kept.residual.items()}
    return files | {f"{kind}/{name}": tensor for kind, named in kept.moments.items() for name, tensor in named.items()}


def _last_answer(run_folder: Path) -> float:
    return max((path.stat().st_mtime for path in run_folder.glob("round-[0-9]*/answer.json")), default=0.0)
