"""The ground everything stands on: the few kinds of failure that a person has to act upon.

Each leaf carries an exit code, and its message says what was expected, what came, and what to do. The command line
prints that message alone; a traceback is for defects of panfm itself. A refusal by a site's policy is an answer
(`panfm.protocol.Refusal`), not an exception.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations


class PanfmError(Exception):
    """Base of all failures whose message is written for the person who must act."""

    exit_code = 1


class ConfigError(PanfmError):
    """A recipe, a policy or a command line says something that cannot be: fix it and try again."""

    exit_code = 2


class DataError(PanfmError):
    """Scans, tables or stores are missing, unreadable or inconsistent: mend the data and try again."""

    exit_code = 3


class ScanError(DataError):
    """One scan cannot be used; `code` is a stable word for the kind of fault."""

    exit_code = 8

    def __init__(self, message: str, code: str = "unusable") -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[ScanError], tuple[str, str]]:
        return ScanError, (str(self), self.code)  # scans are read in worker processes


class ProtocolError(PanfmError):
    """A peer sent something that the protocol does not allow; what came is left out."""

    exit_code = 4


class CheckpointError(PanfmError):
    """A checkpoint or an exported model is missing, damaged or of another shape than asked for."""

    exit_code = 5


class RunError(PanfmError):
    """A run could not start or could not go on: too few sites, or the federation collapsed."""

    exit_code = 6


class PortInUseError(RunError):
    """A port that a server needs is taken: stop the other program or choose another port."""

    exit_code = 7


class AuditError(PanfmError):
    """A site's audit log cannot be written, or is not as it was written: nothing leaves until a person has looked."""

    exit_code = 9


class LockedError(RunError):
    """Another process writes this run: wait until it ends, or stop it."""

    exit_code = 10
