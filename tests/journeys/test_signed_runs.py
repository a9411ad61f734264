"""Whole runs under signed contracts: with the coordinator the partners know, with another one, and with somebody on the way between."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message

from client.egress import Gate
from client.key_rotation import own_keys
from client.settings import ServerSettings
from server.contract_key import CoordinatorKey
from server.run_contract import Signing
from server.strategy import TooFewClients
from shared import contract, wire
from shared.config import RunConfig
from shared.privacy.audit import verify
from shared.privacy.findings import Status
from shared.privacy.ledger import read_events
from shared.privacy.manifest import read_manifest
from shared.privacy.signing import SigningPair
from tests.client.opened_files import opened_below
from tests.journeys.tiny_world import DOMAINS, World, world

pytestmark = pytest.mark.journey

BUNDLE, OTHER = "b" * 64, "c" * 64
ALL = contract.spelled(DOMAINS)
RUNNING = "ISTHMUS_BUNDLE_DIGEST"
Change = Callable[[wire.Hello], wire.Hello]


class OnTheWay:
    """Somebody between the coordinator and the partners, who changes greetings and lets everything else pass.

    Args:
        app: of the partners.
        change: greeting -> greeting.
    """

    def __init__(self, app: Gate, change: Change) -> None:
        self._app, self._change = app, change

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type == wire.HELLO:
            message.content = self._change(wire.Hello.unpack(message.content)).pack()
        return self._app(message, context)


@pytest.fixture
def key(tmp_path: Path) -> CoordinatorKey:
    return CoordinatorKey.create(tmp_path / "coordinator" / "coordinator.keys")


def enrolled(tmp_path: Path, *keys: str) -> World:
    """Three partners, each of whom knows one coordinator."""
    made = world(tmp_path / "run")
    for at, key in enumerate(keys):
        server = ServerSettings(address="isthmus.example:8443", coordinator_key=key)
        made.settings[at] = dataclasses.replace(made.settings[at], server=server)
    return made


def plans(federation: World) -> list[list[Any]]:
    """Of each partner, the signatures of the plans in its ledger."""
    ledgers = [read_events(one.ledger_path) for one in federation.settings]
    return [[event.payload["plan_signature"] for event in events if event.kind == "schedule"] for events in ledgers]


def test_a_run_under_a_contract_goes_to_its_end_and_every_ledger_says_so(
    tmp_path: Path, key: CoordinatorKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUNNING, BUNDLE)  # as the partners' guards set it
    federation = enrolled(tmp_path, *[key.verify_key] * 3)
    outcome = federation.federate(signing=Signing(signer=key, bundle_digest=BUNDLE, domains=ALL))

    assert outcome.delivered == list(DOMAINS)
    announced = json.loads((tmp_path / "run" / "contract.json").read_text())
    assert plans(federation) == [[announced["signature"]]] * 3
    config = (federation.settings[0].at_home("run") / "run.toml").read_text()
    assert contract.holds(
        key.verify_key, announced["signature"], config_toml=config, run_id=outcome.run_id, bundle_digest=BUNDLE, domains=ALL
    )  # what an auditor can check with the coordinator's public key
    for settings in federation.settings:
        found = verify(settings.ledger_path, key=own_keys(settings).verify_key)
        assert found.status is Status.INTACT
        assert [one.what for one in found.findings if one.code == "contract"] == [
            f"the plan of run {outcome.run_id} was signed by the coordinator ({announced['signature'][:16]})"
        ]
        assert {event.payload["bundle_digest"] for event in read_events(settings.ledger_path) if event.kind == "intent"} == {BUNDLE}


def test_a_run_is_resumed_under_its_contract_and_costs_nothing_again(tmp_path: Path, key: CoordinatorKey) -> None:
    federation, signing = enrolled(tmp_path, *[key.verify_key] * 3), Signing(signer=key, domains=ALL)

    class PowerCut(BaseException):
        pass

    def cut(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("train", 1):
            raise PowerCut

    with pytest.raises(PowerCut):
        federation.federate(signing=signing, progress=cut)
    again = Signing(signer=CoordinatorKey.load(tmp_path / "coordinator" / "coordinator.keys"), domains=ALL)
    outcome = federation.federate(signing=again, resume=True)
    assert outcome.round == 2
    kinds = [[event.kind for event in read_events(one.ledger_path)] for one in federation.settings]
    assert kinds == [["genesis", "schedule", "intent", "commit", "intent", "commit"]] * 3


def test_a_partner_of_another_coordinator_is_left_out_and_the_others_go_on(tmp_path: Path, key: CoordinatorKey) -> None:
    federation = enrolled(tmp_path, key.verify_key, SigningPair.generate().verify_key, key.verify_key)
    (tmp_path / "run" / "data" / "films" / "interactions.csv").unlink()  # whoever opens it now answers `unavailable`
    with opened_below(federation.settings[1].base) as opened:
        outcome = federation.federate(signing=Signing(signer=key, domains=ALL))
    assert outcome.domains == ("books", "music")
    manifest = read_manifest(federation.settings[1].at_home("egress.jsonl"))
    assert [(line.kind, line.schema) for line in manifest.lines] == [(wire.HELLO, "Refused")]
    assert [event.kind for event in read_events(federation.settings[1].ledger_path)] == ["genesis"]
    assert {Path(path).parts[:2] for path in opened} <= {("home", "egress.jsonl"), ("home", "run"), ("home", "egress.jsonl.lock")}


def _weaker(hello: wire.Hello) -> wire.Hello:
    config = RunConfig.from_toml(hello.config_toml)
    less = dataclasses.replace(config.privacy, noise_multiplier=config.privacy.noise_multiplier * 0.5)
    return dataclasses.replace(hello, config_toml=dataclasses.replace(config, privacy=less).to_toml())


def _resigned(hello: wire.Hello) -> wire.Hello:
    weaker = _weaker(hello)
    said = {name: getattr(weaker, name) for name in ("config_toml", "run_id", "bundle_digest", "domains")}
    signature = contract.sign(SigningPair.generate(), **said)
    return dataclasses.replace(weaker, contract_signature=signature)


ATTACKS: dict[str, Change] = {
    "halves the noise": _weaker,
    "halves the noise and signs it": _resigned,
    "names another run": lambda hello: dataclasses.replace(hello, run_id=hello.run_id + "-2"),
    "names others": lambda hello: dataclasses.replace(hello, domains="games"),
    "names another bundle": lambda hello: dataclasses.replace(hello, bundle_digest=OTHER),
    "takes the signature away": lambda hello: dataclasses.replace(hello, contract_signature="", bundle_digest=""),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_whoever_changes_a_greeting_on_its_way_ends_the_run_before_any_data_are_opened(
    tmp_path: Path, key: CoordinatorKey, attack: str
) -> None:
    federation = enrolled(tmp_path, *[key.verify_key] * 3)
    shutil.rmtree(tmp_path / "run" / "data")
    app = OnTheWay(federation.app, ATTACKS[attack])
    with opened_below(tmp_path / "run") as opened, pytest.raises(TooFewClients) as ended:
        federation.federate(signing=Signing(signer=key, bundle_digest=BUNDLE, domains=ALL), app=app)  # type: ignore[arg-type]
    assert ended.value.dropped == (("unknown", "refused-signature"),) * 3
    assert not any(path.endswith((".csv", ".sqlite", ".npy", ".npz")) or "prepared" in path for path in opened)
    assert plans(federation) == [[], [], []]


def test_a_coordinator_without_a_key_is_refused_by_partners_who_know_one(tmp_path: Path, key: CoordinatorKey) -> None:
    federation = enrolled(tmp_path, *[key.verify_key] * 3)
    with pytest.raises(TooFewClients, match="refused-signature"):
        federation.federate()
    assert plans(federation) == [[], [], []]


class OtherCodeTrains:
    """The app of partners whose processes run one bundle for greetings and another one, also on their lists, for rounds."""

    def __init__(self, app: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
        self._app, self._patch = app, monkeypatch

    def __call__(self, message: Message, context: Context) -> Message:
        self._patch.setenv(RUNNING, OTHER if message.metadata.message_type == wire.TRAIN else BUNDLE)
        return self._app(message, context)


def test_a_bundle_that_was_not_signed_for_does_not_train(tmp_path: Path, key: CoordinatorKey, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = enrolled(tmp_path, *[key.verify_key] * 3)
    app = OtherCodeTrains(federation.app, monkeypatch)
    with pytest.raises(TooFewClients, match="round 1: 0 of at least 2 clients") as ended:
        federation.federate(signing=Signing(signer=key, bundle_digest=BUNDLE, domains=ALL), app=app)  # type: ignore[arg-type]
    assert {code for _, code in ended.value.dropped} == {"refused-signature"}
    assert [[event.kind for event in read_events(one.ledger_path)] for one in federation.settings] == [["genesis", "schedule"]] * 3
