"""What a partner can do from where it sits: answer its own messages, and nothing else. Tried through the proxy while a run goes on.

Whoever tries it holds everything that an enrolled partner holds: the node's key, the authority's certificate, a message of the run that was
addressed to it. Of another partner's messages it even knows the names, which are read out of the SuperLink's database for this and which
nobody ever tells a partner.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest, RegisterNodeRequest, StartRunRequest, StopRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.routers.runtime.responses import router as responses_router
from flwr.supercore.routers.runtime.router import router as runtime_router
from flwr.superlink.routers.control.router import router as control_router
from starlette.routing import Route

from server.proxy import STOPPED
from shared import wire
from shared.privacy.ledger import read_events
from tests.journeys.coordinated import COMMAND, Coordinated, coordinator, tiny_run
from tests.journeys.deployment.partner_position import Position, Secrets, next_message, pushed, refused, runs_and_nodes, secrets_of
from tests.journeys.deployment.what_must_hold import lost_attempts
from tests.server.nginx import installed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

THIEF, ASLEEP, AWAKE = "books", "films", "music"
SUPERLINK = 1
ROUNDS = 2


@dataclass(kw_only=True)
class Scene:
    """A run that goes on. One partner's place is taken; another partner's node is enrolled and away, and a message waits for it."""

    ours: Coordinated
    thief: Position
    node: Node
    asleep: Position
    run_id: int
    message: Any
    tree: Any
    run: subprocess.Popen[bytes]

    def wake(self) -> None:
        """The sleeping partner's own node comes, and takes its message."""
        self.asleep.fleet.DeactivateNode(DeactivateNodeRequest(node_id=self.theirs(ASLEEP).node_id))
        self.ours.up(ASLEEP)

    def theirs(self, domain: str) -> Secrets:
        return secrets_of(self.ours.home.superlink_state, domain)

    def content(self, object_id: str) -> bytes | None:
        """What the SuperLink answers when it is asked for an object; None where it says that there is no such thing."""
        answer = self.thief.fleet.PullObject(PullObjectRequest(node=self.node, run_id=self.run_id, object_id=object_id))
        return answer.object_content if answer.object_found else None


@contextlib.contextmanager
def scene_of(folder: Path, project: Path, clients: contextlib.ExitStack) -> Iterator[Scene]:
    ours = coordinator(folder, project, domains=(THIEF, ASLEEP, AWAKE))
    try:
        ours.command("up", ours.home.root, "--detach")
        ours.up(AWAKE)
        ours.wait(lambda: "online" in {one["node"] for one in ours.status()["partners"]}, "the node did not connect")
        thief, asleep = Position(ours.partners[THIEF], clients), Position(ours.partners[ASLEEP], clients)
        node = thief.node()
        asleep.node()
        toml = folder / "run.toml"
        toml.write_text(patient(tiny_run(rounds=ROUNDS, reserve_rounds=2).to_toml()))
        run = ours.start("run", [*COMMAND, "run", str(ours.home.root), str(toml), "--wait-for", "all"])
        message, tree = awaited(ours, thief, node)
        ours.wait(lambda: bool(secrets_of(ours.home.superlink_state, ASLEEP).objects), "no message waits for the sleeping node")
        yield Scene(ours=ours, thief=thief, node=node, asleep=asleep, run_id=message.metadata.run_id, message=message, tree=tree, run=run)
    finally:
        ours.end()


def patient(toml: str) -> str:
    """With time for everything that is tried while the run waits for its first answers."""
    assert "round_timeout_s = 240.0" in toml
    return toml.replace("round_timeout_s = 240.0", "round_timeout_s = 900.0")


def awaited(ours: Coordinated, thief: Position, node: Node) -> Any:
    """The first message of the run to this node."""
    found: list[Any] = []

    def came() -> bool:
        found.append(next_message(thief, node))
        return found[-1] is not None

    ours.wait(came, "no message came")
    return found[-1]


def test_a_partner_answers_its_own_messages_and_reaches_nothing_else(tmp_path: Path, repository: Path) -> None:
    installed()
    with contextlib.ExitStack() as clients, scene_of(tmp_path, repository, clients) as scene:
        before = runs_and_nodes(scene.ours.status())
        no_other_interface_is_there(scene)
        no_run_is_started_and_no_task_taken(scene)
        a_stranger_is_refused(scene, clients)
        nothing_of_another_partner_is_read(scene)
        nothing_is_said_in_another_name(scene)
        its_own_message_is_answered(scene)
        assert runs_and_nodes(scene.ours.status()) == before
        scene.wake()
        another_partners_answer_is_not_read_either(scene)
        assert scene.run.wait(1200) == 0, scene.ours.logs()
        outside = scene.ours.partners.pop(THIEF)  # it refused the run: nothing was planned, and there is no receipt
        assert [event.kind for event in read_events(outside.ledger_path)] == ["genesis"]
        rounds = dict.fromkeys((ASLEEP, AWAKE), ROUNDS)
        assert lost_attempts(scene.ours, rounds=rounds, reserve=2) == dict.fromkeys(rounds, 0)


