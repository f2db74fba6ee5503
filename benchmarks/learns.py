"""Does it learn? Both rehearsals with three seeds: probes on held-out subjects beside their controls.

    python benchmarks/learns.py [demo] [real] [seeds=0,1,2] [KEY=VALUE ...]

Each (recipe, seed) is one rehearsal below runs/; one that is complete there is read and not run again. Prints the table of
benchmarks/learns.md: the mean and the spread over seeds, and for each seed the paired bootstrap interval, over test
subjects, of what the trained model gains over each control. The seeds of `real` hold out different brains, so their predictions
are also pooled: each brain is judged once, by a model that never saw it.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from panfm import recipes
from panfm.evaluation.learning_check import (
    HeldOut,
    Question,
    Scores,
    counterpart,
    embedding_scores,
    questions_for,
    read_held_out,
)
from panfm.evaluation.probes import Floats, bootstrap, interval
from panfm.export.model_folder import read_model
from panfm.randomness import stream
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
        if recipe == "real":
            print("\n".join(pooled_lines([RUNS / _name(recipe, seed) for seed in tables])))
    return 0


def _name(recipe: str, seed: int) -> str:
    return f"learns-{recipe}-{seed}"


def _table(recipe: str, seed: int, overrides: Sequence[str]) -> tuple[ProbeTable, float]:
    """The probe table of one rehearsal and its seconds, from its record if it is complete, else by running it."""
    name = _name(recipe, seed)
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


def pooled_lines(runs: Sequence[Path]) -> list[str]:
    """Markdown lines: the held-out subjects of all runs together."""
    held, scores = zip(*(_held_out_scores(run) for run in runs), strict=True)
    questions = questions_for(list(held[0].labels))
    number = sum(len(part.dataset) for part in held)
    lines = [
        "",
        f"All held-out subjects of these seeds together, {number}, each judged by a model that never saw it:",
        "",
        "| target | metric | embedding | value | gain of the trained model, 95 % interval |",
        "|---|---|---|---|---|",
    ]
    for question in questions:
        (column,) = question.columns
        targets = np.concatenate([part.labels[column] for part in held])
        known = np.isfinite(targets)
        predicted = {name: np.concatenate([one[name][column] for one in scores])[known] for name in scores[0]}
        lines += _pooled(question, targets[known], predicted)
    return lines


def _pooled(question: Question, targets: Floats, predicted: dict[str, Floats]) -> list[str]:
    samples = {
        name: bootstrap(question.measure, targets[None], values[None], stream(0, "pooled", question.target))
        for name, values in predicted.items()
    }
    lines = []
    for name, values in predicted.items():
        low, high = interval(samples[counterpart(name)] - samples[name])
        value, best = (float(question.measure(targets, one)) for one in (values, predicted[counterpart(name)]))
        gain = "" if name.startswith("trained") else f"{best - value:+.3f} ({low:+.3f} to {high:+.3f})"
        lines.append(f"| {question.target} | {question.metric} | {name} | {value:.3f} | {gain} |")
    return lines


def _held_out_scores(run: Path) -> tuple[HeldOut, Scores]:
    model = read_model(run / "model")
    probe, test = (
        read_held_out([run / "hospitals" / "evaluation"], model.recipe, split) for split in ("probe", "test")
    )
    return test, embedding_scores(model.teacher, model.recipe, probe, test)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
