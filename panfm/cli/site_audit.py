"""`panfm site audit`: whether a site's record of what was asked and what left is whole, and what stands in it."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from panfm.errors import AuditError

if TYPE_CHECKING:
    from panfm.site.audit_chain import Entry, Fault, Head, Inspection, JsonScalar

audit = typer.Typer(help="Verify and read the site's audit log.", no_args_is_help=True)

Folder = Annotated[Path, typer.Option(help="The site's folder.")]
PublicKey = Annotated[
    str, typer.Option(help="The site's public key as noted elsewhere; keys/signing.pub of the folder if not given.")
]


@audit.command()
def verify(
    folder: Folder = Path(),
    witness: Annotated[
        list[str] | None,
        typer.Option(
            help="A head that the coordinator recorded, DIGEST:LENGTH (audit_head in record.jsonl). Repeatable."
        ),
    ] = None,
    public_key: PublicKey = "",
) -> None:
    """Check every line, and name the first that is wrong: edited, removed, inserted, moved, rewritten, or cut off."""
    from panfm.cli.site_init import spaced
    from panfm.signing import fingerprint
    from panfm.site.audit_chain import head_from

    heads = [head_from(text) for text in witness or ()]
    key = _public_key(folder, public_key)
    found = _inspected(folder, key, heads)
    if found.fault is not None:
        raise _wrong(found.fault, len(found.entries))
    print(f"lines       {len(found.entries)}, all as the site wrote them")
    print(f"head        {found.head}")
    print(f"signed by   {spaced(fingerprint(key))}: compare it with the fingerprint that you noted")
    if heads:
        print(f"witnesses   {len(heads)} agree")
    if found.unfinished_bytes:
        print(
            f"a crash cut off a last line after {found.unfinished_bytes} bytes; it never counted, and is moved aside next time"
        )


@audit.command()
def show(
    folder: Folder = Path(),
    run: Annotated[str, typer.Option(help="Only this run: its name or how it begins.")] = "",
    last: Annotated[int, typer.Option(min=0, help="Only so many of the newest; 0: all.")] = 0,
) -> None:
    """Print the entries, the newest last, up to the first line that is wrong."""
    from rich.console import Console

    found = _inspected(folder, _public_key(folder, ""), ())
    of_run = [entry for entry in found.entries if str(entry.about.get("run", "")).startswith(run)]
    Console(highlight=False).print(_table(of_run[-last:]))
    if found.fault is not None:
        raise _wrong(found.fault, len(found.entries))


def _public_key(folder: Path, given: str) -> str:
    import re

    from panfm.errors import ConfigError
    from panfm.site.identity import read_public_key

    if given and not re.fullmatch(r"[0-9a-f]{64}", given):
        raise ConfigError(f"--public-key should be 64 hexadecimal digits, got {given!r:.80}; correct it")
    return given or read_public_key(folder)


def _inspected(folder: Path, key: str, heads: Sequence[Head]) -> Inspection:
    from panfm.site.audit_log import inspect_folder

    return inspect_folder(folder, key, heads)


def _wrong(fault: Fault, good: int) -> AuditError:
    return AuditError(
        f"line {fault.line} [{fault.kind}]: {fault.meaning}. The {good} lines before it are as the site wrote them"
    )


def _table(entries: Sequence[Entry]) -> object:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("line", "time (UTC)", "event", "run", "round", "what"):
        table.add_column(name, justify="right" if name in ("line", "round") else "left", overflow="fold")
    for entry in entries:
        about = dict(entry.about)
        run, number = _shown(about.pop("run", "")), _shown(about.pop("round", ""))
        table.add_row(
            str(entry.line), entry.time.replace("T", " ").removesuffix("Z"), entry.event, run, number, _what(about)
        )
    return table


def _what(about: Mapping[str, JsonScalar]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in about.items() if value != "")


def _shown(value: JsonScalar) -> str:
    """A value as one printable word: a peer's name for a run must not move the cursor, and digests are told by their start."""
    from rich.markup import escape

    text = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(value))
    is_digest = len(text) == 64 and all(character in "0123456789abcdef" for character in text)
    return escape(text[:12] if is_digest else text)
