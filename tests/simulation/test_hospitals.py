"""Pretend hospitals on disk: each a folder as a site keeps one, and held-out people whom no hospital knows."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from client.workspace import open_workspace
from panfm import recipes
from panfm.config import RunConfig
from panfm.data.manifest import read_labels
from panfm.data.prepare import prepare_store
from panfm.data.store import PreparedStore
from panfm.errors import ConfigError, DataError, RunError
from panfm.site.policy import PrivacyMode, Public
from panfm.site.policy_file import read_policy
from simulation import hospitals
from simulation.hospitals import RehearsalCohort, make_cohort
from tests.client.small_study import HELD

KEY = "ab" * 32


def _config(*overrides: str) -> RunConfig:
    few = ["cohort.subjects_per_site=3", "cohort.probe_subjects=2", "cohort.test_subjects=2", "cohort.missing_rate=0"]
    return recipes.load(["recipe=smoke", *few, *overrides])


def _make(folder: Path, config: RunConfig, seen: list[tuple[str, int, int]] | None = None) -> RehearsalCohort:
    told: list[tuple[str, int, int]] = [] if seen is None else seen
    return make_cohort(config, folder, KEY, lambda what, done, total: told.append((what, done, total)))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> RehearsalCohort:
    return _make(tmp_path_factory.mktemp("cohort"), _config())


def _subjects(folder: Path) -> set[str]:
    return {entry.subject for entry in PreparedStore.open(folder / "store").entries}


def test_each_hospital_has_scans_store_and_a_policy_of_its_own(cohort: RehearsalCohort) -> None:
    assert list(cohort.hospitals) == sorted(HELD)
    for site, folder in cohort.hospitals.items():
        assert {path.name for path in folder.iterdir()} >= {"scans.csv", "labels.csv", "store", "policy.yaml"}
        policy = read_policy(folder)
        assert (policy.site, policy.coordinator_keys) == (site, (KEY,))
        assert tuple(policy.organs) == HELD[site]
        workspace = open_workspace({"site-folder": str(folder)})
        assert tuple(workspace.subjects()) == HELD[site]


def test_nobody_is_at_two_hospitals_or_held_out_and_trained_on(cohort: RehearsalCohort) -> None:
    groups = [_subjects(folder) for folder in (*cohort.hospitals.values(), *cohort.evaluation)]
    assert sum(len(group) for group in groups) == len(set().union(*groups)) == 3 * 3 + 2 + 2


def test_held_out_subjects_are_complete_and_marked(cohort: RehearsalCohort) -> None:
    splits = set()
    for folder in cohort.evaluation:
        entries = PreparedStore.open(folder / "store").entries
        assert len(entries) == 2 * 3
        splits |= {entry.split for entry in entries}
        assert set(read_labels(folder / "labels.csv").subjects) == _subjects(folder)
    assert splits == {"probe", "test"}


def test_same_seed_gives_the_same_scans_however_many_workers(cohort: RehearsalCohort, tmp_path: Path) -> None:
    again = _make(tmp_path, _config())
    for site, folder in cohort.hospitals.items():
        first, second = (PreparedStore.open(place / "store").entries for place in (folder, again.hospitals[site]))
        assert first == second


def test_progress_counts_every_folder(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    _make(tmp_path, _config("sites=1"), seen)
    assert [step[1:] for step in seen] == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.slow
def test_workers_make_what_one_process_makes(cohort: RehearsalCohort, tmp_path: Path) -> None:
    again = _make(tmp_path, _config("workers=2"))
    for site, folder in cohort.hospitals.items():
        first, second = (PreparedStore.open(place / "store").entries for place in (folder, again.hospitals[site]))
        assert first == second


def _end_abruptly(_job: object) -> None:
    os._exit(9)


@pytest.mark.slow
def test_worker_that_is_killed_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hospitals, "_make_folder", _end_abruptly)
    with pytest.raises(RunError, match="a process that makes the hospitals was killed"):
        _make(tmp_path, _config("workers=2"))


def test_unknown_organ_in_a_recipe_is_one_clear_line(tmp_path: Path) -> None:
    config = _config()
    stomach = replace(config, organs={**config.organs, "stomach": config.organs["liver"]})
    with pytest.raises(ConfigError, match="unknown organ stomach: this study knows brain, heart"):
        _make(tmp_path, stomach)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("subject,organ,path\n", "scans.csv has no rows; list at least one scan"),
        ("", "scans.csv lacks column subject, organ, path"),
        ("subject,organ,path\ns1,stomach,a.nii\n", "unknown organ 'stomach': this study knows brain, heart, liver"),
        ("subject,organ,path\ns1,liver,absent.nii\n", "line 2: no file"),
        ("subject,organ,path\ns1,liver,scans.csv\n", "none of 1 scans can be used"),
        (None, "scans.csv should be a CSV table"),
    ],
    ids=["empty site", "no header", "unknown organ", "missing scan", "unreadable scan", "no table"],
)
def test_site_table_that_cannot_be_used_is_one_clear_line(tmp_path: Path, table: str | None, said: str) -> None:
    """What a hospital's own engineer sees, and what a rehearsal of real data prints."""
    config = _config()
    if table is not None:
        (tmp_path / "scans.csv").write_text(table)
    with pytest.raises(DataError) as caught:
        prepare_store(tmp_path, tmp_path / "store", config.organs, config.prepare)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- real scans -------------------------------------------------------------------------------------------------------


