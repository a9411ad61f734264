"""The preflight: a domain that is ready, and each thing that can be wrong with one, with what to do about it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client import preflight as module
from client.allowed import FILE, AllowList
from client.check_line import Line
from client.commands.check import NOT_READY
from client.enrolling import begin, join, make_node_key
from client.key_rotation import own_keys
from client.preflight import free_memory, name_conflicts, preflight
from client.settings import ClientSettings
from shared.privacy.ledger import Ledger
from tests.client.coordinator_card import Coordinator
from tests.client.https_server import Told, https
from tests.client.test_cli import call
from tests.client.test_server_check import PROXY

ROWS = [f"u{user},{item},{1_600_000_000 + item}" for user in range(30) for item in range(5)]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A domain with data, keys, ledger and an allowed bundle; each test works on its own copy."""
    folder = tmp_path_factory.mktemp("domain") / "books"
    begin(folder, domain="books", changes={"data.links": "links.csv"}, with_ledger=True)
    (folder / "items.csv").write_text("item_id,title,categories\n" + "".join(f"{item},Title {item},x\n" for item in range(7)))
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(ROWS) + "\n")
    token = hashlib.sha256(b"u1").hexdigest()[:32]
    (folder / "links.csv").write_text(f"user_id,partner,link_id\nu1,films,{token}\n")
    AllowList(folder / "home" / FILE).decide("a" * 64, allowed=True, by="a test")
    return folder


@pytest.fixture
def toml(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "books")
    return tmp_path / "books/partner.toml"


@pytest.fixture
def serving(toml: Path, tmp_path: Path) -> Iterator[Told]:
    """The coordinator's server, which the domain has joined."""
    coordinator, told = Coordinator(), Told(PROXY)
    with https(coordinator.write_leaf(tmp_path), told) as port:
        join(toml, coordinator.join_card(server=f"127.0.0.1:{port}"))
        yield told


def red(toml: Path, *, data: bool = False, server: bool = False) -> dict[str, Line]:
    report = preflight(toml, data=data, server=server)
    found = {line.name: line for line in report.lines if not line.ok}
    assert report.ready == (not found)
    assert all(line.do for line in found.values())
    return found


def edit(toml: Path, old: str, new: str) -> None:
    text = toml.read_text()
    assert old in text
    toml.write_text(text.replace(old, new))


def test_a_domain_that_is_ready_is_green_with_counts_and_nothing_is_changed(toml: Path, serving: Told) -> None:
    home = toml.parent / "home"
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}

    report = preflight(toml)

    assert [line for line in report.lines if not line.ok] == []
    said = [line.what for line in report.lines]
    assert "150 interactions of 30 users, 0 of them with a single one" in said
    assert "7 items" in said
    assert "1 users linked with 'films'" in said
    assert any("epsilon 0.00 spent, 8.00 of 8 left" in line for line in said)
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
    assert len(serving.asked) == 3


