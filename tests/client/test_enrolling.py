"""How a domain begins and joins: what is made, with which permissions, that nothing is overwritten, and that a cut-off call is finished."""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.primitives.asymmetric import bytes_to_public_key

from client import enrolling, settings_file
from client.enrolling import Begun, begin, join, make_node_key, partner_card, public_node_key
from client.keys import Keys
from client.settings import ClientSettings
from shared.config import Setting
from shared.enrolment import PartnerCard, PublicHalf
from shared.errors import ConfigError, DataError, LedgerError, UsageError
from shared.privacy.ledger import Ledger
from tests.client.coordinator_card import Coordinator

FILMS, MUSIC = (
    PublicHalf(partner=name, verify_key=Keys(seed, seed).verify_key, box_key=Keys(seed, seed).public(name).box_key)
    for name, seed in (("films", b"f" * 32), ("music", b"m" * 32))
)


def begun(folder: Path, *, with_ledger: bool = False, **changes: Any) -> Begun:
    return begin(folder, domain="books", changes={key.replace("__", "."): value for key, value in changes.items()}, with_ledger=with_ledger)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_domain_begins_with_settings_keys_and_a_card(tmp_path: Path) -> None:
    made = begun(tmp_path / "books", ceiling__epsilon=4.0, agreed__max_steps=500)

    card = PartnerCard.read(tmp_path / "books/PARTNER.json")
    assert card == made.card
    assert (card.domain, card.ceiling_epsilon, card.delta, card.ranges.max_steps, card.catalogue_hash) == ("books", 4.0, 1e-6, 500, None)
    assert card.verify_key == Keys.load(tmp_path / "books/home/keys/partner.keys").verify_key
    assert (
        card.node_key == public_node_key(tmp_path / "books/home/keys/node") == (tmp_path / "books/home/keys/node.pub").read_text().strip()
    )
    assert all(step.made for step in made.steps)
    assert not made.settings.ledger_path.exists()


def test_only_its_owner_may_look_into_any_of_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        begun(tmp_path / "books", with_ledger=True)
    finally:
        os.umask(before)

    for name in ("", "home", "home/keys"):
        assert stat.S_IMODE((tmp_path / "books" / name).stat().st_mode) == 0o700, name
    for path in (tmp_path / "books").rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_every_key_of_the_settings_is_explained_and_means_what_was_set(tmp_path: Path) -> None:
    made = begun(tmp_path / "books", data__items='odd "name".csv', passports__automatic=True, agreed__max_sampling_rate=0.25)

    text = (tmp_path / "books/partner.toml").read_text()
    assert ClientSettings.read(tmp_path / "books/partner.toml") == made.settings
    assert made.settings.data.items == 'odd "name".csv'
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if re.match(r"[a-z_]+ = ", line):
            assert lines[number - 1].startswith("# "), line
    left_out = {"benchmark"}
    values = tomllib.loads(text)
    for one in ClientSettings.__dataclass_fields__.values():
        if "setting" in one.metadata:
            about: Setting = one.metadata["setting"]
            assert about.help.split(";")[0][:40] in " ".join(text.replace("#", "").split()), one.name
        elif one.name not in {*left_out, "base"}:
            assert values[one.name].keys() == one.default_factory.__dataclass_fields__.keys()  # type: ignore[union-attr]


def test_a_second_call_keeps_everything_and_says_so(tmp_path: Path) -> None:
    first = begun(tmp_path / "books", with_ledger=True, ceiling__epsilon=4.0)
    before = contents(tmp_path / "books")

    second = begun(tmp_path / "books", with_ledger=True, ceiling__epsilon=4.0)

    assert not any(step.made for step in second.steps)
    assert contents(tmp_path / "books") == before
    assert second.card == first.card


