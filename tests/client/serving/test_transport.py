"""How the service is reached: TLS, limits of size and time, callers who hang up, and an end in order."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from client.recommender.recommender import Recommender
from client.recommender.requests import Answer, Request
from client.serving import RecommenderService, serve
from client.serving_tls import credentials, read_identity
from client.serving_wire import CLASSES, MOST_MESSAGE_BYTES, SERVICE
from client.settings import ClientSettings
from shared.errors import ConfigError, UsageError
from tests.client.partner_world import World
from tests.client.passport_office import certificate
from tests.client.serving.counter import Counter, answer_of, served, until

HOST = "shop.example"


@pytest.fixture
def pem(tmp_path: Path) -> dict[str, Path]:
    """A server's certificate and key, a caller's, and a stranger's."""
    made = {}
    for name in ("server", "caller", "stranger"):
        shown, key = certificate(HOST)
        for kind, data in (("crt", shown), ("key", key)):
            made[f"{name}.{kind}"] = tmp_path / f"{name}.{kind}"
            made[f"{name}.{kind}"].write_bytes(data)
            made[f"{name}.{kind}"].chmod(0o600)
    return made


def tls(settings: ClientSettings, pem: dict[str, Path], *, client_ca: Path | None = None) -> grpc.ServerCredentials:
    shown = read_identity(settings, pem["server.crt"], pem["server.key"])
    assert shown is not None
    return credentials(shown, client_ca)


def secure(films: Counter, pem: dict[str, Path], *, trusted: str = "server", caller: str = "") -> grpc.Channel:
    key, chain = (pem[f"{caller}.key"].read_bytes(), pem[f"{caller}.crt"].read_bytes()) if caller else (None, None)
    with_keys = grpc.ssl_channel_credentials(pem[f"{trusted}.crt"].read_bytes(), key, chain)
    return grpc.secure_channel(films.address, with_keys, options=[("grpc.ssl_target_name_override", HOST)])


def test_over_tls_whoever_trusts_the_certificate_is_answered_and_nobody_in_the_clear(shops: World, pem: dict[str, Path]) -> None:
    with served(shops["films"], credentials=tls(shops["films"], pem)) as films:
        with secure(films, pem) as channel:
            assert films.ask("Recommend", channel=channel, user="p003")[0] == "OK"
        with secure(films, pem, trusted="stranger") as channel:
            assert films.ask("Recommend", channel=channel, user="p003", timeout=5)[0] == "UNAVAILABLE"
        assert films.ask("Recommend", user="p003", timeout=5)[0] == "UNAVAILABLE"


def test_over_mutual_tls_only_callers_with_a_certificate_are_answered(shops: World, pem: dict[str, Path]) -> None:
    with served(shops["films"], credentials=tls(shops["films"], pem, client_ca=pem["caller.crt"])) as films:
        for caller, status in {"caller": "OK", "stranger": "UNAVAILABLE", "": "UNAVAILABLE"}.items():
            with secure(films, pem, caller=caller) as channel:
                assert films.ask("Recommend", channel=channel, user="p003", timeout=10)[0] == status, caller


@pytest.mark.parametrize("address", ["0.0.0.0:8445", "shop.example:8445", "[::]:8445", "10.0.0.5:8445"])
def test_what_people_like_never_travels_in_the_clear(shops: World, address: str) -> None:
    async def attempt() -> None:
        service = RecommenderService(shops["films"], lambda: Recommender.open(shops["films"]))
        await serve(service, address, None, asyncio.Event())

    with pytest.raises(ConfigError, match="in the clear"):
        asyncio.run(attempt())


def test_a_certificate_that_cannot_be_used_is_said_by_its_file(shops: World, pem: dict[str, Path], tmp_path: Path) -> None:
    settings = shops["films"]
    with pytest.raises(UsageError, match="--certificate and --key"):
        read_identity(settings, pem["server.crt"], None)
    pem["server.key"].chmod(0o644)
    with pytest.raises(ConfigError, match=r"server\.key"):
        read_identity(settings, pem["server.crt"], pem["server.key"])
    pem["server.key"].chmod(0o600)
    with pytest.raises(ConfigError, match=r"not the key of server\.crt"):
        read_identity(settings, pem["server.crt"], pem["caller.key"])
    with pytest.raises(ConfigError, match="holds no certificate"):
        tls(settings, pem, client_ca=pem["caller.key"])
    with pytest.raises(ConfigError, match="cannot be read"):
        tls(settings, pem, client_ca=tmp_path / "missing.crt")


def test_a_port_that_is_taken_is_said(shops: World, films: Counter) -> None:
    with (
        pytest.raises(ConfigError, match="nothing can listen"),
        served(shops["books"], port=int(films.address.rpartition(":")[2])),
    ):
        pass
    assert films.ask("Recommend", user="p003")[0] == "OK"


