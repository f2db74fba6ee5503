"""`panfm simulate` (= `python -m simulation`): a study rehearsed on this machine, from `key=value` settings to a report.

panfm simulate recipe=demo rounds=5 sites=4
panfm simulate recipe=real data=../shared/data
panfm simulate resume=NAME
panfm simulate --help
panfm simulate --cfg job recipe=demo
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from rich.console import Console

from panfm import recipes
from panfm.errors import ConfigError, PanfmError
from simulation.progress import Display
from simulation.rehearsal import rehearse
from simulation.resume import settings_to_resume

INTERRUPTED = 130


def main(arguments: Sequence[str]) -> int:
    """Rehearse; returns the exit code."""
    if {"--help", "-h"} & set(arguments):
        print(help_text())
        return 0
    console = Console(stderr=False)
    try:
        if "--cfg" in arguments:
            print(recipes.to_yaml(recipes.load(_without_cfg(arguments))), end="")
            return 0
        with Display(console) as display:
            config = recipes.load(arguments)
            report = rehearse(settings_to_resume(config, arguments) if config.resume else config, display)
    except PanfmError as error:
        print(f"panfm: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("panfm: stopped; what was finished is in the run's folder", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:  # a full disk, a folder that may not be written
        print(
            f"panfm: {error.filename or 'writing'}: {error.strerror or error}; mend that and try again", file=sys.stderr
        )
        return PanfmError.exit_code
    print(f"report: {report}")
    return 0


def _without_cfg(arguments: Sequence[str]) -> list[str]:
    """The settings beside `--cfg job`, wherever it stands; what else Hydra knows of it is not known here."""
    place = list(arguments).index("--cfg")
    if list(arguments[place + 1 : place + 2]) != ["job"]:
        raise ConfigError("--cfg needs the word job: `--cfg job` prints what the settings come to")
    return [*arguments[:place], *arguments[place + 2 :]]


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
    for number in (signal.SIGTERM, signal.SIGHUP):  # who is told to end ends what was started, as for Ctrl-C
        if signal.getsignal(number) is not signal.SIG_IGN:  # but nohup stays nohup
            signal.signal(number, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
