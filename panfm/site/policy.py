"""A hospital's policy: what it takes part in, read from its own disk and set by nobody else.

A policy with a mistake stops the site; it never means "allow". Where recipe and policy differ, the stricter wins.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from panfm.errors import ConfigError
from panfm.organs import check_organ_names

POLICY_FILE = "policy.yaml"


@dataclass(slots=True, kw_only=True)
class Policy:
    """One site's policy."""

    site: str
    """Name of the site, as the coordinator knows it: letters, digits, - and _."""
    coordinator_key: str
    """Public Ed25519 key of the coordinator whose tasks the site accepts (64 hexadecimal digits)."""
    organs: list[str] = field(default_factory=list)
    """Organs that the site offers; only those of its prepared scans count."""
    min_subjects: int = 1
    """Fewest subjects with which the site trains."""
    min_sites_per_group: int = 1
    """The site sends no organ that the study averages over fewer sites than this."""
    tell_counts: bool = True
    """Tell the coordinator the number of subjects per organ when joining."""
    device: str = "cpu"
    """Where the site trains: cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", self.site):
            raise ConfigError(f"policy: site {self.site!r} should be letters, digits, - and _; rename the site")
        if not re.fullmatch(r"[0-9a-f]{64}", self.coordinator_key):
            raise ConfigError(
                "policy: coordinator_key should be 64 hexadecimal digits; copy it from the coordinator's card"
            )
        if not self.organs:
            raise ConfigError("policy: organs is empty, so the site offers nothing; name the organs it takes part with")
        check_organ_names(self.organs)
        for name in ("min_subjects", "min_sites_per_group"):
            if getattr(self, name) < 1:
                raise ConfigError(f"policy: {name} must be at least 1, got {getattr(self, name)}")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"policy: device should be cpu, cuda or cuda:N, got {self.device!r}")


def read_policy(folder: Path) -> Policy:
    """The policy in a site's folder.

    Raises: ConfigError when it is missing, is not YAML, or has an unknown, missing or mistaken setting.
    """
    path = folder / POLICY_FILE
    if not path.is_file():
        raise ConfigError(f"the site has no {POLICY_FILE}; write one before it takes part in a study")
    try:
        values = OmegaConf.merge(OmegaConf.structured(Policy), OmegaConf.create(yaml.safe_load(path.read_text()) or {}))
        policy = OmegaConf.to_object(values)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{POLICY_FILE}: {' '.join(str(error).split())}; correct it") from error
    assert isinstance(policy, Policy)
    return policy


def write_policy(folder: Path, policy: Policy) -> None:
    """Write a site's policy file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / POLICY_FILE).write_text(OmegaConf.to_yaml(OmegaConf.structured(policy)))
