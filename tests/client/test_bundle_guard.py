"""The guard inside Flower's own SuperNode code: what is not allowed is never opened, and what is answered says nothing."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supernode import start_client_internal as flower
from flwr.supernode.nodestate import NodeStateFactory

from client import bundle_guard
from client.allowed import AllowList
from client.flower_internals import MODULES, REPLACED, verify
from shared.errors import ConfigError, Refusal, UsageError
from tests.client.arrived import arrived
from tests.shared.test_bundle import FILES, packed

ALLOWED = packed({**FILES, "client/__init__.py": b"", "server/__init__.py": b""})
DIGEST = hashlib.sha256(ALLOWED).hexdigest()
TRAP = b"PK\x03\x04 whoever opens this as an archive fails"
RUN = 77


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="flwr")


@pytest.fixture
def allowed(tmp_path: Path) -> AllowList:
    listed = AllowList(tmp_path / "home" / "allowed.json")
    listed.decide(DIGEST, allowed=True, by="A. Officer")
    return listed


class Node:
    """Flower's state of one SuperNode, its own function to pull a message, and a server that answers as a test wants."""

    def __init__(self, home: Path, content: bytes, **described: Any) -> None:
        objects = ObjectStoreFactory()
        self.objects = objects.store()
        self.state = NodeStateFactory(objectstore_factory=objects).state()
        self.state.set_node_id(5)
        self.content = content
        digest = hashlib.sha256(content).hexdigest()
        self.run = Run.create_empty(RUN)
        self.label = digest
        for name, value in {"fab_hash": digest, "primary_task_type": "flwr-serverapp", "series_id": 3, **described}.items():
            setattr(self.run, name, value)
        self.pull = bundle_guard.guarded_pull(
            flower._pull_and_store_message, bundle_guard.Guard(home), insert=flower._insert_message, error=flower.FAB_VERIFICATION_ERROR
        )
        self.asked: list[str] = []

    def message(self) -> tuple[Message, Any]:
        message = arrived(RUN, "query.hello")
        message.metadata.__dict__["_message_id"] = f"{len(self.asked):064x}"
        return message, get_object_tree(message)

    def receive(self) -> int | None:
        """One turn of the SuperNode's loop."""

        def get_fab(digest: str, _: int) -> Fab:
            self.asked.append(digest)
            return Fab(self.label, self.content, {})

        return self.pull(
            state=self.state,
            object_store=self.objects,
            node_config={},
            receive=self.message,
            get_run=lambda _: self.run,
            get_fab=get_fab,
            pull_object=lambda *_: b"",
            confirm_message_received=lambda *_: None,
            trusted_entities=None,
        )

    def refusals(self) -> list[int]:
        return [reply.error.code for reply in self.state.get_messages_legacy(is_reply=True)]


def notes(allowed: AllowList) -> list[dict[str, Any]]:
    path = allowed.path.parent / "refused.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_an_allowed_bundle_passes_into_the_node(allowed: AllowList) -> None:
    node = Node(allowed.path.parent, ALLOWED)
    node.receive()

    assert node.refusals() == []
    assert node.state.get_fab(node.run.fab_hash).content == node.content
    assert [task.type for task in node.state.get_tasks()] == ["flwr-clientapp"]
    assert notes(allowed) == []


def test_a_foreign_bundle_is_answered_and_neither_opened_nor_kept(allowed: AllowList) -> None:
    node = Node(allowed.path.parent, TRAP)

    assert node.receive() == RUN
    assert node.refusals() == [ErrorCode.INVALID_FAB]
    assert node.state.get_fab(node.run.fab_hash) is None
    assert node.state.get_run(RUN) is None
    assert list(node.state.get_tasks()) == []
    (note,) = notes(allowed)
    assert (note["digest"], note["run_id"], note["bytes"]) == (hashlib.sha256(TRAP).hexdigest(), str(RUN), len(TRAP))


def test_without_the_guard_the_trap_goes_off(allowed: AllowList) -> None:
    node = Node(allowed.path.parent, TRAP)
    node.pull = flower._pull_and_store_message

    with pytest.raises(Exception, match="not a zip file"):
        node.receive()


