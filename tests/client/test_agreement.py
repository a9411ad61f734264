"""A run that the coordinator did not sign is refused before anything is opened, and a signed one is held to what was signed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from client import queries, rounds
from client.app import build_client_app
from client.preparation import prepare
from client.settings import AgreedRanges, ClientSettings, ServerSettings
from shared import contract, wire
from shared.config import PROTOCOL, RunConfig
from shared.errors import ConfigError, Refusal
from shared.privacy.ledger import read_events
from shared.privacy.manifest import read_manifest
from shared.privacy.signing import SigningPair
from tests.client.gated_domain import context, received
from tests.client.opened_files import opened_below, take_data_away
from tests.client.partner_world import CONFIG, RUN, World, descriptor_query, instruction
from tests.shared.privacy.bookshop import STRANGER

COORDINATOR = SigningPair(b"the coordinator of these tests.."[:32])
SERVER = ServerSettings(address="isthmus.example:8443", coordinator_key=COORDINATOR.verify_key)
BUNDLE, OTHER = "b" * 64, "c" * 64


def partner(world: World, **changes: Any) -> ClientSettings:
    return dataclasses.replace(world["books"], **{"server": SERVER, **changes})


def changed(table: str, **values: Any) -> RunConfig:
    return dataclasses.replace(CONFIG, **{table: dataclasses.replace(getattr(CONFIG, table), **values)})


def signed(
    config: RunConfig | str = CONFIG,
    *,
    signer: SigningPair = COORDINATOR,
    run_id: str = "run-2",
    bundle: str = BUNDLE,
    domains: str = "books,films",
) -> wire.Hello:
    text = config if isinstance(config, str) else config.to_toml()
    said = {"config_toml": text, "run_id": run_id, "bundle_digest": bundle, "domains": domains}
    return wire.Hello(contract_signature=contract.sign(signer, **said), **said)


def events(settings: ClientSettings, kind: str) -> list[dict[str, Any]]:
    return [dict(event.payload) for event in read_events(settings.ledger_path) if event.kind == kind]


def replace(question: wire.Hello, **changes: Any) -> wire.Hello:
    return dataclasses.replace(question, **changes)


TAMPERED: dict[str, tuple[wire.Hello, str | None]] = {
    "no signature": (replace(signed(), contract_signature=""), BUNDLE),
    "a signature by somebody else": (signed(signer=STRANGER), BUNDLE),
    "a signature of nothing": (replace(signed(), contract_signature="0" * 128), BUNDLE),
    "less noise": (replace(signed(), config_toml=changed("privacy", noise_multiplier=3.9999).to_toml()), BUNDLE),
    "another seed": (replace(signed(), config_toml=dataclasses.replace(CONFIG, seed=4).to_toml()), BUNDLE),
    "other settings for speed": (replace(signed(), config_toml=changed("compute", torch_threads=2).to_toml()), BUNDLE),
    "a blank more": (replace(signed(), config_toml=CONFIG.to_toml() + "\n"), BUNDLE),
    "no TOML at all": (replace(signed(), config_toml="[" * 60_000), BUNDLE),
    "a configuration outside of every range": (replace(signed(), config_toml=changed("privacy", noise="none").to_toml()), BUNDLE),
    "the signature of another run": (replace(signed(run_id="run-1"), run_id="run-2"), BUNDLE),
    "another bundle in the message": (replace(signed(), bundle_digest=OTHER), None),
    "another bundle that runs": (signed(), OTHER),
    "another bundle, signed anew": (signed(bundle=OTHER), BUNDLE),
    "no bundle, where it is known which runs": (signed(bundle=""), BUNDLE),
    "a domain more in the message": (replace(signed(domains="films"), domains="books,films"), BUNDLE),
    "a domain less in the message": (replace(signed(), domains="books"), BUNDLE),
    "a contract for others": (signed(domains="films,games"), BUNDLE),
    "a contract for a longer name": (signed(domains="bookshop,my-books"), BUNDLE),
    "a contract for nobody": (signed(domains=""), BUNDLE),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_what_the_coordinator_did_not_sign_is_refused_and_nothing_is_opened(world: World, case: str) -> None:
    question, running = TAMPERED[case]
    settings = partner(world)
    take_data_away(settings.base)

    with opened_below(world.root) as opened, pytest.raises(Refusal) as refused:
        queries.hello(settings, question, running=running)

    assert (refused.value.code, opened) == ("signature", [])
    assert len(events(settings, "schedule")) == 1  # of the run before
    assert queries.CurrentRun(settings).run_id() == RUN


def test_what_the_coordinator_signed_is_admitted_and_recorded(world: World) -> None:
    """So what the test above refuses is the tampering; and this is a run that opens the ledger, and no data."""
    settings = partner(world)
    take_data_away(settings.base)
    with opened_below(world.root / "books") as opened:
        reply = queries.hello(settings, signed(), running=BUNDLE)

    assert reply == wire.HelloReply(domain="books")
    assert [plan["plan_signature"] for plan in events(settings, "schedule")] == [None, signed().contract_signature]
    assert any("ledger.sqlite" in path for path in opened)
    assert not any(name in path for path in opened for name in (".csv", "prepared", "serving", "state/", "passports"))


@pytest.mark.parametrize("question", [signed(), signed(bundle="")], ids=["names a bundle", "names none"])
def test_where_nobody_says_which_bundle_runs_the_signature_alone_decides(world: World, question: wire.Hello) -> None:
    assert queries.hello(partner(world), question).domain == "books"


@pytest.mark.parametrize("test_builds", [False, True])
@pytest.mark.parametrize("question", [signed(), replace(signed(), contract_signature="")], ids=["signed", "unsigned"])
def test_a_server_without_a_key_is_refused_whatever_it_signs(world: World, question: wire.Hello, test_builds: bool) -> None:
    settings = partner(world, server=ServerSettings(address="isthmus.example:8443"), agreed=AgreedRanges(test_builds=test_builds))
    with opened_below(world.root) as opened, pytest.raises(Refusal, match="names a server and not its coordinator's key") as refused:
        queries.hello(settings, question)
    assert (refused.value.code, opened) == ("signature", [])


def test_in_a_simulation_nobody_signs_and_what_nobody_checked_is_not_recorded(world: World) -> None:
    settings = partner(world, server=ServerSettings())
    assert queries.hello(settings, signed(signer=STRANGER), running=OTHER).domain == "books"
    assert [plan["plan_signature"] for plan in events(settings, "schedule")] == [None, None]


def test_the_protocol_is_looked_at_first(world: World) -> None:
    with pytest.raises(Refusal) as refused:
        queries.hello(partner(world), replace(signed(), protocol=PROTOCOL + 1, contract_signature=""))
    assert refused.value.code == "version"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name = 'run'",
        CONFIG.to_toml() + "# a word\n",
        CONFIG.to_toml().replace("seed = 3", "seed = 0x3"),
        CONFIG.to_toml().replace("seed = 3", f"seed = {'9' * 5000}"),
        CONFIG.to_toml().replace("epsilon = 8.0", f"epsilon = {'9' * 400}"),
        CONFIG.to_toml().replace("epsilon = 8.0", "epsilon = nan"),
        CONFIG.to_toml().replace("noise_multiplier = 4.0", "noise_multiplier = 4"),
        CONFIG.to_toml().replace("sampling_rate = 0.2", "sampling_rate = 2.0"),
        CONFIG.to_toml() + "[more]\n",
        "a = " + "[" * 60_000,
        "\x00",
    ],
    ids=range(12),
)
def test_a_signed_text_that_is_no_canonical_configuration_is_refused_as_range(world: World, text: str) -> None:
    """The coordinator itself may be careless, or hostile: a signature does not make a text a configuration."""
    settings = partner(world)
    take_data_away(settings.base)
    with opened_below(world.root) as opened, pytest.raises(Refusal) as refused:
        queries.hello(settings, signed(text), running=BUNDLE)
    assert (refused.value.code, opened) == ("range", [])


def test_a_resumed_run_goes_on_under_its_contract_alone(world: World) -> None:
    settings = partner(world)
    for _ in range(2):
        queries.hello(settings, signed(), running=BUNDLE)
    assert len(events(settings, "schedule")) == 2  # the run before, and this one once

    for question, running in ((signed(bundle=OTHER), OTHER), (signed(changed("compute", torch_threads=2)), BUNDLE)):
        with pytest.raises(Refusal, match="another plan was admitted under this run id") as refused:
            queries.hello(settings, question, running=running)
        assert refused.value.code == "range"
    assert len(events(settings, "schedule")) == 2


# --- at each round -------------------------------------------------------------------------------------------------------------------


def greeted(world: World, settings: ClientSettings, question: wire.Hello) -> None:
    space = prepare(settings, CONFIG).space(world.space_version)
    queries.hello(settings, question, running=BUNDLE if question.contract_signature else None)
    queries.descriptor(settings, descriptor_query(space))


def train(settings: ClientSettings, running: str | None = BUNDLE) -> wire.TransferUpdate:
    return rounds.train(settings, instruction(1, "run-2"), bundle_digest=BUNDLE, code_version="0", running=running)


def assert_refused(world: World, settings: ClientSettings, code: str, running: str | None = BUNDLE) -> None:
    before = len(events(settings, "intent"))
    with opened_below(world.root / "books") as opened, pytest.raises(Refusal) as refused:
        train(settings, running)
    assert refused.value.code == code
    assert {Path(path).parts[:2] for path in opened} == {("home", "run")}  # what hello left there, and nothing else
    assert len(events(settings, "intent")) == before


def test_a_round_is_computed_by_the_code_that_was_signed(world: World) -> None:
    """Two bundles may be on a partner's list; a coordinator that greets with one may not send the round to the other."""
    settings = partner(world)
    greeted(world, settings, signed())

    assert_refused(world, settings, "signature", running=OTHER)
    assert train(settings).receipt.count_of_intents == 1


