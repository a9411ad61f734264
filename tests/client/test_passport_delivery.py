"""From one partner's outbox into another's inbox: over TLS, past somebody on the line, cut off, refused, and tried again."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from client import cli
from client.erasure_notice import Notice, is_plain, read_notice, write_notice
from client.key_rotation import own_keys
from client.passport_certificate import Identity, identity
from client.passport_delivery import Delivered, deliver, waiting
from client.passport_exchange import partners
from client.passport_wire import MOST_BYTES, NOTICE, PASSPORTS
from client.settings import ClientSettings
from shared.errors import PassportError
from shared.supervision import Backoff
from tests.client.passport_office import (
    PATIENCE_S,
    Told,
    certificate,
    free_port,
    in_outbox,
    inbox,
    introduce,
    links,
    partner,
    redirect,
    relay,
    sealed,
    served,
)

QUICK = Backoff(first_s=0.05, longest_s=0.1)
FILE = "books-to-films.passports"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def books(tmp_path: Path) -> ClientSettings:
    return partner(tmp_path, "books")


@pytest.fixture
def films(tmp_path: Path, books: ClientSettings) -> ClientSettings:
    receiving = partner(tmp_path, "films", address=f"127.0.0.1:{free_port()}")
    introduce(books, receiving)
    return receiving


def sent(source: ClientSettings, *files: Path, patience_s: float = PATIENCE_S, tell: Told | None = None) -> list[Delivered]:
    return list(deliver(source, "films", files or waiting(source, "films"), patience_s=patience_s, backoff=QUICK, tell=tell or Told()))


def test_what_waits_is_delivered_once_and_a_new_export_waits_again(books: ClientSettings, films: ClientSettings) -> None:
    data = sealed(books, films)
    path = in_outbox(books, films, data)
    with served(films):
        assert sent(books) == [Delivered(path=path, kind=PASSPORTS, bytes=len(data))]
        assert waiting(books, "films") == []
        assert inbox(films) == {FILE: data}

        in_outbox(books, films, later := sealed(books, films, issued=int(time.time()) + 1))
        sent(books)

    assert inbox(films) == {FILE: later}


def test_somebody_on_the_line_sees_no_link_no_name_and_only_a_public_size(books: ClientSettings, films: ClientSettings) -> None:
    seen: dict[int, bytes] = {}
    with served(films) as told:
        for linked in (0, 900):
            data = sealed(books, films, linked=linked, issued=int(time.time()) + linked // 900)
            with relay(int(films.passports.listen.rpartition(":")[2])) as (port, line):
                redirect(books, films, port=port)
                sent(books, in_outbox(books, films, data))
                told.wait_for("taken")
            seen[linked] = bytes(line)
            assert inbox(films) == {FILE: data}

    plain = own_keys(films).open_sealed(inbox(films)[FILE])
    assert all(link.encode() in plain for link in links(900))  # what is looked for can be found
    for line_bytes in seen.values():
        assert not any(needle in line_bytes for needle in (b"link-0", b"books", b"isthmus-opening", data[:16], data[-16:]))
    assert len(data) == 48 + 1024 + 1024 * (64 + 4 * 8 + 64)  # seal, statement, 2^10 records
    assert len(seen[0]) > len(data)
    assert abs(len(seen[0]) - len(seen[900])) < 2048  # acknowledgements and signatures differ by some bytes from call to call


def test_a_connection_that_is_cut_in_mid_stream_is_tried_again_and_nothing_half_written_lies_there(
    books: ClientSettings, films: ClientSettings
) -> None:
    data, halfway = sealed(books, films), {}
    in_outbox(books, films, data)

    class Watching(Told):
        def __call__(self, line: str) -> None:
            halfway[line] = inbox(films)
            super().__call__(line)

    with served(films), relay(int(films.passports.listen.rpartition(":")[2]), cut_after=80_000) as (port, _):
        redirect(books, films, port=port)
        tell = Watching()
        sent(books, tell=tell)

    assert len(tell.lines) == 1
    assert "no answer" in tell.lines[0]
    assert list(halfway.values()) == [{}]
    assert inbox(films) == {FILE: data}


def test_a_server_with_another_certificate_gets_nothing(books: ClientSettings, films: ClientSettings) -> None:
    in_outbox(books, films, sealed(books, films))
    chain, key = certificate("127.0.0.1")
    impostor = Identity(chain=chain, leaf=chain.decode(), key=key, until=identity(films).until)
    with served(films, shown=impostor) as told:
        with pytest.raises(PassportError, match="is not the one in the partner's public keys"):
            sent(books)
        assert told.lines == []

    assert inbox(films) == {}
    assert len(waiting(books, "films")) == 1


@pytest.mark.parametrize(("begins", "ends", "says"), [(-9, -1, r"ended on \d{4}-\d\d-\d\d"), (2, 9, "is not valid yet")])
def test_a_certificate_out_of_its_time_is_refused(books: ClientSettings, films: ClientSettings, begins: int, ends: int, says: str) -> None:
    in_outbox(books, films, sealed(books, films))
    chain, key = certificate(begins=begins, ends=ends)
    redirect(books, films, shown=chain)
    shown = Identity(chain=chain, leaf=chain.decode(), key=key, until=identity(films).until)
    with served(films, shown=shown) as told:
        with pytest.raises(PassportError, match=says):
            sent(books)
        assert told.lines == []

    assert inbox(films) == {}


def test_a_certificate_for_another_name_serves_too_because_it_alone_is_pinned(books: ClientSettings, films: ClientSettings) -> None:
    in_outbox(books, films, sealed(books, films))
    chain, key = certificate("anywhere.example")
    redirect(books, films, shown=chain)
    with served(films, shown=Identity(chain=chain, leaf=chain.decode(), key=key, until=identity(films).until)):
        assert len(sent(books)) == 1


def test_two_partners_deliver_at_once(books: ClientSettings, films: ClientSettings, tmp_path: Path) -> None:
    music = partner(tmp_path, "music")
    introduce(books, films, music)
    files = {f"{one.domain}-to-films.passports": sealed(one, films, pad_to=2**15) for one in (books, music)}
    with served(films):
        both = [
            threading.Thread(target=sent, args=(one, in_outbox(one, films, files[f"{one.domain}-to-films.passports"])))
            for one in (books, music)
        ]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join(PATIENCE_S)

    assert inbox(films) == files


def test_a_partner_who_does_not_take_it_is_not_asked_for_ever(books: ClientSettings, films: ClientSettings) -> None:
    in_outbox(books, films, sealed(books, films))
    (films.path("partners") / "books.json").unlink()
    tell = Told()
    with served(films) as told, pytest.raises(PassportError, match="did not take the file") as refused:
        sent(books, tell=tell)

    assert "passport serve" in str(refused.value)
    assert len(told.lines) == 5
    assert all("not taken" in line for line in tell.lines)
    assert len(waiting(books, "films")) == 1


def test_a_partner_who_was_added_in_the_meantime_is_heard_without_a_restart(books: ClientSettings, films: ClientSettings) -> None:
    in_outbox(books, films, sealed(books, films))
    key_file = films.path("partners") / "books.json"
    text = key_file.read_text()
    key_file.unlink()

    class Adding(Told):
        def __call__(self, line: str) -> None:
            key_file.write_text(text)
            super().__call__(line)

    tell = Adding()
    with served(films):
        assert len(sent(books, tell=tell)) == 1
    assert len(tell.lines) == 1


def test_a_server_that_is_down_is_said_when_patience_ends(books: ClientSettings, films: ClientSettings) -> None:
    in_outbox(books, films, sealed(books, films))

    with pytest.raises(PassportError, match="cannot be reached"):
        sent(books, patience_s=0.0)


def test_a_notice_goes_sealed_and_leaves_the_outbox(books: ClientSettings, films: ClientSettings) -> None:
    notice = Notice(source="books", target="films", link_ids=tuple(links(3)), issued=5, expires=int(time.time()) + 1000)
    path = books.path("outbox") / "books-to-films-until-2099-01-01-0123456789ab.erasure"
    write_notice(path, notice, keys=own_keys(books), to=None)  # written when the partner's keys were not at hand
    assert is_plain(path.read_bytes())
    with served(films):
        (done,) = sent(books)

    assert (done.kind, path.exists()) == (NOTICE, False)
    ((name, data),) = inbox(films).items()
    assert b"link-0" not in data
    there = read_notice(films.path("inbox") / name, keys=own_keys(films), me="films", partners=partners(films))
    assert there.link_ids == notice.link_ids


def test_a_file_that_no_server_takes_is_not_sent(books: ClientSettings, films: ClientSettings, tmp_path: Path) -> None:
    for size, says in ((MOST_BYTES + 1, "more than 64 MiB"), (0, "is empty")):
        with (tmp_path / "big.passports").open("wb") as file:
            file.truncate(size)
        with pytest.raises(PassportError, match=says):
            sent(books, tmp_path / "big.passports")


def test_a_partner_without_a_server_gets_files_by_hand(books: ClientSettings, films: ClientSettings) -> None:
    with pytest.raises(PassportError, match="name no address"):
        list(deliver(films, "books", []))
    with pytest.raises(PassportError, match="no public keys of partner 'music'"):
        list(deliver(films, "music", []))


def test_an_address_that_somebody_changed_in_the_file_of_keys_is_refused(books: ClientSettings, films: ClientSettings) -> None:
    path = books.path("partners") / "films.json"
    other = f"127.0.0.1:{free_port()}"
    path.write_text(path.read_text().replace(films.passports.address, other))

    with pytest.raises(PassportError, match=r"films\.json: the address of partner 'films' was not signed"):
        list(deliver(books, "films", []))


def start(settings: ClientSettings) -> subprocess.Popen[str]:
    """The real command in a process of its own."""
    root = Path(cli.__file__).parent.parent
    words = [sys.executable, "-m", "client.cli", "passport", "serve", str(settings.base / "partner.toml")]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "takes passports at" in line, line + process.stderr.read()
    return process


@pytest.mark.journey
def test_a_server_that_is_killed_in_mid_stream_and_started_again_has_the_file_in_the_end(
    books: ClientSettings, films: ClientSettings
) -> None:
    data = sealed(books, films, pad_to=2**16)
    in_outbox(books, films, data)
    first, again = start(films), []

    class Restarting(Told):
        def __call__(self, line: str) -> None:
            super().__call__(line)
            if not again:
                again.append(start(films))

    try:
        with relay(int(films.passports.listen.rpartition(":")[2])) as (port, line):
            redirect(books, films, port=port)
            tell = Restarting()
            delivering = threading.Thread(target=sent, args=(books,), kwargs={"tell": tell, "patience_s": 60.0})
            delivering.start()
            until = time.monotonic() + PATIENCE_S
            while len(line) < 1_000_000 and time.monotonic() < until:
                time.sleep(0.001)
            first.kill()
            first.wait()
            delivering.join(60.0)

        assert len(line) > len(data)  # it was on its way when the server was killed
        assert tell.lines
        assert inbox(films) == {FILE: data}
        again[0].send_signal(signal.SIGTERM)
        assert again[0].wait(PATIENCE_S) == 0  # told to stop, it stops
    finally:
        for process in (first, *again):
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()