@pytest.mark.parametrize("where", ["run", "answer"])
def test_a_foreign_bundle_under_the_digest_of_an_allowed_one_is_refused(allowed: AllowList, where: str) -> None:
    node = Node(allowed.path.parent, TRAP, fab_hash=DIGEST)
    node.label = DIGEST if where == "answer" else hashlib.sha256(TRAP).hexdigest()
    node.receive()

    assert node.refusals() == [ErrorCode.INVALID_FAB]
    assert notes(allowed)[0]["digest"] == hashlib.sha256(TRAP).hexdigest()


def test_an_allowed_bundle_under_a_foreign_digest_is_refused_because_the_ledger_would_name_another(allowed: AllowList) -> None:
    for described, label in (({"fab_hash": "b" * 64}, DIGEST), ({}, "b" * 64)):
        node = Node(allowed.path.parent, ALLOWED, **described)
        node.label = label
        node.receive()

        assert node.refusals() == [ErrorCode.INVALID_FAB]
        assert node.state.get_run(RUN) is None


@pytest.mark.parametrize("described", [{"primary_task_type": "flwr-agentapp"}, {"primary_task_type": ""}, {"run_id": RUN + 1}])
def test_runs_of_another_kind_are_refused_before_their_bundle_is_asked_for(allowed: AllowList, described: dict[str, Any]) -> None:
    node = Node(allowed.path.parent, ALLOWED, **described)
    node.receive()

    assert node.refusals() == [ErrorCode.INVALID_FAB]
    assert node.asked == []


def test_a_permission_that_was_taken_back_counts_from_the_next_message_of_the_same_run(allowed: AllowList) -> None:
    node = Node(allowed.path.parent, ALLOWED)
    node.receive()
    allowed.decide(DIGEST, allowed=False, by="A. Officer")
    node.receive()

    assert node.refusals() == [ErrorCode.INVALID_FAB]
    assert len(node.state.get_tasks()) == 1  # of the first message


def test_what_is_on_the_list_and_no_bundle_of_ours_is_refused(allowed: AllowList) -> None:
    odd = packed({**FILES, "client/data.json": b"{}"})
    allowed.decide(hashlib.sha256(odd).hexdigest(), allowed=True, by="A. Officer")
    node = Node(allowed.path.parent, odd)
    node.receive()

    assert node.refusals() == [ErrorCode.INVALID_FAB]
    assert "may hold nothing but modules" in notes(allowed)[0]["why"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"format": "isthmus-allowed-9", "decisions": []}', b'{"format": "isthmus-allowed-1"}', b"\xff"]
)
def test_a_damaged_list_allows_nothing(allowed: AllowList, content: bytes) -> None:
    allowed.path.write_bytes(content)
    node = Node(allowed.path.parent, ALLOWED)
    node.receive()

    assert node.refusals() == [ErrorCode.INVALID_FAB]
    with pytest.raises(ConfigError):
        allowed.decide(DIGEST, allowed=True, by="A. Officer")
    assert allowed.path.read_bytes() == content  # for people to look at


def test_a_list_that_others_can_write_to_allows_nothing(allowed: AllowList) -> None:
    allowed.path.chmod(0o620)
    with pytest.raises(Refusal, match="written to by others"):
        allowed.admit(ALLOWED)
    allowed.path.chmod(0o600)
    assert allowed.admit(ALLOWED).digest == DIGEST


def test_a_refusal_holds_where_it_cannot_be_noted(allowed: AllowList) -> None:
    (allowed.path.parent / "refused.jsonl").mkdir()
    node = Node(allowed.path.parent, TRAP)
    node.receive()

    assert node.refusals() == [ErrorCode.INVALID_FAB]


def test_a_run_that_asks_again_and_again_is_noted_once_and_the_file_has_an_end(allowed: AllowList, tmp_path: Path) -> None:
    node = Node(allowed.path.parent, TRAP)
    for _ in range(3):
        node.receive()
    path = allowed.path.parent / "refused.jsonl"

    assert len(node.refusals()) == 3
    assert len(notes(allowed)) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    os.truncate(path, bundle_guard.MAX_REFUSED_BYTES)
    bundle_guard.append(path, {"one": "more"})
    assert path.stat().st_size == bundle_guard.MAX_REFUSED_BYTES