# --- the other interfaces -------------------------------------------------------------------------------------------------------------

CONTROL = sorted(route.path for route in control_router.routes if isinstance(route, Route))
RUNTIME = sorted(route.path for one in (runtime_router, responses_router) for route in one.routes if isinstance(route, Route))
TRIED = ("/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task", "/v1/runtime/pull-messages")
SPELT = (
    "/v1/fleet/..{rest}",
    "/v1/fleet/%2e%2e{rest}",
    "/v1/fleet/pull-messages/../..{rest}",
    "/v1/fleet/pull-messages%2f..%2f..{rest}",
    "/v1/fleet/pull-messages;/../..{rest}",
    "/v1/fleet/pull-messages%00/../..{rest}",
    "//v1/{rest}",
    "/v1/./{rest}",
    "/v1{rest}/",
    "/V1{upper}",
    "/v1{rest}?/v1/fleet/pull-messages",
    "/v1{rest}#/v1/fleet/pull-messages",
    "/v1{rest}%3f/v1/fleet/pull-messages",
    "/v1{rest}%0a",
    "/v1{encoded}",
    "https://localhost/v1{rest}",
    "/v1\\fleet\\..{rest}",
)


def spellings() -> Iterator[str]:
    for path in TRIED:
        rest = path.removeprefix("/v1")
        encoded = "/" + "".join(f"%{ord(letter):02x}" for letter in rest[1:])
        for form in SPELT:
            yield form.format(rest=rest, upper=rest.upper(), encoded=encoded)


def no_other_interface_is_there(scene: Scene) -> None:
    """Control and Runtime answer 404, under their names and under every other spelling of them."""
    plain = [*CONTROL, *RUNTIME, *(f"/v1/fleet/{name}" for name in STOPPED), "/", "/health", "/docs", "/openapi.json"]
    found = {path: scene.thief.asked(path, b"\x08\x01") for path in plain}
    assert {path: status for path, status in found.items() if status != 404} == {}
    spelt = list(spellings())
    time.sleep(max(0.0, (len(found) + len(spelt) + 40 - 200) / 5))  # the proxy takes 200 of such at once, and five a second
    statuses = {path: scene.thief.asked(path, b"\x08\x01") for path in spelt}
    assert {path: status for path, status in statuses.items() if status not in (400, 404)} == {}
    assert {scene.thief.asked("/v1/fleet/pull-messages", method=method) for method in ("GET", "PUT", "OPTIONS")} <= {404, 405}
    print(f"{len(found)} paths and {len(statuses)} spellings of {len(TRIED)} of them: 404 or 400")


def no_run_is_started_and_no_task_taken(scene: Scene) -> None:
    bundle = scene.ours.bundle
    fab = Fab(hash_str=bundle.digest, content=bundle.data)
    control, runtime = scene.thief.control, scene.thief.runtime
    assert refused(control.StartRun, StartRunRequest(fab=fab)) == 404
    assert refused(control.StopRun, StopRunRequest(run_id=scene.run_id)) == 404
    assert refused(control.ListRuns, ListRunsRequest()) == 404
    assert refused(control.ListNodes, ListNodesRequest()) == 404
    assert refused(control.RegisterNode, RegisterNodeRequest(public_key=scene.thief.public, name="another")) == 404
    assert refused(runtime.AcquireTask, AcquireTaskRequest()) == 404


def a_stranger_is_refused(scene: Scene, clients: contextlib.ExitStack) -> None:
    """A key that nobody enrolled, with the right authority: not activated, not registered, and no other node's voice."""
    stranger = Position(scene.ours.partners[THIEF], clients, ec.generate_private_key(ec.SECP384R1()))
    assert refused(stranger.fleet.ActivateNode, ActivateNodeRequest(public_key=stranger.public, heartbeat_interval=30)) >= 400
    assert refused(stranger.fleet.ActivateNode, ActivateNodeRequest(public_key=scene.thief.public, heartbeat_interval=30)) == 401
    assert refused(stranger.fleet.RegisterNode, RegisterNodeFleetRequest(public_key=stranger.public)) == 404
    assert refused(stranger.fleet.PullMessages, PullMessagesRequest(node=scene.node)) == 401
    assert refused(stranger.fleet.GetRun, GetRunRequest(node=scene.node, run_id=scene.run_id)) == 401
    assert stranger.asked("/v1/fleet/pull-messages") == 401


