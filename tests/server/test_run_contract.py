"""What the coordinator signs, where its key comes from, and that a run goes on under the contract it began with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from server import app as server_app
from server.app import run_federation
from server.contract_key import CoordinatorKey
from server.run_contract import Signing, forget, greeting, keep
from server.strategy import Coordinator
from shared import contract, wire
from shared.config import RunConfig
from shared.errors import ConfigError, FederationError
from shared.privacy.signing import SigningPair
from simulations.in_process_grid import InProcessGrid
from tests.server.tiny_clients import TEXT, small_config, tiny_app
from tests.shared.privacy.bookshop import STRANGER

KEY = SigningPair(b"the coordinator of these tests.."[:32])
BUNDLE, OTHER = "b" * 64, "c" * 64
SIGNING = Signing(signer=KEY, bundle_digest=BUNDLE)
CONFIG = small_config()


class Greetings(InProcessGrid):
    """A grid that keeps the first messages it carried."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__(tiny_app(folder), 2)
        self.said: list[wire.Hello] = []

    def push_messages(self, messages: Any) -> Any:
        return super().push_messages(self._seen(messages))

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        return super().send_and_receive(self._seen(messages), timeout=timeout)

    def _seen(self, messages: Any) -> list[Any]:
        kept = list(messages)
        self.said += [wire.Hello.unpack(one.content) for one in kept if one.metadata.message_type == wire.HELLO]
        return kept


def federate(tmp_path: Path, config: RunConfig = CONFIG, **how: Any) -> list[wire.Hello]:
    """Runs to the end, and returns the greetings that were sent."""
    (tmp_path / "run").mkdir(exist_ok=True)
    grid = Greetings(tmp_path / "disks")
    run_federation(grid, config, tmp_path / "run", text_dimension=TEXT, expected_clients=2, **how)
    return grid.said


def signed(hello: wire.Hello, key: str = KEY.verify_key) -> bool:
    said = {name: getattr(hello, name) for name in ("config_toml", "run_id", "bundle_digest", "domains")}
    return contract.holds(key, hello.contract_signature, **said)


def test_every_client_is_greeted_with_what_was_signed(tmp_path: Path) -> None:
    said = federate(tmp_path, signing=SIGNING)
    assert len(said) == 2
    assert all(signed(hello) and hello.bundle_digest == BUNDLE for hello in said)
    assert not any(signed(hello, STRANGER.verify_key) for hello in said)
    assert RunConfig.from_toml(said[0].config_toml) == CONFIG


def test_the_noise_is_solved_before_it_is_signed(tmp_path: Path) -> None:
    unsolved = small_config(privacy={"noise_multiplier": 0.0, "epsilon": 4.0})
    (hello, _) = federate(tmp_path, unsolved, signing=SIGNING)
    assert signed(hello)
    assert RunConfig.from_toml(hello.config_toml).privacy.noise_multiplier > 0.0


def test_a_simulation_signs_nothing(tmp_path: Path) -> None:
    assert {(hello.contract_signature, hello.bundle_digest) for hello in federate(tmp_path)} == {("", "")}


def test_a_resumed_run_is_greeted_with_the_same_signature(tmp_path: Path) -> None:
    first, again = (federate(tmp_path, signing=SIGNING, resume=resume)[0] for resume in (False, True))
    assert first == again
    assert signed(again)


@pytest.mark.parametrize("signing", [None, SIGNING])
def test_a_run_from_before_contracts_named_domains_goes_on_where_nobody_signed_it(tmp_path: Path, signing: Signing | None) -> None:
    federate(tmp_path, signing=signing)
    path = tmp_path / "run" / "contract.json"
    before = json.loads(path.read_text())
    del before["domains"]
    path.write_text(json.dumps(before | ({"signature": "0" * 128} if signing else {})))
    if signing is None:
        assert {hello.domains for hello in federate(tmp_path, resume=True)} == {""}
    else:
        with pytest.raises(FederationError, match="domains"):  # clients would refuse it: what was signed were other bytes
            federate(tmp_path, signing=signing, resume=True)


