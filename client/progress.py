"""The steps of a round as those who watch a site's own machine see them; nothing of it ever leaves the site.

With privacy a step tells how far the round is and no loss: none is computed beside the noise, not even for the site's own eyes,
so that there is nothing that could be passed on.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging

STEPS = "panfm.client.progress"
"""Logger of steps; each record has `site`, `round`, `step`, `num_steps` and `loss`, which is None with privacy."""

_log = logging.getLogger(STEPS)


def log_step(site: str, number: int, step: int, num_steps: int, loss: float | None = None) -> None:
    """Say that a step of a round is done.

    Args:
        number: of the round, from 1.
        step: from 1.
    """
    about = {"site": site, "round": number, "step": step, "num_steps": num_steps, "loss": loss}
    told = "" if loss is None else f": loss {loss:.4f}"
    _log.info("round %d step %d of %d%s", number, step, num_steps, told, extra=about)
