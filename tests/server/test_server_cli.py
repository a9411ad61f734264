"""`isthmus-server` as a coordinator types it: every answer, every refusal and its exit code, and no traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.cli import main
from shared.enrolment import JoinCard
from shared.privacy.signing import SigningPair
from tests.shared.cards import node_key, partner_card

BOOKS = SigningPair(b"\1" * 32)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return int(left.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def home(tmp_path: Path, run: Run) -> Path:
    assert run("init", tmp_path / "home", "--host", "isthmus.example")[0] == 0
    return tmp_path / "home"


def card(folder: Path, signer: SigningPair = BOOKS, **changed: Any) -> Path:
    path = folder / f"PARTNER-{len(list(folder.iterdir()))}.json"
    path.write_text(partner_card(signer, **changed).to_json())
    return path


def test_from_nothing_to_an_enrolled_partner_in_two_commands(tmp_path: Path, run: Run) -> None:
    code, out, err = run("init", tmp_path / "home", "--host", "isthmus.example", "--host", "192.0.2.7", "--port", 443)
    invitation = JoinCard.read(tmp_path / "home" / "JOIN.json")
    assert (code, err) == (0, "")
    assert "partners reach isthmus.example:443" in out
    assert invitation.fingerprint in out
    code, out, err = run("enroll", tmp_path / "home", card(tmp_path))
    assert (code, err) == (0, "")
    assert "'books' enrolled: ceiling 8 (delta 1e-06, unit: user)" in out
    assert str(tmp_path / "home" / "join" / "books.json") in out


def test_a_home_is_finished_but_never_turned_into_another(tmp_path: Path, run: Run, home: Path) -> None:
    (home / "tls" / "server.pem").unlink()
    assert "new: tls/server.pem" in run("init", home)[1]
    assert "nothing is missing" in run("init", home, "--host", "isthmus.example", "--port", 8443)[1]
    for words, said in (
        (("--host", "other.example"), "renew --host"),
        (("--port", 443), "another port"),
        (("--superlink-port", 1), "another"),
    ):
        code, _, err = run("init", home, *words)
        assert code == 2
        assert said in err
    code, _, err = run("init", tmp_path / "new")
    assert code == 2
    assert "--host" in err
    code, _, err = run("init", tmp_path, "--host", "isthmus.example")
    assert code == 3
    assert "not empty" in err


def test_a_document_says_what_the_words_say(tmp_path: Path, run: Run) -> None:
    home = tmp_path / "home"
    made = json.loads(run("init", home, "--host", "isthmus.example", "--json")[1])
    assert made["server"] == "isthmus.example:8443"
    assert made["fingerprint"] == JoinCard.read(home / "JOIN.json").fingerprint
    first = json.loads(run("enroll", home, card(tmp_path), "--json")[1])
    assert (first["domain"], first["new"], first["send_again"]) == ("books", True, [])
    films = card(tmp_path, SigningPair(b"\2" * 32), domain="films", node_key=node_key(), box_key="f1" * 32)
    _, out, err = run("enroll", home, films, "--json")
    assert json.loads(out)["send_again"] == [str(home / "join" / "books.json")]
    assert "warning: its catalogue is word for word the one of 'books'" in err
    listed = json.loads(run("partners", "list", home, "--json")[1])
    assert [one["domain"] for one in listed["partners"]] == ["books", "films"]
    assert listed["partners"][0]["card"]["verify_key"] == BOOKS.verify_key
    removed = json.loads(run("partners", "remove", home, "books", "--reason", "it ended", "--json")[1])
    assert removed == {"domain": "books", "removed": True, "send_again": [str(home / "join" / "films.json")]}
    renewed = json.loads(run("renew", home, "--within", 60, "--json")[1])
    assert renewed["renewed"] is False


def test_another_key_needs_a_reason(tmp_path: Path, run: Run, home: Path) -> None:
    run("enroll", home, card(tmp_path))
    other = card(tmp_path, SigningPair(b"\3" * 32))
    code, _, err = run("enroll", home, other)
    assert code == 4
    assert "'books' is enrolled with another key" in err
    assert "--replace" in err
    assert run("enroll", home, other, "--replace", "  ")[0] == 2
    code, out, _ = run("enroll", home, other, "--replace", "the disk burned")
    assert (code, "changed (verify_key)" in out) == (0, True)


def test_a_fingerprint_that_was_read_out_has_to_be_the_one(tmp_path: Path, run: Run, home: Path) -> None:
    path = card(tmp_path)
    right = partner_card(BOOKS).fingerprint
    code, _, err = run("enroll", home, path, "--fingerprint", "0000 " + right[5:])
    assert code == 4
    assert right in err
    assert "nobody is enrolled" in run("partners", "list", home)[1]
    assert run("enroll", home, path, "--fingerprint", f"  {right.upper()} ")[0] == 0
    assert right in run("partners", "list", home)[1]


def test_a_certificate_is_renewed_with_new_names(run: Run, home: Path) -> None:
    code, out, _ = run("renew", home, "--host", "new.example", "--host", "192.0.2.7")
    assert code == 0
    assert "partners reach new.example:8443" in out
    assert run("renew", home, "--host", "a b")[0] == 3


@pytest.mark.parametrize("text", ["", "{}", "{", "[]", "null", '{"format": "isthmus-partner-1"}', "\0\1\2", '{"format":' * 100_000])
def test_what_is_no_card_ends_with_the_code_for_cards(tmp_path: Path, run: Run, home: Path, text: str) -> None:
    path = tmp_path / "PARTNER.json"
    path.write_text(text)
    code, _, err = run("enroll", home, path)
    assert code == 4
    assert str(path) in err


def test_errors_are_documents_too(tmp_path: Path, run: Run, home: Path) -> None:
    code, out, _ = run("enroll", home, tmp_path / "missing.json", "--json")
    error = json.loads(out)["error"]
    assert (code, error["exit_code"], error["kind"]) == (4, 4, "DataError")
    code, out, _ = run("partners", "list", tmp_path, "--json")
    assert (code, json.loads(out)["error"]["kind"]) == (3, "ConfigError")


@pytest.mark.parametrize("name", ["tls/server.key", "secrets/superexec", "keys/coordinator.keys", "ca/ca.key", "."])
def test_no_command_works_with_a_key_that_others_may_use(tmp_path: Path, run: Run, home: Path, name: str) -> None:
    (home / name).chmod(0o755 if name == "." else 0o644)
    for words in (("enroll", home, card(tmp_path)), ("partners", "list", home)):
        code, _, err = run(*words)
        assert code == 3
        assert "chmod" in err


def test_a_half_made_home_says_how_it_is_finished(run: Run, home: Path) -> None:
    (home / "proxy" / "nginx.conf").unlink()
    code, _, err = run("partners", "list", home)
    assert code == 3
    assert "isthmus-server init" in err
    assert run("init", home)[0] == 0
    assert run("partners", "list", home)[0] == 0


def test_what_needs_somebody_soon_is_said_beside_every_answer(run: Run, home: Path) -> None:
    toml = home / "server.toml"
    toml.write_text(toml.read_text().replace('hosts = "isthmus.example"', 'hosts = "isthmus.example,new.example"'))
    code, out, err = run("partners", "list", home, "--json")
    assert code == 0
    assert "warning: the server's certificate is not for new.example. Run isthmus-server renew." in err
    assert json.loads(out)["partners"] == []


@pytest.mark.parametrize("words", [("--help",), ("init", "--help"), ("renew", "--help"), ("enroll", "--help"), ("partners", "--help")])
def test_every_help_page_says_its_exit_codes_and_shows_examples(run: Run, words: tuple[str, ...]) -> None:
    code, out, _ = run(*words)
    assert code == 0
    assert "Exit codes: 0 done" in out
    assert len(words) == 1 or words[0] == "partners" or f"isthmus-server {words[0]} coordinator" in out
