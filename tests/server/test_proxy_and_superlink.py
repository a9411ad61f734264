"""A real SuperLink behind the real proxy, as a partner's network sees it: the own node gets in, and nobody gets further."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.runtime.runtime_http_client import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from server.enrolment import enroll, node_key_file
from server.home import Home
from server.processes import environment_of, superlink
from server.settings import ServerSettings
from tests.shared.cards import partner_card

from .nginx import free_port, installed, proxy_of, trusting

pytestmark = pytest.mark.journey


@contextlib.contextmanager
def superlink_of(home: Home) -> Iterator[None]:
    with (home.logs / "superlink.log").open("wb") as log:
        process = subprocess.Popen(superlink(home), env={**os.environ, **environment_of(home)}, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not _healthy(home):
            assert process.poll() is None, (home.logs / "superlink.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield
    finally:
        process.kill()  # its state is on disk; a polite end waits half a minute
        process.wait(timeout=60)


def _healthy(home: Home) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"https://{home.settings.superlink_address}/health", verify=trusting(home), timeout=5).status_code == 200
    return False


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    program = installed()
    settings = ServerSettings(hosts="localhost", listen="127.0.0.1", port=free_port(), superlink_port=free_port())
    made = Home.create(tmp_path_factory.mktemp("coordinator") / "home", settings).home
    with superlink_of(made), proxy_of(made, program):
        yield made


class Partner:
    """A partner's node key, and its node's connection through the proxy."""

    def __init__(self, home: Home, open_clients: contextlib.ExitStack) -> None:
        self.key = ec.generate_private_key(ec.SECP384R1())
        public = self.key.public_key()
        self.public = public_key_to_bytes(public)
        self.ssh = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
        signed = [NodeAuthHttpInterceptor(self.key, public)]
        fleet = FleetHttpClient.from_server_address(home.settings.address, False, home.ca.read_bytes(), signed)
        self.fleet = open_clients.enter_context(fleet)


def control(home: Home, address: str, open_clients: contextlib.ExitStack) -> ControlHttpClient:
    """A client of the interface by which nodes are registered and runs are started."""
    return open_clients.enter_context(ControlHttpClient.from_server_address(address, False, home.ca.read_bytes(), []))


@pytest.fixture
def open_clients() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def status_of(call: object, request: object) -> int:
    with pytest.raises(httpx.HTTPStatusError) as refused:
        call(request)  # type: ignore[operator]
    return refused.value.response.status_code


def test_an_enrolled_node_works_through_the_proxy_and_a_stranger_does_not(home: Home, open_clients: contextlib.ExitStack) -> None:
    partner, stranger = Partner(home, open_clients), Partner(home, open_clients)
    enroll(home, partner_card(node_key=partner.ssh))
    inside = control(home, home.settings.superlink_address, open_clients)
    key = serialization.load_ssh_public_key(node_key_file(home, "books").read_bytes())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    inside.RegisterNode(RegisterNodeRequest(public_key=public_key_to_bytes(key), name="books"))

    node = Node(node_id=partner.fleet.ActivateNode(ActivateNodeRequest(public_key=partner.public, heartbeat_interval=30)).node_id)
    assert partner.fleet.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=node, heartbeat_interval=30)).success
    assert list(partner.fleet.PullMessages(PullMessagesRequest(node=node)).messages_list) == []
    assert [one.name for one in inside.ListNodes(ListNodesRequest()).nodes_info] == ["books"]

    activate = ActivateNodeRequest(public_key=stranger.public, heartbeat_interval=30)
    assert status_of(stranger.fleet.ActivateNode, activate) >= 400
    assert status_of(stranger.fleet.PullMessages, PullMessagesRequest(node=node)) == 401  # another node's messages
    assert status_of(stranger.fleet.RegisterNode, RegisterNodeFleetRequest(public_key=stranger.public)) == 404
    partner.fleet.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))


def test_from_where_partners_are_nobody_starts_a_run_or_takes_a_task(home: Home, open_clients: contextlib.ExitStack) -> None:
    outside = control(home, home.settings.address, open_clients)
    runtime = open_clients.enter_context(RuntimeHttpClient.from_server_address(home.settings.address, False, home.ca.read_bytes(), []))
    assert status_of(outside.StartRun, StartRunRequest()) == 404
    assert status_of(outside.ListRuns, ListRunsRequest()) == 404
    assert status_of(outside.RegisterNode, RegisterNodeRequest(public_key=b"x")) == 404
    assert status_of(runtime.AcquireTask, AcquireTaskRequest()) == 404


def test_the_largest_piece_of_an_array_that_flower_sends_is_not_stopped_by_the_proxy(
    home: Home, open_clients: contextlib.ExitStack
) -> None:
    """5 MiB of content: the SuperLink itself answers, here because it knows no such node."""
    request = PushObjectRequest(node=Node(node_id=1), run_id=1, object_id="0" * 64, object_content=os.urandom(5 * 1024 * 1024))
    assert status_of(Partner(home, open_clients).fleet.PushObject, request) == 401


def test_a_superlink_that_is_killed_costs_a_pause_and_nothing_else(tmp_path: Path, open_clients: contextlib.ExitStack) -> None:
    program = installed()
    settings = ServerSettings(hosts="localhost", listen="127.0.0.1", port=free_port(), superlink_port=free_port())
    home = Home.create(tmp_path / "home", settings).home
    partner = Partner(home, open_clients)
    with proxy_of(home, program):
        with superlink_of(home):
            inside = control(home, home.settings.superlink_address, open_clients)
            inside.RegisterNode(RegisterNodeRequest(public_key=partner.public, name="books"))
            activate = ActivateNodeRequest(public_key=partner.public, heartbeat_interval=30)
            node = Node(node_id=partner.fleet.ActivateNode(activate).node_id)
        assert status_of(partner.fleet.PullMessages, PullMessagesRequest(node=node)) == 502  # which its node takes as a pause
        with superlink_of(home):
            assert list(partner.fleet.PullMessages(PullMessagesRequest(node=node)).messages_list) == []
