"""`isthmus-client passport keys`, `send` and `import` with a server between them; what is forgotten at the source goes at the target."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from client import cli
from client.forgetting import forget
from client.passport_exchange import take_in_all
from client.register import Register
from tests.client.partner_world import DOMAINS, LINKED, World, link_id
from tests.client.passport_office import free_port, inbox, served

FILE = "books-to-films.passports"


def call(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """The entry point in this process."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(words))
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return int(str(end.value.code)), shown.out, shown.err


@pytest.fixture
def reached(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> World:
    """Both partners have a server, and each other's public keys with its address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for domain, other in (DOMAINS, DOMAINS[::-1]):
        toml, address = Path(world.toml(domain)), f"127.0.0.1:{free_port()}"
        toml.write_text(toml.read_text().replace('address = ""\nlisten = ""', f'address = "{address}"\nlisten = "{address}"'))
        out = str(tmp_path / f"{domain}.json")
        assert call("passport", "keys", str(toml), "--out", out, capsys=capsys)[0] == 0
        shutil.copy(out, world[other].path("partners"))
    return world


def test_passports_go_from_command_to_command_without_a_file_in_anybodys_hand(reached: World, capsys: pytest.CaptureFixture[str]) -> None:
    books, films = reached.toml("books"), reached.toml("films")
    assert call("passport", "export", books, "--to", "films", capsys=capsys)[0] == 0
    with served(reached["films"]) as told:
        code, out, _ = call("passport", "send", books, "--to", "films", "--json", capsys=capsys)
        again = call("passport", "send", books, "--to", "films", capsys=capsys)

    (sent,) = json.loads(out)["delivered"]
    assert (code, sent["kind"], sent["bytes"]) == (0, "passports", len(inbox(reached["films"])[FILE]))
    assert "nothing waits for 'films'" in again[1]
    assert not any(str(LINKED) in line.replace(f"{sent['bytes']:,}", "") for line in told.lines)

    first = json.loads(call("passport", "import", films, "--json", capsys=capsys)[1])
    second = json.loads(call("passport", "import", films, "--json", capsys=capsys)[1])
    assert (first["new"], first["files"], second["new"]) == (LINKED, [FILE], 0)


def test_who_is_forgotten_at_the_source_is_asked_for_and_gone_at_the_target(reached: World, capsys: pytest.CaptureFixture[str]) -> None:
    books, films = reached.toml("books"), reached.toml("films")
    with served(reached["films"]):
        call("passport", "export", books, "--to", "films", capsys=capsys)
        call("passport", "send", books, "--to", "films", capsys=capsys)
        forget(reached["books"], ["p003"])
        assert call("passport", "send", books, "--to", "films", capsys=capsys)[0] == 0

    opened = json.loads(call("passport", "import", films, "--json", capsys=capsys)[1])

    assert len(opened["notices"]) == 1
    assert inbox(reached["films"]) == {}  # the notice was carried out; the file that held the passport went with it
    assert list(reached["books"].path("outbox").glob("*.erasure")) == []
    with Register(reached["films"].at_home("register.sqlite")) as register:
        (incoming,) = register.overview()
        ids, _ = register.imported("books", space_version=reached.space_version, now=0)
    assert incoming.passports == LINKED - 1
    assert link_id("p003") not in ids


def test_a_notice_in_the_inbox_is_heeded_by_a_run_that_nobody_attends(reached: World, capsys: pytest.CaptureFixture[str]) -> None:
    books, films = reached.toml("books"), reached["films"]
    with served(films):
        call("passport", "export", books, "--to", "films", capsys=capsys)
        call("passport", "send", books, "--to", "films", capsys=capsys)
        assert take_in_all(films, reached.space_version, dimension=8) == LINKED
        forget(reached["books"], ["p003"])
        call("passport", "send", books, "--to", "films", capsys=capsys)

    take_in_all(films, reached.space_version, dimension=8)  # before the first round of the next run

    with Register(films.at_home("register.sqlite")) as register:
        ids, _ = register.imported("books", space_version=reached.space_version, now=0)
    assert len(ids) == LINKED - 1
    assert link_id("p003") not in ids
    opened = json.loads(call("passport", "import", reached.toml("films"), "--json", capsys=capsys)[1])  # the files go when somebody calls
    assert (len(opened["notices"]), inbox(films)) == (1, {})


def test_a_file_in_the_inbox_that_cannot_be_used_is_named_and_the_others_opened(reached: World, capsys: pytest.CaptureFixture[str]) -> None:
    call("passport", "export", reached.toml("books"), "--to", "films", capsys=capsys)
    folder = reached["films"].path("inbox")
    folder.mkdir()
    shutil.copy(reached["books"].path("outbox") / FILE, folder)
    (folder / "music-to-films.passports").write_bytes(b"x")
    (folder / "music-to-films-0.erasure").write_bytes(b"x")

    opened = json.loads(call("passport", "import", reached.toml("films"), "--json", capsys=capsys)[1])

    assert opened["new"] == LINKED
    assert [each["file"] for each in opened["left_out"]] == ["music-to-films-0.erasure", "music-to-films.passports"]


def test_an_empty_inbox_is_no_error(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("passport", "import", world.toml("films"), capsys=capsys)[:2] == (
        0,
        "the inbox is empty\n0 passports are new or renewed\n",
    )


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("serve",), 3, "there is no address to listen at"),
        (("serve", "--listen", "films"), 2, "--listen is not HOST:PORT"),
        (("serve", "--listen", "127.0.0.1:8444"), 3, "'passports.address' is not set"),
        (("send", "--to", "books"), 12, "name no address"),
        (("send", "--to", "music"), 12, "no public keys of partner 'music'"),
    ],
)
def test_what_is_missing_is_said(world: World, words: tuple[str, ...], code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, *options = words

    ended = call("passport", name, world.toml("films"), *options, capsys=capsys)

    assert ended[0] == code
    assert says in ended[2]
