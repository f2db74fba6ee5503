"""What a simulated round costs beside the training in it, and whether memory stays flat. Each line says what it is held to.

Run `PYTHONPATH=. OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/federation_overhead.py [--quick]` on a machine that
does nothing else; it prints the table and writes it to `benchmarks/federation_overhead.md`, with the machine and the commit (with
--quick it only prints).

- *overhead*: 8 hospitals with the tiny model train one after the other in one process, for about 5 s each; the wall time of a
  round over the sum of what the sites say their training took, less 1. The first round is left out: torch imports its own parts.
- *side by side*: the same with two workers; the wall time of a round over half the sum.
- *memory over rounds*: 200 rounds of the smallest study; resident memory after each round, late rounds over early ones.
- *memory over hospitals*: 25 and 100 hospitals with the tiny model, two rounds; peak resident memory.

Every study runs in a process of its own, on hospitals made beforehand, by the very apps of a deployment.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.machine import provenance
from panfm import recipes
from panfm.reporting.record import Event, RoundFinished, SiteAnswered, events_of, read_record
from panfm.signing import public_hex
from server.run_folder import coordinator_key
from simulation.hospitals import make_cohort
from simulation.local_grid import run_in_process
from simulation.partition import synthetic_hospitals

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".md")
QUICK = "--quick" in sys.argv
TRAIN_S = 0.5 if QUICK else 5.0
SITES = 3 if QUICK else 8
MANY_ROUNDS = 30 if QUICK else 200
FEW_SITES, MANY_SITES = (3, 6) if QUICK else (25, 100)
WATCH_S = 0.02
"""Between two looks at the memory of a study that runs."""

TINY = (
    "recipe=smoke",
    "model=tiny",
    "model.width=96",
    "model.depth=4",
    "model.adapter_width=16",
    "model.predictor_width=192",
    "cohort.probe_subjects=1",
    "cohort.test_subjects=1",
    "federation.join_timeout_s=120",
)
"""The tiny model of the demo on the small volumes of recipe smoke: seconds to prepare, and no less to train and to carry."""


Row = tuple[str, str, str, str]
"""What, held to, measured, holds."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        _make_hospitals(runs)
        rows = [_told(row) for part in (_overhead, _over_rounds, _over_sites) for row in part(runs)]
    text = _page(rows)
    print(text)
    if not QUICK:
        TABLE.write_text(text)


def _told(row: Row) -> Row:
    print(*row, sep=" | ", file=sys.stderr, flush=True)
    return row


# ---- time --------------------------------------------------------------------------------------------------------------


def _overhead(runs: Path) -> Iterator[Row]:
    settings = ["rounds=2", f"pretrain.steps_per_round={_steps_for(TRAIN_S, runs)}"]
    for workers in (1, 2):
        events, _ = _study(runs, f"timed-{workers}", SITES, [*settings, f"workers={workers}"])
        wall_s, trained_s = _rounds(events)[1]
        share = wall_s * workers / trained_s - 1
        what = f"a round of {SITES} hospitals, {trained_s / SITES:.1f} s of training each"
        if workers == 1:
            yield f"{what}: overhead", "at most 10 %", f"{share:.1%}", "yes" if share <= 0.1 else "**NO**"
        else:
            yield f"{what}, two side by side: wall time over half the sum of training, less 1", "", f"{share:.1%}", ""


def _rounds(events: Sequence[Event]) -> list[tuple[float, float]]:
    """(wall time, sum of the sites' training) of each round, in seconds."""
    answers = events_of(SiteAnswered, list(events))
    return [
        (done.seconds, sum(answer.metrics["seconds"] for answer in answers if answer.round == done.round))
        for done in events_of(RoundFinished, list(events))
    ]


def _steps_for(seconds: float, runs: Path) -> int:
    """Optimiser steps that take a site at least so long here and now: from two short trials, for a training also has a start."""
    few, more = 10, 40
    few_s, more_s = (_trained_s(steps, runs) for steps in (few, more))
    return more + math.ceil((more - few) * max(seconds - more_s, 0) / (more_s - few_s))


def _trained_s(steps: int, runs: Path) -> float:
    """What a site's training of so many steps takes in the second round."""
    events, _ = _study(runs, f"trial-{steps}", SITES, ["rounds=2", f"pretrain.steps_per_round={steps}"])
    return _rounds(events)[1][1] / SITES


