"""The fleet guard before Flower's own handlers and a real state on disk: each node touches its own messages, also after a restart.

And what a node hides in an object of its own reply, which the guard does not open: the coordinator's grid does not believe it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fastapi import HTTPException
from flwr.app import Message, RecordDict
from flwr.common.constant import NOOP_FLWR_AID
from flwr.common.serde import message_from_proto
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.config_loader import get_federation_manager, get_objectstore_linkstate_factories
from flwr.superlink.grid.http_grid import HttpGrid
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers

from server import fleet_guard, flower_internals, processes
from server.fleet_guard import Addressed, Guard
from server.prompt_grid import PromptGrid
from tests.journeys.coordinated import new_home
from tests.journeys.deployment.partner_position import pushed

pytestmark = pytest.mark.filterwarnings("ignore:No path_separator found in configuration:DeprecationWarning")  # Flower's own migrations
SUPERLINK = 1


@dataclass
class Link:
    """A SuperLink's state with a run and two nodes, a message for each, and the guard before its handlers."""

    state: Any
    run_id: int
    mine: Node
    theirs: Node
    my_message: str
    their_message: str
    guard: Guard

    def pull(self, node: Node, object_id: str) -> bool:
        return self.guard.pull_object(PullObjectRequest(node=node, run_id=self.run_id, object_id=object_id), self.state).object_found

    def take(self, node: Node) -> ObjectTree:
        answer = self.guard.pull_messages(PullMessagesRequest(node=node), self.state, self.state.object_store)
        tree: ObjectTree = answer.message_object_trees[0]
        return tree

    def push(self, asks: Node, *, source: int, target: int = SUPERLINK, reply_to: str) -> Any:
        request, _ = pushed(asks, self.run_id, source=source, target=target, reply_to=reply_to)
        return self.guard.push_messages(request, self.state)

    def restarted(self) -> None:
        """Nothing is remembered any more."""
        self.guard = Guard(fleet_handlers)


class Asked(HttpGrid):
    """Flower's grid after its questions to the nodes of a link, before Flower's own handlers without a network between."""

    def __init__(self, link: Link) -> None:
        super().__init__(token="any")
        (task,) = link.state.get_tasks(run_ids=[link.run_id])
        asked = {
            "PullMessages": runtime_handlers.pull_messages,
            "PullObject": runtime_handlers.pull_object,
            "ConfirmMessageReceived": runtime_handlers.confirm_message_received,
        }
        handlers: Any = SimpleNamespace(**{name: functools.partial(one, state=link.state, task=task) for name, one in asked.items()})
        self._client, self._run = handlers, Run.create_empty(run_id=link.run_id)
        self._sent = [link.my_message, link.their_message]

    def push_messages(self, messages: Any) -> list[str]:
        del messages
        return self._sent


def instruction(state: Any, run_id: int, node_id: int) -> str:
    """Stores a message of the coordinator, with its objects."""
    request, objects = pushed(Node(node_id=node_id), run_id, source=SUPERLINK, target=node_id, reply_to="", ttl=600)
    session = state.start_session(run_id)
    stored, missing = state.store_message_and_object_tree(
        message_from_proto(request.messages_list[0]), request.message_object_trees[0], session
    )
    assert stored
    for name in missing:
        assert state.store_object(run_id, session, name, objects[name])
    return str(request.messages_list[0].metadata.message_id)


@pytest.fixture
def link(tmp_path: Path) -> Link:
    _, factory = get_objectstore_linkstate_factories(str(tmp_path / "state.db"), get_federation_manager())
    state: Any = factory.state()
    nodes = []
    for name in ("mine", "theirs"):
        nodes.append(state.create_node(NOOP_FLWR_AID, "", name.encode(), 0, name=name))
        assert state.activate_node(nodes[-1], 300)
    run_id = state.create_run(None, None, "0" * 64, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, "flwr-serverapp")
    (task,) = state.get_tasks(run_ids=[run_id])
    assert state.claim_task(task.task_id)
    assert state.activate_task(task.task_id)
    sent = [instruction(state, run_id, node) for node in nodes]
    return Link(state, run_id, Node(node_id=nodes[0]), Node(node_id=nodes[1]), sent[0], sent[1], Guard(fleet_handlers))


def names(tree: ObjectTree) -> list[str]:
    return [tree.object_id, *(name for child in tree.children for name in names(child))]


@pytest.mark.parametrize("restart", [False, True])
def test_a_node_gets_the_objects_of_its_own_messages_and_no_others(link: Link, restart: bool) -> None:
    assert not link.pull(link.mine, link.my_message)  # it was not given it yet
    mine = link.take(link.mine)
    if restart:
        link.restarted()
    assert mine.object_id == link.my_message
    assert all(link.pull(link.mine, name) for name in names(mine))
    assert not link.pull(link.mine, link.their_message)
    assert not link.pull(link.mine, "0" * 64)
    link.take(link.theirs)
    assert not link.pull(link.mine, link.their_message)
    assert link.pull(link.theirs, link.their_message)


