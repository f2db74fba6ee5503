"""What SuperExec tells a waiting program of a task: one line of JSON, for what stands on a command line is read by all."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flwr.supercore.superexec.executor import ExecutionSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A task to be begun."""

    kind: str
    """In Flower's words."""
    token: str = field(repr=False)
    runtime_api_address: str
    """Where what belongs to the task is handed out."""
    insecure: bool
    root_certificates: str | None
    parent_pid: int | None
    """SuperExec; whoever answers ends with it."""

    @classmethod
    def of(cls, spec: ExecutionSpec) -> Order:
        """What Flower's own words of a task come to."""
        return cls(
            kind=spec.task_type.value,
            token=spec.token,
            runtime_api_address=spec.runtime_api_address,
            insecure=spec.insecure,
            root_certificates=spec.root_certificates_path,
            parent_pid=spec.parent_pid,
        )

    def to_line(self) -> bytes:
        """The order as it is handed over."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Order:
        """The order that was handed over."""
        return cls(**json.loads(line))
