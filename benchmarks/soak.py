"""Half an hour of small rounds through a deployment: does anything grow that should not?

Run `make soak`, or `PYTHONPATH=. OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/soak.py [--minutes 30]`; it prints
the table and, for half an hour or more, writes it to `benchmarks/soak.md`.

Coordinator, proxy and three sites run as they are deployed (`benchmarks.deployed`), a study of one optimiser step a round goes
on until the time is over and is then stopped as `panfm coordinator stop` does. Once a minute memory and open file handles of
every process are written down.

- *flat*: memory of the last third of the time over that of the second third, medians, at most 1.05 or 5 MB; handles, the same
  medians, at most two more. The first third is left out: programs read their libraries, and allocators fill, in it.
- Processes that live for one task are one line: the largest of their minute.
- What grows on disk is no part of the verdict: a record and a log grow by nature.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.deployed import Deployed, deployed, wait_for
from benchmarks.machine import provenance
from benchmarks.processes import Process, processes_of
from panfm.coordinator.settings import DATABASE
from panfm.coordinator.studies import stop
from panfm.errors import RunError
from panfm.reporting.record import RoundFinished, end_of, events_of

TABLE = Path(__file__).with_suffix(".md")
RUN, SITES = "soak", 3
WRITTEN_FROM_MINUTES = 30
MOST_GROWTH, MOST_MB, MOST_HANDLES = 1.05, 5.0, 2
LOOK_EVERY_S, MINUTE_S = 2.0, 60.0
FIRST_ROUND_S, END_S = 900.0, 300.0
FLEETING = ("ClientApp", "Flower's command line", "other")
"""Roles whose processes live for one task or question: no part of the verdict, but what they hold at most is told."""

Who = tuple[str, str]
"""Side and role."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Minute:
    """How a minute was."""

    rounds: int
    """On record by its end."""
    memory_mb: dict[Who, float]
    """Of every role, all its processes together; of fleeting ones the largest of the minute."""
    handles: dict[Who, int]
    disk_mb: dict[str, float]
    """What grows on disk: the SuperLink's database, the run, the sites' logs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """One role over the time."""

    who: Who
    memory_mb: tuple[float, float]
    """Medians of the second and the last third."""
    handles: tuple[float, float]

    @property
    def is_flat(self) -> bool:
        """Whether neither memory nor handles grow."""
        (before, after), (few, many) = self.memory_mb, self.handles
        return after <= max(MOST_GROWTH * before, before + MOST_MB) and many <= few + MOST_HANDLES


def soak(minutes: int, folder: Path) -> list[Minute]:
    """Let rounds go by and write down how each minute was. Raises: RunError when the run ends too soon, or not at all."""
    words = ["recipe=smoke", f"sites={SITES}", "cohort.probe_subjects=1", "cohort.test_subjects=1"]
    asked = ["recipe=smoke", "pretrain.steps_per_round=1", "federation.join_timeout_s=300", "rounds=1000000"]
    with deployed(folder, words) as up:
        up.run(RUN, *asked, f"federation.participation.start_sites={SITES}")
        wait_for(lambda: bool(events_of(RoundFinished, up.events(RUN))), "the first round", FIRST_ROUND_S, folder)
        told = []
        for number in range(1, minutes + 1):
            told.append(_minute(up))
            print(f"minute {number}: {told[-1].rounds} rounds", file=sys.stderr, flush=True)
            if up.is_over(RUN):
                raise RunError(f"the run ended before its time: {end_of(up.events(RUN))}")
        stop(up.coordinator, RUN, "the benchmark")
        wait_for(lambda: up.is_over(RUN), "the end of the run that was stopped", END_S, folder)
    return told


def _minute(up: Deployed) -> Minute:
    """Watch for a minute."""
    until, fleeting = time.monotonic() + MINUTE_S, dict[Who, Process]()
    seen: list[Process] = []
    while time.monotonic() < until:
        time.sleep(LOOK_EVERY_S)
        seen = processes_of(up.processes)
        for process in (one for one in seen if one.role in FLEETING):
            who = process.side, process.role
            if who not in fleeting or process.resident_mb > fleeting[who].resident_mb:
                fleeting[who] = process
    counted = [*(one for one in seen if one.role not in FLEETING), *fleeting.values()]
    everybody = sorted({(one.side, one.role) for one in counted})
    return Minute(
        rounds=len(events_of(RoundFinished, up.events(RUN))),
        memory_mb={who: sum(one.resident_mb for one in counted if (one.side, one.role) == who) for who in everybody},
        handles={who: sum(one.handles for one in counted if (one.side, one.role) == who) for who in everybody},
        disk_mb=_disk(up),
    )


def _disk(up: Deployed) -> dict[str, float]:
    places = {
        "the SuperLink's database": up.coordinator.glob(f"{DATABASE}*"),
        "the run": up.run_folder(RUN).rglob("*"),
        "a site's state": next(iter(up.sites.values())).glob("state/**/*"),
    }
    return {name: sum(map(_size, paths)) / 1e6 for name, paths in places.items()}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:  # used up meanwhile
        return 0


# ---- the page ------------------------------------------------------------------------------------------------------------


def growths(told: Sequence[Minute]) -> list[Growth]:
    """Every role that was there throughout the last two thirds."""
    third = len(told) // 3
    middle, last = told[third : 2 * third], told[2 * third :]
    everybody = sorted(set.intersection(*(set(minute.memory_mb) for minute in (*middle, *last))))
    return [
        Growth(
            who=who,
            memory_mb=(_median(middle, who), _median(last, who)),
            handles=(
                statistics.median(minute.handles[who] for minute in middle),
                statistics.median(minute.handles[who] for minute in last),
            ),
        )
        for who in everybody
    ]


def _median(minutes: Sequence[Minute], who: Who) -> float:
    return statistics.median(minute.memory_mb[who] for minute in minutes)


def page(told: Sequence[Minute]) -> str:
    """The whole page."""
    rounds = told[-1].rounds
    lines = ["# A soak", "", f"{provenance()}.", ""]
    lines += [f"{len(told)} minutes, {rounds} rounds, {SITES} sites; medians of the second and the last third.", ""]
    lines += ["| process | memory | | handles | | flat |", "|---|---:|---:|---:|---:|---|"]
    lines += [_row(growth) for growth in growths(told)]
    lines += [
        "",
        "| on disk | after the first minute | at the end | a round |",
        "|---|---:|---:|---:|",
        *_disk_rows(told),
    ]
    shown = [who for who in sorted(told[-1].memory_mb) if who[0] in ("coordinator", "cardiac")]
    lines += ["", "Memory (MB) and handles by minute, coordinator and one site:", ""]
    lines += [f"| minute | rounds | {' | '.join(f'{side}: {role}' for side, role in shown)} |"]
    lines += [f"|---|---|{'---|' * len(shown)}"]
    for number, minute in enumerate(told, start=1):
        cells = [f"{minute.memory_mb.get(who, 0):.0f}, {minute.handles.get(who, 0)}" for who in shown]
        lines += [f"| {number} | {minute.rounds} | {' | '.join(cells)} |"]
    lines += ["", "Made by `make soak`; the first paragraph of `benchmarks/soak.py` says what is compared.", ""]
    return "\n".join(lines)


def _row(growth: Growth) -> str:
    (side, role), (before, after), (few, many) = growth.who, growth.memory_mb, growth.handles
    verdict = "" if role in FLEETING else "yes" if growth.is_flat else "**NO**"
    return f"| {side}: {role} | {before:.1f} MB | {after:.1f} MB | {few:g} | {many:g} | {verdict} |"


def _disk_rows(told: Sequence[Minute]) -> Iterator[str]:
    rounds = told[-1].rounds - told[0].rounds
    for name, first in told[0].disk_mb.items():
        last = told[-1].disk_mb[name]
        yield f"| {name} | {first:.1f} MB | {last:.1f} MB | {(last - first) / max(rounds, 1) * 1000:.1f} kB |"


def main() -> int:
    """Soak, and say how it went; 1 when something grows."""
    parser = argparse.ArgumentParser(description="Let small rounds go by and see what grows.")
    parser.add_argument("--minutes", type=int, default=30)
    minutes = parser.parse_args().minutes
    if minutes < 3:
        parser.error("thirds are compared: give 3 minutes or more")
    with tempfile.TemporaryDirectory(prefix="panfm-soak-", dir="/var/tmp") as folder:
        told = soak(minutes, Path(folder))
    text = page(told)
    print(text)
    if minutes >= WRITTEN_FROM_MINUTES:
        TABLE.write_text(text, encoding="utf-8")
    return int(not all(growth.is_flat for growth in growths(told) if growth.who[1] not in FLEETING))


if __name__ == "__main__":
    sys.exit(main())
