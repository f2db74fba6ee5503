"""A hospital that answers rounds with privacy in a process of its own, which may be killed at any instruction."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import panfm.pretrain.private_round  # Opacus, once for all processes  # noqa: F401
from client.participation import take_part
from client.workspace import open_workspace
from panfm.protocol import SiteUpdate
from panfm.site.policy import PrivacyDemand, PrivacyMode
from panfm.site.policy_file import read_policy, write_policy
from tests.client.small_study import SmallStudy, signed_task, study_in

NOISE, RATE, STEPS, DELTA = 4.0, 0.5, 1, 1e-5
"""With more noise, Opacus' Renyi accountant would need orders that it has not, and charge more than ours."""
_PROCESSES = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Told:
    """What the process said of a round."""

    round: int
    parcels: tuple[str, ...]
    ledger_head: str
    epsilon: float


def private_study(folder: Path, rounds: int) -> SmallStudy:
    """The small study in a folder with privacy, in rounds of one step."""
    return study_in(folder).with_settings(
        "privacy.mode=dp_adapters",
        f"privacy.noise_multiplier={NOISE}",
        f"privacy.sampling_rate={RATE}",
        f"pretrain.steps_per_round={STEPS}",
        f"rounds={rounds}",
    )


def demand_privacy(site: Path) -> None:
    """Give a hospital a policy that lets out what is noised and charged, and nothing else."""
    demand = PrivacyDemand(mode=PrivacyMode.dp, epsilon=10.0, delta=DELTA)
    write_policy(site, replace(read_policy(site), privacy=demand, public=()))


def answer_rounds(folder: str, first: int, last: int, tell: Connection) -> None:
    """Answer some rounds, one after the other, and say each that is answered."""
    study = private_study(Path(folder), last)
    workspace = open_workspace({"site-folder": str(study.hospitals["neuro"])})
    for number in range(first, last + 1):
        answer = take_part(signed_task(study, "neuro", round=number), workspace)
        assert isinstance(answer, SiteUpdate)
        assert answer.privacy is not None
        parcels = tuple(label.sha256 for label in answer.parcels)
        tell.send(Told(number, parcels, answer.privacy.ledger_head, answer.privacy.epsilon))


def told_by(folder: Path, first: int, last: int, kill_after: int | None = None, wait_s: float = 0.0) -> list[Told]:
    """What a process says; killed, if so wished, so long after so many answers."""
    listen, tell = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=answer_rounds, args=(str(folder), first, last, tell))
    process.start()
    tell.close()
    told: list[Told] = []
    try:
        with contextlib.suppress(EOFError):  # it has ended
            while kill_after is None or len(told) < kill_after:
                told.append(listen.recv())
            time.sleep(wait_s)
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            while True:
                told.append(listen.recv())
    finally:
        process.kill()
        process.join()
    return told
