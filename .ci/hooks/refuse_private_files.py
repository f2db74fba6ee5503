"""The commit hook that keeps keys, scans and large files out of the history, from which nothing can be taken back.

It looks at names and at content, because a scan renamed `notes.bin` is still somebody's scan. It stands alone (standard
library only), so that a hospital can read it in a minute and run it on any folder.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re
import sys
import zlib
from pathlib import Path

MAX_SIZE_BYTES = 500_000
HEAD_SIZE_BYTES = 512
"""Enough for every signature below; DICOM's and NIfTI's lie within the first 348 bytes."""

KEY_SUFFIXES = (".key", ".pem", ".p12", ".pfx", ".jks", ".ppk")
SCAN_SUFFIXES = (
    *(".nii", ".nii.gz", ".dcm", ".dicom", ".mgz", ".mgh", ".nrrd", ".nhdr"),
    *(".mha", ".mhd", ".mnc", ".par", ".rec", ".ima"),
)

_PRIVATE_KEY_TEXT = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File-\d:")


def _is_dicom(head: bytes) -> bool:
    return head[128:132] == b"DICM"


def _is_nifti(head: bytes) -> bool:
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:12] in (b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n")


def _is_nrrd(head: bytes) -> bool:
    return re.match(rb"NRRD000\d\r?\n", head) is not None


def _is_metaimage(head: bytes) -> bool:
    return re.match(rb"\s*(?:Comment\s*=.*\n)?ObjectType\s*=\s*Image", head) is not None


def _gunzipped_head(content: bytes) -> bytes:
    """The first bytes inside a gzip stream, or nothing where it is damaged."""
    try:
        return zlib.decompressobj(wbits=31).decompress(content, HEAD_SIZE_BYTES)
    except zlib.error:
        return b""


def _holds_scan(content: bytes) -> bool:
    head = _gunzipped_head(content) if content.startswith(b"\x1f\x8b") else content[:HEAD_SIZE_BYTES]
    return any(looks_like(head) for looks_like in (_is_dicom, _is_nifti, _is_nrrd, _is_metaimage))


def reason_to_refuse(path: Path) -> str | None:
    """Why this file must not be committed, in words for the person who tried; None where it may be.

    A link is committed as its target's name and not followed.
    """
    if path.is_symlink() or not path.is_file():
        return None
    name, content = path.name.lower(), path.read_bytes()
    if name.endswith(KEY_SUFFIXES):
        return "keys and certificates stay on the machine that made them; tests make theirs in a temporary folder"
    if _PRIVATE_KEY_TEXT.search(content):
        return "it holds a private key: remove it, and replace the key if it was ever in use"
    if name.endswith(SCAN_SUFFIXES):
        return "scans stay at their hospital; tests make theirs with panfm.data.synthetic"
    if _holds_scan(content):
        return "its content is a scan (DICOM, NIfTI, NRRD or MetaImage), whatever its name says"
    if len(content) > MAX_SIZE_BYTES:
        return (
            f"{len(content):,} bytes are more than {MAX_SIZE_BYTES:,}: make it when it is needed, or keep it elsewhere"
        )
    return None


def main(arguments: list[str]) -> int:
    """Exit status 1, and a line on stderr per file, when one of the named files must not be committed."""
    refused = [(name, reason) for name in arguments if (reason := reason_to_refuse(Path(name)))]
    for name, reason in refused:
        print(f"refused {name}: {reason}", file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
