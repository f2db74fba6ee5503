"""`panfm evaluate`: what a frozen model knows, what it loses with organs, and what it leans on."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from panfm.evaluation.cohort import Cohort
    from panfm.evaluation.evaluate import Evaluation, Plan
    from panfm.export.model_folder import ModelFolder
    from panfm.reporting.record import ModelEvaluated


def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of an exported model or of a checkpoint: it holds card.json.")],
    stores: Annotated[list[Path], typer.Argument(help="Folders of sites: each holds store/ and labels.csv.")],
    out: Annotated[Path, typer.Option(help="Folder for tables and figures.")] = Path("evaluation"),
    fit: Annotated[str, typer.Option(help="Split on whose subjects probes are fitted.")] = "probe",
    test: Annotated[str, typer.Option(help="Split on whose subjects they are tested; read it once.")] = "test",
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples of the test subjects.")] = 1000,
    sweep_subjects: Annotated[int, typer.Option(min=0, help="Most subjects seen through every organ set; 0: all.")] = 0,
    refit: Annotated[bool, typer.Option("--refit", help="Also fit a probe for each organ set.")] = False,
    dominant: Annotated[str, typer.Option(help="Organs to take away together.")] = "heart,adipose",
    seed: Annotated[int, typer.Option(help="Of resamples, noise and the choice of swept subjects.")] = 0,
    device: Annotated[str, typer.Option(help="Where the model computes: cpu, cuda, cuda:1.")] = "cpu",
    run: Annotated[
        Path | None, typer.Option(help="Folder of the run that made the model, now over: its report shows the result.")
    ] = None,
) -> None:
    """Probe a frozen model on prepared subjects, with organs missing in every way, and write tables and figures."""
    from panfm.evaluation.cohort import read_cohort  # here and below: torch takes seconds to import
    from panfm.evaluation.evaluate import Plan
    from panfm.export.model_folder import read_model
    from panfm.models.device import check_device
    from panfm.reporting.evaluation_files import write_evaluation
    from panfm.reporting.record import check_over

    check_device(device)
    if run is not None:  # hours of embedding come before it is written to
        check_over(run / "record.jsonl")

    organs = tuple(name.strip() for name in dominant.split(",") if name.strip())
    plan = Plan(
        resamples=resamples, seed=seed, sweep_subjects=sweep_subjects, refit=refit, dominant=organs, device=device
    )
    opened = read_model(model)
    fitted, tested = (read_cohort(stores, opened.recipe, split) for split in (fit, test))
    found = _evaluated(opened, fitted, tested, plan)
    event = _event(found, opened, {"fit": fit, "test": test, "resamples": resamples, "seed": seed})
    written = write_evaluation(out, event)
    for line in _summary(event):
        print(line)
    print(f"{out}: {', '.join(path.name for path in written)}")
    if run is not None:
        _tell_run(run, event)


def _evaluated(opened: ModelFolder, fit: Cohort, test: Cohort, plan: Plan) -> Evaluation:
    """The evaluation, with a bar on standard error for each pass over subjects."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from panfm.evaluation.evaluate import evaluate

    with Progress(console=Console(stderr=True)) as bar:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        return evaluate(opened.teacher, opened.recipe, fit, test, plan, show)


def _event(found: Evaluation, opened: ModelFolder, settings: dict[str, object]) -> ModelEvaluated:
    from panfm.reporting.record import ModelEvaluated

    return ModelEvaluated(
        title=f"Model {opened.card.run}, round {opened.card.round}",
        model_digest=opened.card.teacher_digest,
        settings=settings,
        **found.tables(),
    )


def _summary(event: ModelEvaluated) -> list[str]:
    """The few lines that a terminal is told."""
    from panfm.reporting.tables import number

    lines = [f"{event.title}: {event.num_fit} subjects to fit, {event.num_test} to test, {event.num_swept} swept"]
    macros = [row for row in event.scores if row["metric"] == "AUROC" and row["positives"] is None]
    lines += [_line(f"{row['target']}, {row['probe']}", row) for row in macros]
    lines += [_line(f"{row['target']}, {row['probe']}: {row['quantity']}", row) for row in event.robustness]
    lines += [
        f"  attention to noise in place of {row['organ']} falls by {number(row['drop'])}"
        for row in event.attention
        if row["drop"] is not None
    ]
    return [*lines, *(f"note: {note}" for note in event.notes)]


def _line(name: str, row: dict[str, object]) -> str:
    from panfm.reporting.tables import number

    return f"  {name:<78}{number(row['value'])} ({number(row['low'])} to {number(row['high'])})"


def _tell_run(run: Path, event: ModelEvaluated) -> None:
    from panfm.reporting.record import append_after_end
    from panfm.reporting.run_report import write_run_report

    append_after_end(run / "record.jsonl", event)
    print(write_run_report(run))
