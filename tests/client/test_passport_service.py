"""A partner's server for passports: what it takes, its one answer to what it does not take, and that no half file is ever there."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client.erasure_notice import Notice, write_notice
from client.key_rotation import own_keys
from client.keys import seal
from client.passport_certificate import identity
from client.passport_wire import CHUNK_BYTES, MOST_BYTES, NOT_TAKEN, NOTICE, OPENING_KEY, SERVICE, describe, message
from client.settings import ClientSettings
from shared.errors import ConfigError
from tests.client.passport_office import (
    call,
    channel,
    free_port,
    inbox,
    introduce,
    partner,
    said_by,
    sealed,
    served,
)

NO = ("ABORTED", NOT_TAKEN)
FILE = "books-to-films.passports"


def parts(data: bytes, size: int = CHUNK_BYTES) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


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


def test_a_file_of_a_partner_lies_in_the_inbox_as_it_was_sealed(books: ClientSettings, films: ClientSettings) -> None:
    data = sealed(books, films)
    with served(films) as told, channel(films) as line:
        assert call(line, said_by(books, data), parts(data)) == ("OK", "")

    assert inbox(films) == {FILE: data}
    assert (films.path("inbox") / FILE).stat().st_mode & 0o077 == 0
    assert "taken: books-to-films.passports" in told.lines[0]


def test_the_same_file_again_changes_nothing_and_an_older_one_never_replaces_a_newer_one(
    books: ClientSettings, films: ClientSettings
) -> None:
    now = int(time.time())
    older, newer = sealed(books, films, issued=now - 60), sealed(books, films, issued=now)
    with served(films), channel(films) as line:
        assert call(line, said_by(books, newer), parts(newer)) == ("OK", "")
        before = (films.path("inbox") / FILE).stat()
        for again in (newer, older):
            assert call(line, said_by(books, again), parts(again)) == ("OK", "")
        assert (films.path("inbox") / FILE).stat() == before

        newest = sealed(books, films, issued=now + 1)
        call(line, said_by(books, newest), parts(newest))

    assert inbox(films) == {FILE: newest}


def test_whatever_is_wrong_the_answer_is_the_same_and_nothing_is_kept(books: ClientSettings, films: ClientSettings, tmp_path: Path) -> None:
    stranger, music = partner(tmp_path, "stranger"), partner(tmp_path, "music")
    introduce(books, films, music)
    good, now = sealed(books, films), int(time.time())
    turned = bytes([good[0] ^ 1]) + good[1:]
    to_music, of_music, expired = sealed(books, music), sealed(music, films), sealed(books, films, issued=now - 90_000)
    forged, another = said_by(books, good), sealed(books, films, seed=1)
    keys = own_keys(films)
    unpadded = seal(keys.open_sealed(good)[:-160], keys.public("films").box_key)  # a record less: no public number of them
    attempts = {
        "unknown sender": (said_by(stranger, good), good),
        "a stranger under a partner's name": (said_by(stranger, good, source="books"), good),
        "a partner under another partner's name": (said_by(music, good, source="books"), good),
        "no opening": (None, good),
        "garbage for an opening": (b"\xff" * 200, good),
        "a signature that was turned": (bytes([forged[0] ^ 1]) + forged[1:], good),
        "an opening that was changed": (forged.replace(b'"films"', b'"filma"'), good),
        "an opening for another target": (said_by(books, good, target="music"), good),
        "an opening of another kind": (said_by(books, good, kind=NOTICE), good),
        "an opening of yesterday": (said_by(books, good, sent=now - 86_400), good),
        "a file that was changed on the way": (said_by(books, good), turned),
        "a file that was changed before": (said_by(books, turned), turned),
        "a file for another target": (said_by(books, to_music), to_music),
        "a file of another source": (said_by(books, of_music), of_music),
        "an expired file": (said_by(books, expired), expired),
        "another good file than the one announced": (said_by(books, good), another),
        "a file without its padding": (said_by(books, unpadded), unpadded),
        "a file cut short": (said_by(books, good), good[:-1]),
        "a file that goes on": (said_by(books, good), good + b"\0"),
        "a file cut short before": (said_by(books, good[:-1]), good[:-1]),
        "one byte": (said_by(books, b"x"), b"x"),
        "no byte": (said_by(books, good), b""),
    }
    with served(films) as told, channel(films) as line:
        answers = {what: call(line, opening, parts(data)) for what, (opening, data) in attempts.items()}
        assert answers == dict.fromkeys(attempts, NO)
        assert inbox(films) == {}
        assert call(line, said_by(books, good), parts(good)) == ("OK", "")  # and the server is none the worse

    assert len(told.lines) == len(attempts) + 1
    reasons = dict(zip(attempts, told.lines, strict=False))
    assert reasons["unknown sender"] == reasons["a stranger under a partner's name"] == reasons["a partner under another partner's name"]
    assert "came cut short or changed" in reasons["another good file than the one announced"]
    assert "something else than it said" in reasons["a file that goes on"]
    assert "cut short or too long" in reasons["a file without its padding"]
    assert not any("link" in line or "unexpected" in line for line in told.lines)


def test_a_stranger_is_refused_before_a_byte_of_the_file_is_received(films: ClientSettings, tmp_path: Path) -> None:
    stranger = partner(tmp_path, "stranger")
    asked = []

    def endless() -> Iterator[bytes]:
        while len(asked) < 10_000:
            asked.append(1)
            time.sleep(0.005)
            yield b"x" * CHUNK_BYTES

    with served(films), channel(films) as line:
        assert call(line, said_by(stranger, b"x" * MOST_BYTES), endless()) == NO

    assert len(asked) < 1000  # what was on its way when the answer came


def test_the_largest_file_is_taken_and_one_byte_more_than_the_limit_is_not(books: ClientSettings, films: ClientSettings) -> None:
    largest = sealed(books, films, linked=0, pad_to=2**18)  # 2^18 records of 160 bytes: 40 MiB; the next bucket is beyond the limit
    assert MOST_BYTES / 2 < len(largest) <= MOST_BYTES
    with served(films) as told, channel(films) as line:
        assert call(line, said_by(books, largest), parts(largest)) == ("OK", "")
        assert inbox(films) == {FILE: largest}

        full = bytes(MOST_BYTES)
        assert call(line, said_by(books, full), parts(full)) == NO
        assert "not sealed to this partner's key" in told.lines[-1]  # received whole, and opened
        opening = said_by(books, full).replace(str(MOST_BYTES).encode(), str(MOST_BYTES + 1).encode())
        assert call(line, opening, parts(full + b"x")) == NO
        assert "names no kind, size, digest or time" in told.lines[-1]  # not even received

    assert inbox(films) == {FILE: largest}


def test_a_sender_who_falls_silent_is_not_waited_for(books: ClientSettings, films: ClientSettings) -> None:
    data = sealed(books, films)

    def silent() -> Iterator[bytes]:
        yield data[:1000]
        time.sleep(3.0)
        yield data[1000:]

    with served(films, silence_s=0.3) as told, channel(films) as line:
        assert call(line, said_by(books, data), silent()) == NO

    assert told.lines == ["not taken: the sender was too slow"]
    assert inbox(films) == {}


def test_a_sender_who_hangs_up_in_the_middle_leaves_nothing_and_may_come_again(books: ClientSettings, films: ClientSettings) -> None:
    data = sealed(books, films)

    def cut() -> Iterator[bytes]:
        yield data[: len(data) // 2]
        raise OSError

    with served(films):
        with channel(films) as line:
            assert call(line, said_by(books, data), cut())[0] != "OK"
        assert inbox(films) == {}
        with channel(films) as line:
            assert call(line, said_by(books, data), parts(data)) == ("OK", "")

    assert inbox(films) == {FILE: data}


def test_one_partner_cannot_take_the_place_of_all(books: ClientSettings, films: ClientSettings, tmp_path: Path) -> None:
    music = partner(tmp_path, "music")
    introduce(books, films, music)
    data, of_music = sealed(books, films), sealed(music, films)
    held = []

    def slow() -> Iterator[bytes]:
        yield data[:1000]
        while not held:
            time.sleep(0.05)
        yield data[1000:]

    with served(films) as told, channel(films) as line:
        method = line.stream_unary(f"/{SERVICE}/Deliver", request_serializer=message)
        first = method.future(slow(), metadata=((OPENING_KEY, said_by(books, data)),), timeout=20)
        time.sleep(0.5)
        assert call(line, said_by(books, data), parts(data)) == NO  # books has its one place already
        assert call(line, said_by(music, of_music), parts(of_music)) == ("OK", "")
        held.append(1)
        first.result(timeout=20)

    assert "not taken: 'books' is delivering something already" in told.lines
    assert inbox(films) == {FILE: data, "music-to-films.passports": of_music}


def test_what_a_killed_server_left_half_written_is_swept_away(books: ClientSettings, films: ClientSettings) -> None:
    films.path("inbox").mkdir()
    (films.path("inbox") / f".{FILE}.k3j4h5").write_bytes(b"half")
    (films.path("inbox") / "music-to-films.passports").write_bytes(b"by hand")

    with served(films):
        assert list(inbox(films)) == ["music-to-films.passports"]


def test_a_disk_that_is_full_has_the_same_answer(books: ClientSettings, films: ClientSettings) -> None:
    data = sealed(books, films)
    with served(films) as told, channel(films) as line:
        films.path("inbox").rmdir()
        films.path("inbox").write_bytes(b"no folder any more")
        assert call(line, said_by(books, data), parts(data)) == NO
        films.path("inbox").unlink()
        assert call(line, said_by(books, data), parts(data)) == ("OK", "")

    assert told.lines[0].startswith("not taken: cannot write")


def test_notices_are_taken_by_their_seal_and_do_not_fill_the_disk(books: ClientSettings, films: ClientSettings, tmp_path: Path) -> None:
    notice = Notice(source="books", target="films", link_ids=("link-1",), issued=5, expires=int(time.time()) + 1000)
    write_notice(tmp_path / "n", notice, keys=own_keys(books), to=own_keys(films).public("films"))
    data = (tmp_path / "n").read_bytes()
    with served(films), channel(films) as line:
        for _ in range(2):
            assert call(line, said_by(books, data, kind=NOTICE), parts(data), kind=NOTICE) == ("OK", "")
        (name,) = inbox(films)
        assert name.startswith("books-to-films-")
        assert name.endswith(".erasure")

        passports = sealed(books, films)
        assert call(line, said_by(books, passports, kind=NOTICE), parts(passports), kind=NOTICE) == NO
        with (films.path("inbox") / "books-to-films-0.erasure").open("wb") as file:
            file.truncate(MOST_BYTES)
        write_notice(tmp_path / "n", notice, keys=own_keys(books), to=own_keys(films).public("films"))
        another = (tmp_path / "n").read_bytes()
        assert call(line, said_by(books, another, kind=NOTICE), parts(another), kind=NOTICE) == NO

    assert len(inbox(films)) == 2


def test_a_stranger_who_knocks_all_day_does_not_fill_the_log(films: ClientSettings, tmp_path: Path) -> None:
    stranger = partner(tmp_path, "stranger")
    with served(films, hush_s=0.6) as told, channel(films) as line:
        for _ in range(5):
            assert call(line, said_by(stranger, b"x"), parts(b"x")) == NO
        assert len(told.lines) == 1
        time.sleep(0.7)
        call(line, said_by(stranger, b"x"), parts(b"x"))

    assert told.lines[1:] == ["not taken: no partner's key signed what was said at the beginning (4 times more since it was told last)"]


def test_a_server_that_is_told_to_stop_lets_a_delivery_end(books: ClientSettings, films: ClientSettings) -> None:
    data, answers, begun = sealed(books, films), [], threading.Event()

    def slow() -> Iterator[bytes]:
        yield data[:1000]
        begun.set()
        time.sleep(1.0)
        yield data[1000:]

    with channel(films) as line:
        with served(films):
            calling = threading.Thread(target=lambda: answers.append(call(line, said_by(books, data), slow())))
            calling.start()
            assert begun.wait(10)
            time.sleep(0.2)
        calling.join(10)  # the server was told to stop, and has

    assert answers == [("OK", "")]
    assert inbox(films) == {FILE: data}


def test_health_says_whether_it_serves_and_nothing_else(films: ClientSettings) -> None:
    with served(films), channel(films) as line:
        stub = health_pb2_grpc.HealthStub(line)
        for service in ("", SERVICE):
            assert stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as refused:
            stub.Check(health_pb2.HealthCheckRequest(service="flwr.Fleet"), timeout=10)

    assert refused.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_port_that_is_taken_is_said(films: ClientSettings) -> None:
    with served(films), pytest.raises(ConfigError, match="the port is taken"), served(films):
        raise AssertionError("a second server runs")


def test_a_caller_without_tls_gets_nothing(books: ClientSettings, films: ClientSettings) -> None:
    data = sealed(books, films)
    with served(films), grpc.insecure_channel(films.passports.listen) as line:
        assert call(line, said_by(books, data), parts(data))[0] == "UNAVAILABLE"

    assert inbox(films) == {}


def test_the_page_describes_the_messages_that_travel(repository: Path) -> None:
    page = (repository / "client/proto/passports.proto").read_text()
    described = describe()

    assert f"package {described.package};" in page
    assert f'syntax = "{described.syntax}";' in page
    shown = [line.split(" {")[0].removeprefix("message ") for line in page.splitlines() if line.startswith("message ")]
    assert shown == [each.name for each in described.message_type]
    (chunk,) = described.message_type[0].field
    assert f"  bytes {chunk.name} = {chunk.number};" in page.splitlines()
    for method in ("Deliver", "Notice"):
        assert f"  rpc {method}(stream SealedFile) returns (Taken);" in page.splitlines()


def test_an_identity_does_not_print_its_key(films: ClientSettings) -> None:
    assert "PRIVATE" not in repr(identity(films))