def test_the_list_keeps_every_decision_also_of_people_who_decide_at_once(allowed: AllowList) -> None:
    digests = [hashlib.sha256(bytes([number])).hexdigest() for number in range(12)]
    deciding = [threading.Thread(target=allowed.decide, args=(each,), kwargs={"allowed": True, "by": "B. Officer"}) for each in digests]
    for thread in deciding:
        thread.start()
    for thread in deciding:
        thread.join()
    allowed.decide(digests[0], allowed=False, by="C. Officer")

    assert {each.digest for each in allowed.allowed()} == {DIGEST, *digests[1:]}
    assert len(allowed.decisions()) == 14
    assert stat.S_IMODE(allowed.path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("digest", "by"), [("a" * 63, "A"), ("A" * 64, "A"), ("a" * 64, "  "), ("a" * 64, "two\nlines"), ("a" * 64, "x" * 201)]
)
def test_a_decision_names_a_whole_digest_and_a_person(allowed: AllowList, digest: str, by: str) -> None:
    with pytest.raises(UsageError):
        allowed.decide(digest, allowed=True, by=by)
    assert len(allowed.decisions()) == 1


def test_the_newest_allowed_bundle_of_some_code_is_found(allowed: AllowList) -> None:
    for digest in ("1" * 64, "2" * 64, "3" * 64):
        allowed.decide(digest, allowed=True, by="A. Officer", code_digest="c" * 64)
    allowed.decide("3" * 64, allowed=False, by="A. Officer")

    assert allowed.bundle_of_code("c" * 64) == "2" * 64
    assert allowed.bundle_of_code("d" * 64) is None


def test_flower_is_the_one_that_the_guard_was_made_for() -> None:
    verify()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_flower_with_one_other_module_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is not the one of Flower"):
        verify({**MODULES, name: "0" * 64})


def test_another_version_and_a_module_that_is_gone_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"made for 1\.42\.0"):
        verify(flower="1.42.0")
    with pytest.raises(ConfigError, match="not_there"):
        verify({"flwr.not_there": "0" * 64})


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in REPLACED.items() for name in names])
def test_a_function_that_somebody_else_replaced_is_noticed(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module(module), name, lambda *_, **__: None)
    with pytest.raises(ConfigError, match=f"{name} was replaced"):
        verify()


@pytest.fixture
def _restored() -> Iterator[None]:
    pull, push = flower._pull_and_store_message, flower._push_messages
    yield
    flower._pull_and_store_message, flower._push_messages = pull, push


@pytest.mark.usefixtures("_restored")
def test_the_guard_stands_in_the_function_that_the_loop_of_the_node_calls(allowed: AllowList) -> None:
    names = ("_pull_and_store_message", "_push_messages")
    before: list[Callable[..., Any]] = [getattr(flower, name) for name in names]
    bundle_guard.install(bundle_guard.Guard(allowed.path.parent))

    for name, original in zip(names, before, strict=True):
        called = flower.start_client_internal.__globals__[name]
        assert called is getattr(flower, name)
        assert called is not original
        assert name in flower.start_client_internal.__code__.co_names


def test_nothing_starts_where_flower_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "partner.toml").write_text('domain = "books"\n')

    def refuse() -> None:
        verify(flower="9.9.9")

    monkeypatch.setattr(bundle_guard, "verify", refuse)
    monkeypatch.setattr(os, "umask", lambda _: 0o022)
    with pytest.raises(SystemExit) as ended:
        bundle_guard.main([str(tmp_path / "partner.toml"), "--superlink=h:1", "--root-certificates=ca", "--node-key=key"])

    assert ended.value.code == 3
    said = capsys.readouterr().err
    assert "nothing was started" in said
    assert "pip install" in said
    assert not (tmp_path / "home").exists()


def test_a_node_asks_until_there_is_a_message_and_returns_what_its_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found, paused = iter([None, None, RUN]), list[float]()
    monkeypatch.setattr(bundle_guard.time, "sleep", paused.append)

    assert bundle_guard.promptly(lambda **how: next(found))(state=1) == RUN
    assert len(paused) == 2
    assert all(0 < pause < 3 for pause in paused)  # Flower's own pause between two questions
