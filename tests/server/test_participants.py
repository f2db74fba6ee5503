"""Who may take part: each node is asked once, known by its site's own name, and turned away with a reason."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo

from panfm import recipes
from panfm.config import Recipe
from panfm.errors import RunError
from panfm.protocol import PROTOCOL_VERSION, JoinAnswer, Refusal, to_envelope
from panfm.reporting.record import Event, RoundStarted, SiteAnswered, SiteJoined, SiteLeft, SiteRejected, read_record
from server.participants import Participants
from server.run_folder import RECORD_FILE
from server.run_record import RunRecord
from tests.client.small_study import SpyGrid, quick_update, reply_with, site_of, to_content
from tests.server.past import a_round, answered, joined

Join = Callable[[Message], Message]
E = TypeVar("E", bound=Event)


def _says(**changes: object) -> Join:
    def join(message: Message) -> Message:
        values: dict[str, object] = {
            "site": "north",
            "organs": ("brain", "heart"),
            "protocol_version": PROTOCOL_VERSION,
            "panfm_version": "0.1.0",
        }
        return reply_with(JoinAnswer(**(values | changes)), message)  # type: ignore[arg-type]  # fields by name

    return join


def _refuses(message: Message) -> Message:
    words = "the site's prepared scans are missing;\nits own log says which"
    return reply_with(Refusal(run="", round=0, site="", code="site_data", reason=words), message)


def _other_code(message: Message) -> Message:
    return Message(RecordDict({"words": ConfigRecord({"of": "another"})}), reply_to=message)


def _raises(message: Message) -> Message:
    raise OSError("/srv/secret")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return recipes.recipe_of(recipes.load(["recipe=smoke", "federation.join_timeout_s=0.3"]))


class _Meeting:
    """Nodes that answer in their own ways, and the coordinator who asks them."""

    def __init__(self, folder: Path, recipe: Recipe, **joins: Join) -> None:
        app = ClientApp()

        @app.query()
        def join(message: Message, context: Context) -> Message:
            return joins[site_of(context)](message)

        self.folder = folder
        self.grid = SpyGrid(app, [Path(name) for name in joins], {}, folder)
        self.record = RunRecord(folder)
        self.participants = Participants(self.grid, recipe, self.record)

    def connected(self, monkeypatch: pytest.MonkeyPatch, *nodes: int) -> None:
        """From now on only these nodes are there."""
        monkeypatch.setattr(self.grid, "get_node_ids", lambda: list(nodes))

    def look(self) -> dict[int, str]:
        """Node -> site, after another look."""
        self.participants.look()
        return {node: site.site for node, site in self.participants.sites.items()}

    def events(self, kind: type[E]) -> list[E]:
        path = self.folder / RECORD_FILE
        return [event for event in read_record(path) if isinstance(event, kind)] if path.exists() else []

    @property
    def rejected(self) -> dict[str, str]:
        return {event.site: event.reason for event in self.events(SiteRejected)}


def test_sites_that_may_take_part_are_known_by_their_node(tmp_path: Path, recipe: Recipe) -> None:
    meeting = _Meeting(
        tmp_path, recipe, a=_says(num_subjects={"brain": 3, "heart": 2, "gut": 1}), b=_says(site="south")
    )
    meeting.participants.look()

    assert {node: site.site for node, site in meeting.participants.sites.items()} == {1000: "north", 1001: "south"}
    told = meeting.events(SiteJoined)
    assert [event.site for event in told] == ["north", "south"]
    assert told[0].num_subjects == {"brain": 3, "heart": 2}
    assert told[1].num_subjects == {}


@pytest.mark.parametrize(
    ("join", "name", "reason"),
    [
        (_says(protocol_version=PROTOCOL_VERSION + 1), "north", f"speaks protocol {PROTOCOL_VERSION + 1}, this run"),
        (_says(organs=("gut", "eye")), "north", "it offers gut, eye, the study needs one of brain, heart, liver"),
        (_says(organs=()), "north", "it offers no organ"),
        (_says(site="../../etc"), "../../etc", "its name should be"),
        (_says(site=""), "", "its name should be"),
        (_says(site="two\nlines" + "x" * 300), "two lines" + "x" * 191, "its name should be"),
        (_refuses, "node 1000", "site_data: the site's prepared scans are missing; its own log says which"),
        (_raises, "node 1000", "did not answer when it was asked"),
        (_other_code, "node 1000", "lacks the record"),
        (lambda m: Message(Error(code=3, reason="/srv/secret"), reply_to=m), "node 1000", "did not answer"),
    ],
)
def test_who_may_not_take_part_is_named_with_the_reason(
    tmp_path: Path, recipe: Recipe, join: Join, name: str, reason: str
) -> None:
    meeting = _Meeting(tmp_path, recipe, a=join, b=_says(site="south"))
    meeting.participants.look()

    assert [site.site for site in meeting.participants.sites.values()] == ["south"]
    (rejected,) = meeting.rejected
    assert rejected == name
    assert reason in meeting.rejected[name]
    assert meeting.rejected[name].isprintable()
    assert "secret" not in (tmp_path / RECORD_FILE).read_text()


def test_an_update_is_no_answer_to_the_question(tmp_path: Path, recipe: Recipe) -> None:
    from panfm.protocol import TrainTask

    task = TrainTask(run="r", round=1, site="north", recipe="", student={}, teacher={})
    content = to_content(to_envelope(quick_update(task)))
    meeting = _Meeting(tmp_path, recipe, a=lambda message: Message(content, reply_to=message))
    meeting.participants.look()
    assert meeting.rejected == {"node 1000": "the node sent an update when it was asked to join"}


class _Registered(_Meeting):
    """As in a deployment, where the SuperLink knows each node's key under the name of its site."""

    def known_as(self, monkeypatch: pytest.MonkeyPatch, **names: str) -> None:
        nodes = [NodeInfo(node_id=1000 + place, name=name) for place, name in enumerate(names.values())]
        monkeypatch.setattr(self.grid, "get_nodes", lambda: nodes)