def test_a_run_that_was_greeted_before_the_partner_knew_the_key_does_not_go_on(world: World) -> None:
    unsigned = replace(signed(), contract_signature="", bundle_digest="", domains="")
    greeted(world, partner(world, server=ServerSettings()), unsigned)
    assert_refused(world, partner(world), "signature", running=None)


def test_a_run_does_not_go_on_under_another_coordinators_key(world: World) -> None:
    greeted(world, partner(world), signed())
    other = dataclasses.replace(SERVER, coordinator_key=STRANGER.verify_key)
    assert_refused(world, partner(world, server=other), "signature")


@pytest.mark.parametrize(
    "content", [None, "", "\n", "x" * 300, signed(signer=STRANGER).contract_signature + "\n" + BUNDLE + "\nbooks,films"]
)
def test_what_hello_left_on_the_disk_is_checked_like_what_came(world: World, content: str | None) -> None:
    settings = partner(world)
    greeted(world, settings, signed())
    kept = settings.at_home("run") / "contract"
    kept.unlink() if content is None else kept.write_text(content)
    assert_refused(world, settings, "signature")


def test_a_range_that_the_partner_narrows_holds_from_the_next_round_on(world: World) -> None:
    settings = partner(world)
    greeted(world, settings, signed())
    narrow = dataclasses.replace(settings, agreed=AgreedRanges(max_clip_norm=0.1))
    assert_refused(world, narrow, "range")
    assert train(settings).receipt.count_of_intents == 1


