"""Bundles made byte by byte, as Flower would build them and as an attacker would."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import io
import stat
import zipfile
from collections.abc import Mapping

from panfm.site.bundles import MANIFEST

GOOD = {"pyproject.toml": b"[project]\n", "client/__init__.py": b'"""Why."""\n', "client/app.py": b"app = 1\n"}


def manifest(files: Mapping[str, bytes]) -> bytes:
    lines = [f"{name},{hashlib.sha256(data).hexdigest()},{8 * len(data)}" for name, data in files.items()]
    return "\n".join(lines).encode()


def zipped(files: Mapping[str, bytes], mode: int = stat.S_IFREG | 0o600, compress: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of these files, each under that mode."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compress) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, (2024, 10, 1, 0, 0, 0))
            info.external_attr = mode << 16
            info.compress_type = compress
            archive.writestr(info, data)
    return buffer.getvalue()


def bundled(files: Mapping[str, bytes]) -> bytes:
    """A bundle whose manifest is right."""
    return zipped({**files, MANIFEST: manifest(files)})