# --- another partner's messages -------------------------------------------------------------------------------------------------------


def nothing_of_another_partner_is_read(scene: Scene) -> None:
    """The message that waits for the sleeping node: neither under its number nor by the names of its parts."""
    theirs = scene.theirs(ASLEEP)
    assert len(theirs.messages) == 1
    for call, request in (
        (scene.thief.fleet.PullMessages, PullMessagesRequest(node=Node(node_id=theirs.node_id))),
        (scene.thief.fleet.DeactivateNode, DeactivateNodeRequest(node_id=theirs.node_id)),
        (
            scene.thief.fleet.PullObject,
            PullObjectRequest(node=Node(node_id=theirs.node_id), run_id=scene.run_id, object_id=theirs.messages[0]),
        ),
    ):
        assert refused(call, request) == 401
    mine = {scene.tree.object_id, *scene.theirs(THIEF).objects}
    foreign = [name for name in theirs.objects if name not in mine]
    assert theirs.messages[0] in foreign
    assert [name for name in foreign if scene.content(name) is not None] == []
    assert scene.content("0" * 64) is None  # what is not its own looks like what is not there
    assert scene.content(scene.tree.object_id)  # its own is given

    confirm = ConfirmMessageReceivedRequest(node=scene.node, run_id=scene.run_id, message_object_id=theirs.messages[0])
    assert refused(scene.thief.fleet.ConfirmMessageReceived, confirm) == 0
    assert scene.theirs(ASLEEP) == theirs  # and is not taken away from whom it waits for


def nothing_is_said_in_another_name(scene: Scene) -> None:
    """No reply as another node, no instruction to another node, and nothing into another node's push."""
    theirs = scene.theirs(ASLEEP)
    mine = scene.message.metadata.message_id
    for source, target, reply_to in (
        (theirs.node_id, SUPERLINK, theirs.messages[0]),  # its reply
        (SUPERLINK, theirs.node_id, ""),  # an instruction, as if the coordinator gave it
        (SUPERLINK, SUPERLINK, ""),
        (scene.node.node_id, theirs.node_id, mine),
        (scene.node.node_id, SUPERLINK, ""),
    ):
        request, _ = pushed(scene.node, scene.run_id, source=source, target=target, reply_to=reply_to)
        assert refused(scene.thief.fleet.PushMessages, request) == 403
    to_another, _ = pushed(scene.node, scene.run_id, source=scene.node.node_id, target=SUPERLINK, reply_to=theirs.messages[0])
    assert refused(scene.thief.fleet.PushMessages, to_another) == 0  # Flower keeps the books of who was asked: it is dropped
    no_session = PushObjectRequest(node=scene.node, run_id=scene.run_id, object_id="0" * 64, object_content=b"x")
    assert refused(scene.thief.fleet.PushObject, no_session) == 403
    assert scene.theirs(ASLEEP) == theirs
    assert scene.theirs(THIEF).replies == ()


def its_own_message_is_answered(scene: Scene) -> None:
    """The guard is no wall: an answer of the partner itself arrives, and the run does not wait for it."""
    request, objects = pushed(
        scene.node,
        scene.run_id,
        source=scene.node.node_id,
        target=SUPERLINK,
        reply_to=scene.message.metadata.message_id,
        content=wire.Refused("ceiling").pack(),
    )
    answer = scene.thief.fleet.PushMessages(request)
    assert set(answer.objects_to_push) == set(objects)
    for name, content in objects.items():
        push = PushObjectRequest(node=scene.node, run_id=scene.run_id, object_id=name, object_content=content, session_id=answer.session_id)
        assert scene.thief.fleet.PushObject(push).stored


def another_partners_answer_is_not_read_either(scene: Scene) -> None:
    """Answers lie in the SuperLink until the run takes them; the ServerApp is held up now and then, until one is found there."""
    (held,) = scene.ours.pids("flwr-serverapp", str(scene.ours.home.settings.superlink_port))
    until = time.monotonic() + 300
    while True:
        os.kill(held, signal.SIGSTOP)
        try:
            answers = answers_within(scene, 15)  # the SuperLink gives up a ServerApp that is silent for a minute
            if answers:
                assert [name for name in answers if scene.content(name) is not None] == []
                return
        finally:
            os.kill(held, signal.SIGCONT)
        assert time.monotonic() < until, scene.ours.logs()
        time.sleep(0.5)


def answers_within(scene: Scene, seconds: float) -> list[str]:
    """Objects of the woken node's answer that are there and in no message of the thief's, once its answer is whole."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        theirs = scene.theirs(ASLEEP)
        if theirs.replies and set(theirs.replies) <= set(theirs.objects):
            return sorted(set(theirs.objects) - set(scene.theirs(THIEF).objects))
        time.sleep(0.3)
    return []