# --- through the gate ----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("flower_process")
@pytest.mark.parametrize("case", ["less noise", "no signature", "another bundle that runs"])
def test_of_a_refusal_its_code_alone_leaves(world: World, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    question, running = TAMPERED[case]
    settings = partner(world)
    settings.write(world.root / "books" / "partner.toml")
    if running is not None:
        monkeypatch.setenv("ISTHMUS_BUNDLE_DIGEST", running)  # as the partner's guard sets it
    take_data_away(settings.base)
    app = build_client_app(lambda _: ClientSettings.read(world.root / "books" / "partner.toml"))

    reply = app(received(question.pack(), wire.HELLO), context())

    assert reply.content == wire.Refused("signature").pack()
    last = read_manifest(settings.at_home("egress.jsonl")).lines[-1]
    assert (last.event, last.kind, last.schema) == ("left", wire.HELLO, "Refused")


@pytest.mark.usefixtures("flower_process")
def test_the_bundle_that_the_guard_names_is_the_one_that_is_compared(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    partner(world).write(world.root / "books" / "partner.toml")
    monkeypatch.setenv("ISTHMUS_BUNDLE_DIGEST", BUNDLE)
    app = build_client_app(lambda _: ClientSettings.read(world.root / "books" / "partner.toml"))
    reply = app(received(signed().pack(), wire.HELLO), context())
    assert reply.content == wire.HelloReply(domain="books").pack()


# --- the partner's settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["0" * 63, "0" * 65, "G" * 64, COORDINATOR.verify_key.upper(), COORDINATOR.verify_key + "\n", "key.pub"])
def test_a_coordinators_key_that_is_none_is_refused_when_the_settings_are_read(tmp_path: Path, key: str) -> None:
    path = tmp_path / "partner.toml"
    path.write_text(f'domain = "books"\n[server]\ncoordinator_key = {key!r}\n'.replace("'", '"'))
    with pytest.raises(ConfigError, match=r"server\.coordinator_key"):
        ClientSettings.read(path)


def test_a_server_written_and_read_back_is_equal(tmp_path: Path) -> None:
    settings = ClientSettings(domain="books", server=SERVER)
    settings.write(tmp_path / "partner.toml")
    assert ClientSettings.read(tmp_path / "partner.toml") == settings
