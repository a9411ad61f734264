"""Enrolment: a partner is known by its signed card, and what a run relies on changes only with a reason."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.enrolment import HISTORY_FILE, Enrolled, cards, enroll, listed, node_key_file, refresh, remove
from server.home import Home
from server.partners import Partners
from server.settings import ServerSettings
from shared.enrolment import JoinCard, PartnerCard, PublicHalf, Ranges
from shared.errors import ConfigError, DataError, UsageError
from shared.privacy.signing import SigningPair
from tests.shared.cards import node_key, partner_card

BOOKS, FILMS, THIEF = (SigningPair(bytes([number]) * 32) for number in (1, 2, 3))
BOOKS_NODE, FILMS_NODE = node_key(), node_key()


def books(signer: SigningPair = BOOKS, **changed: Any) -> PartnerCard:
    return partner_card(signer, **{"domain": "books", "node_key": BOOKS_NODE, "catalogue_hash": "b0" * 32, **changed})


def films(**changed: Any) -> PartnerCard:
    return partner_card(FILMS, **{"domain": "films", "node_key": FILMS_NODE, "box_key": "f1" * 32, "catalogue_hash": "f0" * 32, **changed})


def half(card: PartnerCard) -> PublicHalf:
    return PublicHalf(partner=card.domain, verify_key=card.verify_key, box_key=card.box_key)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "home", ServerSettings(hosts="isthmus.example")).home


def history(home: Home) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (home.partners / HISTORY_FILE).read_text().splitlines()]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_what_was_agreed_is_what_runs_are_held_to(home: Home) -> None:
    done = enroll(home, books(ceiling_epsilon=4.0))
    register = Partners.from_toml(home.partners_file.read_text())
    assert (done.changed, done.told, done.remarks) == (None, (), ())
    assert register.expected == 1
    assert (register.ceiling_of("books"), register.key_of("books")) == (4.0, BOOKS.verify_key)
    assert node_key_file(home, "books").read_text() == f"{BOOKS_NODE} books\n"
    assert cards(home) == {"books": books(ceiling_epsilon=4.0)}
    assert [line["what"] for line in history(home)] == ["enrolled"]


def test_a_partner_gets_a_card_and_the_others_learn_its_keys(home: Home) -> None:
    first = enroll(home, books())
    second = enroll(home, films())
    assert (second.join_card, second.told) == (home.join / "films.json", ("books",))
    theirs, ours = JoinCard.read(first.join_card), JoinCard.read(second.join_card)
    assert (theirs.domain, theirs.partners) == ("books", (half(films()),))
    assert (ours.domain, ours.partners) == ("films", (half(books()),))
    assert theirs.fingerprint == ours.fingerprint == JoinCard.read(home.invitation).fingerprint


def test_the_same_card_again_changes_nothing(home: Home) -> None:
    enroll(home, books())
    before = contents(home.root)
    assert enroll(home, books()).changed == ()
    assert contents(home.root) == before


def test_a_domain_that_comes_with_another_key_is_refused_unless_somebody_says_why(home: Home) -> None:
    enroll(home, books())
    before = contents(home.root)
    with pytest.raises(DataError, match="enrolled with another key"):
        enroll(home, books(THIEF))
    assert contents(home.root) == before
    with pytest.raises(UsageError, match="reason"):
        enroll(home, books(THIEF), replace="  ")
    done = enroll(home, books(THIEF), replace="the disk burned, confirmed by telephone")
    assert done.changed == ("verify_key",)
    assert Partners.from_toml(home.partners_file.read_text()).key_of("books") == THIEF.verify_key
    last = history(home)[-1]
    assert (last["what"], last["reason"]) == ("changed", "the disk burned, confirmed by telephone")
    assert PartnerCard.from_json(json.dumps(last["card"])) == books(THIEF)  # with its signature: it can be checked later


def test_a_run_learns_which_catalogue_a_partner_enrolled_with(home: Home) -> None:
    enroll(home, books())
    enroll(home, films(catalogue_hash=None))
    known = Partners.from_toml(home.partners_file.read_text())
    assert books().catalogue_hash is not None
    assert known.other_catalogues({"books": books().catalogue_hash, "films": "0" * 64}) == []
    assert known.other_catalogues({"books": "0" * 64, "films": "0" * 64, "games": "0" * 64}) == ["books"]
    enroll(home, books(catalogue_hash="0" * 64))
    assert Partners.from_toml(home.partners_file.read_text()).other_catalogues({"books": "0" * 64}) == []


def test_a_ceiling_goes_down_by_the_partners_word_and_up_with_a_reason(home: Home) -> None:
    enroll(home, books(ceiling_epsilon=8.0))
    assert enroll(home, books(ceiling_epsilon=4.0)).changed == ("ceiling_epsilon",)
    with pytest.raises(DataError, match="lower ceiling: 4, not 8"):  # an old card, found somewhere
        enroll(home, books(ceiling_epsilon=8.0))
    enroll(home, books(ceiling_epsilon=8.0), replace="agreed on 1 March")
    assert Partners.from_toml(home.partners_file.read_text()).ceiling_of("books") == 8.0


def test_an_entry_that_was_written_by_hand_counts_as_agreed_and_others_stay(home: Home) -> None:
    home.partners_file.write_text(f'[games]\n[books]\nceiling_epsilon = 2.0\nverify_key = "{THIEF.verify_key}"\n')
    with pytest.raises(DataError, match="another key"):
        enroll(home, books(ceiling_epsilon=1.0))
    with pytest.raises(DataError, match="lower ceiling"):
        enroll(home, books(THIEF, ceiling_epsilon=3.0))
    enroll(home, books(ceiling_epsilon=1.0), replace="the entry was a guess")
    by_domain = {one.domain: one for one in listed(home)}
    assert by_domain["games"].card is None
    assert by_domain["games"].agreement.verify_key == ""
    assert by_domain["books"].agreement.ceiling_epsilon == 1.0
    assert Partners.from_toml(home.partners_file.read_text()).ceiling_of("games") == float("inf")


@pytest.mark.parametrize("changed", [{"box_key": "0d" * 32}, {"node_key": node_key()}, {"catalogue_hash": None}])
def test_what_the_partner_changed_itself_is_taken_over_and_told(home: Home, changed: dict[str, Any]) -> None:
    enroll(home, films())
    enroll(home, books())
    done = enroll(home, books(**changed))
    assert done.changed == tuple(changed)
    assert done.told == (("films",) if "box_key" in changed else ())
    assert cards(home)["books"] == books(**changed)


@pytest.mark.parametrize("field", ["verify_key", "box_key", "node_key"])
def test_no_key_speaks_for_two_domains(home: Home, field: str) -> None:
    enroll(home, books())
    with pytest.raises(DataError, match=f"the {field} of 'films' is the one of 'books'"):
        enroll(home, books(domain="films") if field == "verify_key" else films(**{field: getattr(books(), field)}))
    assert set(cards(home)) == {"books"}


@pytest.mark.parametrize(
    ("changed", "said"), [({"ceiling_epsilon": 20.5}, "is above 20"), ({"delta": 1e-5}, "delta 1e-05, and runs here have 1e-06")]
)
def test_what_this_coordinator_does_not_do_is_refused_before_anything_is_written(home: Home, changed: dict[str, Any], said: str) -> None:
    before = contents(home.root)
    with pytest.raises(DataError, match=said):
        enroll(home, books(**changed), replace="even with a reason")
    assert set(contents(home.root)) - {".lock"} == set(before) - {".lock"}


def test_a_partner_that_would_refuse_the_usual_run_is_told_of(home: Home) -> None:
    narrow = books(ranges=Ranges(max_sampling_rate=0.05, max_clip_norm=10.0, max_steps=100), catalogue_hash=None)
    said = " ".join(enroll(home, narrow).remarks)
    assert "sampling_rate is above the agreed 0.05" in said
    assert "more steps than the agreed 100" in said
    assert "says only some of its ranges" in said
    assert "not prepared" in said
    assert any("word for word the one of 'films'" in line for line in twice(home).remarks)


def twice(home: Home) -> Enrolled:
    enroll(home, films())
    return enroll(home, books(catalogue_hash=films().catalogue_hash))


def test_a_removed_partner_leaves_every_list_but_the_history(home: Home) -> None:
    enroll(home, books())
    enroll(home, films())
    assert remove(home, "books", reason="the agreement ended") == ("films",)
    assert [one.domain for one in listed(home)] == ["films"]
    assert JoinCard.read(home.join / "films.json").partners == ()
    assert not any(path.name.startswith("books") for path in home.root.rglob("*"))
    assert [(line["what"], line["domain"], line["reason"]) for line in history(home)][-1] == ("removed", "books", "the agreement ended")
    with pytest.raises(UsageError, match="Enrolled: films"):
        remove(home, "books", reason="twice")
    with pytest.raises(UsageError, match="reason"):
        remove(home, "films", reason=" ")
    remove(home, "films", reason="all leave")
    assert Partners.from_toml(home.partners_file.read_text()).expected == 0  # nobody may take part, which is not: anybody


def test_a_name_is_never_a_path(home: Home) -> None:
    (home.root / "secrets" / "x.json").write_text("{}")
    with pytest.raises(UsageError, match="no partner of this name"):
        remove(home, "../secrets/x", reason="attack")
    assert (home.root / "secrets" / "x.json").exists()


def test_a_card_that_was_changed_in_the_home_is_found(home: Home) -> None:
    enroll(home, books())
    path = home.partners / "books.json"
    path.write_text(path.read_text().replace('"ceiling_epsilon": 8.0', '"ceiling_epsilon": 18.0'))
    with pytest.raises(ConfigError, match="signature"):
        listed(home)
    path.rename(home.partners / "films.json")
    (home.partners / "films.json").write_text(books().to_json())
    with pytest.raises(ConfigError, match="card of another domain"):
        enroll(home, films())


@pytest.mark.parametrize("text", ["[books", "[books]\nceiling = 1\n", "[Bo oks]\n"])
def test_a_list_that_cannot_be_read_is_named_and_stays(home: Home, text: str) -> None:
    home.partners_file.write_text(text)
    with pytest.raises(ConfigError, match=r"partners\.toml"):
        enroll(home, books())
    assert home.partners_file.read_text() == text


def test_cards_follow_the_address_of_the_server(home: Home) -> None:
    enroll(home, books())
    assert refresh(home) == ()
    home.settings_file.write_text(home.settings_file.read_text().replace("port = 8443", "port = 443"))
    assert refresh(Home.open(home.root)) == ("books",)
    assert JoinCard.read(home.join / "books.json").server == "isthmus.example:443"


@pytest.mark.journey
def test_an_enrolment_that_was_killed_at_any_moment_is_completed_by_the_same_call(home: Home, repository: Path, tmp_path: Path) -> None:
    """Killed before each file that it puts in place: the second call ends where an undisturbed one does."""
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from server.enrolment import enroll; from server.home import Home; from shared.enrolment import PartnerCard\n"
        "home, card, left = Home.open(Path(sys.argv[1])), PartnerCard.read(Path(sys.argv[2])), [int(sys.argv[3])]\n"
        "def hook(event, args):\n"
        "    if event == 'os.rename':\n"
        "        left[0] -= 1\n"
        "        if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(hook)\n"
        "enroll(home, card)\n"
    )
    enroll(home, films())
    card = tmp_path / "PARTNER.json"
    killed = 0
    for moment in range(1, 20):
        fresh = Home.create(tmp_path / f"home-{moment}", home.settings).home
        enroll(fresh, films())
        card.write_text(books().to_json())
        command = [sys.executable, "-c", program, str(fresh.root), str(card), str(moment)]
        died = subprocess.run(command, cwd=repository, check=False).returncode
        if died == 0:
            break
        assert died == -signal.SIGKILL
        killed += 1
        enroll(fresh, books())
        assert {one.domain: one.card for one in listed(fresh)} == {"books": books(), "films": films()}
        assert JoinCard.read(fresh.join / "films.json").partners == (half(books()),)
        assert JoinCard.read(fresh.join / "books.json").partners == (half(films()),)
        assert node_key_file(fresh, "books").exists()
        assert "enrolled" in [line["what"] for line in history(fresh) if line["domain"] == "books"]
    assert killed == 5  # its card, its node's key, the list, two cards for partners


@pytest.mark.journey
def test_two_enrolments_at_once_both_count(home: Home, repository: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from server.enrolment import enroll; from server.home import Home; from shared.enrolment import PartnerCard\n"
        "enroll(Home.open(Path(sys.argv[1])), PartnerCard.read(Path(sys.argv[2])))\n"
    )
    started = []
    for card in (books(), films()):
        path = tmp_path / f"{card.domain}.json"
        path.write_text(card.to_json())
        started.append(subprocess.Popen([sys.executable, "-c", program, str(home.root), str(path)], cwd=repository))
    assert [process.wait(timeout=60) for process in started] == [0, 0]
    assert [one.domain for one in listed(home)] == ["books", "films"]
    assert len(JoinCard.read(home.join / "books.json").partners) == len(JoinCard.read(home.join / "films.json").partners) == 1


def test_nothing_of_a_partner_can_be_read_by_others(home: Home) -> None:
    enroll(home, books())
    assert {path.stat().st_mode & 0o077 for path in home.root.rglob("*")} == {0}
    assert os.stat(home.root).st_mode & 0o077 == 0
