"""A model's evaluation on disk: JSON for programs, CSV for statistics, Markdown and PNG for people and papers."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import io
from pathlib import Path

from panfm.durable import write_file
from panfm.errors import DataError
from panfm.reporting.evaluation_figures import evaluation_figures
from panfm.reporting.evaluation_tables import KINDS, to_csv, to_markdown
from panfm.reporting.record import ModelEvaluated, to_line
from panfm.reporting.svg import house_style

_DOTS_PER_INCH = 160


def write_evaluation(folder: Path, event: ModelEvaluated) -> tuple[Path, ...]:
    """Write `evaluation.json` (one line of a record), `evaluation.md`, and a CSV and PNG for each table and figure.

    Returns: what was written.
    Raises: DataError when the folder cannot be written to.
    """
    files = {"evaluation.json": (to_line(event) + "\n").encode(), "evaluation.md": to_markdown(event).encode()}
    files |= {f"{kind}.csv": to_csv(rows).encode() for kind in KINDS if (rows := getattr(event, kind))}
    files |= {f"{name}.png": picture for name, picture in _pictures(event).items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_file(folder / name, content, flushed=False)
    except OSError as error:
        raise DataError(f"cannot write to {folder} ({error.strerror or error}); choose another --out") from error
    return tuple(folder / name for name in files)


def _pictures(event: ModelEvaluated) -> dict[str, bytes]:
    pictures = {}
    with house_style():
        for name, (figure, _) in evaluation_figures(event).items():
            with io.BytesIO() as content:
                figure.savefig(content, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": "panfm"})
                pictures[name] = content.getvalue()
    return pictures
