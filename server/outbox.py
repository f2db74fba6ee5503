"""A round's tasks, packed into parcels on the coordinator's disk: each group once a round, however many sites it goes to.

Tensors that are the same for several sites are the same tensors in memory (`rounds` hands them out, it does not copy them), so
that is how they are recognised. What fits into one parcel goes as one; of a larger task the shared groups are packed apart from
the site's organs, and only as much as fits into a parcel is encoded at a time.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from panfm.config import Encoding, WireConfig
from panfm.durable import write_file
from panfm.groups import SHARED_GROUPS, group_of
from panfm.protocol import ParcelLabel, Task
from panfm.wire.parcels import Parcel, pack_tensors

_NUMBER_BYTES = {Encoding.fp32: 4, Encoding.bf16: 2, Encoding.int8: 1}
_NAME_BYTES = 250
"""About what a tensor takes in a parcel besides its numbers."""

Bundle = dict[str, Tensor]


class Outbox:
    """The parcels of one round's tasks, in a folder."""

    def __init__(self, folder: Path, wire: WireConfig) -> None:
        self._folder, self._wire = folder, wire
        self._packed: dict[tuple[tuple[str, int], ...], tuple[Bundle, tuple[ParcelLabel, ...]]] = {}
        """By names and addresses; the tensors are kept, for the address of one that is gone may become another's."""
        folder.mkdir(parents=True, exist_ok=True)

    def pack(self, task: Task) -> tuple[ParcelLabel, ...]:
        """The parcels in which this task's tensors travel, in order; new ones are written."""
        return tuple(label for bundle in self._bundles(task) for label in self._pack(bundle))

    def let_go(self) -> None:
        """Hold the tensors no longer; a task that is packed after this is packed anew."""
        self._packed.clear()

    def read(self, label: ParcelLabel) -> Parcel:
        """One parcel."""
        return Parcel((self._folder / label.sha256).read_bytes(), label.sha256)

    def _bundles(self, task: Task) -> Iterator[Bundle]:
        parts = {"student": task.student, "teacher": task.teacher}
        whole = {f"{part}/{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
        if self._size_bytes(whole) <= self._wire.parcel_bytes:
            yield whole
            return
        shared = {name: tensor for name, tensor in whole.items() if group_of(name.partition("/")[2]) in SHARED_GROUPS}
        organs = {name: tensor for name, tensor in whole.items() if name not in shared}
        yield from self._parcelfuls(shared)
        yield from self._parcelfuls(organs)

    def _parcelfuls(self, named: Bundle) -> Iterator[Bundle]:
        """As much at a time as fits into a parcel; a tensor that is larger than one, by itself."""
        bundle: Bundle = {}
        for name, tensor in sorted(named.items()):
            if bundle and self._size_bytes(bundle | {name: tensor}) > self._wire.parcel_bytes:
                yield bundle
                bundle = {}
            bundle[name] = tensor
        if bundle:
            yield bundle

    def _pack(self, bundle: Bundle) -> tuple[ParcelLabel, ...]:
        key = tuple((name, tensor.data_ptr()) for name, tensor in sorted(bundle.items()))
        if key not in self._packed:
            self._packed[key] = bundle, tuple(self._written(bundle))
        return self._packed[key][1]

    def _written(self, bundle: Bundle) -> Iterator[ParcelLabel]:
        wire = self._wire
        for parcel in pack_tensors(bundle, wire.down, wire.zstd_level, wire.parcel_bytes):
            write_file(self._folder / parcel.sha256, parcel.body, flushed=False)  # made anew after a crash
            yield parcel.label

    def _size_bytes(self, named: Mapping[str, Tensor]) -> int:
        number_bytes = _NUMBER_BYTES[self._wire.down]
        return sum(number_bytes * tensor.numel() + _NAME_BYTES + len(name) for name, tensor in named.items())
