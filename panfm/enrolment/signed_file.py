"""What travels between site and coordinator: one JSON file that is signed, and that can be written in one way only.

A file counts when it is, byte for byte, what this version would write for the values in it, and the signature over these values
holds. So nothing can stand in it unseen: no second value under a name, no unknown name, no other spelling.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, TypeVar, get_type_hints

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from panfm.errors import PanfmError, ProtocolError
from panfm.signing import is_signed_by, sign

FORMAT = 1
"""Version of the form; a file of another one is refused by its name."""
MAX_BYTES = 64 * 2**10
"""Many times what a card or a kit takes."""

_SIGNATURE = re.compile(r"[0-9a-f]{128}")
_KINDS: dict[Any, type[Any]] = {str: str, int: int, tuple[str, ...]: list}


@dataclass(frozen=True, kw_only=True)
class SignedFile:
    """Words, whole numbers and lists of words, under a signature; each kind says what it is called and who signs it."""

    CALLED: ClassVar[str]
    SIGNER: ClassVar[str]
    """Name of the field with the public key (hex) of whoever must have signed."""

    format: int = FORMAT
    signature: str = ""
    """Hex signature over the rest."""


F = TypeVar("F", bound=SignedFile)


def signed(file: F, key: Ed25519PrivateKey) -> F:
    """The file under a signature of this key."""
    return replace(file, signature=sign(key, _digest(asdict(file), file.CALLED)))


def to_bytes(file: SignedFile) -> bytes:
    """The file's one form."""
    return _in_one_form(asdict(file))


def read_signed(content: bytes, kind: type[F]) -> F:
    """The values of a file; what it holds is looked at once it is known to be what the signer wrote.

    Raises: ProtocolError when a byte of it is not.
    """
    try:
        if len(content) > MAX_BYTES:
            raise ValueError(f"{len(content):,} bytes are too many")
        words = json.loads(content)
        _check_form(words, kind, content)
        if not is_signed_by(words[kind.SIGNER], _digest(words, kind.CALLED), words["signature"]):
            raise ValueError("its signature does not hold")
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in words.items()}
        return kind(**values)
    except (ValueError, RecursionError, PanfmError) as error:
        raise ProtocolError(
            f"this is no {kind.CALLED} as it was made: {' '.join(str(error).split())[:200]}; ask for the file again, unchanged"
        ) from error


def _check_form(words: Any, kind: type[F], content: bytes) -> None:
    if not isinstance(words, dict):
        raise ValueError("it holds no settings")
    if words.get("format") != FORMAT:
        raise ValueError(f"it is of form {words.get('format')!r:.20}, and this panfm knows form {FORMAT}")
    hints, names = get_type_hints(kind), {f.name for f in fields(kind)}
    if words.keys() != names:
        raise ValueError(f"{sorted(words.keys() ^ names)[0]!r:.80} is missing or not known")
    for name, value in words.items():
        if type(value) is not _KINDS[hints[name]] or (isinstance(value, list) and {*map(type, value)} - {str}):
            raise ValueError(f"{name} has another type of value")
    if _in_one_form(words) != content or not _SIGNATURE.fullmatch(words["signature"]):
        raise ValueError("it is not in the form in which it was written")


def _in_one_form(words: dict[str, Any]) -> bytes:
    return (json.dumps(words, indent=1, sort_keys=True) + "\n").encode()


def _digest(words: dict[str, Any], called: str) -> str:
    unsigned = {name: value for name, value in words.items() if name != "signature"}
    return hashlib.sha256(f"panfm {called}\n{json.dumps(unsigned, sort_keys=True)}".encode()).hexdigest()
