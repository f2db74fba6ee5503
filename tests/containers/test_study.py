"""A study of three rounds over containers: the same bits as the rehearsal, and how long it takes to get there.

Four hospitals of real scans, onboarded by the six commands, on a network without a route out. The rehearsal runs on copies of the
same folders, in this process.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from panfm import recipes
from panfm.export.model_folder import read_model
from panfm.reporting.record import RoundFinished, RunFinished, SiteAnswered, read_record
from simulation.local_grid import run_in_process
from tests.client.small_study import same_bits
from tests.containers.deployment import Deployment, rounds_of
from tests.containers.engine import EngineError, podman, why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not() or "containers can be had")]

SETTINGS = ("rounds=3", "pretrain.steps_per_round=4", "federation.join_timeout_s=300")
START_TO_ROUND_S = 300.0
"""What we allow ourselves from `init` to the first finished round with four sites, on two cores that do nothing else."""


@pytest.fixture(scope="module")
def deployment(real_data: Path) -> Iterator[Deployment]:
    deployment = Deployment(data=real_data)
    try:
        deployment.up()
        yield deployment
    finally:
        deployment.down()


def _rehearse(deployment: Deployment, folder: Path) -> Path:
    """The same study on copies of the hospitals' folders; returns the run's folder."""
    runs = folder / "runs"
    runs.mkdir()
    shutil.copyfile(deployment.coordinator_folder / "runs" / "coordinator.key", runs / "coordinator.key")
    (runs / "coordinator.key").chmod(0o600)
    hospitals = {}
    for site, source in deployment.site_folders.items():
        hospitals[site] = folder / site
        shutil.copytree(source, hospitals[site], ignore=shutil.ignore_patterns("study", "flower"))
    config = recipes.load(["recipe=smoke", "name=study", "workers=1", *SETTINGS])
    run_in_process(replace(config, sites=len(hospitals)), runs, hospitals)
    return runs / "study"


def test_three_rounds_give_the_rehearsals_model_bit_for_bit(deployment: Deployment, tmp_path: Path) -> None:
    rehearsed = _rehearse(deployment, tmp_path)

    asked = time.monotonic()
    deployment.run("study", *SETTINGS)
    deployment.wait_for(lambda: bool(rounds_of(deployment.events("study"))), "a finished round", 600)
    first_round_s = time.monotonic() - asked
    end = deployment.wait_for_end("study", 900)

    assert (end.status, end.rounds_done) == ("complete", 3), f"{end.reason}\n{deployment.logs(60)}"
    events = deployment.events("study")
    answers = [event for event in events if isinstance(event, SiteAnswered)]
    assert [answer.outcome for answer in answers] == ["accepted"] * 12
    for place in ("checkpoints/round-0002", "checkpoints/round-0003", "model"):
        one, other = read_model(rehearsed / place), read_model(deployment.run_folder("study") / place)
        assert same_bits(one.student, other.student), place
        assert same_bits(one.teacher, other.teacher), place
    ours = [event.model_digest for event in read_record(rehearsed / "record.jsonl") if isinstance(event, RoundFinished)]
    assert [event.model_digest for event in events if isinstance(event, RoundFinished)] == ours

    onboarding_s = sum(seconds for step, seconds in deployment.seconds.items() if step != "data")
    told = {**deployment.seconds, "first round": first_round_s, "init to first round": onboarding_s + first_round_s}
    told |= {f"round {event.round}": event.seconds for event in events if isinstance(event, RoundFinished)}
    told |= {f"training {a.round} {a.site}": a.metrics["seconds"] for a in answers if "seconds" in a.metrics}
    kept = Path("runs") / "containers" / "study.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({step: round(seconds, 1) for step, seconds in told.items()}, indent=1) + "\n")


def test_stopped_run_has_a_usable_model_and_goes_on(deployment: Deployment) -> None:
    deployment.run("stopped", "rounds=50", *SETTINGS[1:])
    deployment.wait_for(lambda: len(rounds_of(deployment.events("stopped"))) >= 2, "two rounds", 600)
    deployment.in_coordinator("panfm", "coordinator", "stop", "stopped", "--folder", "/coordinator")
    end = deployment.wait_for_end("stopped", 120)
    assert (end.status, end.model) == ("stopped", "model")
    model = read_model(deployment.run_folder("stopped") / "model")
    assert model.card.round == end.rounds_done >= 2

    words = ("panfm", "coordinator", "run", "--folder", "/coordinator", "--no-follow", "resume=stopped")
    deployment.in_coordinator(*words)
    deployment.wait_for(lambda: len(rounds_of(deployment.events("stopped"))) > end.rounds_done, "another round", 600)
    deployment.in_coordinator("panfm", "coordinator", "stop", "stopped", "--folder", "/coordinator")
    ends = [event for event in deployment.events("stopped") if isinstance(event, RunFinished)]
    assert [one.status for one in ends] == ["stopped", "stopped"]


def test_no_container_has_a_way_out(deployment: Deployment) -> None:
    for what in ("coordinator", *deployment.site_folders):
        script = "import socket; socket.create_connection(('1.1.1.1', 443), timeout=5)"
        done = podman("exec", deployment.container(what), "python", "-c", script, check=False)
        assert done.returncode != 0, what
        assert "unreachable" in done.stderr or "timed out" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "path", ["/v1/control/list-runs", "/v1/runtime/acquire-task", "/docs", "/health", "/v1/fleet/register-node"]
)
def test_only_the_fleet_paths_pass_the_proxy(deployment: Deployment, path: str) -> None:
    script = (
        "import ssl, urllib.request as r; c = ssl.create_default_context(cafile='/site/study/ca.pem'); "
        f"r.urlopen(r.Request('https://coordinator:8443{path}', data=b'', method='POST'), context=c, timeout=20)"
    )
    done = podman("exec", deployment.container("east"), "python", "-c", script, check=False)
    assert "HTTP Error 403" in done.stderr, done.stderr


def test_images_run_without_rights_and_cannot_write(deployment: Deployment) -> None:
    for what in ("coordinator", "east"):
        name = deployment.container(what)
        script = "grep -E '^(Uid|CapEff|NoNewPrivs)' /proc/1/status; touch /opt/panfm/x"
        done = podman("exec", name, "sh", "-c", script, check=False)
        assert "Uid:\t10001" in done.stdout
        assert "CapEff:\t0000000000000000" in done.stdout
        assert "NoNewPrivs:\t1" in done.stdout
        assert "Read-only file system" in done.stderr
        with pytest.raises(EngineError):
            podman("exec", name, "sh", "-c", "which gcc || which pip")
