"""A bundle is read as if it were hostile, and what is shown of it is what would run."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import io
import stat
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm.errors import ProtocolError
from panfm.site.bundles import (
    MANIFEST,
    MAX_BUNDLE_BYTES,
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_TOTAL_BYTES,
    difference,
    read_bundle,
    unpack,
    visible,
)
from tests.panfm.site.made_bundles import GOOD, bundled, manifest, zipped


def test_good_bundle_is_read_in_full() -> None:
    content = bundled(GOOD)
    bundle = read_bundle(content)
    assert bundle.files == {name: data.decode() for name, data in GOOD.items()}
    assert bundle.digest == hashlib.sha256(content).hexdigest()
    assert bundle.not_loaded() == []


def test_python_that_no_site_imports_is_named() -> None:
    own = {"panfm/__init__.py": b"", "torch.py": b"", "server/app.py": b"", "server/notes.md": b""}
    assert read_bundle(bundled({**GOOD, **own})).not_loaded() == ["panfm", "server", "torch"]


@pytest.mark.parametrize(
    "name",
    [
        "../client/app.py",
        "/etc/cron.py",
        "client/../../app.py",
        "client//app.py",
        "client/./app.py",
        "client\\app.py",
        "C:/app.py",
        "client/.hidden.py",
        "client/\u202eapp.py",
        "client/a b.py",
        "",
        "client/",
        "-rf.py",
    ],
)
def test_path_that_is_not_plain_is_refused(name: str) -> None:
    with pytest.raises(ProtocolError, match="is not a plain relative path"):
        read_bundle(bundled({**GOOD, name: b""}))


@pytest.mark.parametrize(
    "name", ["client/app.pyc", "client/app.cpython-311-x86_64-linux-gnu.so", "client/app.pth", "client/data.bin"]
)
def test_what_would_run_unread_is_refused(name: str) -> None:
    with pytest.raises(ProtocolError, match="is no source or text file"):
        read_bundle(bundled({**GOOD, name: b""}))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(kind: int) -> None:
    with pytest.raises(ProtocolError, match="is a link, a folder or a device"):
        read_bundle(zipped({**GOOD, MANIFEST: manifest(GOOD)}, mode=kind | 0o777))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["client/app.py", "client/APP.py"])
def test_name_that_comes_twice_is_refused(second: str) -> None:
    buffer = io.BytesIO(bundled(GOOD))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(second, b"other = 1\n")
    with pytest.raises(ProtocolError, match="is in it twice"):
        read_bundle(buffer.getvalue())


def test_zip_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = zipped({"client/app.py": bytes(64 * 2**20)}, compress=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    with pytest.raises(ProtocolError, match="unpacks to 67,108,864 bytes, more than 262,144"):
        read_bundle(bomb)


def test_zip_bomb_that_lies_about_its_size_is_refused() -> None:
    """The reader gives no byte more than was declared, and then finds that the checksum is another's."""
    bomb = zipped({"client/app.py": bytes(2**20)}, compress=zipfile.ZIP_DEFLATED)
    assert bomb.count(struct.pack("<I", 2**20)) == 2
    with pytest.raises(ProtocolError, match="not a zip file that can be read"):
        read_bundle(bomb.replace(struct.pack("<I", 2**20), struct.pack("<I", 100)))


def test_size_limits() -> None:
    full = b"#" * MAX_FILE_BYTES
    many = {f"client/m{i}.py": full for i in range(MAX_TOTAL_BYTES // MAX_FILE_BYTES)}
    with pytest.raises(ProtocolError, match="it unpacks to"):
        read_bundle(bundled(many))
    with pytest.raises(ProtocolError, match=f"more than {MAX_FILES}"):
        read_bundle(bundled({f"client/m{i}.py": b"" for i in range(MAX_FILES)}))
    with pytest.raises(ProtocolError, match="bytes, more than 10,485,760"):
        read_bundle(bytes(MAX_BUNDLE_BYTES + 1))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xff\xfe", "not UTF-8 text"),
        (b"# -*- coding: utf-7 -*-\n# +AAo-import os\n", "declares the encoding utf-7"),
        (b"\xef\xbb\xbfapp = 1\n", "declares the encoding utf-8-sig"),
        (b"# coding: latin-1\n", "declares the encoding iso-8859-1"),
        (b"# coding: none-such\n", "not UTF-8 text"),
    ],
)
def test_source_that_would_run_as_other_than_shown_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        read_bundle(bundled({**GOOD, "client/app.py": data}))


