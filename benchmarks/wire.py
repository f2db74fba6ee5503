"""How many bytes does a round cost a site, and where does compression pay?

Run `PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/wire.py [--quick]` on a machine that does nothing else; it prints the
table and writes it to `benchmarks/wire.md` (with --quick, the tiny model, it only prints).

The site has 2 of the study's 7 organs; the model is of base size. What travels is packed as in a run (`panfm.wire.parcels`):
student and teacher down, deltas up. Bytes are those of all bodies. Two measures beside them:
- *of FedAvg*: stock FedAvg sends the whole model, seven organs, in fp32: the student up, and, to be fair to a method with an EMA
  teacher, student and teacher down;
- *of own fp32*: the same groups in fp32, so that what encoding and compression gain by themselves can be seen.

Values are drawn from normal distributions (parameters with the deviation of their initialisation, deltas with one deviation a
tensor). That is hard to compress: deltas of a real round are more alike within a tensor, as the line *tiny model* shows: it
packs the deltas of a real round of the recipe `smoke`. Seconds are wall time of one thread, without reading and sending.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import provenance
from panfm import recipes
from panfm.config import Encoding, ModelConfig, OrganGrid, Recipe
from panfm.data.dataset import SubjectDataset
from panfm.data.store import PreparedStore
from panfm.groups import SHARED_GROUPS, keep_groups
from panfm.models.build import initial_parameters
from panfm.organs import SEVEN_ORGANS
from panfm.pretrain.local_round import train_round
from panfm.wire.encoding import encode
from panfm.wire.parcels import pack, unpack
from simulation.hospitals import make_cohort

ROOT = Path(__file__).resolve().parents[1]
QUICK = "--quick" in sys.argv
OWN = SEVEN_ORGANS[:2]
UP_HELD_TO, DOWN_HELD_TO = 0.25, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """What packing some tensors came to."""

    size_bytes: int
    parcels: int
    largest_bytes: int
    pack_s: float
    unpack_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table."""

    what: str
    encoding: Encoding
    level: int
    packed: Packed
    fedavg_bytes: int
    own_bytes: int
    held_to: float | None = None

    def __str__(self) -> str:
        of_fedavg = self.packed.size_bytes / self.fedavg_bytes
        verdict = "" if self.held_to is None else f" (at most {self.held_to}: {_yes(of_fedavg <= self.held_to)})"
        cells = [
            self.what,
            self.encoding.value,
            f"{self.level}" if self.level else "none",
            f"{self.packed.size_bytes / 1e6:.1f}",
            f"**{of_fedavg:.3f}**{verdict}",
            f"{self.packed.size_bytes / self.own_bytes:.3f}",
            f"{self.packed.parcels} ({self.packed.largest_bytes / 1e6:.1f})",
            f"{self.packed.pack_s:.2f}",
            f"{self.packed.unpack_s:.2f}",
        ]
        return "| " + " | ".join(cells) + " |"


def _yes(holds: bool) -> str:
    return "holds" if holds else "FAILS"


def packed(tensors: Mapping[str, Tensor], encoding: Encoding, level: int) -> Packed:
    """Encode, pack and unpack; one parcel is in memory at a time."""
    sizes: list[int] = []
    unpack_s = 0.0
    started = time.perf_counter()
    for parcel in pack(encode(tensors, encoding), level):
        sizes.append(len(parcel.body))
        before = time.perf_counter()
        unpack(parcel)
        unpack_s += time.perf_counter() - before
    pack_s = time.perf_counter() - started - unpack_s
    return Packed(size_bytes=sum(sizes), parcels=len(sizes), largest_bytes=max(sizes), pack_s=pack_s, unpack_s=unpack_s)


def model_config() -> ModelConfig:
    """Base, or, to see that this file works, tiny."""
    return recipes.load(["recipe=demo", f"model={'tiny' if QUICK else 'base'}"]).model


def drawn(shapes: Mapping[str, torch.Size], deviation: float) -> dict[str, Tensor]:
    """Normal numbers, of another size for each tensor as layers of a network are."""
    draw = torch.Generator().manual_seed(0)
    scales = np.random.default_rng(0).uniform(0.3, 3.0, len(shapes))
    return {
        name: torch.randn(shape, generator=draw) * (deviation * float(scale))
        for scale, (name, shape) in zip(scales, sorted(shapes.items()), strict=True)
    }


