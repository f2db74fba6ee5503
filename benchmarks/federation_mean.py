"""How fast, and in how much memory, do 16 base-size updates become the next model? Beside Flower's FedAvg on the same arrays.

Run `PYTHONPATH=. OMP_NUM_THREADS=2 python benchmarks/federation_mean.py [--quick]` on a machine that does nothing else; it prints
the table and writes it to `benchmarks/federation_mean.md` (with --quick it takes the tiny model and only prints).

Every site sends every group of the base model, as Flower's FedAvg asks for, in fp32. Sixteen updates are four that are read four
times each: they are much larger than any cache, so each reading comes from memory as that of sixteen would. Each line is the
fastest of three turns, in which all ways take their turn, by the clock. Torch uses two threads, as a coordinator's does; Flower's
sums are numpy's, which uses one. Two lines have ours on one thread, too.

- *ours, the mean*: `mean_delta` of every group: what Flower computes, too.
- *ours, the round*: `aggregate_round`: the mean, the server step and the server's teacher.
- *Flower*: `aggregate_arrayrecords`, which its FedAvg calls, on the replies as they arrive.
- *added up once*: every update added to one sum in fp32, `total += update`, which no mean can do without; *read once*:
  every element only read (`sum()`), which tells what the memory alone costs.

Memory is the process's peak over what it holds before (Linux), in models of the size of one student, each way in turn.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from torch import Tensor

from benchmarks.machine import provenance
from panfm import recipes
from panfm.config import FederationConfig, GroupMean, OrganGrid, RobustConfig, ServerOptimiser, ServerStepConfig
from panfm.groups import split_by_group
from panfm.models.build import initial_parameters
from panfm.organs import SEVEN_ORGANS
from server.aggregation.next_model import aggregate_round
from server.aggregation.organ_mean import ballot, mean_delta
from server.aggregation.state import ServerState
from server.aggregation.votes import DeltasInMemory, Vote
from server.aggregation.weights import group_weights

ROOT = Path(__file__).resolve().parents[1]
QUICK = "--quick" in sys.argv
SITES, DISTINCT = 16, 4
TURNS = 3
THREADS = 2
OF_FLOWER, OF_ADDING, MODELS = 0.4, 3.0, 1.0
"""Held to: of Flower's time, of adding up once, models of extra memory."""

Work = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A model and the updates of a round."""

    student: dict[str, Tensor]
    teacher: dict[str, Tensor]
    votes: list[Vote]
    records: list[RecordDict]
    """The same updates as Flower's replies."""

    @property
    def model_bytes(self) -> int:
        """Of one student."""
        return sum(tensor.nbytes for tensor in self.student.values())


def make_bench() -> Bench:
    """A round of sites that hold all organs; sizes of subjects differ."""
    config = recipes.load(["recipe=demo", f"model={'tiny' if QUICK else 'base'}"]).model
    student = initial_parameters(config, dict.fromkeys(SEVEN_ORGANS, OrganGrid()), seed=0)
    draws = torch.Generator().manual_seed(0)
    deltas = [
        {name: torch.randn(t.shape, generator=draws) * 1e-3 for name, t in student.items()} for _ in range(DISTINCT)
    ]
    records = [ArrayRecord({name: Array(tensor.numpy()) for name, tensor in part.items()}) for part in deltas]
    votes = [
        Vote(
            site=f"site-{i:02}",
            deltas=DeltasInMemory(deltas[i % DISTINCT]),
            num_subjects=50 + i,
            organ_subjects=dict.fromkeys(SEVEN_ORGANS, 50 + i),
            num_steps=20,
        )
        for i in range(SITES)
    ]
    replies = [
        RecordDict({"arrays": records[i % DISTINCT], "metrics": MetricRecord({"num-examples": 50 + i})})
        for i in range(SITES)
    ]
    return Bench(student=student, teacher={n: t.clone() for n, t in student.items()}, votes=votes, records=replies)


def our_mean(bench: Bench) -> dict[str, Tensor]:
    """The organ-aware mean of every group."""
    means: dict[str, Tensor] = {}
    for group in split_by_group(bench.student):
        weights = group_weights(group, bench.votes, FederationConfig())
        scales = dict.fromkeys(weights, 1.0)
        means.update(mean_delta(group, ballot(bench.votes, weights, scales, RobustConfig())))
    return means


def our_round(bench: Bench, config: FederationConfig, *, in_place: bool) -> object:
    """Mean, server step and teacher."""
    return aggregate_round(
        bench.student, bench.teacher, bench.votes, ServerState(), config, lambda n: -0.01 * n, in_place=in_place
    )


def on_one_thread(work: Work) -> None:
    """The same on one thread."""
    torch.set_num_threads(1)
    work()
    torch.set_num_threads(THREADS)


def added_up(bench: Bench) -> object:
    """Every update added to one sum, in fp32."""
    total = {name: torch.zeros_like(tensor) for name, tensor in bench.student.items()}
    for tensors in (in_memory(vote) for vote in bench.votes):
        for name, tensor in tensors.items():
            total[name] += tensor
    return total