def test_only_who_was_given_a_message_takes_it_off_the_shelf(link: Link) -> None:
    link.take(link.mine)
    link.take(link.theirs)
    for node, gone in ((link.mine, False), (link.theirs, True)):
        request = ConfirmMessageReceivedRequest(node=node, run_id=link.run_id, message_object_id=link.their_message)
        link.guard.confirm_message_received(request, link.state, link.state.object_store)
        assert (link.state.get_object(link.run_id, link.their_message) is None) == gone


def test_a_node_answers_in_its_own_name_and_instructs_nobody(link: Link) -> None:
    me, they = link.mine.node_id, link.theirs.node_id
    for source, target, reply_to in (
        (they, SUPERLINK, link.their_message),
        (SUPERLINK, they, ""),
        (me, they, link.my_message),
        (me, SUPERLINK, ""),
    ):
        with pytest.raises(HTTPException) as refused:
            link.push(link.mine, source=source, target=target, reply_to=reply_to)
        assert refused.value.status_code == 403
    link.take(link.mine)
    assert link.push(link.mine, source=me, reply_to=link.my_message).objects_to_push
    with pytest.raises(HTTPException):
        link.guard.push_object(PushObjectRequest(node=link.mine, run_id=link.run_id, object_id="0" * 64, object_content=b""), link.state)


def envelope(link: Link, node: Node, reply_to: str, *, source: int | None = None, only_content: bool = False) -> None:
    """Pushes a reply whose envelope is in order; inside it stands ``source``, or no message at all."""
    request, objects = pushed(node, link.run_id, source=source or node.node_id, target=SUPERLINK, reply_to=reply_to)
    told, tree = request.messages_list[0].metadata, request.message_object_trees[0]
    told.src_node_id = node.node_id
    if only_content:
        told.message_id = tree.children[0].object_id
        request = PushMessagesRequest(node=node, messages_list=request.messages_list, message_object_trees=[tree.children[0]])
    answer = link.guard.push_messages(request, link.state)
    for name in answer.objects_to_push:
        session, content = answer.session_id, objects[name]
        push = PushObjectRequest(node=node, run_id=link.run_id, object_id=name, object_content=content, session_id=session)
        assert link.guard.push_object(push, link.state).stored


@pytest.mark.parametrize("only_content", [False, True])
def test_a_reply_is_its_who_was_asked_whatever_stands_inside_it(link: Link, only_content: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    link.take(link.mine)
    link.take(link.theirs)
    envelope(link, link.mine, link.my_message, source=link.theirs.node_id, only_content=only_content)
    envelope(link, link.theirs, link.their_message)
    for name, value in (("_task_id", 1), ("_run_id", link.run_id), ("_node_id", SUPERLINK)):
        monkeypatch.setattr(TaskIdentity, name, value)
    questions = [Message(RecordDict(), dst_node_id=node.node_id, message_type="train") for node in (link.mine, link.theirs)]
    replies = list(PromptGrid(Asked(link)).send_and_receive(questions, timeout=30.0))
    assert [(one.metadata.src_node_id, one.metadata.reply_to_message_id) for one in replies] == [(link.theirs.node_id, link.their_message)]


def test_without_the_guard_flower_gives_it_all(link: Link) -> None:
    """What the guard is for; a Flower that asks by itself turns this red."""
    asked = PullObjectRequest(node=link.mine, run_id=link.run_id, object_id=link.their_message)
    assert fleet_handlers.pull_object(asked, link.state).object_found
    forged, _ = pushed(link.mine, link.run_id, source=link.theirs.node_id, target=SUPERLINK, reply_to=link.their_message)
    assert fleet_handlers.push_messages(forged, link.state).objects_to_push
    order, _ = pushed(link.mine, link.run_id, source=SUPERLINK, target=link.theirs.node_id, reply_to="")
    assert fleet_handlers.push_messages(order, link.state).objects_to_push


def test_old_messages_are_forgotten_and_looked_up(link: Link) -> None:
    addressed = Addressed(remembered=1)
    tree = link.take(link.mine)
    addressed.handed(link.mine.node_id, tree)
    addressed.handed(link.mine.node_id, ObjectTree(object_id="f" * 64))
    assert addressed.object(link.mine.node_id, link.run_id, tree.object_id, link.state)
    assert not addressed.object(link.mine.node_id, link.run_id, "e" * 64, link.state)


def test_the_guard_stands_before_every_handler_that_flower_looks_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.superlink.routers.fleet import router

    for name in fleet_guard.GUARDED:  # put back afterwards
        monkeypatch.setattr(fleet_handlers, name, getattr(fleet_handlers, name))
    fleet_guard.install()
    assert isinstance(router.fleet_handlers, ModuleType)
    assert all(isinstance(getattr(router.fleet_handlers, name).__self__, Guard) for name in fleet_guard.GUARDED)


def test_the_superlink_is_started_behind_it_and_its_modules_are_compared(tmp_path: Path) -> None:
    line = processes.superlink(new_home(tmp_path / "home"))
    assert line[1:5] == ["-P", "-m", "server.fleet_guard", "flower-superlink"]
    assert {fleet_handlers.__name__, "flwr.superlink.routers.fleet.node_auth"} <= set(flower_internals.MODULES)