def test_the_command_prints_a_line_for_each_and_ends_with_0_or_36(toml: Path, serving: Told, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call("check", str(toml), capsys=capsys)
    assert code == 0
    assert out.splitlines()[-1].endswith("green, 0 red: ready")
    assert all(line.startswith("ok ") for line in out.splitlines()[:-1])

    (toml.parent / "items.csv").unlink()
    code, out, _ = call("check", str(toml), "--skip-server", capsys=capsys)
    assert code == NOT_READY == 36
    assert "RED  data" in out
    assert "-> Mend the [data] section" in out

    code, out, err = call("check", str(toml), "--json", capsys=capsys)
    document = json.loads(out)
    assert (code, document["domain"], document["ready"]) == (36, "books", False)
    assert [line["name"] for line in document["lines"] if not line["ok"]] == ["data"]
    assert err == ""


@pytest.mark.parametrize("text", ["domain = ", 'domain = "books"\n[server]\naddress = "nowhere"\n', 'domain = "books"\nwhat = 1\n', ""])
def test_settings_that_cannot_be_read_are_red_and_the_machine_is_looked_at_all_the_same(toml: Path, text: str) -> None:
    toml.write_text(text)

    report = preflight(toml)

    assert [line.name for line in report.lines] == ["settings", "installation", "Flower", "memory"]
    assert [line.ok for line in report.lines] == [False, True, True, True]
    assert report.domain == ""


def test_no_settings_at_all_are_red(tmp_path: Path) -> None:
    assert "no settings file" in red(tmp_path / "partner.toml")["settings"].what


@pytest.mark.parametrize("name", ["home", "home/keys", "home/keys/partner.keys", "home/keys/node", "partner.toml", "home/allowed.json"])
def test_what_others_may_read_or_change_is_red_and_the_command_for_it_helps(toml: Path, name: str) -> None:
    path = toml.parent / name
    path.chmod(path.stat().st_mode | 0o066)

    found = red(toml)
    line = found["permissions"]
    assert path.name in line.what
    os.system(line.do)

    assert "permissions" not in red(toml)


def test_keys_that_others_may_read_are_red_twice(toml: Path) -> None:
    (toml.parent / "home/keys/partner.keys").chmod(0o640)

    assert "can be read by others" in red(toml)["keys"].what


@pytest.mark.parametrize("name", ["partner.keys", "node"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 64, None])
def test_keys_that_are_damaged_or_gone_are_red(toml: Path, name: str, content: bytes | None) -> None:
    path = toml.parent / "home/keys" / name
    path.unlink() if content is None else path.write_bytes(content)

    assert "keys" in red(toml)


def test_the_node_key_of_another_partner_is_red_until_the_own_one_is_back(toml: Path, tmp_path: Path) -> None:
    """With it this node would be admitted as that partner's."""
    folder = toml.parent / "home/keys"
    make_node_key(tmp_path / "node")
    own = {name: (folder / name).read_bytes() for name in ("node", "node.pub")}
    shutil.copy(tmp_path / "node", folder / "node")
    assert "'node' and 'node.pub' beside it do not belong together" in red(toml)["keys"].what

    shutil.copy(tmp_path / "node.pub", folder / "node.pub")
    assert "not the one of PARTNER.json, by which the coordinator knows this node" in red(toml)["keys"].what

    for name, data in own.items():
        (folder / name).write_bytes(data)
    assert "keys" not in red(toml)


def test_a_port_of_the_node_that_something_else_holds_is_red(toml: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        edit(toml, "at each start (0 to 65535)\nport = 0", f"at each start (0 to 65535)\nport = {port}")
        assert f"port {port} of 127.0.0.1 cannot be used" in red(toml)["port"].what
    assert "port" not in red(toml)


def test_a_change_of_keys_that_was_cut_off_is_red_and_the_command_for_it_helps(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = toml.parent / "home/keys"
    shutil.copy(folder / "partner.keys", folder / "partner.keys.next")
    assert red(toml)["keys"].what == "a change of the keys was cut off"

    assert call("passport", "keys", str(toml), "--out", str(toml.parent / "books.keys.json"), capsys=capsys)[0] == 0
    assert "keys" not in red(toml)


def used_up(settings: ClientSettings) -> None:
    """A ledger that begins with almost all of its ceiling booked."""
    gone(settings)
    for path in settings.ledger_path.parent.glob("ledger.sqlite*"):
        path.unlink()
    Ledger.restart(
        settings.ledger_path,
        signer=own_keys(settings),
        domain="books",
        ceiling_epsilon=8.01,
        delta=1e-6,
        set_by="a test",
        booked_epsilon=8.0,
        booked_delta=1e-6,
        last_receipt=None,
    ).close()


def broken(settings: ClientSettings) -> None:
    data = bytearray(settings.ledger_path.read_bytes())
    data[-200:] = b"\xff" * 200
    settings.ledger_path.write_bytes(bytes(data))


def foreign(settings: ClientSettings) -> None:
    settings.at_home("keys/partner.keys").unlink()
    own_keys(settings)


def gone(settings: ClientSettings) -> None:
    settings.ledger_path.unlink()


def never_made(settings: ClientSettings) -> None:
    for path in settings.ledger_path.parent.glob("ledger.sqlite*"):
        path.unlink()


def of_another_domain(settings: ClientSettings) -> None:
    edit(settings.base / "partner.toml", 'domain = "books"', 'domain = "films"')


def of_another_delta(settings: ClientSettings) -> None:
    edit(settings.base / "partner.toml", "delta = 1e-06", "delta = 1e-05")


def empty(settings: ClientSettings) -> None:
    settings.ledger_path.write_bytes(b"")


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (never_made, "no ledger yet"),
        (used_up, "the budget is used up: epsilon 8.00 of 8.01"),
        (empty, ""),
        (broken, ""),
        (foreign, "signed with another key"),
        (of_another_domain, "belongs to the domain 'books'"),
        (of_another_delta, "every run would be refused"),
    ],
)
def test_a_ledger_that_cannot_be_used_is_red(toml: Path, wrong: Callable[[ClientSettings], None], what: str) -> None:
    wrong(ClientSettings.read(toml))

    assert what in red(toml)["ledger"].what


def test_a_domain_without_a_bundle_is_red_and_so_is_a_list_that_others_may_write(toml: Path) -> None:
    listed = toml.parent / "home" / FILE
    AllowList(listed).decide("a" * 64, allowed=False, by="a test")
    assert red(toml)["bundle"].what == "no bundle may run here yet"

    listed.chmod(0o666)
    assert "can be written to by others" in red(toml)["bundle"].what


@pytest.mark.parametrize("model", ["/nowhere/model", "nobody/nothing-of-this-name"])
def test_a_text_model_that_is_not_there_is_red(toml: Path, model: str) -> None:
    edit(toml, 'text_model = "builtin"', f'text_model = "{model}"')

    assert "text model" in red(toml)


@pytest.mark.parametrize(
    ("file", "content", "what"),
    [
        ("interactions.csv", None, "no file interactions.csv"),
        ("interactions.csv", "user_id,item_id,timestamp\nanna-4711,0,yesterday\n", "timestamp"),
        ("interactions.csv", "who,item_id,timestamp\nanna-4711,0,1600000000\n", "user_id"),
        ("interactions.csv", "user_id,item_id,timestamp\nanna-4711,item-9,1600000000\n", ""),
        ("items.csv", "item_id,title,categories\n", ""),
        ("links.csv", "user_id,partner,link_id\nanna-4711,,token\n", ""),
    ],
)
def test_data_that_cannot_be_used_are_red_and_no_value_is_repeated(toml: Path, file: str, content: str | None, what: str) -> None:
    path = toml.parent / file
    path.unlink() if content is None else path.write_text(content)

    line = red(toml, data=True)["data"]

    assert what in line.what
    assert "4711" not in line.what + line.do
    assert "item-9" not in line.what + line.do


def test_a_server_without_a_coordinator_and_a_coordinator_without_a_server_are_red(toml: Path, serving: Told) -> None:
    assert "server" not in red(toml)
    settings = ClientSettings.read(toml)
    edit(toml, settings.server.coordinator_key, "")

    assert list(red(toml, server=True)) == ["coordinator"]


def test_a_closed_port_is_one_red_line(toml: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    join(toml, Coordinator().join_card(server=f"127.0.0.1:{port}"))

    assert list(red(toml, server=True)) == ["server"]


def test_little_memory_and_a_full_disk_are_red(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_DISK", 2**80)
    monkeypatch.setattr(module, "LEAST_MEMORY", 2**80)

    assert set(red(toml)) == {"disk", "memory"}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:      2048 kB\n"}, 2048 * 1024),
        ({"proc/meminfo": "MemAvailable: 2048 kB\n", "cg/memory.max": "max\n", "cg/memory.current": "5\n"}, 2048 * 1024),
        ({"proc/meminfo": "MemAvailable: 2048 kB\n", "cg/memory.max": "1000\n", "cg/memory.current": "400\n"}, 600),
        ({"cg/memory.max": "1000\n", "cg/memory.current": "1400\n"}, 0),
        ({}, None),
    ],
)
def test_free_memory_is_what_machine_and_control_group_both_leave(tmp_path: Path, files: dict[str, str], free: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    assert free_memory(tmp_path / "proc", tmp_path / "cg") == free


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("top_level.txt", "other\nshared\n"),
        ("RECORD", "client/__init__.py,sha256=x,1\nother-1.dist-info/METADATA,,\n"),
        ("RECORD", "server.py,sha256=x,1\n"),
    ],
)
def test_another_package_with_modules_of_our_names_is_red(
    toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: str
) -> None:
    assert name_conflicts() == []
    folder = tmp_path / "site/Other_Package-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: Other_Package\nVersion: 1.0\n")
    (folder / file).write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    assert name_conflicts() == ["other-package"]
    assert "other-package" in red(toml)["installation"].what


def test_a_package_with_similar_names_is_no_conflict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site/other-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (folder / "RECORD").write_text("other/client/__init__.py,,\nclients/__init__.py,,\nshared_things.py,,\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    assert name_conflicts() == []


def test_a_look_that_breaks_is_a_red_line_and_tells_nothing_of_its_text(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_: object) -> Iterator[Line]:
        raise RuntimeError("user-4711-anna")
        yield

    monkeypatch.setattr(module, "_text_model", breaks)

    line = red(toml)["text model"]
    assert line.what == "could not be looked at (RuntimeError)"
