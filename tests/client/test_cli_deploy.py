"""`isthmus-client init`, `join`, `up` and `status`, as a partner types them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client import cli, node
from client.bundle_guard import REFUSED_FILE, append
from client.egress_manifest import Manifest
from client.enrolling import begin, make_node_key
from client.keys import Keys
from client.node import status, why_it_ended
from client.settings import ClientSettings
from shared.enrolment import PartnerCard
from shared.privacy.ledger_schema import NO_HASH
from tests.client.coordinator_card import Coordinator
from tests.client.partner_world import World
from tests.client.test_cli import call
from tests.shared.supervised import eventually

ROOT = Path(cli.__file__).parents[1]


def typed(*words: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    code, out, err = call(*words, "--json", capsys=capsys)
    assert code == 0, err
    document: dict[str, Any] = json.loads(out)
    return document


@pytest.fixture
def joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Settings of a domain that joined a server which is not there."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    (tmp_path / "JOIN.json").write_text(Coordinator().join_card(server=f"127.0.0.1:{port}").to_json())
    typed("init", str(tmp_path / "books"), "--domain", "books", "--ceiling", "4", capsys=capsys)
    typed("join", str(tmp_path / "books"), str(tmp_path / "JOIN.json"), capsys=capsys)
    return tmp_path / "books/partner.toml"


# --- init and join ---------------------------------------------------------------------------------------------------------------------


def test_two_commands_make_a_partner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, coordinator = tmp_path / "books", Coordinator()
    made = typed(
        "init",
        str(folder),
        "--domain",
        "books",
        "--ceiling",
        "4",
        "--set-by",
        "A. Officer",
        "--set",
        "data.items=my.parquet",
        capsys=capsys,
    )
    card = PartnerCard.read(Path(made["card"]))
    (tmp_path / "JOIN.json").write_text(coordinator.join_card().to_json())
    taken = typed("join", str(folder), str(tmp_path / "JOIN.json"), "--fingerprint", coordinator.join_card().fingerprint, capsys=capsys)

    settings = ClientSettings.read(folder / "partner.toml")
    assert (made["fingerprint"], made["has_ledger"]) == (card.fingerprint, True)
    assert (settings.ceiling.epsilon, settings.ceiling.set_by, settings.data.items) == (4.0, "A. Officer", "my.parquet")
    assert taken["fingerprint"] == coordinator.join_card().fingerprint
    assert settings.server.coordinator_key == taken["coordinator_key"] == coordinator.signer.verify_key


def test_with_the_card_at_hand_one_command_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "JOIN.json").write_text(Coordinator().join_card().to_json())

    made = typed("init", str(tmp_path / "books"), "--domain", "books", "--join", str(tmp_path / "JOIN.json"), capsys=capsys)

    assert made["joined"]["server"] == "isthmus.example:8443"
    assert made["has_ledger"] is False


def test_people_read_fingerprints_and_the_next_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call("init", str(tmp_path / "books"), "--domain", "books", capsys=capsys)
    assert code == 0
    assert "isthmus-client ledger create" in out
    assert "fingerprint of PARTNER.json: " in out

    (tmp_path / "JOIN.json").write_text(Coordinator().join_card().to_json())
    code, out, _ = call("join", str(tmp_path / "books/partner.toml"), str(tmp_path / "JOIN.json"), capsys=capsys)
    assert code == 0
    assert "compare it with the coordinator over another way" in out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--domain", "Books!"], 3),
        (["--domain", "books", "--set", "data.itemz=x"], 3),
        (["--domain", "books", "--set", "data.items"], 2),
        (["--domain", "books", "--ceiling", "-1"], 3),
        (["--domain", "books", "--join", "nothing.json"], 4),
    ],
)
def test_what_cannot_be_is_said_by_exit_code_and_nothing_is_made(
    tmp_path: Path, words: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("init", str(tmp_path / "books"), *words, capsys=capsys)[0] == code
    assert not (tmp_path / "books").exists()


@pytest.mark.parametrize("change", [lambda text: text.replace("8443", "8444"), lambda text: text[:-40], lambda text: "[]"])
def test_a_card_that_was_changed_on_its_way_is_refused(
    tmp_path: Path, change: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tmp_path / "books", domain="books", changes={}, with_ledger=False)
    (tmp_path / "JOIN.json").write_text(change(Coordinator().join_card().to_json()))

    code, _, err = call("join", str(tmp_path / "books"), str(tmp_path / "JOIN.json"), capsys=capsys)

    assert code == 4
    assert err.startswith("DataError: ")


# --- up --------------------------------------------------------------------------------------------------------------------------------


def _not_joined(toml: Path) -> None:
    settings = ClientSettings.read(toml)
    toml.write_text(toml.read_text().replace(settings.server.address, ""))


def _unsigned(toml: Path) -> None:
    settings = ClientSettings.read(toml)
    toml.write_text(toml.read_text().replace(settings.server.coordinator_key, ""))


def _another_node_key(toml: Path, *names: str) -> None:
    """The key of another partner, brought over by mistake."""
    folder = toml.parent / "home/keys"
    make_node_key(folder / "another")
    for name in names:
        (folder / name.replace("node", "another")).replace(folder / name)


def _an_update_left(toml: Path) -> None:
    """What the manifest of a domain says whose ledger was put back from before its last update."""
    manifest = Manifest(toml.parent / "home/egress.jsonl")
    manifest.left(kind="train", why="dp", schema="TransferUpdate", size=9, sha256="0" * 64, round=3, ledger_event="b" * 64)


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (_not_joined, 3),
        (_unsigned, 3),
        (lambda toml: toml.write_text("domain = "), 3),
        (lambda toml: (toml.parent / "home/server-ca.crt").unlink(), 3),
        (lambda toml: (toml.parent / "home/server-ca.crt").write_text("-----BEGIN CERTIFICATE-----"), 3),
        (lambda toml: (toml.parent / "home/keys/node").chmod(0o644), 3),
        (lambda toml: (toml.parent / "home/keys/node").write_bytes(b"x"), 4),
        (lambda toml: _another_node_key(toml, "node"), 4),
        (lambda toml: _another_node_key(toml, "node", "node.pub"), 4),
        (lambda toml: (toml.parent / "home/keys/partner.keys").chmod(0o644), 12),
        (lambda toml: (toml.parent / "home/keys/partner.keys").unlink(), 6),
        (lambda toml: Keys.write_new(toml.parent / "home/keys/partner.keys"), 24),
        (lambda toml: toml.write_text(toml.read_text().replace('domain = "books"', 'domain = "films"')), 7),
        (lambda toml: (toml.parent / "home/ledger.sqlite").unlink(), 9),
        (lambda toml: _an_update_left(toml), 22),
        (lambda toml: (toml.parent / "home/allowed.json").write_text("{"), 3),
    ],
)
def test_what_no_retry_would_bring_is_refused_at_once(
    joined: Path, wrong: Callable[[Path], object], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong(joined)

    got, _, err = call("up", str(joined), capsys=capsys)

    assert got == code, err
    assert not (joined.parent / "home/up.json").exists()


def marked(toml: Path) -> list[int]:
    """Processes that carry the mark of an `up`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ended = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if not ended and f"MARK={toml}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