# ---- memory ------------------------------------------------------------------------------------------------------------


def _over_rounds(runs: Path) -> Iterator[Row]:
    events, resident = _study(runs, "many", 3, [f"rounds={MANY_ROUNDS}", "pretrain.steps_per_round=1"])
    assert len(events_of(RoundFinished, events)) == MANY_ROUNDS
    tenth = len(resident) // 10
    early, late = (statistics.median(part) for part in (resident[tenth : 3 * tenth], resident[-2 * tenth :]))
    told = f"{early / 1e6:.0f} MB early, {late / 1e6:.0f} MB late: {late / early:.3f}"
    yield f"memory over {MANY_ROUNDS} rounds", "flat (1.05)", told, "yes" if late <= 1.05 * early else "**NO**"


def _over_sites(runs: Path) -> Iterator[Row]:
    peaks = {}
    for sites in (FEW_SITES, MANY_SITES):
        started = time.monotonic()
        events, resident = _study(runs, f"sites-{sites}", sites, ["rounds=2"])
        accepted = [a for a in events_of(SiteAnswered, events) if a.outcome == "accepted"]
        assert len(accepted) == 2 * sites, "all took part"
        peaks[sites] = max(resident)
        yield (
            f"{sites} hospitals, tiny model, 2 rounds: peak memory, and time",
            "",
            f"{peaks[sites] / 1e6:.0f} MB, {time.monotonic() - started:.0f} s",
            "",
        )
    growth = (peaks[MANY_SITES] - peaks[FEW_SITES]) / (MANY_SITES - FEW_SITES)
    model = _model_bytes()
    told = f"{growth / 1e6:.2f} MB a hospital, {growth / model:.2f} of a student and teacher ({model / 1e6:.1f} MB)"
    yield "memory that one more hospital takes", "bounded (0.25)", told, "yes" if growth <= 0.25 * model else "**NO**"


def _model_bytes() -> int:
    from panfm.models.build import initial_parameters  # late: only the last row needs it

    recipe = recipes.load(list(TINY))
    return 2 * sum(t.numel() * 4 for t in initial_parameters(recipe.model, recipe.organs, recipe.seed).values())


# ---- studies in processes of their own ---------------------------------------------------------------------------------


def _make_hospitals(runs: Path) -> None:
    """All pretend hospitals; each study takes the first of them."""
    config = recipes.load([*TINY, f"sites={MANY_SITES}", "workers=2"])
    make_cohort(config, runs, public_hex(coordinator_key(runs)), lambda _what, _done, _total: None)


def _study(runs: Path, name: str, sites: int, settings: Sequence[str]) -> tuple[list[Event], list[int]]:
    """Run a study at the first hospitals. Returns: its record, and the memory of its process (bytes) over time."""
    words = [*TINY, *settings, f"sites={sites}", f"name={name}", f"runs={runs}"]
    process = subprocess.Popen([sys.executable, __file__, "--study", json.dumps(words)], cwd=ROOT, env=_environment())
    try:
        resident = list(_watched(process))
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, "the study ended otherwise than it should; see above"
    return list(read_record(runs / name / "record.jsonl")), resident


def _environment() -> Mapping[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def _watched(process: subprocess.Popen[bytes]) -> Iterator[int]:
    """Resident memory of a process for as long as it runs, from the moment at which it has loaded its libraries."""
    statm = Path(f"/proc/{process.pid}/statm")
    while process.poll() is None:
        words = statm.read_text().split()
        if len(words) > 1 and int(words[1]):
            yield int(words[1]) * resource.getpagesize()
        time.sleep(WATCH_S)


def _run_study(words: Sequence[str]) -> None:
    config = recipes.load(list(words))
    runs = Path(config.runs)
    sites = synthetic_hospitals(config.sites, config.cohort.subjects_per_site, list(config.organs))
    run_in_process(config, runs, {site.name: runs / "hospitals" / site.name for site in sites})


# ---- the page ----------------------------------------------------------------------------------------------------------


def _page(rows: Sequence[Row]) -> str:
    lines = [
        "# What a simulated round costs",
        "",
        f"{provenance()}.",
        "",
        "| what | held to | measured | holds |",
        "|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        "Made by `PYTHONPATH=. OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/federation_overhead.py`, whose first"
        " paragraph says what is compared.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--study"]:
        _run_study(json.loads(sys.argv[2]))
    else:
        main()