def test_node_that_says_another_name_than_its_keys_is_turned_away(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = _Registered(tmp_path, recipe, a=_says(), b=_says(), c=_says(site="south"))
    meeting.known_as(monkeypatch, a="west", b="north", c="south")
    assert meeting.look() == {1001: "north", 1002: "south"}
    assert meeting.rejected.keys() == {"west"}
    assert "it says that it is 'north', and its node key is that of west" in meeting.rejected["west"]


def test_name_of_a_stranger_is_not_told_as_it_came(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = _Registered(tmp_path, recipe, a=_says(site="no\nrth\x1b[2J" + "x" * 300), b=_says(site="south"))
    meeting.known_as(monkeypatch, a="north", b="south")
    assert meeting.look() == {1001: "south"}
    assert meeting.rejected["north"].isprintable()


def test_second_node_of_a_name_is_turned_away(tmp_path: Path, recipe: Recipe) -> None:
    meeting = _Meeting(tmp_path, recipe, a=_says(), b=_says(organs=("liver",)))
    meeting.participants.look()
    assert list(meeting.participants.sites) == [1000]
    assert "another node of this run has the same site name" in meeting.rejected["north"]


def test_a_site_that_restarted_takes_its_old_place(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its new node is there before the old one is known to be gone, as with a SuperNode that was killed."""
    monkeypatch.setattr("server.participants._ASK_AGAIN_S", 0.0)
    meeting = _Meeting(tmp_path, recipe, a=_says(), b=_says(site="south"), c=_says(organs=("brain",)))
    meeting.connected(monkeypatch, 1000, 1001)
    assert meeting.look() == {1000: "north", 1001: "south"}
    meeting.connected(monkeypatch, 1000, 1001, 1002)
    assert meeting.look() == {1000: "north", 1001: "south"}
    meeting.connected(monkeypatch, 1001, 1002)
    assert meeting.look() == {1001: "south", 1002: "north"}
    assert meeting.participants.sites[1002].organs == ("brain",)
    assert meeting.events(SiteLeft) == [SiteLeft(site="north", round=1)]
    assert [(event.site, event.returned) for event in meeting.events(SiteJoined)] == [
        ("north", False),
        ("south", False),
        ("north", True),
    ]


def test_a_site_that_leaves_and_comes_back_under_its_number_is_asked_anew(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = _Meeting(tmp_path, recipe, a=_says(), b=_says(site="south"))
    for nodes in ([1000, 1001], [1001], [1000, 1001]):
        meeting.connected(monkeypatch, *nodes)
        assert set(meeting.look()) == set(nodes)
    assert len(meeting.grid.sent) == 3
    assert [event.site for event in meeting.events(SiteLeft)] == ["north"]


def test_each_node_is_asked_once_and_a_new_one_when_it_comes(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = _Meeting(tmp_path, recipe, a=_says(), b=_says(site="south"))
    meeting.connected(monkeypatch, 1000)
    for _ in range(2):
        meeting.participants.look()
    assert len(meeting.grid.sent) == 1
    meeting.connected(monkeypatch, 1000, 1001)
    assert list(meeting.look().values()) == ["north", "south"]
    assert len(meeting.grid.sent) == 2


def test_a_site_that_mended_what_was_wrong_may_take_part_after_all(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [_refuses, _refuses, _says()]
    meeting = _Meeting(tmp_path, recipe, a=lambda message: answers.pop(0)(message), b=_says(site="south"))
    assert meeting.look() == meeting.look() == {1001: "south"}
    assert len(meeting.grid.sent) == 2, "not asked again at once: each question starts a program at the site"
    monkeypatch.setattr("server.participants._ASK_AGAIN_S", 0.0)
    assert meeting.look() == {1001: "south"}
    assert meeting.look() == {1001: "south", 1000: "north"}
    assert len(meeting.events(SiteRejected)) == 1, "told once"


def test_a_site_whose_program_dies_over_the_question_is_asked_again_at_once(tmp_path: Path, recipe: Recipe) -> None:
    answers = [_raises, _raises, _says()]
    meeting = _Meeting(tmp_path, recipe, a=lambda message: answers.pop(0)(message))
    assert meeting.look() == {1000: "north"}
    assert meeting.rejected == {}


def test_a_site_whose_program_always_dies_is_asked_as_often_as_the_recipe_says(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = _Meeting(tmp_path, recipe, a=_raises)
    assert meeting.look() == {}
    assert len(meeting.grid.sent) == 1 + recipe.federation.retries
    monkeypatch.setattr("server.participants._ASK_AGAIN_S", 0.0)
    meeting.look()  # heard at once, for nobody waits for it any more
    while meeting.participants._silent():
        meeting.look()
    assert len(meeting.grid.sent) == 2 * (1 + recipe.federation.retries), "as often when it is asked anew"
    assert list(meeting.rejected) == ["node 1000"]


def test_organs_prepared_in_another_way_are_not_asked_for(tmp_path: Path, recipe: Recipe) -> None:
    meeting = _Meeting(
        tmp_path,
        recipe,
        a=_says(spacing={"brain": "thick_4", "heart": "resampled"}, device="cuda", torch_version="9.9"),
        b=_says(site="south", spacing={"brain": "even", "heart": "even"}),
        c=_says(site="east"),
    )
    assert list(meeting.look().values()) == ["north", "east"]
    assert meeting.participants.sites[1000].organs == ("heart",)
    assert "prepared with another kind of spacing than the study's (brain resample" in meeting.rejected["south"]
    north, east = meeting.events(SiteJoined)
    assert (north.organs, north.spacing) == (["heart"], {"heart": "resampled"})
    assert (north.device, north.torch_version) == ("cuda", "9.9")
    assert (east.organs, east.spacing) == (["brain", "heart"], {})


def test_another_version_of_the_answer_names_both_versions(tmp_path: Path, recipe: Recipe) -> None:
    def older(message: Message) -> Message:
        header = '{"organs":["brain"],"panfm_version":"0","protocol_version":3,"site":"north","num_subjects":{}}'
        record = ConfigRecord({"kind": "join_answer", "header": header})
        return Message(RecordDict({"envelope": record}), reply_to=message)

    meeting = _Meeting(tmp_path, recipe, a=older)
    meeting.participants.look()
    assert f"(protocol 3, here {PROTOCOL_VERSION})" in meeting.rejected["node 1000"]


class _DeafGrid(SpyGrid):
    """No reply ever comes."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return []


def test_node_that_says_nothing_is_named(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.replies.POLL_S", 0.01)
    grid = _DeafGrid(ClientApp(), [Path("a")], {}, tmp_path)
    Participants(grid, recipe, RunRecord(tmp_path)).look()
    (event,) = read_record(tmp_path / RECORD_FILE)
    assert event == SiteRejected(site="node 1000", reason="no answer to the question who it is within 0 s")


class _HardOfHearingGrid(SpyGrid):
    """Replies come only after so many looks, as of a node that is busy with something else."""

    looks = 0
    deaf_for = 0

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.looks += 1
        return super().pull_messages(message_ids) if self.looks > self.deaf_for else []


def test_a_node_that_was_silent_is_heard_when_it_speaks(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = _Meeting(tmp_path, recipe, a=_says())
    meeting.grid.__class__ = _HardOfHearingGrid
    monkeypatch.setattr(meeting.grid, "deaf_for", 10**9, raising=False)
    assert meeting.look() == {}
    assert meeting.look() == {}
    assert meeting.rejected == {"node 1000": "no answer to the question who it is within 0 s"}
    monkeypatch.setattr(meeting.grid, "deaf_for", 0)
    assert meeting.look() == {1000: "north"}
    assert len(meeting.grid.sent) == 1, "one question is enough"


def _recipe(*settings: str) -> Recipe:
    return recipes.recipe_of(recipes.load(["recipe=smoke", "federation.join_timeout_s=0.3", *settings]))


def test_start_waits_for_the_fewest_sites_and_then_says_who_is_missing(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.participants._POLL_S", 0.01)
    meeting = _Meeting(tmp_path, recipe, a=_says(), b=_says(site="south"))
    meeting.participants.wait_for_start()
    assert len(meeting.participants.sites) == 2

    lacking = _Meeting(tmp_path, _recipe("federation.min_sites=3"), a=_says(), b=_says(site="south"))
    with pytest.raises(RunError, match="2 of at least 3 sites joined"):
        lacking.participants.wait_for_start()

    more = _recipe("federation.participation.start_sites=3")
    coming = _Meeting(tmp_path, more, a=_says(), b=_says(site="south"), c=_says(site="east"))
    looks = iter([[1000, 1001], [1000, 1001], [1000, 1001, 1002]])
    monkeypatch.setattr(coming.grid, "get_node_ids", lambda: next(looks))
    coming.participants.wait_for_start()
    assert len(coming.participants.sites) == 3


def test_start_waits_for_the_organs_that_the_recipe_declares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.participants._POLL_S", 0.01)
    declared = _recipe("+federation.participation.coverage.heart=2")
    lacking = _Meeting(tmp_path / "lacking", declared, a=_says(), b=_says(site="south", organs=("brain",)))
    with pytest.raises(RunError, match="1 of at least 2 sites with heart joined"):
        lacking.participants.wait_for_start()
    enough = _Meeting(tmp_path / "enough", declared, a=_says(), b=_says(site="south"))
    enough.participants.wait_for_start()
    assert len(enough.participants.sites) == 2


def test_a_coordinator_that_comes_back_waits_for_sites_that_are_still_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They answer the question who they are once the last coordinator's task is done, long after join_timeout_s."""
    monkeypatch.setattr("server.participants._POLL_S", 0.01)
    quick = _recipe("federation.join_timeout_s=0.01", "federation.participation.start_sites=2")
    record = RunRecord(tmp_path)
    for event in [*joined(north="brain"), *a_round(1, {"brain": ["north"]}, 60.0, north="accepted")]:
        record.write(event)
    meeting = _Meeting(tmp_path, quick, a=_says())
    meeting.grid.__class__ = _HardOfHearingGrid
    monkeypatch.setattr(meeting.grid, "deaf_for", 50, raising=False)
    meeting.participants.wait_for_start()
    assert list(meeting.participants.sites) == [1000]


def test_a_plan_names_whom_to_ask_whom_not_and_how_long_to_wait(tmp_path: Path) -> None:
    settings = ["federation.participation.sites_per_round=2", "federation.participation.deadline_least_s=1"]
    joins = {name: _says(site=name) for name in ("a", "b", "c")}
    meeting = _Meeting(tmp_path, _recipe(*settings), **joins)
    meeting.participants.wait_for_start()
    asked: list[list[str]] = []
    deadlines_s = []
    for number in (1, 2, 3):
        plan = meeting.participants.plan(number)
        asked.append([site.site for site in plan.sites.values()])
        deadlines_s.append(plan.deadline_s)
        assert plan.number == number
        assert len(asked[-1]) == 2
        assert sorted([*asked[-1], *plan.passed_over]) == ["a", "b", "c"]
        outcomes = dict.fromkeys(asked[-1], "accepted")
        for event in a_round(number, {"brain": asked[-1]}, 10.0, **outcomes):
            meeting.record.write(event)
    assert set(asked[0]) | set(asked[1]) == {"a", "b", "c"}
    assert deadlines_s == [3600.0, 3600.0, 40.0], "four times the slowest, once all that are asked were measured"


def _budget_spent(number: int, site: str) -> SiteAnswered:
    return answered(number, site, "refused", reason="budget_spent: the site has spent the privacy budget of its policy")


def test_a_site_whose_budget_is_spent_is_left_in_peace_until_it_joins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = _Meeting(tmp_path, _recipe(), **{name: _says(site=name) for name in ("a", "b", "c")})
    meeting.participants.wait_for_start()
    meeting.record.write(_budget_spent(1, "b"))
    plan = meeting.participants.plan(2)
    assert [site.site for site in plan.sites.values()] == ["a", "c"]
    assert plan.passed_over == ("b",)
    meeting.connected(monkeypatch, 1000, 1002)
    meeting.participants.look()
    meeting.connected(monkeypatch, 1000, 1001, 1002)
    assert [site.site for site in meeting.participants.plan(3).sites.values()] == ["a", "b", "c"]


def test_no_round_is_asked_for_that_budgets_do_not_let_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was asked would be charged for nothing; but a site that is only away may come back."""
    monkeypatch.setattr("server.participants._POLL_S", 0.01)
    settings = _recipe("federation.min_sites=2", "federation.participation.absence_timeout_s=0.05")
    meeting = _Meeting(tmp_path, settings, **{name: _says(site=name) for name in ("a", "b", "c")})
    meeting.participants.wait_for_start()
    meeting.record.write(_budget_spent(1, "b"))
    meeting.connected(monkeypatch, 1000, 1001)
    with pytest.raises(RunError, match=r"1 of at least 2 sites were there for round 2 .* can be resumed"):
        meeting.participants.plan(2)
    meeting.record.write(_budget_spent(1, "c"))
    with pytest.raises(RunError, match="the privacy budget of b, c is spent, so 1 sites are left for round 2"):
        meeting.participants.plan(2)


def test_a_round_that_another_process_began_asks_the_same_sites(tmp_path: Path) -> None:
    settings = _recipe("federation.participation.sites_per_round=1", "federation.participation.late_in_a_row=0")
    joins = {name: _says(site=name) for name in ("a", "b", "c", "d")}
    for begun in ("c", "d", "a"):
        folder = tmp_path / begun
        RunRecord(folder).write(RoundStarted(round=1, sites=[begun, "gone"]))
        meeting = _Meeting(folder, settings, **joins)
        meeting.participants.wait_for_start()
        assert [site.site for site in meeting.participants.plan(1).sites.values()] == [begun]


def test_a_round_waits_for_the_fewest_sites_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.participants._POLL_S", 0.01)
    settings = _recipe("federation.min_sites=2", "federation.participation.absence_timeout_s=0.2")
    meeting = _Meeting(tmp_path, settings, a=_says(), b=_says(site="south"))
    meeting.participants.wait_for_start()
    looks = iter([[1000], [1000], [1000, 1001]])
    monkeypatch.setattr(meeting.grid, "get_node_ids", lambda: next(looks))
    assert len(meeting.participants.plan(1).sites) == 2
    meeting.connected(monkeypatch, 1001)
    with pytest.raises(RunError, match=r"1 of at least 2 sites were there for round 2 .* can be resumed"):
        meeting.participants.plan(2)