def _real(*overrides: str) -> RunConfig:
    return recipes.load(["recipe=real", "workers=1", *overrides])


def test_real_cohort_needs_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs data=FOLDER"):
        _make(tmp_path / "run", _real())
    with pytest.raises(DataError, match=r"the folder with brain_ixi/participants\.csv; got no such folder"):
        _make(tmp_path / "run", _real(f"data={tmp_path}/absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="got an empty folder"):
        _make(tmp_path / "run", _real(f"data={tmp_path}/empty"))


def test_site_without_a_scan_is_one_clear_line(real_data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no scan for brain_a; choose another train_share"):
        _make(tmp_path / "run", _real(f"data={real_data}", "cohort.train_share=0.001"))


def test_unreadable_brain_is_named(real_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for source in real_data.iterdir():
        if source.is_dir():
            (data / source.name).mkdir(parents=True)
            for file in source.iterdir():
                (data / source.name / file.name).symlink_to(file)
    broken = sorted((data / "brain_ixi").glob("*_T1brain.nii.gz"))[0]
    broken.unlink()
    broken.write_bytes(b"not a scan")
    with pytest.raises(DataError) as caught:
        _make(tmp_path / "run", _real(f"data={data}"))
    assert broken.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_with_privacy_every_hospital_has_a_budget_and_one_may_have_its_own(tmp_path: Path) -> None:
    budgets = ["cohort.epsilon=3", "cohort.delta=1e-6", "+cohort.own_epsilon.neuro=0.5"]
    made = _make(tmp_path / "with", _config("privacy.mode=dp_full", *budgets))
    policies = {site: read_policy(folder) for site, folder in made.hospitals.items()}
    assert {site: policy.privacy.epsilon for site, policy in policies.items()} == {
        **dict.fromkeys(HELD, 3.0),
        "neuro": 0.5,
    }
    for policy in policies.values():
        assert (policy.privacy.mode, policy.privacy.delta) == (PrivacyMode.dp, 1e-6)
        assert policy.public == (Public.metrics,), "neither updates nor counts"
    without = _make(tmp_path / "without", _config(*budgets)).hospitals["neuro"]
    assert read_policy(without).privacy.mode is PrivacyMode.none


def test_a_budget_of_a_hospital_that_is_not_there_is_said_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no hospital is called nephro; there are abdominal, cardiac, neuro"):
        _make(tmp_path, _config("privacy.mode=dp_full", "+cohort.own_epsilon.nephro=1"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("cohort.epsilon=0", "cohort.epsilon must be above 0 and at most 10"),
        ("+cohort.own_epsilon.neuro=11", "cohort.own_epsilon.neuro must be above 0 and at most 10"),
        ("cohort.delta=0.1", "cohort.delta must be above 0 and at most 0.001"),
    ],
)
def test_a_budget_that_no_policy_may_have_is_refused(setting: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        _config(setting)
