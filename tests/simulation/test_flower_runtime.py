"""A rehearsal on Flower's simulation runtime: the same bits, a prompt stop, and nothing left running."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, MessageType, RecordDict

from client.messages import decode
from panfm import recipes, update
from panfm.config import RayConfig
from panfm.errors import ConfigError
from panfm.export.model_folder import read_model
from panfm.reporting.record import RoundFinished, RunFinished, read_record
from panfm.site.policy_file import read_policy
from simulation import flower_runtime
from simulation.flower_runtime import Hospitals, check_ray_installed, run_on_flower
from simulation.local_grid import LocalGrid, run_in_process
from tests.client.small_study import HELD, SmallStudy

ROOT = Path(__file__).resolve().parents[2]
MARK = "PANFM_TEST_MARK"
PATIENCE_S = 240.0


def test_each_node_answers_as_the_hospital_of_its_number(study: SmallStudy) -> None:
    LocalGrid(Hospitals(study.hospitals), [], {}, {})  # type: ignore[arg-type]  # names this run to Flower's messages
    for number, site in enumerate(HELD):
        context = Context(run_id=1, node_id=5, node_config={"partition-id": number}, state=RecordDict(), run_config={})
        message = Message(RecordDict(), dst_node_id=5, message_type=MessageType.QUERY)
        reply = Hospitals(study.hospitals)(message, context)
        answer = decode(reply)
        assert answer is not None
        assert getattr(answer.asked, "site", "") == site


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    check_ray_installed()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"engine=flower needs Ray; install it with pip install 'panfm\[ray\]'"):
        check_ray_installed()


def test_ray_is_started_quietly_or_joined() -> None:
    config = recipes.load(["recipe=smoke", "engine=flower", "workers=3", "ray.cpus=0.5"])
    own = flower_runtime._init_arguments(config, "/tmp/x")
    assert (own["num_cpus"], own["_node_ip_address"], own["include_dashboard"]) == (2, "127.0.0.1", False)
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"}
    assert own["runtime_env"]["env_vars"].items() >= quiet.items()
    joined = flower_runtime._init_arguments(replace(config, ray=RayConfig(address="10.0.0.1:6379")), "/tmp/x")
    assert joined["address"] == "10.0.0.1:6379"
    assert joined.keys().isdisjoint({"num_cpus", "_temp_dir", "_node_ip_address"}), "a cluster is as it is"


def test_settings_that_cannot_be_are_refused() -> None:
    for override, said in (
        ("ray.gpus=0.5", "ray.gpus needs engine=flower"),
        ("ray.cpus=0", "ray.cpus must be above 0"),
        ("device=tpu", "device must be cpu or cuda"),
        ("faults.rate=0.1", "crash and out_of_memory, for which each site needs a process; set workers=2"),
        ("faults.rate=2", "faults.rate must be in 0 to 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            recipes.load(["recipe=smoke", override])
    with pytest.raises(ConfigError, match="faults need engine=in_process, got flower"):
        recipes.load(["recipe=smoke", "workers=2", "engine=flower", "faults.rate=0.1"])


UNTIDY = pytest.mark.filterwarnings("ignore::ResourceWarning")
"""Ray ends its processes without waiting for them, and leaves files to be closed by whoever collects them."""


@pytest.fixture
def collected() -> Iterator[None]:
    """Have what Ray left collected here, and not under the next test."""
    yield
    gc.collect()


@pytest.mark.slow
@UNTIDY
@pytest.mark.usefixtures("collected")
def test_model_is_that_of_the_run_in_process(study: SmallStudy) -> None:
    models = []
    for name, run in (("in-process", run_in_process), ("flower", run_on_flower)):
        changed = study.with_settings("workers=2" if name == "flower" else "workers=1", name=name)
        run(changed.config, changed.runs, changed.hospitals)
        assert [end.status for end in changed.events(RunFinished)] == ["complete"]
        models.append(read_model(changed.folder / "model"))
    for part in ("student", "teacher"):
        ours, theirs = (getattr(model, part) for model in models)
        assert ours.keys() == theirs.keys()
        assert update.norm(update.subtract(ours, theirs)) <= 1e-6


@pytest.mark.slow
@UNTIDY
@pytest.mark.usefixtures("collected")
def test_two_sites_share_a_gpu_and_too_many_are_told(study: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray counts what it is told that there is, so a machine without a GPU can rehearse how one is shared."""
    arguments = flower_runtime._init_arguments

    def with_a_gpu(*given: Any) -> dict[str, Any]:
        return arguments(*given) | {"num_gpus": 1}

    monkeypatch.setattr(flower_runtime, "_init_arguments", with_a_gpu)
    shared = study.with_settings("rounds=1", "workers=2", name="shared")
    config = replace(shared.config, ray=RayConfig(gpus=0.5), engine=recipes.load(["engine=flower"]).engine)
    run_on_flower(config, study.runs, study.hospitals)
    assert [end.status for end in shared.events(RunFinished)] == ["complete"]
    with pytest.raises(
        ConfigError, match=r"takes ray.cpus=1 and ray.gpus=2, and no machine has more than 2 and 1; lower"
    ):
        run_on_flower(replace(config, name="more", ray=RayConfig(gpus=2.0)), study.runs, study.hospitals)


def _marked(mark: str) -> list[str]:
    """Processes that inherited the mark."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in environment.read_bytes():
                found.append((environment.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it ended meanwhile, or is not ours to look at
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stop", [None, signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_running(tmp_path: Path, stop: signal.Signals | None) -> None:
    mark = f"{MARK}={uuid.uuid4().hex}"
    rounds = 2 if stop is None else 10_000
    settings = ["recipe=smoke", "engine=flower", "workers=2", f"rounds={rounds}", "name=x", f"runs={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "simulation", *settings],
        cwd=ROOT,
        env=os.environ | dict([mark.split("=")]) | {"HOME": str(tmp_path)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if stop is not None:
            _wait_for_a_round(tmp_path / "x" / "record.jsonl", process)
            os.kill(process.pid, stop)
        said, errors = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == (0 if stop is None else 130), said + errors
    (end,) = (event for event in read_record(tmp_path / "x" / "record.jsonl") if isinstance(event, RunFinished))
    assert end.status == ("complete" if stop is None else "stopped")
    assert errors.strip() == ("" if stop is None else "panfm: stopped; what was finished is in the run's folder")
    assert _gone(mark), _marked(mark)
    assert not (tmp_path / ".flwr").exists(), "Flower's home is not the person's"
    assert read_policy(tmp_path / "x" / "hospitals" / "neuro").device == "cpu"


def _wait_for_a_round(record: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not (record.exists() and any(isinstance(event, RoundFinished) for event in read_record(record))):
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < until
        time.sleep(0.5)


def _gone(mark: str) -> bool:
    """Whether all have ended, some of them a moment after the program itself."""
    until = time.monotonic() + 20.0
    while _marked(mark) and time.monotonic() < until:
        time.sleep(0.5)
    return not _marked(mark)
