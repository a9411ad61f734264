"""Two engines, one federation."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from server.strategy import Outcome, TooFewClients
from shared import wire
from shared.errors import ConfigError, RunFolderError, UsageError
from simulations import federation
from simulations.in_process_grid import InProcessGrid
from simulations.run_folder import RunFolder
from tests.server.tiny_clients import TEXT, Fault, honest, intents, small_config, tiny_app

CONFIG = small_config(privacy={"rounds": 2})


def federate(tmp_path: Path, name: str, engine: str = "in-process", *, clients: int = 3, fault: Fault = honest, **how: object) -> Outcome:
    disks = tmp_path / f"{name}-disks"
    disks.mkdir(exist_ok=True)
    folder = RunFolder(tmp_path / name)
    if not how.get("resume"):
        folder.create(CONFIG)
    return federation.run(CONFIG, folder, engine, tiny_app(disks, fault), clients=clients, text_dimension=TEXT, **how)  # type: ignore[arg-type]


# --- in process ---


def test_every_message_in_both_directions_can_be_seen_as_bytes(tmp_path: Path) -> None:
    seen: list[tuple[str, int, str]] = []
    nbytes: dict[tuple[str, int], int] = {}

    def watch(direction: str, client: int, data: bytes) -> None:
        message = message_from_proto(ProtoMessage.FromString(data))
        seen.append((direction, client, message.metadata.message_type))
        nbytes[direction, client] = nbytes.get((direction, client), 0) + len(data)

    outcome = federate(tmp_path, "run", on_message=watch)
    per_client = [wire.HELLO, wire.MOMENTS, wire.CENTROIDS, wire.DESCRIPTOR, wire.TRAIN, wire.TRAIN, wire.DELIVER]
    for client in range(3):
        assert [kind for direction, who, kind in seen if (direction, who) == ("down", client)] == per_client
        assert [kind for direction, who, kind in seen if (direction, who) == ("up", client)] == per_client
        domain = outcome.domains[client]
        assert outcome.traffic[domain].to_json() == {"up": nbytes["up", client], "down": nbytes["down", client]}


def test_messages_are_copies_so_a_client_cannot_reach_into_the_server(tmp_path: Path) -> None:
    received: list[RecordDict] = []
    app = ClientApp()

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        received.append(message.content)
        return Message(RecordDict(), reply_to=message)

    grid = InProcessGrid(app, 1)
    sent = RecordDict()
    list(grid.send_and_receive([Message(sent, dst_node_id=1, message_type=wire.HELLO)]))
    assert received[0] is not sent


def test_a_client_exception_becomes_flowers_error_reply() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise ZeroDivisionError("one by zero")

    grid = InProcessGrid(app, 1)
    [reply] = grid.send_and_receive([Message(RecordDict(), dst_node_id=1, message_type=wire.TRAIN)])
    assert reply.error == Error(code=2, reason="<class 'ZeroDivisionError'>:<'one by zero'>")
    assert reply.metadata.src_node_id == 1
    assert reply.metadata.dst_node_id == SUPERLINK_NODE_ID


def test_a_context_belongs_to_one_client_and_lasts_for_the_run() -> None:
    app = ClientApp()

    @app.query("count")
    def count(message: Message, context: Context) -> Message:
        from flwr.app import ConfigRecord

        seen = int(context.state["seen"]["n"]) + 1 if "seen" in context.state else 1  # type: ignore[arg-type, call-overload, index]
        context.state["seen"] = ConfigRecord({"n": seen})
        return Message(RecordDict({"seen": ConfigRecord({"n": seen, "of": context.node_config["num-partitions"]})}), reply_to=message)

    grid = InProcessGrid(app, 2)
    for node, expected in ((1, 1), (1, 2), (2, 1)):
        identifiers = list(grid.push_messages([Message(RecordDict(), dst_node_id=node, message_type="query.count")]))
        [reply] = grid.pull_messages(identifiers)
        assert dict(reply.content["seen"]) == {"n": expected, "of": 2}
        assert list(grid.pull_messages(identifiers)) == []


def test_the_number_of_clients_is_that_of_the_partners_folders(tmp_path: Path) -> None:
    disks, folder = tmp_path / "disks", RunFolder(tmp_path / "run").create(CONFIG)
    disks.mkdir()
    for domain in ("arts", "books"):
        folder.client(domain).mkdir()
    assert federation.run(CONFIG, folder, "in-process", tiny_app(disks), text_dimension=TEXT).domains == ("arts", "books")


def test_the_environment_is_left_as_it_was(tmp_path: Path) -> None:
    before = dict(os.environ)
    federate(tmp_path, "run")
    assert dict(os.environ) == before


def test_an_unknown_engine_and_a_federation_of_nobody_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no engine"):
        federate(tmp_path, "one", "spark")
    with pytest.raises(UsageError, match="at least one client"):
        federate(tmp_path, "two", clients=0)
    with pytest.raises(UsageError, match="only the in-process engine"):
        federate(tmp_path, "three", "ray", on_message=print)


# --- run folder ---


def test_a_run_folder_that_exists_is_refused(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").create(CONFIG)
    with pytest.raises(RunFolderError, match="exists already"):
        RunFolder(tmp_path / "run").create(CONFIG)


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert RunFolder(tmp_path / "run").create(CONFIG).open().config == CONFIG


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="not a run folder"):
        RunFolder(tmp_path).open()


def test_a_changed_configuration_is_refused_by_key(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create(CONFIG)
    folder.config_file.write_text("[model]\ndimensions = 3\n")
    with pytest.raises(ConfigError, match=r"model\.dimensions"):
        _ = folder.config


# --- Ray ---


def _bad_on_ray(client: int, round: int, content: RecordDict) -> RecordDict:
    if (client, round) == (2, 1):
        raise ValueError("user 4711 likes gardening")
    return content


@pytest.mark.journey
def test_ray_gives_the_same_layer_drops_what_raises_and_goes_on_after_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One test, because Ray takes seconds to start: a bad reply, an error of the coordinator, and a resume."""
    before = dict(os.environ)
    here = federate(tmp_path, "in-process", fault=_bad_on_ray)

    def stop(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("train", 1):
            raise TooFewClients("round 2", 0, 2, [])

    with pytest.raises(TooFewClients, match="round 2"):
        federate(tmp_path, "ray", "ray", fault=_bad_on_ray, progress=stop)
    there = federate(tmp_path, "ray", "ray", fault=_bad_on_ray, resume=True)
    assert wire.layer_sha256(there.layer) == wire.layer_sha256(here.layer)
    assert (there.domains, there.round) == (here.domains, 2)
    assert [intents(tmp_path / "ray-disks", client) for client in range(3)] == [2, 2, 2]
    spoken = capfd.readouterr()
    assert spoken.out + spoken.err == ""
    assert dict(os.environ) == before
