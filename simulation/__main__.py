"""`panfm simulate` (= `python -m simulation`): a study rehearsed on this machine, from `key=value` settings to a report.

panfm simulate recipe=demo rounds=5 sites=4
panfm simulate recipe=real data=../shared/data
panfm simulate --help
panfm simulate --cfg job recipe=demo
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # before Flower is imported: a rehearsal tells nobody anything

from rich.console import Console

from panfm import recipes
from panfm.errors import PanfmError
from simulation.progress import Display
from simulation.rehearsal import rehearse

INTERRUPTED = 130


def main(arguments: Sequence[str]) -> int:
    """Rehearse; returns the exit code."""
    if {"--help", "-h"} & set(arguments):
        print(help_text())
        return 0
    console = Console(stderr=False)
    try:
        if list(arguments[:2]) == ["--cfg", "job"]:
            print(recipes.to_yaml(recipes.load(arguments[2:])))
            return 0
        with Display(console) as display:
            report = rehearse(recipes.load(arguments), display)
    except PanfmError as error:
        print(f"panfm: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("panfm: stopped; what was finished is in the run's folder", file=sys.stderr)
        return INTERRUPTED
    print(f"report: {report}")
    return 0


def help_text() -> str:
    """What can be set, and to what it is set if nothing is said."""
    lines = [
        "Rehearse a study with pretend hospitals on this machine.",
        "",
        "  panfm simulate [recipe=NAME] [SETTING=VALUE ...]",
        "",
        f"Recipes: {', '.join(recipes.recipe_names())}. Settings of recipe=demo (all can be given; `--cfg job` prints them too):",
        "",
    ]
    return "\n".join(lines) + "\n" + recipes.to_yaml(recipes.load([]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
