"""A hospital's policy: read from its own disk; a mistake in it stops the site and never means "allow"."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from panfm.errors import ConfigError
from panfm.site.policy import POLICY_FILE, Policy, read_policy, write_policy

KEY = "ab" * 32
GOOD = f"site: north\ncoordinator_key: {KEY}\norgans: [brain]\n"


def test_policy_is_read_back(tmp_path: Path) -> None:
    policy = Policy(
        site="north-2_b",
        coordinator_key=KEY,
        organs=["liver", "brain"],
        min_subjects=5,
        min_sites_per_group=3,
        tell_counts=False,
        device="cuda:1",
    )
    write_policy(tmp_path / "new", policy)
    assert read_policy(tmp_path / "new") == policy


def test_a_short_policy_has_the_documented_defaults(tmp_path: Path) -> None:
    (tmp_path / POLICY_FILE).write_text(GOOD)
    policy = read_policy(tmp_path)
    assert (policy.min_subjects, policy.min_sites_per_group, policy.tell_counts, policy.device) == (1, 1, True, "cpu")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "site"),
        ("- a list", ""),
        ("just words", ""),
        (GOOD.replace("site: north\n", ""), "site"),
        (GOOD.replace("site: north", "site: ../north"), "site"),
        (GOOD.replace("site: north", "site: ''"), "site"),
        (GOOD.replace(KEY, "ab"), "coordinator_key"),
        (GOOD.replace(KEY, KEY.upper()), "coordinator_key"),
        (GOOD.replace("[brain]", "[]"), "organs is empty"),
        (GOOD.replace("[brain]", "[Brain]"), "Brain"),
        (GOOD.replace("[brain]", "[brain, brain]"), "must differ"),
        (GOOD.replace("[brain]", "brain"), "organs"),
        (GOOD + "min_subject: 5\n", "min_subject"),
        (GOOD + "min_subjects: 0\n", "min_subjects"),
        (GOOD + "min_subjects: many\n", "many"),
        (GOOD + "min_subjects: yes\n", "True"),
        (GOOD + "min_subjects: null\n", "min_subjects"),
        (GOOD + "min_sites_per_group: -1\n", "min_sites_per_group"),
        (GOOD + "min_sites_per_group: 1.5\n", "1.5"),
        (GOOD + "tell_counts: perhaps\n", "perhaps"),
        (GOOD + "device: tpu\n", "device"),
        (GOOD + "  : :\n", ""),
        ("a: b: c", ""),
        ("\x00", ""),
    ],
)
def test_mistake_stops_the_site_and_is_named_in_one_line(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / POLICY_FILE).write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_policy(tmp_path)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable_policies(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the site has no policy\.yaml; write one"):
        read_policy(tmp_path)
    (tmp_path / POLICY_FILE).write_bytes(b"site: \xff\xfe")
    with pytest.raises(ConfigError, match="correct it"):
        read_policy(tmp_path)


@pytest.mark.parametrize("changes", [{"min_subjects": 0}, {"organs": []}, {"device": "cuda:x"}, {"site": "a b"}])
def test_a_policy_is_checked_when_it_is_made_too(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Policy(**({"site": "north", "coordinator_key": KEY, "organs": ["brain"]} | changes))