def test_a_message_larger_than_the_limit_is_turned_away_and_the_next_is_answered(films: Counter) -> None:
    status, _ = films.ask("Recommend", declared="x" * (MOST_MESSAGE_BYTES + 1))
    assert status == "RESOURCE_EXHAUSTED"
    assert films.ask("Recommend", user="p003")[0] == "OK"


class Slow:
    """A recommender that a test holds up."""

    def __init__(self, real: Recommender) -> None:
        self._real = real
        self.may_go_on, self.begun = threading.Event(), threading.Event()
        self.asked: list[list[str | None]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def recommend(self, requests: list[Request]) -> list[Answer]:
        if not requests[0].even_unknown:  # the service's own first look is let through
            self.asked.append([request.user for request in requests])
            self.begun.set()
            assert self.may_go_on.wait(30)
        return self._real.recommend(requests)


@pytest.fixture
def slow(shops: World) -> Slow:
    return Slow(Recommender.open(shops["films"]))


def test_a_caller_whose_time_is_up_is_let_go_and_not_computed_for(shops: World, slow: Slow) -> None:
    with served(shops["films"], open_=lambda: slow) as films:  # type: ignore[arg-type,return-value]
        assert films.ask("Recommend", user="p003", timeout=1.0)[0] == "DEADLINE_EXCEEDED"
        assert films.ask("Recommend", user="p004", timeout=0.5)[0] == "DEADLINE_EXCEEDED"
        time.sleep(1.0)  # the server counts the same half second from when it read the request, a moment after the caller did
        slow.may_go_on.set()
        assert films.ask("Recommend", user="p005")[0] == "OK"
        assert slow.asked == [["p003"], ["p005"]]


def test_the_server_has_a_deadline_of_its_own(shops: World, slow: Slow) -> None:
    with served(shops["films"], open_=lambda: slow, deadline_s=0.3) as films:  # type: ignore[arg-type,return-value]
        status, text = films.ask("Recommend", user="p003")
        assert (status, text) == ("DEADLINE_EXCEEDED", "it took longer than the server allows")
        slow.may_go_on.set()
        until(lambda: films.ask("Recommend", user="p004")[0] == "OK")


def test_a_caller_who_hangs_up_harms_nobody(shops: World, slow: Slow) -> None:
    with served(shops["films"], open_=lambda: slow) as films:  # type: ignore[arg-type,return-value]
        with grpc.insecure_channel(films.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            request = CLASSES["RecommendRequest"](user="p003").SerializeToString()
            calls = [channel.unary_unary(f"/{SERVICE}/Recommend").future(request, timeout=20) for _ in range(5)]
            assert slow.begun.wait(20)
            del calls
        slow.may_go_on.set()  # the line is down
        assert films.ask("Recommend", user="p004")[0] == "OK"
        assert not [line for line in films.told.lines if "not answered" in line]


def test_a_caller_who_falls_silent_in_the_middle_of_a_file_is_let_go(shops: World) -> None:
    with served(shops["films"], silence_s=0.3) as films:
        part = CLASSES["AcceptPassportRequest"](chunk=b"x" * 1000)

        def silent() -> Iterator[object]:
            yield part
            time.sleep(3)

        assert films.stream(silent())[0] == "DEADLINE_EXCEEDED"
        assert not list(shops["films"].path("inbox").glob(".*"))
        assert films.ask("Recommend", user="p003")[0] == "OK"


def test_more_callers_than_may_wait_are_told_so(shops: World, slow: Slow) -> None:
    with served(shops["films"], open_=lambda: slow) as films:  # type: ignore[arg-type,return-value]
        films.service._gathering._waiting = 3
        found: list[str] = []
        threads = [threading.Thread(target=lambda: found.append(films.ask("Recommend", user="p003")[0])) for _ in range(8)]
        threads[0].start()
        assert slow.begun.wait(20)
        for thread in threads[1:]:
            thread.start()
        until(lambda: found.count("RESOURCE_EXHAUSTED") == 4)
        slow.may_go_on.set()
        for thread in threads:
            thread.join(30)
        assert sorted(found) == ["OK"] * 4 + ["RESOURCE_EXHAUSTED"] * 4


def test_who_is_being_answered_is_answered_before_the_end(shops: World, slow: Slow) -> None:
    found: list[str] = []
    with served(shops["films"], open_=lambda: slow, grace_s=20.0) as films:  # type: ignore[arg-type,return-value]
        thread = threading.Thread(target=lambda: found.append(films.ask("Recommend", user="p003")[0]))
        thread.start()
        assert slow.begun.wait(20)
        films.stop()
        until(lambda: films.ask("Recommend", user="p004", timeout=1)[0] == "UNAVAILABLE")  # nobody new
        slow.may_go_on.set()
        thread.join(30)
    assert found == ["OK"]


def test_a_method_that_is_not_there_is_unimplemented(films: Counter) -> None:
    call = films.channel.unary_unary(f"/{SERVICE}/Steal")
    assert answer_of(lambda: call(b"", timeout=20))[0] == "UNIMPLEMENTED"