def size_bytes(shapes: Mapping[str, torch.Size]) -> int:
    """In fp32."""
    return 4 * sum(shape.numel() for shape in shapes.values())


def rows() -> Iterator[Row]:
    """Down and up, each way of encoding and compressing it."""
    grids = {organ: OrganGrid(shape=[96, 96, 96]) for organ in SEVEN_ORGANS}
    whole = {name: tensor.shape for name, tensor in initial_parameters(model_config(), grids, 0).items()}
    own = keep_groups(whole, (*SHARED_GROUPS, *OWN))
    student, lag = drawn(own, 0.02), drawn(own, 1e-3)
    both = {f"student/{name}": tensor for name, tensor in student.items()}
    both |= {f"teacher/{name}": tensor + lag.pop(name) for name, tensor in student.items()}
    for encoding, level in (
        (Encoding.fp32, 0),
        (Encoding.fp32, 1),
        (Encoding.bf16, 0),
        (Encoding.bf16, 1),
        (Encoding.bf16, 3),
    ):
        held_to = DOWN_HELD_TO if encoding is Encoding.bf16 else None
        yield Row(
            what="student and teacher down", encoding=encoding, level=level, packed=packed(both, encoding, level),
            fedavg_bytes=2 * size_bytes(whole), own_bytes=2 * size_bytes(own), held_to=held_to,
        )  # fmt: skip
    del both, student
    deltas = drawn(own, 1e-3)
    for encoding, level in (*((e, n) for e in Encoding for n in (0, 1)), (Encoding.int8, 3)):
        held_to = UP_HELD_TO if encoding is Encoding.int8 else None
        yield Row(
            what="deltas up", encoding=encoding, level=level, packed=packed(deltas, encoding, level),
            fedavg_bytes=size_bytes(whole), own_bytes=size_bytes(own), held_to=held_to,
        )  # fmt: skip
    yield from real_rows()


def real_rows() -> Iterator[Row]:
    """The deltas of a real round: the tiny model of the recipe `smoke` at one of its hospitals, all of its organs."""
    with tempfile.TemporaryDirectory() as folder:
        deltas = _real_deltas(Path(folder))
    whole = size_bytes({name: delta.shape for name, delta in deltas.items()})
    for encoding in Encoding:
        yield Row(
            what="tiny model, deltas of a real round", encoding=encoding, level=1, packed=packed(deltas, encoding, 1),
            fedavg_bytes=whole, own_bytes=whole,
        )  # fmt: skip


def _real_deltas(folder: Path) -> dict[str, Tensor]:
    config = recipes.load(
        ["recipe=smoke", "pretrain.steps_per_round=10", "cohort.probe_subjects=1", "cohort.test_subjects=1"]
    )
    make_cohort(config, folder, "ab" * 32, lambda _what, _done, _total: None)
    recipe: Recipe = recipes.recipe_of(config)
    site = sorted((folder / "hospitals").iterdir())[0]
    store = PreparedStore.open(site / "store")
    organs = tuple(organ for organ in recipe.organs if any(entry.organ == organ for entry in store.entries))
    dataset = SubjectDataset(store, organs, recipe.organs)
    start = initial_parameters(recipe.model, {organ: recipe.organs[organ] for organ in organs}, recipe.seed)
    return train_round(start, start, dataset, recipe, site=site.name, round_number=1).deltas


def page(lines: Sequence[str]) -> str:
    """The document."""
    size = "Tiny" if QUICK else "Base"
    return "\n".join(
        [
            "# What a round costs a site, in bytes",
            "",
            f"{size} model, a site with {' and '.join(OWN)} of seven organs, one thread ({provenance()}).",
            "",
            "| what | encoding | zstd level | MB | of FedAvg | of own fp32 | parcels (largest, MB) | pack (s) | unpack (s) |",
            "|---|---|---|---|---|---|---|---|---|",
            *lines,
            "",
            "Made by `PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/wire.py`, whose first paragraph says what is compared.",
            "What goes down is packed once a round, however many sites share a group; what goes up is packed once, and sent",
            "again from the site's store.",
            "",
        ]
    )


def main() -> None:
    torch.set_num_threads(1)
    lines = []
    for row in rows():
        lines.append(str(row))
        print(row, flush=True)
    if not QUICK:
        (ROOT / "benchmarks" / "wire.md").write_text(page(lines))


if __name__ == "__main__":
    main()
