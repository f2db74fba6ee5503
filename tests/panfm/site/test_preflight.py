"""Preflight: each thing that can be wrong before a start has a line of its own, and the line says what to do."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import panfm
from panfm.coordinator.settings import TASK_KEY
from panfm.data.store import PreparedStore, StoreEntry
from panfm.enrolment.certificates import issue_server, make_authority, read_certificate
from panfm.enrolment.node_key import new_node_key
from panfm.enrolment.signed_file import signed, to_bytes
from panfm.errors import RunError
from panfm.protocol import PROTOCOL_VERSION
from panfm.signing import load_or_make_key
from panfm.site import preflight as module
from panfm.site.joining import LocalPorts, join
from panfm.site.policy_file import read_policy
from panfm.site.preflight import Check, Verdict, line_of, preflight
from panfm.site.study_door import Answered
from tests.panfm.coordinator.made_study import BUNDLE, SETTINGS, MadeStudy, made_site, made_study

NOW = datetime.now(UTC)
AUTHORITY = make_authority("panfm pan", NOW)


@dataclass
class _Usage:
    free: int


def _entries(**counts: int) -> tuple[StoreEntry, ...]:
    return tuple(
        StoreEntry(
            subject=f"s{number}",
            visit="",
            organ=organ,
            file="x",
            shape=(1, 1, 1),
            spacing_mm=(1, 1, 1),
            source_digest="",
            digest="",
        )
        for organ, count in counts.items()
        for number in range(count)
    )


def _answered(ahead_s: float | None = 0.1, days: int = 397, age: timedelta = timedelta()) -> Answered:
    server = issue_server(AUTHORITY, ["localhost"], NOW - age, days)
    return Answered(certificate=read_certificate(server.certificate_pem), tls_version="TLSv1.3", ahead_s=ahead_s)


def _says(folder: Path, old: str, new: str) -> None:
    path = folder / "policy.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeStudy:
    """A site at which nothing is wrong, as far as it can be without scans and a coordinator."""
    study = made_study(tmp_path, now=NOW)
    join(study.site, study.kit_content, NOW, LocalPorts())
    _says(study.site, "bounds: {}", "bounds: {rounds: {most: 10}}")
    _says(study.site, "public: []", "public: [updates]")
    _says(study.site, "approved_bundles: []", f'approved_bundles: ["{BUNDLE}"]')
    _holds(monkeypatch, brain=12, liver=11)
    _meets(monkeypatch, _answered())
    monkeypatch.setattr(module, "free_memory_gib", lambda _device: 8.0)
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: _Usage(free=2**39))
    return study


def _holds(monkeypatch: pytest.MonkeyPatch, **counts: int) -> None:
    store = PreparedStore(Path("store"), _entries(**counts))
    monkeypatch.setattr(PreparedStore, "open", lambda _folder: store)


def _meets(monkeypatch: pytest.MonkeyPatch, answered: Answered) -> None:
    monkeypatch.setattr(module, "knock", lambda _folder, _link: answered)
    monkeypatch.setattr(module, "is_registered", lambda _folder, _link: True)


def _not_ok(study: MadeStudy, now: datetime = NOW) -> list[Check]:
    return [check for check in preflight(study.site, now) if check.verdict is not Verdict.ok]


def test_site_that_is_ready_has_a_line_for_everything(ready: MadeStudy) -> None:
    checks = preflight(ready.site, NOW)
    assert [check for check in checks if check.verdict is not Verdict.ok] == []
    assert {check.name for check in checks} == {
        *(
            "policy",
            "keys",
            "audit log",
            "scans",
            "disk",
            "device",
            "memory",
            "kit",
            "versions",
            "code",
            "certificates",
        ),
        "coordinator",
    }
    for check in checks:
        assert "\n" not in line_of(check)
        assert line_of(check).startswith(f"ok    {check.name}")


def _break_key_mode(study: MadeStudy, _patch: pytest.MonkeyPatch) -> None:
    (study.site / "keys" / "node.key").chmod(0o640)


def _break_secret_mode(study: MadeStudy, _patch: pytest.MonkeyPatch) -> None:
    (study.site / "study" / "superexec.secret").chmod(0o644)


def _lose_node_key(study: MadeStudy, _patch: pytest.MonkeyPatch) -> None:
    (study.site / "keys" / "node.key").unlink()


def _exchange_public_key(study: MadeStudy, _patch: pytest.MonkeyPatch) -> None:
    (study.site / "keys" / "signing.pub").write_text("ab" * 32 + "\n")


def _edit_log(study: MadeStudy, _patch: pytest.MonkeyPatch) -> None:
    path = study.site / "state" / "audit.log"
    path.write_bytes(path.read_bytes().replace(b"north", b"south"))


def _change_node_key(study: MadeStudy, _patch: pytest.MonkeyPatch) -> None:
    (study.site / "keys" / "node.key").write_bytes(new_node_key())
    (study.site / "keys" / "node.key").chmod(0o600)


def _forget_coordinator(study: MadeStudy, _patch: pytest.MonkeyPatch) -> None:
    _says(study.site, study.public_key, "cd" * 32)


def _edit_kit(study: MadeStudy, _patch: pytest.MonkeyPatch) -> None:
    path = study.site / "study" / "kit.json"
    path.write_bytes(path.read_bytes().replace(b"localhost", b"otherhost"))


def _close_policy(study: MadeStudy, _patch: pytest.MonkeyPatch) -> None:
    _says(study.site, "bounds: {rounds: {most: 10}}", "bounds: {}")


def _keep_updates(study: MadeStudy, _patch: pytest.MonkeyPatch) -> None:
    _says(study.site, "public: [updates]", "public: []")


def _spoil_policy(study: MadeStudy, _patch: pytest.MonkeyPatch) -> None:
    _says(study.site, "min_subjects: 10", "min_subjects: ten")


def _withdraw_approval(study: MadeStudy, _patch: pytest.MonkeyPatch) -> None:
    _says(study.site, BUNDLE, "00" * 32)


def _want_a_gpu(study: MadeStudy, patch: pytest.MonkeyPatch) -> None:
    _says(study.site, "device: cpu", "device: cuda")
    patch.setattr("torch.cuda.is_available", lambda: False)


def _want_a_second_gpu(study: MadeStudy, patch: pytest.MonkeyPatch) -> None:
    _says(study.site, "device: cpu", "device: cuda:1")
    patch.setattr("torch.cuda.is_available", lambda: True)
    patch.setattr("torch.cuda.device_count", lambda: 1)


def _fill_memory(_study: MadeStudy, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "free_memory_gib", lambda _device: 0.9)


def _hide_memory(_study: MadeStudy, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "free_memory_gib", lambda _device: None)


def _fill_disk(_study: MadeStudy, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("shutil.disk_usage", lambda _folder: _Usage(free=2**32))


def _lose_scans(_study: MadeStudy, patch: pytest.MonkeyPatch) -> None:
    _holds(patch, brain=9, liver=3)


def _other_release(_study: MadeStudy, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(panfm, "__version__", "9.9.9")


def _other_flower(_study: MadeStudy, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("importlib.metadata.version", lambda _name: "1.42.0")


def _lose_the_way(_study: MadeStudy, patch: pytest.MonkeyPatch) -> None:
    def nobody(_folder: Path, _link: object) -> Answered:
        raise RunError("nothing listens at localhost:8443; ask the coordinator")

    patch.setattr(module, "knock", nobody)


def _clock_ahead(_study: MadeStudy, patch: pytest.MonkeyPatch) -> None:
    _meets(patch, _answered(3600.0))


def _clock_behind(_study: MadeStudy, patch: pytest.MonkeyPatch) -> None:
    _meets(patch, _answered(-301.0))


def _expired_door(_study: MadeStudy, patch: pytest.MonkeyPatch) -> None:
    _meets(patch, _answered(age=timedelta(days=400)))


def _not_registered(_study: MadeStudy, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "is_registered", lambda _folder, _link: False)


@pytest.mark.parametrize(
    ("spoil", "name", "remedy"),
    [
        (_break_key_mode, "keys", "keys/node.key can be used by others (mode 640): run `chmod 600"),
        (_break_secret_mode, "keys", "study/superexec.secret can be used by others (mode 644): run `chmod 600"),
        (_change_node_key, "kit", "made for another node key than this site's; send site_card.json"),
        (_forget_coordinator, "kit", "signed by a coordinator that policy.yaml does not name"),
        (_edit_kit, "kit", "no site kit as it was made"),
        (_lose_node_key, "keys", "run `panfm site init` again"),
        (_exchange_public_key, "keys", "restore both from the backup"),
        (_edit_log, "audit log", "panfm site audit verify"),
        (_close_policy, "policy", "fill in `bounds` or `approved_recipes`"),
        (_keep_updates, "policy", "name `updates` under `public`"),
        (_spoil_policy, "policy", "min_subjects should be a whole number"),
        (_withdraw_approval, "code", "panfm site review"),
        (_want_a_gpu, "device", "sees no GPU: give the service the GPU"),
        (_want_a_second_gpu, "device", "there are 1 GPUs: correct `device`"),
        (_fill_memory, "memory", "0.9 GiB of cpu free, 1 wanted by policy.yaml: end what else runs there"),
        (_hide_memory, "memory", "is not known"),
        (_fill_disk, "disk", "4.0 GiB free, 5 wanted: make room"),
        (_lose_scans, "scans", "prepare more scans"),
        (_other_release, "versions", "install the coordinator's release"),
        (_other_flower, "versions", "found 1.42.0 here"),
        (_lose_the_way, "coordinator", "nothing listens at localhost:8443; ask the coordinator"),
        (
            _clock_ahead,
            "coordinator",
            "3600 s ahead of the coordinator's, and Flower takes 5 s ahead",
        ),
        (_clock_behind, "coordinator", "301 s behind the coordinator's"),
        (_expired_door, "coordinator", "the coordinator must renew it"),
        (_not_registered, "coordinator", "ask the coordinator what `panfm coordinator status` says of this site"),
    ],
)
def test_each_fault_has_a_line_that_says_what_to_do(
    ready: MadeStudy,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[MadeStudy, pytest.MonkeyPatch], None],
    name: str,
    remedy: str,
) -> None:
    spoil(ready, monkeypatch)
    found = [check for check in _not_ok(ready) if check.name == name]
    assert [check.verdict for check in found] == [Verdict.fail]
    assert remedy in found[0].says


def test_what_will_fail_soon_is_warned_of(ready: MadeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    _meets(monkeypatch, _answered(3.0, days=20))
    _holds(monkeypatch, brain=12, liver=3)
    assert [(check.name, check.verdict) for check in _not_ok(ready)] == [
        ("scans", Verdict.warn),
        ("coordinator", Verdict.warn),
        ("coordinator", Verdict.warn),
    ]
    _meets(monkeypatch, _answered(None))
    assert "told no time" in _not_ok(ready)[-1].says


def test_certificates_that_ran_out_or_are_not_good_yet_are_named(tmp_path: Path, ready: MadeStudy) -> None:
    far = NOW + timedelta(days=3640)
    names = [check.says for check in _not_ok(ready, far) if check.name == "certificates"]
    assert len(names) == 2
    assert all("in 9 days" in says for says in names)
    assert {check.verdict for check in _not_ok(ready, far)} == {Verdict.warn, Verdict.fail}, (
        "the door's certificate is shorter"
    )
    early = [check for check in _not_ok(ready, NOW - timedelta(days=1)) if check.name == "certificates"]
    assert {check.verdict for check in early} == {Verdict.fail}
    assert all("correct this machine's clock" in check.says for check in early)


def test_mutual_tls_looks_at_what_the_site_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = made_study(tmp_path, replace(SETTINGS, mutual_tls=True), NOW)
    join(study.site, study.kit_content, NOW, LocalPorts())
    _meets(monkeypatch, _answered())

    def certificates() -> list[Check]:
        return [check for check in preflight(study.site, NOW) if check.name == "certificates"]

    assert {check.verdict for check in certificates()} == {Verdict.ok}
    assert len(certificates()) == 3
    (study.site / "keys" / "tls.key").unlink()

    made_site(study.site, "north", study.public_key, now=NOW)
    (kit,) = [check for check in preflight(study.site, NOW) if check.name == "kit"]
    assert kit.verdict is Verdict.fail
    assert "client certificate is not for keys/tls.key; send site_card.json" in kit.says


def test_site_that_has_not_joined_still_sees_what_it_can_mend(tmp_path: Path) -> None:
    study = made_study(tmp_path, now=NOW)
    by_name = {check.name: check for check in preflight(study.site, NOW)}
    assert by_name["keys"].verdict is Verdict.ok
    for name in ("kit", "versions", "code", "certificates", "coordinator"):
        assert by_name[name].verdict is Verdict.fail
        assert "panfm site join KIT" in by_name[name].says


def test_folder_of_no_site_is_no_traceback(tmp_path: Path) -> None:
    checks = preflight(tmp_path, NOW)
    assert {check.name for check in checks if check.verdict is Verdict.ok} <= {"disk"}


def test_kit_of_an_older_release_is_told_apart_by_both_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = made_study(tmp_path, now=NOW)
    kit = signed(replace(study.kit, panfm_version="0.0.9"), load_or_make_key(study.coordinator / TASK_KEY))
    join(study.site, to_bytes(kit), NOW, LocalPorts())
    _meets(monkeypatch, _answered())
    (versions,) = [check for check in preflight(study.site, NOW) if check.name == "versions"]
    assert versions.verdict is Verdict.fail
    assert (
        f"the coordinator has panfm 0.0.9 (protocol {PROTOCOL_VERSION}), this site {panfm.__version__}" in versions.says
    )
    assert read_policy(study.site).site == "north"
