"""Node keys: Flower reads them, ssh-keygen agrees about the public half, and nothing else passes for one."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from panfm.enrolment.certificates import new_tls_key
from panfm.enrolment.node_key import check_public_node_key, new_node_key, public_node_key
from panfm.errors import ConfigError


def _openssh(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="the program ssh-keygen is not installed")
def test_ssh_keygen_reads_the_same_public_half(tmp_path: Path) -> None:
    private = new_node_key()
    path = tmp_path / "node.key"
    path.write_bytes(private)
    path.chmod(0o600)
    said = subprocess.run(["ssh-keygen", "-y", "-f", path], capture_output=True, text=True, check=True).stdout
    assert said.split()[:2] == public_node_key(private).split()


def test_flower_reads_both_halves_and_takes_the_curve() -> None:
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
    from flwr.supercore.primitives.asymmetric import uses_nist_ec_curve

    private = new_node_key()
    public = load_ssh_public_key(public_node_key(private).encode())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert uses_nist_ec_curve(public)
    key = load_ssh_private_key(private, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.public_key() == public


def test_public_half_has_one_form() -> None:
    line = public_node_key(new_node_key())
    check_public_node_key(line)
    for other in (
        line + "\n",
        line + " north",
        " " + line,
        line.replace("= ", "="),
        line[:-1],
        line.replace("nistp384", "nistp256"),
    ):
        if other != line:
            with pytest.raises(ValueError, match="P-384"):
                check_public_node_key(other)


def test_other_kinds_of_keys_are_refused() -> None:
    for key in (ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()):
        with pytest.raises(ConfigError, match="P-384"):
            public_node_key(_openssh(key))
        line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        with pytest.raises(ValueError, match="P-384"):
            check_public_node_key(line)
    for content in (b"", new_tls_key()):
        with pytest.raises(ConfigError, match="OpenSSH"):
            public_node_key(content)