@pytest.fixture
def up(joined: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    def start() -> subprocess.Popen[str]:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MARK": str(joined)}
        return subprocess.Popen(
            [sys.executable, "-m", "client.cli", "up", str(joined)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    yield start
    for pid in marked(joined):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.journey
def test_a_server_that_is_not_there_is_tried_again_until_somebody_stops_it(
    joined: Path, up: Callable[[], subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    first, log = up(), joined.parent / "home/logs/supernode.log"
    eventually(lambda: log.is_file() and log.read_text().count("Connection attempt failed") >= 3, 240)
    running = typed("status", str(joined), capsys=capsys)
    assert (running["connected"], running["node"]["starts"]) == (False, 1)  # Flower's node tries again by itself
    os.kill(running["node"]["pid"], signal.SIGKILL)
    eventually(lambda: (status(ClientSettings.read(joined)).node or {}).get("starts", 0) == 2, 60)
    second = up()
    assert second.wait(60) == 2
    assert second.stderr is not None
    with second.stderr as said:
        assert "is running already, since" in said.read()

    document = typed("status", str(joined), capsys=capsys)
    assert (document["running"], document["pid"]) == (True, first.pid)
    assert document["node"]["last_code"] == -signal.SIGKILL
    assert "SuperNode NOT CONNECTED, running since" in call("status", str(joined), capsys=capsys)[1]

    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 0
    assert first.stderr is not None
    with first.stderr as said:
        assert "supernode: ended by signal 9" in said.read()
    assert marked(joined) == []
    assert typed("status", str(joined), capsys=capsys)["running"] is False


def test_the_last_words_of_flower_are_told_by_code_and_reason() -> None:
    log = "\x1b[92mINFO\x1b[0m :      Starting\n\x1b[91mERROR\x1b[0m :     Exit Code: 305\nNo connection.\nIt could not ...\n\nsee <https://flower.example>"

    assert why_it_ended(log).startswith("Flower ended with code 305: No connection. (either the coordinator does not know")
    assert why_it_ended("ConfigError: Flower 9 is installed\n  Install it anew\n") == "ConfigError: Flower 9 is installed Install it anew"
    assert why_it_ended("") == ""


@pytest.mark.parametrize(
    ("said", "why", "hint"),
    [
        ("Failed to initialize the connection to it.\n[SSL: CERTIFICATE_VERIFY_FAILED] has expired", "has expired", "certificate"),
        ("Failed to initialize the connection to it.\n[code: 2004] Failed to activate SuperNode.", "[code: 2004]", "does not know"),
        ("The guarded SuperNode broke: ValueError: no such thing", "no such thing", ""),
    ],
)
def test_the_hint_is_for_what_went_wrong(said: str, why: str, hint: str) -> None:
    words = why_it_ended(f"ERROR : Exit Code: 305\n{said}\nThe SuperNode could not establish a connection to the SuperLink.\n\n")

    assert why in words
    assert hint in words
    assert ("certificate" in words, "does not know" in words) == (hint == "certificate", hint == "does not know")


def test_a_node_that_the_server_refused_ends_in_order_and_that_is_said() -> None:
    said = why_it_ended("INFO : SuperNode terminated gracefully.\nINFO: Finished server process [1]\n")

    assert "the server refused what this node signed" in said
    assert "clock" in said


# --- status ----------------------------------------------------------------------------------------------------------------------------


def test_the_status_of_a_domain_that_took_part_says_what_left_and_what_is_spent(done: World, capsys: pytest.CaptureFixture[str]) -> None:
    settings = done["films"]
    manifest = Manifest(settings.at_home("egress.jsonl"))
    for number in range(1, 9):
        manifest.left(kind="train", why="dp", schema="update", size=1000 + number, sha256="0" * 64, round=number, ledger_event=NO_HASH)
    manifest.blocked(kind="train", why="exception", round=9)
    append(settings.at_home(REFUSED_FILE), {"time": "2026-11-23T10:00:00+00:00", "digest": "f" * 64, "why": "not on the list"})

    document = typed("status", done.toml("films"), "--last", "3", capsys=capsys)
    _, words, _ = call("status", done.toml("films"), capsys=capsys)

    assert document["running"] is False
    assert [(line["event"], line["round"]) for line in document["last_messages"]] == [("left", 7), ("left", 8), ("blocked", 9)]
    assert (document["run_id"], document["round"], document["rounds_answered"], document["rounds"]) == ("run-1", 8, 2, 2)
    assert 0 < document["epsilon_spent"] <= document["epsilon_reserved"] <= document["ceiling_epsilon"] == 8.0
    assert document["last_refusal"]["digest"] == "f" * 64
    assert "not running" in words
    assert "last bundle refused: ffff" in words
    assert len([line for line in words.splitlines() if " left: train" in line]) == 4  # five messages, one of them stopped


def test_the_status_of_a_domain_that_has_only_begun_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(tmp_path / "books", domain="books", changes={}, with_ledger=False)

    document = typed("status", str(tmp_path / "books/partner.toml"), capsys=capsys)

    assert (document["running"], document["run_id"], document["last_messages"], document["last_refusal"]) == (False, None, [], None)
    assert document["epsilon_spent"] is None
    assert document["trouble"]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{" * 100_000, b'{"half": ', b"null\n[]\n3\n"])
def test_damaged_files_do_not_keep_the_status_from_being_said(done: World, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    settings = done["films"]
    for name in ("egress.jsonl", REFUSED_FILE, "up.json"):
        settings.at_home(name).write_bytes(content)
    settings.at_home("run/run.toml").write_bytes(content)

    document = typed("status", done.toml("films"), capsys=capsys)

    assert document["last_messages"] == []
    assert document["epsilon_spent"] > 0


@pytest.mark.parametrize(
    ("log", "is_connected"),
    [
        ("--- started 1\nINFO: SuperNode ID: 7\n", True),
        ("--- started 1\nINFO: SuperNode ID: 7\nWARNING: Connection attempt failed, retrying in 1.00 seconds\n", False),
        ("--- started 1\nWARNING: Connection attempt failed, retrying\nINFO: Connection successful after 3 seconds and 2 tries.\n", True),
        ("--- started 1\nINFO: SuperNode ID: 7\n--- started 2\nINFO: Starting\n", False),
        ("", False),
    ],
)
def test_whether_a_node_is_connected_is_read_from_the_end_of_its_log(tmp_path: Path, log: str, is_connected: bool) -> None:
    settings = begin(tmp_path / "books", domain="books", changes={}, with_ledger=False).settings
    (settings.at_home("logs")).mkdir()
    settings.at_home("logs/supernode.log").write_text(log)

    assert node.connected(settings) is is_connected


def test_only_the_end_of_a_long_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(b"".join(f"line {number}\n".encode() for number in range(100_000)) + b"torn")

    lines = list(node.tail(path))

    assert lines[-1] == b"line 99999"
    assert lines[0].startswith(b"line ")
    assert len(lines) < 30_000


@pytest.mark.parametrize("command", ["init", "join", "check", "up", "status"])
def test_help_answers_without_heavy_libraries(command: str) -> None:
    code = (
        "import sys\nfrom client import cli\n"
        f"try:\n    cli.main(['{command}', '--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'polars', 'flwr', 'numpy', 'cryptography', 'transformers'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    assert "Exit codes" in done.stdout
