"""The one release of Flower whose inner parts the runtimes of site and coordinator may replace; with any other, nothing starts.

A guard that hooks names of another program guards nothing once these names are no longer called. So the version, the very text
of each module that is hooked, and each name in it are checked before anything runs.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
from pathlib import Path
from types import ModuleType

from panfm.errors import ConfigError
from panfm.site.bundles import FLOWER_VERSION

CLIENTAPP = "flwr.supernode.runtime.run_clientapp"
SUPEREXEC = "flwr.supercore.superexec.run_superexec"
SUPERNODE_LOOP = "flwr.supernode.start_client_internal"
FLEET_CONNECTION = "flwr.supernode.fleet_http_connection"

SOURCES = {
    CLIENTAPP: "fa6612aaeda9cd398de69199b0cf264a38f72c1b9cfdc53644c8d6dab0b70eb6",
    SUPEREXEC: "6b4855d76940ae0f257555b6e0e9894cc46b1ee9d5675092b0e16a5053e4b2fa",
    SUPERNODE_LOOP: "d6342f743fdf768f63305b88414ae2654e9a21bda153739da19c608e8d375067",
    FLEET_CONNECTION: "8b90826f407ab5d30564379fd1d475f66565b87547ff612eb5672277e92a33c8",
}
"""Module of Flower -> SHA-256 of its source as in the release's wheel."""


def pinned(module: str, *names: str) -> ModuleType:
    """A module of Flower, once it is known to be the one that was read.

    Raises: ConfigError when release, source or a name is another.
    """
    if (version := importlib.metadata.version("flwr")) != FLOWER_VERSION:
        raise _changed(f"found Flower {version}")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise _changed(f"it has no module {module}")
    if hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest() != SOURCES[module]:
        raise _changed(f"the source of {module} is not the release's")
    loaded = importlib.import_module(module)
    for name in names:
        if not callable(getattr(loaded, name, None)):
            raise _changed(f"{module} has no {name}")
    return loaded


def _changed(what: str) -> ConfigError:
    return ConfigError(
        f"this runtime guards Flower {FLOWER_VERSION} and no other: {what}; install panfm[federation] with constraints.txt"
    )
