"""Does it learn? Both rehearsals with three seeds: probes on held-out subjects beside their controls.

    python benchmarks/learns.py [demo] [real] [seeds=0,1,2] [KEY=VALUE ...]

Each (recipe, seed) is one rehearsal below runs/; one that is complete there is read and not run again. Prints the table of
benchmarks/learns.md: the mean and the spread over seeds, and for each seed the paired bootstrap interval, over test
subjects, of what the trained model gains over each control.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from panfm import recipes
from panfm.reporting.record import ProbeTable, RunFinished, read_record
from simulation.progress import Display
from simulation.rehearsal import rehearse

RUNS = Path("runs")
REAL_DATA = "data=../shared/data"


def main(arguments: Sequence[str]) -> int:
    """Run what is missing, and print the table."""
    wanted = [name for name in ("demo", "real") if name in arguments] or ["demo", "real"]
    seeds = next((a.removeprefix("seeds=") for a in arguments if a.startswith("seeds=")), "0,1,2").split(",")
    overrides = [a for a in arguments if "=" in a and not a.startswith("seeds=")]
    print(f"{platform.processor() or platform.machine()}, {platform.python_version()}")
    for recipe in wanted:
        tables = {int(seed): _table(recipe, int(seed), overrides) for seed in seeds}
        print("\n".join(table_lines(recipe, tables)))
    return 0


def _table(recipe: str, seed: int, overrides: Sequence[str]) -> tuple[ProbeTable, float]:
    """The probe table of one rehearsal and its seconds, from its record if it is complete, else by running it."""
    name = f"learns-{recipe}-{seed}"
    record = RUNS / name / "record.jsonl"
    if not record.exists():
        data = [REAL_DATA] if recipe == "real" else []
        config = recipes.load([f"recipe={recipe}", f"seed={seed}", f"name={name}", *data, *overrides])
        with Display(Console(stderr=True)) as display:
            rehearse(config, display)
    events = list(read_record(record))
    finished = next(event for event in events if isinstance(event, RunFinished))
    return next(event for event in events if isinstance(event, ProbeTable)), finished.seconds


def table_lines(recipe: str, tables: dict[int, tuple[ProbeTable, float]]) -> list[str]:
    """The table as Markdown lines."""
    first = next(iter(tables.values()))[0]
    seconds = ", ".join(f"{spent:.0f}" for _, spent in tables.values())
    lines = [
        "",
        f"## recipe={recipe}: {first.num_train} subjects to fit, {first.num_test} to test; seeds "
        f"{', '.join(str(seed) for seed in tables)}; {seconds} s from first round to model",
        "",
        "| target | metric | embedding | mean | spread | each seed | gain of the trained model, 95 % interval, each seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for place, row in enumerate(first.rows):
        rows = [table.rows[place] for table, _ in tables.values()]
        lines.append(_line(row, rows))
    return lines


def _line(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    values = [float(one["value"]) for one in rows]
    spread = max(values) - min(values)
    each = ", ".join(f"{value:.3f}" for value in values)
    gains = "; ".join(f"{one['gain']:+.3f} ({one['gain_low']:+.3f} to {one['gain_high']:+.3f})" for one in rows)
    gains = "" if row["embedding"].startswith("trained") else gains
    mean = statistics.mean(values)
    return f"| {row['target']} | {row['metric']} | {row['embedding']} | {mean:.3f} | {spread:.3f} | {each} | {gains} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
