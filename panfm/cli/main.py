"""The door of the `panfm` command: it gathers the verbs, and turns a failure into one line and an exit code.

A `PanfmError` was written for the person at the terminal, so its message is all that is shown. A traceback means a
defect of panfm; it is printed without local variables, which may hold what a hospital must not paste into a report.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import sys

import typer

from panfm import __version__
from panfm.cli.bundle import bundle
from panfm.cli.coordinator import coordinator
from panfm.cli.data import data
from panfm.cli.evaluate import evaluate
from panfm.cli.follow import follow
from panfm.cli.health import health
from panfm.cli.model import model
from panfm.cli.privacy import privacy
from panfm.cli.report import report
from panfm.cli.simulate import simulate
from panfm.cli.site import site
from panfm.errors import PanfmError

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""

app = typer.Typer(
    name="panfm",
    help="Federated pre-training of a pan-organ imaging foundation model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# What follows the verb belongs to Hydra: `panfm simulate --cfg job` and `rounds=5` alike reach `python -m simulation`.
app.command(context_settings={"ignore_unknown_options": True})(simulate)
app.command()(report)
app.command()(follow)
app.command()(evaluate)
app.command()(bundle)
app.command()(health)
app.add_typer(coordinator, name="coordinator")
app.add_typer(data, name="data")
app.add_typer(model, name="model")
app.add_typer(privacy, name="privacy")
app.add_typer(site, name="site")


@app.command()
def version() -> None:
    """Print the version of panfm."""
    print(f"panfm {__version__}")


def main() -> None:
    """Run the command line and end the process with its exit code."""
    try:
        app()
    except PanfmError as error:
        print(f"panfm: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
