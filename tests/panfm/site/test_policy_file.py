"""`policy.yaml`: what it says is what is meant, and a mistake stops the site with its line and the remedy."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from panfm.errors import ConfigError
from panfm.site.policy import Bounds, Policy, PrivacyDemand, PrivacyMode, Public, TaskKind
from panfm.site.policy_file import POLICY_FILE, parse_policy, read_policy, write_policy

KEY = "ab" * 32
GOOD = f"""site: north
coordinator_keys: [{KEY}]
organs: [brain]
tasks: [pretrain]
privacy: {{mode: none}}
"""
"""Five lines; what is added stands in line 6."""


def test_policy_is_read_back(tmp_path: Path) -> None:
    policy = Policy(
        site="north-2_b",
        coordinator_keys=(KEY, "12" * 32),  # the second is all digits, and stays a word
        organs=("liver", "brain"),
        tasks=(TaskKind.evaluate, TaskKind.pretrain),
        privacy=PrivacyDemand(mode=PrivacyMode.dp, epsilon=3.0, delta=1e-6),
        public=(Public.metrics,),
        nominal_subjects=100,
        approved_recipes=("0e" * 32,),
        bounds={"rounds": Bounds(most=50), "pretrain.learning_rate": Bounds(least=1e-6, most=1e-2)},
        approved_bundles=("34" * 32,),
        min_subjects=5,
        min_subjects_per_organ=3,
        min_sites_per_group=3,
        rounds_per_day=2,
        hours=("22:00-06:00", "12:00-13:00"),
        time_zone="Europe/Berlin",
        device="cuda:1",
        min_free_memory_gib=0.5,
        loader_threads=0,
    )
    write_policy(tmp_path / "new", policy)
    assert read_policy(tmp_path / "new") == policy


def test_numbers_may_be_written_as_people_write_them() -> None:
    text = GOOD.replace("mode: none", "mode: dp, epsilon: 3, delta: 1e-6") + "bounds: {rounds: {most: 50}}\n"
    policy = parse_policy(text)
    assert (policy.privacy.epsilon, policy.privacy.delta) == (3.0, 1e-6)
    assert policy.bounds == {"rounds": Bounds(most=50.0)}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "is empty"),
        ("# only a remark\n", 1, "is empty"),
        ("- a list", 1, "should be settings"),
        ("just words", 1, "should be settings"),
        ("a: b: c", 1, "is not YAML"),
        (GOOD + "min_subjects: [1\n", 7, "is not YAML"),
        ("\x00", 1, "is not YAML"),
        ("[" * 600, 1, "is not YAML"),
        (GOOD + "---\nsite: south\n", 6, "is not YAML"),
        (GOOD + "\nmin_subject: 5\n", 7, "min_subject is no setting; did you mean min_subjects?"),
        (GOOD + "42: 5\n", 6, "42 is no setting"),
        (GOOD + "? [a, b]\n: 5\n", 6, "is no setting"),
        (GOOD + f"coordinator_key: {KEY}\n", 6, "it is coordinator_keys now, a list"),
        (GOOD + "tell_counts: true\n", 6, "public: [updates, counts, metrics]"),
        (GOOD + "\n\nsite: south\n", 8, "site stands there twice, first in line 1; remove one"),
        (GOOD + "bounds:\n  rounds: {most: 5}\n  rounds: {most: 9}\n", 8, "bounds.rounds stands there twice"),
        (GOOD.replace("mode: none", "mode: none, mode: dp"), 5, "privacy.mode stands there twice"),
        (GOOD.replace("site: north\n", ""), 1, "site is missing"),
        (GOOD.replace("tasks: [pretrain]\n", ""), 1, "tasks is missing, and nothing is allowed until it is said"),
        (GOOD.replace("mode: none", ""), 5, "privacy.mode is missing"),
        (GOOD.replace("{mode: none}", "none"), 5, "privacy should be settings"),
        (GOOD.replace("mode: none", "mode: null"), 5, "privacy.mode should be one of none, dp"),
        (GOOD.replace("mode: none", "mode: None"), 5, "privacy.mode should be one of none, dp"),
        (GOOD.replace("mode: none", "mode: dp"), 5, "privacy.epsilon must be above 0 and at most 10"),
        (GOOD.replace("mode: none", "mode: none, epsilon: 3"), 5, "privacy.delta must be above 0"),
        (GOOD.replace("site: north", "site: ../north"), 1, "rename the site"),
        (GOOD.replace("site: north", "site: 12"), 1, "site should be a word; put quotes around it"),
        (GOOD.replace("site: north", "site: 2020-99-99"), 1, "site cannot be read"),
        (GOOD.replace(KEY, "12" * 32), 2, "coordinator_keys should be a word; put quotes around it"),
        (GOOD.replace(KEY, "ab"), 2, "64 hexadecimal digits"),
        (GOOD.replace(f"[{KEY}]", KEY), 2, "coordinator_keys should be a list"),
        (GOOD.replace("[brain]", "[]"), 3, "organs is empty"),
        (GOOD.replace("[brain]", "[Brain]"), 3, "Brain"),
        (GOOD.replace("[brain]", "[[brain]]"), 3, "got a list or settings"),
        (GOOD.replace("[pretrain]", "[pre-train]"), 4, "tasks should be one of pretrain, evaluate, got 'pre-train'"),
        (GOOD.replace("[pretrain]", "[finetune]"), 4, "tasks should be one of pretrain, evaluate"),
        (GOOD + "public: [weights]\n", 6, "public should be one of updates, counts, metrics"),
        (GOOD + "min_subjects: yes\n", 6, "min_subjects should be a whole number, got 'yes'"),
        (GOOD + "min_subjects: '5'\n", 6, "min_subjects should be a whole number, got '5'"),
        (GOOD + "min_subjects: 5.0\n", 6, "min_subjects should be a whole number, got '5.0'"),
        (GOOD + "min_subjects:\n", 6, "min_subjects should be a whole number, got ''"),
        (GOOD + "min_subjects: " + "9" * 5000, 6, "min_subjects cannot be read"),
        (GOOD + "min_free_memory_gib: " + "9" * 400, 6, "min_free_memory_gib should be a number"),
        (GOOD + "min_free_memory_gib: .inf\n", 6, "min_free_memory_gib must be 0 or more GiB"),
        (GOOD + "bounds: 5\n", 6, "bounds should be settings"),
        (GOOD + "bounds:\n  rouns: {most: 5}\n", 7, "bounds.rouns is no number of a recipe; did you mean rounds?"),
        (GOOD + "bounds:\n  rounds:\n    moost: 5\n", 8, "bounds.rounds.moost is no setting; did you mean most?"),
        (GOOD + "bounds:\n  rounds: {most: many}\n", 7, "bounds.rounds.most should be a number, got 'many'"),
        (GOOD + "bounds:\n  threads: {most: 1}\n  rounds: {}\n", 8, "bounds.rounds need `least`, `most` or both"),
        (GOOD + "hours:\n- 08:00-17:00\n- 8-9\n", 6, "hours should hold windows"),
        (GOOD + "hours: [22:00]\n", 6, "hours should be a word; put quotes around it"),
        (GOOD + "organs_too: &all [brain]\n", 6, "holds &, * or !"),
        (GOOD + "device: !!python/name:os.system\n", 6, "holds &, * or !"),
    ],
)
def test_mistake_stops_the_site_with_its_line_and_the_remedy(text: str, line: int, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_policy(text)
    assert str(caught.value).startswith(f"policy.yaml line {line}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable_policies(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the site has no policy\.yaml; write one with `panfm site init`"):
        read_policy(tmp_path)
    (tmp_path / POLICY_FILE).write_bytes(b"site: \xff\xfe")
    with pytest.raises(ConfigError, match="it should be UTF-8 text"):
        read_policy(tmp_path)
    (tmp_path / POLICY_FILE).unlink()
    (tmp_path / POLICY_FILE).mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        read_policy(tmp_path)


NAMES = [
    "site",
    "organs",
    "tasks",
    "privacy",
    "public",
    "bounds",
    "hours",
    "min_subjects",
    "device",
    "coordinator_keys",
]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["none", KEY]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["mode", "rounds", "most", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(changed=st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), values, max_size=3))
def test_any_file_is_a_policy_or_a_line_with_a_remedy(changed: dict[str, object]) -> None:
    text = yaml.safe_dump(yaml.safe_load(GOOD) | changed, allow_unicode=True)
    try:
        policy = parse_policy(text)
    except ConfigError as error:
        said = str(error)
    else:
        assert set(changed) <= {*NAMES}, "an unknown name is never passed over"
        assert policy.coordinator_keys
        return
    assert re.match(r"policy\.yaml line \d+: ", said)


@given(text=st.text(max_size=60))
def test_any_text_at_all_is_answered_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^policy\.yaml line \d+: "):
        parse_policy(text)
