"""A rehearsal on Flower's own simulation runtime, which spreads the sites over the processors and GPUs of a Ray cluster.

For what one machine cannot do: several GPUs, several machines, fractions of a GPU. Flower's runtime carries the messages and
Ray's actors run the very app of a deployment. It takes some 20 seconds to start, and its sites' steps are not shown.

Flower runs the coordinator's app in a thread of its own; here that thread only lends its grid to the main one, so that a
person's Ctrl-C reaches the study and its record ends as in any other rehearsal. Ray, too, is started and ended here: without
its dashboard and usage statistics, on 127.0.0.1, in a temporary folder, and with nothing installed at run time.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.simulation import run_simulation

from client.app import app as client_app
from panfm import recipes
from panfm.config import RayConfig, RunConfig
from panfm.errors import ConfigError, RunError
from server.app import app as server_app
from simulation.loopback import patient

BUNDLE_ROOT = Path(__file__).resolve().parent.parent

START_TIMEOUT_S = 180.0
"""For Flower's runtime to lend its grid, on a machine that may be busy."""
PATIENCE_S = 10.0
"""How long the runtime may take to end by itself before Ray is ended under it."""


class Hospitals:
    """What Flower calls in each of Ray's actors: the site's app, told in which folder the node's site lives."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = [str(folder) for folder in folders.values()]

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as the node's site."""
        context.node_config["site-folder"] = self._folders[int(context.node_config["partition-id"])]
        return client_app(message, context)


def run_on_flower(config: RunConfig, runs: Path, hospitals: Mapping[str, Path]) -> None:
    """Run the study to its end.

    Args:
        runs: the coordinator's folder for runs.
        hospitals: site -> its folder; on a cluster of several machines, at the same path on each.
    Raises: ConfigError when Ray is not installed or has not what a site needs; RunError when the runtime fails; whatever the
        coordinator's app raises.
    """
    check_ray_installed()
    with _quiet_flower(), _ray(config):
        _check_resources(config.ray)
        with _runtime(config.ray, hospitals) as grid:
            server_app(grid, _coordinator_context(patient(config), runs, grid))


def check_ray_installed() -> None:
    """Raises: ConfigError when it is not."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("engine=flower needs Ray; install it with pip install 'panfm[ray]', or leave engine= out")


def _coordinator_context(config: RunConfig, runs: Path, grid: Grid) -> Context:
    return Context(
        run_id=grid.run.run_id,
        node_id=1,
        node_config={"runs-dir": str(runs)},
        state=RecordDict(),
        run_config={"composed": recipes.to_yaml(config)},
    )


@contextlib.contextmanager
def _runtime(ray: RayConfig, hospitals: Mapping[str, Path]) -> Iterator[Grid]:
    """Flower's runtime while it is needed, and its grid. Raises: RunError when it fails."""
    lent: Queue[Grid] = Queue()
    failures: list[Exception] = []
    done = threading.Event()

    def lend(grid: Grid, context: Context) -> None:
        lent.put(grid)
        done.wait()

    def serve() -> None:
        try:
            run_simulation(
                lend,  # type: ignore[arg-type]  # Flower only calls its apps
                Hospitals(hospitals),  # type: ignore[arg-type]
                num_supernodes=len(hospitals),
                backend_config={"client_resources": {"num_cpus": ray.cpus, "num_gpus": ray.gpus}},
            )
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=serve, name="flower-runtime", daemon=True)
    thread.start()
    try:
        yield _lent(lent, thread)
    except Exception as error:
        if failures:
            raise RunError(f"Flower's simulation runtime failed: {failures[0]}") from error
        raise
    finally:
        done.set()
        thread.join(PATIENCE_S)
        if thread.is_alive():  # a site still trains: nobody waits for it any more
            _end_ray()
            thread.join(PATIENCE_S)


def _lent(lent: Queue[Grid], thread: threading.Thread) -> Grid:
    for _ in range(math.ceil(START_TIMEOUT_S)):
        with contextlib.suppress(Empty):
            return lent.get(timeout=1.0)
        if not thread.is_alive():
            break
    raise RunError("Flower's simulation runtime did not start; try engine=in_process")


# ---- Ray ---------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _ray(config: RunConfig) -> Iterator[None]:
    """Ray, joined at the configured address or started on this machine, and left as it was found."""
    import ray  # an extra: only this engine needs it

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    temporary = tempfile.mkdtemp(prefix="panfm-ray-")  # not in the run's folder: a socket's path has at most 107 bytes
    try:
        with _environment(temporary):
            ray.init(**_init_arguments(config, temporary))
            for number, handler in handlers.items():  # Ray's own would end the program before its record is ended
                if threading.current_thread() is threading.main_thread():
                    signal.signal(number, handler)
            yield
    except ConnectionError as error:
        raise ConfigError(
            f"no Ray cluster answers at ray.address={config.ray.address}; start it or correct it"
        ) from error
    finally:
        _end_ray()
        shutil.rmtree(temporary, ignore_errors=True)


def _init_arguments(config: RunConfig, temporary: str) -> dict[str, Any]:
    """What `ray.init` is called with."""
    seen = os.pathsep.join(filter(None, (str(BUNDLE_ROOT), os.environ.get("PYTHONPATH"))))
    ours: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": {"PYTHONPATH": seen, **_QUIET}},
    }
    if config.ray.address:
        return ours | {"address": config.ray.address}
    return ours | {
        "num_cpus": math.ceil(config.workers * config.ray.cpus),
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
        "_temp_dir": temporary,
    }


_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Nobody is told anything, nothing is installed, and threads that wait for each other sleep."""


@contextlib.contextmanager
def _environment(temporary: str) -> Iterator[None]:
    """The settings that Ray's own processes inherit, and Flower's home, for as long as Ray runs."""
    before = dict(os.environ)
    os.environ.update(_QUIET | {"FLWR_HOME": temporary})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _check_resources(asked: RayConfig) -> None:
    """Raises: ConfigError when no machine of the cluster can hold a site."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if not any(m.get("CPU", 0) >= asked.cpus and m.get("GPU", 0) >= asked.gpus for m in machines):
        most = {kind: max((m.get(kind, 0) for m in machines), default=0) for kind in ("CPU", "GPU")}
        raise ConfigError(
            f"a site takes ray.cpus={asked.cpus:g} and ray.gpus={asked.gpus:g}, and no machine has more than"
            f" {most['CPU']:g} and {most['GPU']:g}; lower them"
        )


def _end_ray() -> None:
    import ray

    ray.shutdown()


@contextlib.contextmanager
def _quiet_flower() -> Iterator[None]:
    """Flower's own log left out: what a person must know, the record and the coordinator's log say."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
