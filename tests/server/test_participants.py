"""Who may take part: each node is asked once, known by its site's own name, and turned away with a reason."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from panfm import recipes
from panfm.config import Recipe
from panfm.errors import RunError
from panfm.protocol import PROTOCOL_VERSION, JoinAnswer, Refusal, to_envelope
from panfm.reporting.record import SiteJoined, SiteRejected, read_record
from server.participants import Participants
from server.run_folder import RECORD_FILE
from server.run_record import RunRecord
from tests.client.small_study import SpyGrid, quick_update, reply_with, site_of, to_content

Join = Callable[[Message], Message]


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
        self.participants = Participants(self.grid, recipe, RunRecord(folder))

    @property
    def rejected(self) -> dict[str, str]:
        path = self.folder / RECORD_FILE
        events = read_record(path) if path.exists() else iter(())
        return {event.site: event.reason for event in events if isinstance(event, SiteRejected)}


def test_sites_that_may_take_part_are_known_by_their_node(tmp_path: Path, recipe: Recipe) -> None:
    meeting = _Meeting(
        tmp_path, recipe, a=_says(num_subjects={"brain": 3, "heart": 2, "gut": 1}), b=_says(site="south")
    )
    meeting.participants.ask_new_nodes()

    assert {node: site.site for node, site in meeting.participants.sites.items()} == {1000: "north", 1001: "south"}
    joined = [event for event in read_record(tmp_path / RECORD_FILE) if isinstance(event, SiteJoined)]
    assert [event.site for event in joined] == ["north", "south"]
    assert joined[0].num_subjects == {"brain": 3, "heart": 2}
    assert joined[1].num_subjects == {}


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
        (_other_code, "node 1000", "lacks the records"),
        (lambda m: Message(Error(code=3, reason="/srv/secret"), reply_to=m), "node 1000", "did not answer"),
    ],
)
def test_who_may_not_take_part_is_named_with_the_reason(
    tmp_path: Path, recipe: Recipe, join: Join, name: str, reason: str
) -> None:
    meeting = _Meeting(tmp_path, recipe, a=join, b=_says(site="south"))
    meeting.participants.ask_new_nodes()

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
    meeting.participants.ask_new_nodes()
    assert meeting.rejected == {"node 1000": "the node sent an update when it was asked to join"}


def test_second_node_of_a_name_is_turned_away(tmp_path: Path, recipe: Recipe) -> None:
    meeting = _Meeting(tmp_path, recipe, a=_says(), b=_says(organs=("liver",)))
    meeting.participants.ask_new_nodes()
    assert list(meeting.participants.sites) == [1000]
    assert "another node of this run has the same site name" in meeting.rejected["north"]


def test_each_node_is_asked_once_and_a_new_one_when_it_comes(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = _Meeting(tmp_path, recipe, a=_says(), b=_says(site="south"))
    monkeypatch.setattr(meeting.grid, "get_node_ids", lambda: [1000])
    for _ in range(2):
        meeting.participants.ask_new_nodes()
    assert len(meeting.grid.sent) == 1
    monkeypatch.setattr(meeting.grid, "get_node_ids", lambda: [1000, 1001])
    meeting.participants.ask_new_nodes()
    assert [site.site for site in meeting.participants.sites.values()] == ["north", "south"]
    assert len(meeting.grid.sent) == 2


class _DeafGrid(SpyGrid):
    """No reply ever comes."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return []


def test_node_that_says_nothing_is_named(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.replies.POLL_S", 0.01)
    grid = _DeafGrid(ClientApp(), [Path("a")], {}, tmp_path)
    Participants(grid, recipe, RunRecord(tmp_path)).ask_new_nodes()
    (event,) = read_record(tmp_path / RECORD_FILE)
    assert event == SiteRejected(site="node 1000", reason="no answer to the question who it is within 0 s")


def test_start_waits_for_the_fewest_sites_and_then_says_who_is_missing(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.participants._POLL_S", 0.01)
    meeting = _Meeting(tmp_path, recipe, a=_says(), b=_says(site="south"))
    meeting.participants.wait_for_start()
    assert len(meeting.participants.sites) == 2

    strict = recipes.recipe_of(
        recipes.load(["recipe=smoke", "federation.join_timeout_s=0.3", "federation.min_sites=3"])
    )
    lacking = _Meeting(tmp_path, strict, a=_says(), b=_says(site="south"))
    with pytest.raises(RunError, match="2 of at least 3 sites joined"):
        lacking.participants.wait_for_start()

    coming = _Meeting(tmp_path, strict, a=_says(), b=_says(site="south"), c=_says(site="east"))
    began = time.monotonic()
    monkeypatch.setattr(
        coming.grid, "get_node_ids", lambda: [1000, 1001, 1002] if time.monotonic() > began + 0.05 else [1000, 1001]
    )
    coming.participants.wait_for_start()
    assert len(coming.participants.sites) == 3
