"""The coordinator's spool: updates on disk as they arrived, from where the averaging reads them block by block.

A round's updates together are as large as its sites are many; one of them at most is in memory, and of it one parcel. What is
spooled is what travelled (fp32, bf16 or int8 with scales), each tensor in one stretch of one file; it becomes fp32 in the block
that is asked for. An update is there when its `answer.json` is, which is written last.

    spool/round-0003/north/raw.bin      the tensors' bytes
    spool/round-0003/north/answer.json  the answer without its tensors, where they lie, and the digest of it all
    spool/round-0003/.parcels/          the round's tasks, packed (server.outbox)
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from panfm.durable import flush, write_file
from panfm.errors import ProtocolError
from panfm.protocol import Envelope, ParcelLabel, SiteUpdate, expect, from_envelope, to_envelope
from panfm.wire.encoding import BLOCK, SCALES, decode_block, num_scales
from panfm.wire.parcels import LIMIT_BYTES, Parcel, Piece, pieces, unpack

RAW_FILE, ANSWER_FILE = "raw.bin", "answer.json"

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_CHUNK_BYTES = 1 << 22
"""Read at a time for a digest."""
_NAME_BYTES = 1024
"""Allowed for a tensor's name and shape beside its numbers; the longest of panfm's own take a tenth."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Where a raw tensor lies in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def numbers(self) -> int:
        """Elements of the tensor."""
        return prod(self.shape)

    @property
    def item_bytes(self) -> int:
        """Bytes of an element."""
        return _DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class SpooledDeltas:
    """Deltas of one update on disk (`server.aggregation.votes.Deltas`), read with no more memory than the block needs."""

    file: Path
    stretches: Mapping[str, Stretch]

    def names(self) -> Collection[str]:
        """Names of the parameters, sorted."""
        return sorted(name for name in self.stretches if not name.endswith(SCALES))

    def shape(self, name: str) -> torch.Size:
        """Shape of one parameter's delta."""
        return torch.Size(self.stretches[name].shape)

    def block(self, name: str, start: int, stop: int) -> Tensor:
        """Elements start to stop of one delta in row-major order: fp32, 1-D."""
        first = start - start % BLOCK  # where a scale begins
        values = self._read(name, first, stop)
        if name + SCALES not in self.stretches:
            return decode_block(name, values, None)[start - first :]
        scales = self._read(name + SCALES, first // BLOCK, first // BLOCK + num_scales(stop - first))
        return decode_block(name, values, scales)[start - first :]

    def _read(self, name: str, start: int, stop: int) -> Tensor:
        where = self.stretches[name]
        values = torch.empty(stop - start, dtype=_DTYPES[where.dtype])
        if stop == start:
            return values
        content = values.view(torch.uint8).numpy()
        descriptor = os.open(self.file, os.O_RDONLY)
        try:
            came = os.preadv(descriptor, [content.data], where.offset + start * where.item_bytes)
        finally:
            os.close(descriptor)
        if came != content.size:
            raise OSError(f"{self.file} ends before {name} does: something else has shortened it")
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class SpooledUpdate:
    """One update, whole and flushed to disk."""

    update: SiteUpdate
    """With empty `deltas`."""
    deltas: SpooledDeltas
    digest: str
    """SHA-256 (hex) over the answer and its tensors, without what changes when a site sends the same answer again (how it was
    packed, the head of its audit log): what the journal names."""


class Spool:
    """Updates by round and site, below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def receive(
        self, round_number: int, site: str, update: SiteUpdate, most_bytes: int, parcel_bytes: int = LIMIT_BYTES
    ) -> Arrival:
        """Make room for an update whose parcels are about to come; what an earlier attempt left is removed.

        Args:
            update: as decoded, without deltas.
            most_bytes: more than its tensors, unpacked, may have (`room_for`).
            parcel_bytes: most bytes of one parcel.
        Raises: ProtocolError when it announces more than that.
        """
        _check_announced(update.parcels, most_bytes, parcel_bytes)
        folder = self._place(round_number, site)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / RAW_FILE).touch()
        return Arrival(folder=folder, update=update, most_bytes=most_bytes, parcel_bytes=parcel_bytes)

    def find(self, round_number: int, site: str, digest: str) -> SpooledUpdate | None:
        """The update that a journal names, after a restart; None when it is not there whole: then ask the site again."""
        folder = self._place(round_number, site)
        try:
            found = _read_update(folder)
            return found if found.digest == digest == _digest(found.update, found.deltas) else None
        except (OSError, ValueError, KeyError, TypeError, ProtocolError):
            return None

    def parcels_of(self, round_number: int) -> Path:
        """The folder of a round's own parcels."""
        return self._round(round_number) / ".parcels"

    def drop(self, *, before: int) -> None:
        """Forget everything of rounds before this one."""
        for folder in self._folder.glob("round-*"):
            if int(folder.name.removeprefix("round-")) < before:
                shutil.rmtree(folder)

    def _round(self, number: int) -> Path:
        return self._folder / f"round-{number:04d}"

    def _place(self, round_number: int, site: str) -> Path:
        return self._round(round_number) / site


@dataclass(slots=True, kw_only=True)
class Arrival:
    """An update of which not all parcels have come yet."""

    folder: Path
    update: SiteUpdate
    most_bytes: int
    parcel_bytes: int
    _taken: int = field(default=0, init=False)
    """Parcels that came; they come in the order in which they were announced."""
    _stretches: dict[str, Stretch] = field(default_factory=dict, init=False)
    _came: dict[str, list[tuple[int, int]]] = field(default_factory=dict, init=False)
    """Raw tensor -> (start, stop) of its pieces."""
    _end: int = field(default=0, init=False)

    def wanted(self) -> ParcelLabel | None:
        """The next parcel; None when all are there."""
        announced = self.update.parcels
        return announced[self._taken] if self._taken < len(announced) else None

    def take(self, body: bytes) -> None:
        """Write the next parcel's tensors to the disk.

        Raises: ProtocolError when it is not the one that was announced, holds what is no tensor, or too much of it.
        """
        wanted = self.wanted()
        if wanted is None or len(body) != wanted.size_bytes:
            raise ProtocolError("a parcel is not of the size that its answer announced; the site runs other code")
        with (self.folder / RAW_FILE).open("r+b") as file:
            for piece in pieces(unpack(Parcel(body, wanted.sha256), self.parcel_bytes)):
                file.seek(self._room_for(piece))
                file.write(piece.values.contiguous().view(torch.uint8).numpy().data)
        self._taken += 1

    def commit(self) -> SpooledUpdate:
        """Make it whole: flushed to disk, readable, and found again after a crash.

        Raises: ProtocolError when tensors are incomplete or do not fit together.
        """
        self._check_whole()
        deltas = SpooledDeltas(self.folder / RAW_FILE, dict(sorted(self._stretches.items())))
        flush(deltas.file)
        update = replace(self.update, parcels=())
        spooled = SpooledUpdate(update=update, deltas=deltas, digest=_digest(update, deltas))
        stretches = {name: asdict(where) for name, where in deltas.stretches.items()}
        answer = {"header": to_envelope(update).header, "stretches": stretches, "digest": spooled.digest}
        write_file(self.folder / ANSWER_FILE, json.dumps(answer).encode())
        for folder in (self.folder, self.folder.parent, self.folder.parent.parent):
            flush(folder)
        return spooled

    def discard(self) -> None:
        """Give its room back."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _room_for(self, piece: Piece) -> int:
        """Where in the file a piece goes; the whole tensor's room is set aside with its first piece."""
        where = self._stretches.get(piece.name)
        if where is None:
            where = self._stretches[piece.name] = self._set_aside(piece)
        if (where.dtype, where.shape) != (_dtype_name(piece), tuple(piece.shape)):
            raise ProtocolError(f"pieces of {piece.name!r:.80} do not fit together; the site runs other code")
        self._came.setdefault(piece.name, []).append((piece.start, piece.start + piece.values.numel()))
        return where.offset + piece.start * where.item_bytes

    def _set_aside(self, piece: Piece) -> Stretch:
        where = Stretch(_dtype_name(piece), tuple(piece.shape), self._end)
        self._end += where.numbers * where.item_bytes
        if self._end + len(self._stretches) * _NAME_BYTES > self.most_bytes or len(piece.name) > _NAME_BYTES:
            raise ProtocolError("the update holds more than its task's tensors could; the site runs other code")
        return where

    def _check_whole(self) -> None:
        for name, where in self._stretches.items():
            ends = 0
            for start, stop in sorted(self._came[name]):
                if start != ends:
                    raise ProtocolError(f"{name!r:.80} came twice or lacks a piece; the site runs other code")
                ends = stop
            if ends != where.numbers:
                raise ProtocolError(f"{name!r:.80} lacks its last piece; the site runs other code")
            _check_scales(name, self._stretches)


def room_for(expected: Mapping[str, torch.Size]) -> int:
    """Bytes above which an update of these parameters cannot be honest: each in fp32, beside scales and names."""
    return sum(4 * prod(shape) + 4 * num_scales(prod(shape)) + 4 * _NAME_BYTES for shape in expected.values()) + (
        1 << 16
    )


def _check_announced(labels: Collection[ParcelLabel], most_bytes: int, parcel_bytes: int) -> None:
    """Two parcels in a row hold more than one has room for, so an honest number of them is bounded."""
    most = 2 * (most_bytes // parcel_bytes) + 2
    if len(labels) > most or any(label.size_bytes > parcel_bytes for label in labels):
        raise ProtocolError(
            f"the update announces {len(labels)} parcels, expected at most {most} of at most {parcel_bytes} bytes each"
        )


def _check_scales(name: str, stretches: Mapping[str, Stretch]) -> None:
    """Raises: ProtocolError unless scales stand beside the int8 tensors and nowhere else."""
    where, owner = stretches[name], stretches.get(name.removesuffix(SCALES))
    if name.endswith(SCALES):
        fits = owner is not None and owner.dtype == "int8" and where.dtype == "float32"
        fits = fits and owner is not None and where.shape == (num_scales(owner.numbers),)
    else:
        fits = where.dtype != "int8" or name + SCALES in stretches
    if not fits:
        raise ProtocolError(f"the scales of {name.removesuffix(SCALES)!r:.80} do not fit; the site runs other code")


def _dtype_name(piece: Piece) -> str:
    name = _DTYPE_NAMES.get(piece.values.dtype)
    if name is None:
        raise ProtocolError(
            f"{piece.name!r:.80} has dtype {piece.values.dtype}, expected fp32, bf16 or int8; the site runs other code"
        )
    return name


def _read_update(folder: Path) -> SpooledUpdate:
    answer = json.loads((folder / ANSWER_FILE).read_text())
    update = expect(from_envelope(Envelope(kind="site_update", header=answer["header"])), SiteUpdate)
    stretches = {
        name: Stretch(where["dtype"], tuple(where["shape"]), where["offset"])
        for name, where in answer["stretches"].items()
    }
    return SpooledUpdate(
        update=update, deltas=SpooledDeltas(folder / RAW_FILE, stretches), digest=str(answer["digest"])
    )


def _digest(update: SiteUpdate, deltas: SpooledDeltas) -> str:
    """Over the answer and the raw tensors in sorted order of names, read a little at a time."""
    hasher = hashlib.sha256(to_envelope(replace(update, audit_head="", parcels=())).header.encode())
    with deltas.file.open("rb") as file:
        for name, where in sorted(deltas.stretches.items()):
            hasher.update(json.dumps([name, where.dtype, list(where.shape)]).encode())
            for chunk in _chunks(file.fileno(), where):
                hasher.update(chunk)
    return hasher.hexdigest()


def _chunks(descriptor: int, where: Stretch) -> Iterator[bytes]:
    """The bytes of a stretch. Raises: ValueError when the file ends before it does."""
    position, end = where.offset, where.offset + where.numbers * where.item_bytes
    while position < end:
        chunk = os.pread(descriptor, min(_CHUNK_BYTES, end - position), position)
        if not chunk:
            raise ValueError("a spooled update is cut short")
        yield chunk
        position += len(chunk)
