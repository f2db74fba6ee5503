"""The one way in which a setting says that its value cannot be."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from panfm.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Raises: ConfigError with the message, unless the condition holds."""
    if not condition:
        raise ConfigError(message)
