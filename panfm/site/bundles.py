"""Reading the code that a coordinator sends, before any of it runs: a zip from outside, opened as if it were hostile.

What a person reviews is what would run: only plain UTF-8 source and text, each name once, all of it small enough to read, and
never a compiled module, a link or a path that leaves its folder. Everything works on the bytes in memory, so that the bytes
whose digest was approved are the bytes that are unpacked.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

from panfm.errors import ProtocolError

FLOWER_VERSION = "1.41.0"
"""The release of Flower whose bundle builder and task programs were measured; the site's runtime runs with no other."""
SITE_PACKAGE = "client"
"""The one package of a bundle that a site ever imports; any other name is looked for in the site's own installation alone."""

MAX_BUNDLE_BYTES = 10 * 2**20
"""Flower's own limit for a bundle."""
MAX_FILE_BYTES = 256 * 2**10
MAX_TOTAL_BYTES = 2 * 2**20
MAX_FILES = 500
"""Twenty times what panfm's own bundle comes to, and about as much as a person can be asked to read."""

MANIFEST = ".info/CONTENT"
_TEXT = (".py", ".toml", ".md", ".yaml", ".yml", ".json", ".jsonl")
"""Flower's own list of what a bundle may hold; a compiled module or a library beside a source would run in its place."""
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_UNREADABLE = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError, ValueError)
"""What Python's reader raises for damaged, encrypted or unknown archives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle that can be read in full."""

    digest: str
    """SHA-256 of the whole file, 64 hexadecimal digits."""
    content: bytes
    """The file itself."""
    files: Mapping[str, str]
    """Path in the bundle -> text, in sorted order; Flower's manifest is checked and left out."""

    def not_loaded(self) -> list[str]:
        """Names at the top of the bundle that look like Python and are not what a site imports."""
        tops = {path.partition("/")[0].removesuffix(".py") for path in self.files if path.endswith(".py")}
        return sorted(tops - {SITE_PACKAGE})


def read_bundle(content: bytes) -> Bundle:
    """The files of a bundle.

    Raises: ProtocolError, naming the file, when the zip is damaged or too large, or holds anything but text of a modest size
        under plain names.
    """
    if len(content) > MAX_BUNDLE_BYTES:
        raise _refusal(f"it has {len(content):,} bytes, more than {MAX_BUNDLE_BYTES:,}")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            _check_names(members)
            _check_sizes(members)
            raw = {member.filename: archive.read(member) for member in members}
    except _UNREADABLE as error:
        raise _refusal(f"it is not a zip file that can be read ({type(error).__name__})") from error
    _check_manifest(raw)
    files = {name: _text(name, raw[name]) for name in sorted(raw.keys() - {MANIFEST})}
    return Bundle(digest=hashlib.sha256(content).hexdigest(), content=content, files=files)


def unpack(bundle: Bundle, folder: Path) -> None:
    """Write what a site imports of the bundle into an empty folder, for its owner's eyes only."""
    for name, text in bundle.files.items():
        if name.startswith(f"{SITE_PACKAGE}/") and name.endswith(".py"):
            place = folder / name
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(text.encode())


def difference(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    """Lines of the unified difference between the files of two bundles, safe to print on a terminal."""
    for name in sorted({*old, *new}):
        before, after = (_lines(files.get(name, "")) for files in (old, new))
        sides = (f"a/{name}" if name in old else "/dev/null", f"b/{name}" if name in new else "/dev/null")
        yield from unified_diff(before, after, *sides, lineterm="")


def visible(text: str) -> str:
    """The text with everything that a terminal or an editor would act upon, or hide, written out as an escape."""
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


def _lines(text: str) -> list[str]:
    return [visible(line) for line in text.split("\n")] if text else []


def _refusal(reason: str) -> ProtocolError:
    return ProtocolError(f"the bundle is refused: {reason}; ask the coordinator for one that `panfm bundle` built")


def _check_names(members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_FILES:
        raise _refusal(f"it holds {len(members):,} files, more than {MAX_FILES}")
    seen: set[str] = set()
    for member in members:
        name = member.filename
        shown = visible(name)[:80]
        plain = name == MANIFEST or all(_SEGMENT.fullmatch(part) for part in name.split("/"))
        if not plain or member.orig_filename != name:
            raise _refusal(f"{shown!r} is not a plain relative path")
        if name.casefold() in seen:
            raise _refusal(f"{shown!r} is in it twice")
        seen.add(name.casefold())
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise _refusal(f"{shown!r} is a link, a folder or a device, and not a file")
        if name not in (MANIFEST, "LICENSE") and not name.endswith(_TEXT):
            raise _refusal(f"{shown!r} is no source or text file")


def _check_sizes(members: list[zipfile.ZipInfo]) -> None:
    """By the sizes that the archive declares: the reader gives no byte more than these."""
    for member in members:
        if member.file_size > MAX_FILE_BYTES:
            raise _refusal(f"{member.filename!r} unpacks to {member.file_size:,} bytes, more than {MAX_FILE_BYTES:,}")
    if (total := sum(member.file_size for member in members)) > MAX_TOTAL_BYTES:
        raise _refusal(f"it unpacks to {total:,} bytes, more than {MAX_TOTAL_BYTES:,}")


def _check_manifest(raw: Mapping[str, bytes]) -> None:
    """Flower checks the files that the manifest lists, and would run others unseen; here it must list exactly what is there."""
    if MANIFEST not in raw:
        raise _refusal(f"it has no {MANIFEST}")
    listed = {}
    for line in raw[MANIFEST].decode(errors="replace").splitlines():
        name, _, rest = line.partition(",")
        listed[name] = rest
    there = {
        name: f"{hashlib.sha256(data).hexdigest()},{8 * len(data)}" for name, data in raw.items() if name != MANIFEST
    }
    if listed != there:
        wrong = sorted(name for name in {*listed, *there} if listed.get(name) != there.get(name))[0]
        raise _refusal(f"its manifest and its files do not agree about {visible(wrong)[:80]!r}")


def _text(name: str, data: bytes) -> str:
    """The file as a person reads it, when Python would read it the same way."""
    try:
        text = data.decode("utf-8")
        if name.endswith(".py") and (encoding := tokenize.detect_encoding(io.BytesIO(data).readline)[0]) != "utf-8":
            raise _refusal(
                f"{name!r} declares the encoding {encoding}, under which it would run as other code than is shown"
            )
    except (UnicodeDecodeError, SyntaxError) as error:
        raise _refusal(f"{name!r} is not UTF-8 text") from error
    return text
