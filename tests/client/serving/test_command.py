"""`isthmus-client serve` as a process of its own: it starts, answers, says what it does, and ends in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from client import cli
from client.serving_wire import CLASSES, SERVICE
from tests.client.partner_world import World
from tests.client.passport_office import certificate, free_port
from tests.client.serving.counter import Answer, answer_of, until


@contextmanager
def process(repository: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "client.cli", "serve", *words, "--listen", address]
    environment = {**os.environ, "no_proxy": "127.0.0.1"}
    with subprocess.Popen(command, cwd=repository, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as one:
        try:
            yield one, address
        finally:
            one.kill()


def recommend(address: str, user: str) -> Answer:
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(f"/{SERVICE}/Recommend", response_deserializer=CLASSES["RecommendReply"].FromString)
        return answer_of(lambda: call(CLASSES["RecommendRequest"](user=user, k=5).SerializeToString(), timeout=5))


@pytest.mark.journey
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_answers_until_it_is_told_to_stop(shops: World, repository: Path, number: signal.Signals) -> None:
    blocked = shops["films"].base / "blocked.txt"
    blocked.write_text("f00\n")
    with process(repository, shops.toml("films"), "--blocked", str(blocked)) as (one, address):
        until(lambda: recommend(address, "p004")[0] == "OK", patience_s=120)
        assert "f00" not in [item.item for item in recommend(address, "p004")[1].items]

        again = subprocess.run(
            [sys.executable, "-m", "client.cli", "serve", shops.toml("films"), "--listen", f"127.0.0.1:{free_port()}"],
            cwd=repository,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (again.returncode, "is running already" in again.stderr) == (2, True)

        one.send_signal(number)
        out, said = one.communicate(timeout=60)
    assert one.returncode == 0
    assert f"'films' recommends at {address}, in the clear" in said
    assert "recommending with run-1/1/" in said
    assert out == ""
    assert "Traceback" not in said


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        cli.main(["serve", *words])
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return int(str(end.value.code)), " ".join(shown.err.split())


def test_what_cannot_be_served_is_said_before_anything_listens(shops: World, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    toml = shops.toml("films")
    shown, key = certificate()
    (tmp_path / "a.crt").write_bytes(shown)
    (tmp_path / "a.key").write_bytes(key)
    (tmp_path / "nothing.txt").write_text("not-an-item\n")
    port = free_port()
    for code, words, said in (
        (2, [toml, "--listen", "here"], "not HOST:PORT"),
        (2, [toml, "--client-ca", str(tmp_path / "a.crt")], "needs --certificate"),
        (2, [toml, "--certificate", str(tmp_path / "a.crt")], "given together"),
        (2, [toml, "--engine", "magic"], "names no engine"),
        (2, [toml, "--blocked", str(tmp_path / "missing.txt")], "no file for --blocked"),
        (2, [toml, "--blocked", str(tmp_path / "nothing.txt"), "--listen", f"127.0.0.1:{port}"], "names no item"),
        (3, [toml, "--listen", "0.0.0.0:8445"], "in the clear"),
        (3, [toml, "--certificate", str(tmp_path / "a.crt"), "--key", str(tmp_path / "a.key")], "a.key can be read by others"),
        (3, [str(tmp_path / "missing.toml")], "no settings file"),
    ):
        for _ in range(2):  # the second time too: nothing is left listening
            found, text = refused(capsys, *words)
            assert (found, said in text) == (code, True), (words, text)


def test_without_the_extra_it_says_which_one(shops: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc_reflection.v1alpha", None)

    code, said = refused(capsys, shops.toml("films"), "--listen", f"127.0.0.1:{free_port()}")

    assert code == 3
    assert "extra 'serve'" in said
