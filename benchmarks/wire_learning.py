"""Does what is rounded on the wire cost accuracy? The demo with exact and with rounded tensors, paired by seed.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/wire_learning.py [seeds=0,1,2] [KEY=VALUE ...]

Each arm of a seed is one rehearsal below runs/, four minutes long; one that is complete there is read and not run again. Exact:
fp32 both ways. Rounded: bf16 down, int8 with error feedback up. Held to: the rounded arm's macro AUC differs from exact, on
average over the seeds and in each, by at most the spread of the exact one over the seeds. Writes benchmarks/wire_learning.md
when no setting was changed.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.machine import provenance
from panfm import recipes
from panfm.evaluation.learning_check import TRAINED
from panfm.reporting.record import ProbeTable, RunFinished, SiteAnswered, read_record
from simulation.progress import Display
from simulation.rehearsal import rehearse

ROOT = Path(__file__).resolve().parents[1]
ARMS = {
    "exact": ["federation.wire.down=fp32", "federation.wire.up=fp32"],
    "rounded": ["federation.wire.down=bf16", "federation.wire.up=int8"],
}
TARGETS = (("13 disease categories", "AUC"), ("age", "R2"), ("sex", "AUC"))
"""The first, a macro mean, is the one that is held to something."""

Scores = dict[tuple[str, str], float]
"""Target and metric -> value."""


def main(arguments: Sequence[str]) -> int:
    """Run what is missing, and print the table."""
    seeds = next((a.removeprefix("seeds=") for a in arguments if a.startswith("seeds=")), "0,1,2").split(",")
    overrides = [a for a in arguments if not a.startswith("seeds=")]
    runs = {(arm, seed): _run(arm, seed, overrides) for seed in seeds for arm in ARMS}
    text = "\n".join(_page(runs, seeds))
    print(text)
    if not overrides:
        (ROOT / "benchmarks" / "wire_learning.md").write_text(text + "\n", encoding="utf-8")
    return 0


def _run(arm: str, seed: str, overrides: Sequence[str]) -> Path:
    """The record of one rehearsal that is complete."""
    name = f"wire-{arm}-{seed}"
    record = Path("runs") / name / "record.jsonl"
    if not record.exists():
        config = recipes.load(["recipe=demo", f"seed={seed}", f"name={name}", *ARMS[arm], *overrides])
        with Display(Console(stderr=True)) as display:
            rehearse(config, display)
    assert any(isinstance(event, RunFinished) and event.status == "complete" for event in read_record(record)), record
    return record


def _scores(record: Path) -> Scores:
    """Of the trained model's whole embedding."""
    table = next(event for event in read_record(record) if isinstance(event, ProbeTable))
    trained = [row for row in table.rows if row["embedding"] == TRAINED]
    return {(row["target"], row["metric"]): float(row["value"]) for row in trained}


def _bytes(record: Path) -> tuple[int, int]:
    """Down and up, of all sites and rounds."""
    answers = [event for event in read_record(record) if isinstance(event, SiteAnswered)]
    return sum(answer.bytes_down for answer in answers), sum(answer.bytes_up for answer in answers)


def _page(runs: dict[tuple[str, str], Path], seeds: Sequence[str]) -> list[str]:
    scores = {key: _scores(record) for key, record in runs.items()}
    lines = ["| target | metric | arm | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean | spread |"]
    lines.append("|---|---|---|" + "---|" * (len(seeds) + 2))
    for target, metric in TARGETS:
        values = {arm: [scores[arm, seed][target, metric] for seed in seeds] for arm in ARMS}
        lines += [f"| {target} | {metric} | {arm} | {_cells(values[arm])} |" for arm in ARMS]
        lines.append(f"| {target} | {metric} | rounded - exact | {_cells(_gaps(values), '+.4f')} |")
    return [
        f"# Rounding on the wire, and what was learned\n\n{provenance()}.\n",
        *lines,
        "",
        *_verdict(scores, seeds),
        "",
        _traffic(runs, seeds),
        "",
        _foot(),
    ]


def _gaps(values: dict[str, list[float]]) -> list[float]:
    return [rounded - exact for exact, rounded in zip(values["exact"], values["rounded"], strict=True)]


def _cells(values: Sequence[float], form: str = ".4f") -> str:
    shown = [format(value, form) for value in (*values, statistics.mean(values))]
    return " | ".join([*shown, format(max(values) - min(values), ".4f")])


def _verdict(scores: dict[tuple[str, str], Scores], seeds: Sequence[str]) -> list[str]:
    values = {arm: [scores[arm, seed][TARGETS[0]] for seed in seeds] for arm in ARMS}
    gaps, spread = _gaps(values), max(values["exact"]) - min(values["exact"])
    rows = (("mean over the seeds", abs(statistics.mean(gaps))), ("largest of a seed", max(map(abs, gaps))))
    return [
        "| held to, macro AUC | at most, the spread of exact | measured | holds |",
        "|---|---|---|---|",
        *(f"| {what} | {spread:.4f} | {came:.4f} | {'yes' if came <= spread else '**NO**'} |" for what, came in rows),
    ]


def _traffic(runs: dict[tuple[str, str], Path], seeds: Sequence[str]) -> str:
    exact, rounded = (_bytes(runs[arm, seeds[0]]) for arm in ARMS)
    return (
        f"Seed {seeds[0]}, all messages of the run: {exact[0] / 1e6:.1f} MB down and {exact[1] / 1e6:.1f} MB up exact, "
        f"{rounded[0] / 1e6:.1f} and {rounded[1] / 1e6:.1f} MB rounded."
    )


def _foot() -> str:
    return "Made by `PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/wire_learning.py`, which says what is compared."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