@pytest.mark.parametrize(
    "listed",
    [
        manifest({**GOOD, "client/gone.py": b""}),
        manifest({name: data for name, data in GOOD.items() if name != "client/app.py"}),
        manifest({**GOOD, "client/app.py": b"other"}),
        b"\xff",
    ],
)
def test_manifest_that_does_not_tell_all_is_refused(listed: bytes) -> None:
    with pytest.raises(ProtocolError, match="its manifest and its files do not agree"):
        read_bundle(zipped({**GOOD, MANIFEST: listed}))


def test_bundle_without_a_manifest_is_refused() -> None:
    with pytest.raises(ProtocolError, match=r"it has no \.info/CONTENT"):
        read_bundle(zipped(GOOD))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_bundle(content)


@given(place=st.integers(0, 10_000), value=st.integers(1, 255))
def test_one_damaged_byte_never_passes_for_the_same_code(place: int, value: int) -> None:
    content = bytearray(bundled(GOOD))
    content[place % len(content)] ^= value
    try:
        damaged = read_bundle(bytes(content))
    except ProtocolError:
        return
    assert damaged.digest != read_bundle(bundled(GOOD)).digest


def test_only_what_a_site_imports_is_unpacked_and_for_its_owner_alone(tmp_path: Path) -> None:
    own = {"panfm/__init__.py": b"", "client/notes.md": b"", "client/inner/deep.py": b"x = 1\n"}
    unpack(read_bundle(bundled({**GOOD, **own})), tmp_path)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert [path.relative_to(tmp_path).as_posix() for path in files] == [
        "client/__init__.py",
        "client/app.py",
        "client/inner/deep.py",
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    with pytest.raises(FileExistsError):
        unpack(read_bundle(bundled(GOOD)), tmp_path)


# ---- the difference -----------------------------------------------------------------------------------------------------


def test_difference_is_the_one_that_diff_prints(tmp_path: Path) -> None:
    before = "".join(f"line {i}\n" for i in range(30))
    after = before.replace("line 12\n", "line twelve\nand more\n")
    for name, text in (("a", before), ("b", after)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.py").write_text(text)
    told = subprocess.run(
        ["diff", "-u", "--label", "a/x.py", "--label", "b/x.py", "a/x.py", "b/x.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    assert "\n".join(difference({"x.py": before}, {"x.py": after})) + "\n" == told


def test_difference_names_new_and_gone_files() -> None:
    lines = list(difference({"gone.py": "a\n", "same.py": "s\n"}, {"new.py": "b\n", "same.py": "s\n"}))
    assert [line for line in lines if line.startswith(("---", "+++"))] == [
        "--- a/gone.py",
        "+++ /dev/null",
        "--- /dev/null",
        "+++ b/new.py",
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2K\x1b[1A", "\\x1b[2K\\x1b[1A"),
        ("access \u202e nimda", "access \\u202e nimda"),
        ("x = 1\rimport os", "x = 1\\rimport os"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("naïve ° µ\t", "naïve ° µ\t"),
    ],
)
def test_nothing_is_hidden_from_the_reviewer(text: str, shown: str) -> None:
    assert visible(text) == shown
    lines = list(difference({"x.py": ""}, {"x.py": text}))
    assert lines[3:] == [f"+{shown}"]


@given(st.text())
def test_shown_text_acts_on_no_terminal(text: str) -> None:
    assert all(c.isprintable() or c == "\t" for c in visible(text))