CHANGES: dict[str, dict[str, Any]] = {
    "another key": {"signing": Signing(signer=STRANGER, bundle_digest=BUNDLE)},
    "another bundle": {"signing": Signing(signer=KEY, bundle_digest=OTHER)},
    "other domains": {"signing": Signing(signer=KEY, bundle_digest=BUNDLE, domains="books")},
    "no key any more": {"signing": None},
    "another compute table": {
        "signing": SIGNING,
        "config": dataclasses.replace(CONFIG, compute=dataclasses.replace(CONFIG.compute, torch_threads=2)),
    },
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_is_not_resumed_under_another_contract_and_no_client_is_asked(tmp_path: Path, change: str) -> None:
    federate(tmp_path, signing=SIGNING)
    grid = Greetings(tmp_path / "disks")
    how = dict(CHANGES[change])
    with pytest.raises(FederationError, match="not the one this run was announced with"):
        run_federation(grid, how.pop("config", CONFIG), tmp_path / "run", text_dimension=TEXT, expected_clients=2, resume=True, **how)
    assert grid.said == []


def test_a_run_that_died_before_its_first_checkpoint_keeps_its_name_and_its_contract(tmp_path: Path) -> None:
    class Died(BaseException):
        pass

    def die(stage: str, done: int, total: int) -> None:
        del stage, done, total
        raise Died

    with pytest.raises(Died):
        federate(tmp_path, signing=SIGNING, progress=die)
    announced = json.loads((tmp_path / "run" / "contract.json").read_text())

    (hello, _) = federate(tmp_path, signing=SIGNING)
    assert (hello.run_id, hello.contract_signature) == (announced["run_id"], announced["signature"])


def test_what_was_announced_is_kept_and_another_run_may_follow(tmp_path: Path) -> None:
    one, other = (greeting(CONFIG, run, SIGNING) for run in ("run-1", "run-2"))
    keep(tmp_path, one)
    before = (tmp_path / "contract.json").read_bytes()
    keep(tmp_path, one)
    assert (tmp_path / "contract.json").read_bytes() == before
    keep(tmp_path, other)
    assert json.loads((tmp_path / "contract.json").read_text())["run_id"] == "run-2"


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000])
def test_a_damaged_record_of_the_contract_stops_the_run(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "contract.json").write_bytes(content)
    with pytest.raises(FederationError, match=r"contract\.json cannot be read"):
        keep(tmp_path, greeting(CONFIG, "run-1", SIGNING))


# --- beside the run's TOML -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "run.toml"
    path.parent.mkdir()
    path.write_text(CONFIG.to_toml())
    return path


def test_without_a_key_nothing_is_signed(source: Path) -> None:
    assert Signing.beside(source) is None


def test_the_key_and_the_bundle_beside_a_run_are_used_as_files_or_links(source: Path, tmp_path: Path) -> None:
    made = CoordinatorKey.create(tmp_path / "keys" / "coordinator.keys")
    source.with_name("coordinator.keys").symlink_to(tmp_path / "keys" / "coordinator.keys")
    found = Signing.beside(source)
    assert found is not None
    assert (found.signer.verify_key, found.bundle_digest) == (made.verify_key, "")

    source.with_name("bundle.sha256").write_text(BUNDLE + "\n")
    found = Signing.beside(source)
    assert found is not None
    assert found.bundle_digest == BUNDLE


def test_a_link_to_a_key_that_is_gone_is_an_error_and_no_unsigned_run(source: Path, tmp_path: Path) -> None:
    source.with_name("coordinator.keys").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match="cannot be read"):
        Signing.beside(source)


def test_a_bundle_without_a_key_to_sign_with_is_an_error(source: Path) -> None:
    source.with_name("bundle.sha256").write_text(BUNDLE)
    with pytest.raises(ConfigError, match=r"no coordinator\.keys"):
        Signing.beside(source)


@pytest.mark.parametrize("content", [b"", b"\xff", b"g" * 64, b"B" * 64, b"b" * 63, f"{BUNDLE} bundle.fab".encode()])
def test_a_digest_that_is_none_is_refused(source: Path, content: bytes) -> None:
    CoordinatorKey.create(source.with_name("coordinator.keys"))
    source.with_name("bundle.sha256").write_bytes(content)
    with pytest.raises(ConfigError, match="does not hold a sha256"):
        Signing.beside(source)


def test_the_server_app_signs_with_what_lies_beside_its_run(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Coordinator.__init__
    monkeypatch.setattr(Coordinator, "__init__", lambda self, **how: make(self, **({"text_dimension": TEXT} | how)))
    made = CoordinatorKey.create(source.with_name("coordinator.keys"))
    source.with_name("bundle.sha256").write_text(BUNDLE)
    grid = Greetings(source.parent / "disks")
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={"run": str(source)})

    for _ in range(2):  # and resumes with the same
        server_app.app(grid=grid, context=context)

    assert len(grid.said) == 4
    assert len({hello.contract_signature for hello in grid.said}) == 1
    assert all(signed(hello, made.verify_key) and hello.bundle_digest == BUNDLE for hello in grid.said)


def test_the_server_app_starts_no_unsigned_run_where_the_key_is_open_to_others(source: Path) -> None:
    CoordinatorKey.create(source.with_name("coordinator.keys"))
    source.with_name("coordinator.keys").chmod(0o644)
    grid = Greetings(source.parent / "disks")
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={"run": str(source)})
    with pytest.raises(ConfigError, match="chmod 600"):
        server_app.app(grid=grid, context=context)
    assert grid.said == []


def test_a_contract_that_everybody_refused_may_be_replaced_and_one_that_somebody_accepted_may_not(tmp_path: Path) -> None:
    hello = greeting(CONFIG, "run-1", SIGNING)
    assert keep(tmp_path, hello)  # for the first time
    assert not keep(tmp_path, hello)
    forget(tmp_path)
    other = Signing(signer=SigningPair.generate(), bundle_digest="c" * 64)
    assert keep(tmp_path, greeting(CONFIG, "run-1", other))
    with pytest.raises(FederationError, match="not the one this run was announced with"):
        keep(tmp_path, hello)