@pytest.mark.parametrize("cut", range(1, 7))
def test_a_call_that_was_cut_off_is_finished_by_the_next(tmp_path: Path, cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = 0
    real = enrolling._make
    card = Coordinator().join_card(partners=[FILMS])

    def cut_off(path: Path, data: bytes) -> bool:
        nonlocal writes
        writes += 1
        if writes == cut:
            raise KeyboardInterrupt
        return real(path, data)

    monkeypatch.setattr(enrolling, "_make", cut_off)
    try:
        begun(tmp_path / "books", with_ledger=True)
        join(tmp_path / "books/partner.toml", card)
    except KeyboardInterrupt:
        pass
    else:
        pytest.fail("there was nothing to cut off")
    kept = contents(tmp_path / "books")
    monkeypatch.setattr(enrolling, "_make", real)

    made = begun(tmp_path / "books", with_ledger=True)
    joined = join(tmp_path / "books/partner.toml", card)

    after = contents(tmp_path / "books")
    assert PartnerCard.read(tmp_path / "books/PARTNER.json") == partner_card(made.settings)
    assert all(after[name] == data for name, data in kept.items() if "ledger" not in name and name != "partner.toml")
    assert joined.settings.server.coordinator_key == card.coordinator_key
    with Ledger.open(made.settings.ledger_path, read_only=True) as ledger:
        assert ledger.verify_key == made.card.verify_key


def test_the_node_key_is_what_flower_reads(tmp_path: Path) -> None:
    assert make_node_key(tmp_path / "node")
    assert not make_node_key(tmp_path / "node")
    private = serialization.load_ssh_private_key((tmp_path / "node").read_bytes(), password=None)
    spki = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert bytes_to_public_key(spki).key_size == 384  # type: ignore[attr-defined]


@pytest.mark.parametrize("content", [b"", b"no key", b"\xff" * 500])
def test_a_file_that_is_no_node_key_is_refused_and_stays(tmp_path: Path, content: bytes) -> None:
    begun(tmp_path / "books")
    (tmp_path / "books/home/keys/node").write_bytes(content)

    with pytest.raises(DataError, match="not ECDSA P-384"):
        begun(tmp_path / "books")
    assert (tmp_path / "books/home/keys/node").read_bytes() == content


def test_a_node_key_on_another_curve_is_refused(tmp_path: Path) -> None:
    form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    (tmp_path / "node").write_bytes(ec.generate_private_key(ec.SECP256R1()).private_bytes(*form))

    with pytest.raises(DataError, match="not ECDSA P-384"):
        public_node_key(tmp_path / "node")


def test_another_domain_and_other_settings_are_refused(tmp_path: Path) -> None:
    begun(tmp_path / "books", ceiling__epsilon=4.0)
    before = contents(tmp_path / "books")

    with pytest.raises(UsageError, match="belongs to the domain 'books'"):
        begin(tmp_path / "books", domain="films", changes={}, with_ledger=False)
    with pytest.raises(UsageError, match=r"says another 'ceiling\.epsilon'"):
        begun(tmp_path / "books", ceiling__epsilon=9.0)
    assert contents(tmp_path / "books") == before


def test_a_ledger_that_permits_something_else_is_refused(tmp_path: Path) -> None:
    begun(tmp_path / "books", with_ledger=True, ceiling__epsilon=4.0)
    toml = tmp_path / "books/partner.toml"
    toml.write_text(toml.read_text().replace("epsilon = 4.0", "epsilon = 9.0"))

    with pytest.raises(UsageError, match="permits something else"):
        begun(tmp_path / "books", with_ledger=True, ceiling__epsilon=9.0)
    assert PartnerCard.read(tmp_path / "books/PARTNER.json").ceiling_epsilon == 4.0


def test_where_a_ledger_was_lost_none_is_made(tmp_path: Path) -> None:
    begun(tmp_path / "books", with_ledger=True)
    ledger = tmp_path / "books/home/ledger.sqlite"
    ledger.rename(f"{ledger}.lost-1")

    with pytest.raises(LedgerError, match="was lost before"):
        begun(tmp_path / "books", with_ledger=True)


def test_the_card_tells_the_ceiling_of_the_ledger_and_not_of_the_settings(tmp_path: Path) -> None:
    made = begun(tmp_path / "books", with_ledger=True, ceiling__epsilon=4.0)
    keys = Keys.load(tmp_path / "books/home/keys/partner.keys")
    with Ledger.open(made.settings.ledger_path, signer=keys) as ledger:
        ledger.raise_ceiling(6.0, raised_by="A. Officer", why="a test")

    assert begun(tmp_path / "books").card.ceiling_epsilon == 6.0


def test_a_card_that_is_out_of_date_is_moved_aside_and_made_anew(tmp_path: Path) -> None:
    begun(tmp_path / "books")
    old = (tmp_path / "books/PARTNER.json").read_bytes()
    toml = tmp_path / "books/partner.toml"
    toml.write_text(toml.read_text().replace("max_steps = 10000", "max_steps = 77"))

    made = begun(tmp_path / "books")

    assert made.steps[-1].made
    assert PartnerCard.read(tmp_path / "books/PARTNER.json").ranges.max_steps == 77
    assert (tmp_path / "books/PARTNER.old-1.json").read_bytes() == old


def test_the_card_names_the_catalogue_where_it_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books/items.csv").write_text("item_id,title,categories\na,First,x\nb,Second,y\n")

    card = begun(tmp_path / "books").card

    assert card.catalogue_hash is not None
    assert re.fullmatch("[0-9a-f]{64}", card.catalogue_hash)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"ceiling.epsilo": 1.0}, "ceiling.epsilo"),
        ({"ceiling.epsilon": -1.0}, "ceiling.epsilon"),
        ({"nothing": 1}, "nothing"),
        ({"domain.x": 1}, "domain"),
    ],
)
def test_keys_that_do_not_exist_and_values_that_cannot_be_are_refused_before_anything_is_made(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        begin(tmp_path / "books", domain="books", changes=changes, with_ledger=False)
    assert not (tmp_path / "books").exists()


def test_a_domain_joins(tmp_path: Path) -> None:
    coordinator = Coordinator()
    begun(tmp_path / "books")

    made = join(tmp_path / "books/partner.toml", coordinator.join_card(partners=[FILMS, MUSIC]))

    server = made.settings.server
    assert (server.address, server.coordinator_key) == ("isthmus.example:8443", coordinator.signer.verify_key)
    assert (tmp_path / "books/home/server-ca.crt").read_text() == coordinator.ca_pem
    assert sorted(path.name for path in (tmp_path / "books/passports/partners").iterdir()) == ["films.json", "music.json"]
    assert all(step.made for step in made.steps)


def test_joining_changes_two_lines_of_the_settings_and_no_other(tmp_path: Path) -> None:
    begun(tmp_path / "books")
    toml = tmp_path / "books/partner.toml"
    toml.write_text("# mine\n" + toml.read_text().replace('items = "items.csv"', 'items = "my.csv"   # the big one'))
    before = toml.read_text().splitlines()

    join(toml, Coordinator().join_card())

    changed = [(old, new) for old, new in zip(before, toml.read_text().splitlines(), strict=True) if old != new]
    assert [old for old, _ in changed] == ['address = ""', 'coordinator_key = ""']
    assert stat.S_IMODE(toml.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "text",
    [
        'domain = "books"\n',
        'domain = "books"\n[server] # mine\n[consent]\n',
        'domain = "books"\n[server]\nport=7\naddress=""#x\n\n[data]\n',
    ],
)
def test_settings_that_were_written_by_hand_are_filled_in_too(tmp_path: Path, text: str) -> None:
    begun(tmp_path / "books")
    toml = tmp_path / "books/partner.toml"
    toml.write_text(text)

    made = join(toml, Coordinator().join_card())

    assert made.settings.server.address == "isthmus.example:8443"
    assert made.settings.server.port == (7 if "port" in text else 0)


@pytest.mark.parametrize("text", ['domain = "books"\nserver = {port = 7}\n', 'domain = "books"\nserver.port = 7\n'])
def test_settings_without_a_place_to_fill_in_stay_as_they_are_and_the_lines_are_named(tmp_path: Path, text: str) -> None:
    begun(tmp_path / "books")
    toml = tmp_path / "books/partner.toml"
    toml.write_text(text)

    with pytest.raises(UsageError, match=r'by hand:\n    address = "isthmus\.example:8443"'):
        join(toml, Coordinator().join_card())
    assert toml.read_text() == text


def test_joining_twice_changes_nothing_and_a_new_partner_is_added(tmp_path: Path) -> None:
    coordinator = Coordinator()
    begun(tmp_path / "books")
    toml = tmp_path / "books/partner.toml"
    join(toml, coordinator.join_card(partners=[FILMS]))
    before = contents(tmp_path / "books")

    again = join(toml, coordinator.join_card(partners=[FILMS]))
    assert contents(tmp_path / "books") == before
    assert not any(step.made for step in again.steps)

    later = join(toml, coordinator.join_card(partners=[FILMS, MUSIC]))
    assert [step.what for step in later.steps if step.made] == ["public keys of 'music'"]


def _other_authority(card: Coordinator) -> Coordinator:
    return Coordinator(signer=card.signer)


def _other_key(card: Coordinator) -> Coordinator:
    return Coordinator(key=card.key)


@pytest.mark.parametrize("other", [_other_authority, _other_key, lambda _: Coordinator()])
def test_another_coordinator_does_not_take_the_place_of_the_first(tmp_path: Path, other: Callable[[Coordinator], Coordinator]) -> None:
    coordinator = Coordinator()
    begun(tmp_path / "books")
    toml = tmp_path / "books/partner.toml"
    join(toml, coordinator.join_card())
    before = contents(tmp_path / "books")

    stranger = other(coordinator)
    if stranger.key is coordinator.key:
        stranger.certificate = coordinator.certificate
    with pytest.raises(UsageError, match=r"another"):
        join(toml, stranger.join_card(partners=[FILMS]))
    after = contents(tmp_path / "books")
    assert {name: after[name] for name in before} == before


def test_other_keys_of_a_known_partner_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    begun(tmp_path / "books")
    forged = PublicHalf(partner="films", verify_key=MUSIC.verify_key, box_key=FILMS.box_key)
    (tmp_path / "books/passports/partners/whatever.json").write_text(FILMS.to_json())
    before = contents(tmp_path / "books")

    with pytest.raises(UsageError, match="other keys of 'films'"):
        join(tmp_path / "books/partner.toml", Coordinator().join_card(partners=[forged]))
    assert contents(tmp_path / "books") == before


def test_a_card_for_another_domain_with_an_old_authority_or_another_fingerprint_is_refused(tmp_path: Path) -> None:
    begun(tmp_path / "books")
    toml = tmp_path / "books/partner.toml"
    before = contents(tmp_path / "books")
    coordinator = Coordinator()
    card = coordinator.join_card()

    with pytest.raises(UsageError, match="written for the domain 'films'"):
        join(toml, coordinator.join_card(domain="films"))
    with pytest.raises(DataError, match="authority's certificate ended"):
        join(toml, Coordinator(days=-1).join_card())
    with pytest.raises(UsageError, match="fingerprint"):
        join(toml, card, expected=Coordinator().join_card().fingerprint)
    assert contents(tmp_path / "books") == before

    join(toml, card, expected=card.fingerprint.upper().replace(" ", ""))


def test_an_invitation_for_everybody_is_taken(tmp_path: Path) -> None:
    begun(tmp_path / "books")

    made = join(tmp_path / "books/partner.toml", Coordinator().join_card(domain=None))

    assert made.settings.server.address == "isthmus.example:8443"


def test_the_card_fits_what_its_reader_expects(tmp_path: Path) -> None:
    begun(tmp_path / "books")

    raw = json.loads((tmp_path / "books/PARTNER.json").read_text())

    assert raw["format"] == "isthmus-partner-1"
    assert settings_file.plain_value("x y") == "x y"
    assert "\n" not in raw["node_key"]
    assert raw["node_key"].count(" ") == 1  # no comment: it would name a person and a machine