def read_once(bench: Bench) -> object:
    """Every element read."""
    return [float(tensor.sum()) for vote in bench.votes for tensor in in_memory(vote).values()]


def in_memory(vote: Vote) -> Mapping[str, Tensor]:
    """The tensors of a vote."""
    assert isinstance(vote.deltas, DeltasInMemory)
    return vote.deltas.tensors


def ways(bench: Bench) -> dict[str, Work]:
    """What is timed, by name."""

    def robust(mean: GroupMean) -> FederationConfig:
        return FederationConfig(robust=RobustConfig(mean=mean))

    yogi = FederationConfig(server=ServerStepConfig(optimiser=ServerOptimiser.fedyogi, rate=1e-3))
    bounded = FederationConfig(robust=RobustConfig(max_norm=1.0))
    return {
        "Flower": lambda: aggregate_arrayrecords(bench.records, "num-examples"),
        "added up once": lambda: added_up(bench),
        "read once": lambda: read_once(bench),
        "ours, the mean": lambda: our_mean(bench),
        "ours, the mean, one thread": lambda: on_one_thread(lambda: our_mean(bench)),
        "ours, the round": lambda: our_round(bench, FederationConfig(), in_place=False),
        "ours, the round, in place": lambda: our_round(bench, FederationConfig(), in_place=True),
        "ours, the round, in place, one thread": lambda: on_one_thread(
            lambda: our_round(bench, FederationConfig(), in_place=True)
        ),
        "ours, the round, FedYogi": lambda: our_round(bench, yogi, in_place=True),
        "ours, the round, norms bounded": lambda: our_round(bench, bounded, in_place=True),
        "ours, the round, median": lambda: our_round(bench, robust(GroupMean.median), in_place=True),
        "ours, the round, trimmed mean": lambda: our_round(bench, robust(GroupMean.trimmed_mean), in_place=True),
    }


def seconds(works: Mapping[str, Work]) -> dict[str, float]:
    """The fastest of three turns of each."""
    best = dict.fromkeys(works, float("inf"))
    for _ in range(TURNS):
        for name, work in works.items():
            started = time.monotonic()
            work()
            best[name] = min(best[name], time.monotonic() - started)
    return best


def extra_bytes(work: Work) -> int:
    """The process's peak while it works, over what it held before."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier ways freed is no room for this one
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status_bytes("VmRSS")
    work()
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def largest_difference(bench: Bench) -> float:
    """Between our mean and Flower's, over all elements."""
    flower = aggregate_arrayrecords(bench.records, "num-examples").to_torch_state_dict()
    return max(float((mean - flower[name].reshape(mean.shape)).abs().max()) for name, mean in our_mean(bench).items())


def rows(bench: Bench) -> list[str]:
    """The table."""
    works = ways(bench)
    works["ours, the mean"]()  # first calls are slower
    taken = seconds(works)
    models = {name: extra_bytes(work) / bench.model_bytes for name, work in works.items()}
    lines = []
    for name, spent in taken.items():
        of_flower, of_adding, of_reading = (spent / taken[other] for other in ("Flower", "added up once", "read once"))
        lines.append(
            f"| {name} | {spent:.2f} s | {of_flower:.2f} | {of_adding:.2f} | {of_reading:.2f} | {models[name]:.2f} |"
        )
    mean, in_place = "ours, the mean", "ours, the round, in place"
    held = [
        ("the mean, of Flower's time", taken[mean] / taken["Flower"], OF_FLOWER),
        ("the mean, of adding up once", taken[mean] / taken["added up once"], OF_ADDING),
        ("the mean, models of extra memory", models[mean], MODELS + 0.02),
        ("the round in place, models of extra memory", models[in_place], MODELS),
    ]
    return [
        "| way | time | of Flower | of adding up once | of reading once | extra memory, models |",
        "|---|---|---|---|---|---|",
        *lines,
        "",
        "| held to | at most | measured | holds |",
        "|---|---|---|---|",
        *(f"| {what} | {most:g} | {came:.2f} | {'yes' if came <= most else '**NO**'} |" for what, came, most in held),
        "",
        "Largest difference between our mean and Flower's, of deltas with a standard deviation of 1e-3: "
        f"{largest_difference(bench):.1e}.",
    ]


def main() -> None:
    torch.set_num_threads(THREADS)
    bench = make_bench()
    text = [
        "# The mean of a round\n",
        f"{provenance()}.\n",
        f"{SITES} updates of {bench.model_bytes / 1e6:.0f} MB, all groups from every site, {THREADS} threads.\n",
        *rows(bench),
        "\nMade by `PYTHONPATH=. OMP_NUM_THREADS=2 python benchmarks/federation_mean.py`, whose first paragraph says what is "
        "compared.",
    ]
    print("\n".join(text))
    if not QUICK:
        (ROOT / "benchmarks" / "federation_mean.md").write_text("\n".join([*text, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
