"""What somebody holds who sits at an enrolled partner (the node's key, the authority's certificate, the address), and can ask with it."""

from __future__ import annotations

import contextlib
import http.client
import json
import sqlite3
import ssl
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.runtime.runtime_http_client import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.settings import ClientSettings
from shared.addresses import split_address


class Position:
    """A partner's place, with clients of every interface of Flower, each aimed at the proxy and signed with a node's key.

    Args:
        settings: of the partner.
        key: another node's key; by default the partner's own.
    """

    def __init__(self, settings: ClientSettings, open_clients: contextlib.ExitStack, key: ec.EllipticCurvePrivateKey | None = None) -> None:
        loaded = key or serialization.load_ssh_private_key(settings.node_key_path.read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        self.key, self.ca = loaded, settings.ca_path
        self.public = public_key_to_bytes(loaded.public_key())
        self.host, self.port = split_address(settings.server.address)
        signed = (settings.server.address, False, self.ca.read_bytes(), [NodeAuthHttpInterceptor(loaded, loaded.public_key())])
        self.fleet = open_clients.enter_context(FleetHttpClient.from_server_address(*signed))
        self.control = open_clients.enter_context(ControlHttpClient.from_server_address(*signed))
        self.runtime = open_clients.enter_context(RuntimeHttpClient.from_server_address(*signed))

    def node(self) -> Node:
        """This node, awake."""
        return Node(node_id=self.fleet.ActivateNode(ActivateNodeRequest(public_key=self.public, heartbeat_interval=300)).node_id)

    def signature(self) -> dict[str, str]:
        """What a node's request is signed with."""
        at = now().isoformat()
        signed = sign_message(self.key, at.encode("ascii"))
        return {
            FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(self.public).decode(),
            TIMESTAMP_HEADER: at,
            FLEET_HTTP_SIGNATURE_HEADER: b64encode(signed).decode(),
            "content-type": PROTOBUF_MEDIA_TYPE,
        }

    def asked(self, path: str, body: bytes = b"", method: str = "POST") -> int:
        """Status of one signed request, its path sent as it is written here."""
        context = ssl.create_default_context(cafile=self.ca)
        connection = http.client.HTTPSConnection(self.host, self.port, context=context, timeout=30)
        try:
            connection.putrequest(method, path, skip_host=True)
            for name, value in {"Host": self.host, "Content-Length": str(len(body)), **self.signature()}.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            return connection.getresponse().status
        finally:
            connection.close()


def refused(call: Any, request: Any) -> int:
    """Status with which a request is refused; 0 where it is not."""
    try:
        call(request)
    except httpx.HTTPStatusError as error:
        return error.response.status_code
    return 0


def pushed(
    node: Node, run_id: int, *, source: int, target: int, reply_to: str, content: RecordDict | None = None, ttl: float = 20.0
) -> tuple[PushMessagesRequest, dict[str, bytes]]:
    """A message as a node pushes it, with every name chosen freely; and its objects."""
    held = TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, source
    try:
        content = content or RecordDict({"planted": ConfigRecord({"by": "somebody else"})})
        message = Message(content, dst_node_id=target, message_type="query.hello")
    finally:
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = held
    told = message.metadata.__dict__
    told.update(_run_id=run_id, _src_node_id=source, _reply_to_message_id=reply_to, _ttl=ttl)
    told["_message_id"] = message.object_id
    objects = {name: one.deflate() for name, one in get_all_nested_objects(message).items()}
    tree = get_object_tree(message)
    bare = message_to_proto(remove_content_from_message(message))
    request = PushMessagesRequest(node=node, messages_list=[bare], message_object_trees=[tree], clientapp_runtime_list=[0.1])
    return request, objects


def next_message(position: Position, node: Node) -> Any:
    """What lies ready for this node; None where nothing does."""
    answer = position.fleet.PullMessages(PullMessagesRequest(node=node))
    return (answer.messages_list[0], answer.message_object_trees[0]) if answer.messages_list else None


@dataclass(frozen=True, slots=True)
class Secrets:
    """What the SuperLink's own state says about another node, which nobody tells a partner. ``objects``: those that are there."""

    node_id: int
    messages: tuple[str, ...]
    replies: tuple[str, ...]
    objects: tuple[str, ...]


def secrets_of(state: Path, domain: str) -> Secrets:
    """Reads them from the SuperLink's database, as no partner could."""
    with contextlib.closing(sqlite3.connect(f"file:{state}?mode=ro", uri=True, timeout=30)) as found:
        ((signed,),) = found.execute("SELECT node_id FROM node WHERE name = ?", (domain,)).fetchall()
        messages = [row[0] for row in found.execute("SELECT message_id FROM message_ins WHERE dst_node_id = ?", (signed,))]
        replies = [row[0] for row in found.execute("SELECT message_id FROM message_res WHERE src_node_id = ?", (signed,))]
        children: dict[str, list[str]] = {}
        for parent, child in found.execute("SELECT parent_id, child_id FROM object_children"):
            children.setdefault(parent, []).append(child)
        there = {row[0] for row in found.execute("SELECT object_id FROM objects WHERE is_available = 1")}
    objects, waiting = [], [*messages, *replies]
    while waiting:
        objects.append(one := waiting.pop())
        waiting += children.get(one, [])
    return Secrets(signed % 2**64, tuple(messages), tuple(replies), tuple(one for one in dict.fromkeys(objects) if one in there))


def runs_and_nodes(home_status: dict[str, Any]) -> str:
    """What must not change while somebody tries things."""
    return json.dumps([[one["folder"] for one in home_status["runs"]], [one["domain"] for one in home_status["partners"]]])
