"""What starts tasks at a site and at the coordinator: one program each, by its full path, and no token on a command line."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult, LaunchResultStatus
from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor

from deploy.coordinator.runtime import superexec as coordinator
from deploy.site.runtime import superexec as site

TOKEN = "5ec2e7"


def _spec(kind: TaskType, **changes: Any) -> ExecutionSpec:
    values: dict[str, Any] = {
        "task_type": kind,
        "runtime_api_address": "127.0.0.1:9094",
        "token": TOKEN,
        "insecure": True,
        "root_certificates_path": None,
        "runtime_dependency_install": True,
        "parent_pid": 4711,
        "suppress_output": True,
        "task_id": 1,
        "fab_hash": "0" * 64,
    }
    return ExecutionSpec(**{**values, **changes})


@pytest.mark.parametrize("kind", TaskType)
def test_site_starts_the_guard_for_every_kind_of_task(kind: TaskType) -> None:
    command = site.guard_command(_spec(kind))
    assert command[:4] == [sys.executable, "-I", "-B", str(site.GUARD)]
    assert command[command.index("--task-kind") + 1] == kind.value
    assert TOKEN not in " ".join(command)
    assert "--allow-runtime-dependency-installation" not in command
    assert site.GUARD.is_file()


def test_guard_gets_the_certificates_where_there_are_some() -> None:
    command = site.guard_command(_spec(TaskType.CLIENT_APP, insecure=False, root_certificates_path="/etc/ca.pem"))
    assert command[command.index("--root-certificates") + 1] == "/etc/ca.pem"
    assert "--insecure" not in command


def test_guard_gets_the_token_by_its_input_and_is_buried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "guard.py"
    program.write_text(f"import pathlib, sys; pathlib.Path({str(tmp_path / 'token')!r}).write_text(sys.stdin.read())")
    monkeypatch.setattr(site, "GUARD", program)
    executor = site.GuardExecutor()
    assert executor.get_eligible_capacity(set(TaskType)) == (set(TaskType), set())
    assert executor.launch(_spec(TaskType.CLIENT_APP)).status is LaunchResultStatus.ACCEPTED
    (process,) = executor._running
    assert process.wait(60) == 0
    assert (tmp_path / "token").read_text() == TOKEN
    executor.reconcile()
    assert executor._running == []


class _Noting(SubprocessExecutor):
    """Notes what it is asked to start."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        self.started.append(spec.task_type.value)
        return LaunchResult.accepted()


def test_coordinator_starts_server_apps_only() -> None:
    own = _Noting()
    executor = coordinator.ServerAppExecutor(own)
    results = {kind: executor.launch(_spec(kind)).status for kind in TaskType}
    assert own.started == ["flwr-serverapp"]
    accepted = [kind for kind, status in results.items() if status is LaunchResultStatus.ACCEPTED]
    assert accepted == [TaskType.SERVER_APP]
    assert set(results.values()) == {LaunchResultStatus.ACCEPTED, LaunchResultStatus.FAILED}


@pytest.mark.parametrize("program", [site, coordinator])
def test_whatever_executor_is_asked_for_ours_is_used(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = importlib.import_module("flwr.supercore.superexec.run_superexec")
    monkeypatch.setattr(module, "get_executor", module.get_executor)  # put back afterwards
    made: list[object] = []
    monkeypatch.setattr("flwr.supercore.cli.flower_superexec", lambda: made.append(module.get_executor("kubernetes")))
    program.main()
    assert isinstance(made[0], site.GuardExecutor | coordinator.ServerAppExecutor)


@pytest.mark.parametrize("program", [site, coordinator])
def test_neither_starts_with_another_flower(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.pinned_flower.FLOWER_VERSION", "1.42.0")
    with pytest.raises(SystemExit, match="guards Flower"):
        program.main()
