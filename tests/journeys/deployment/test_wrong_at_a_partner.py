"""Every wrong set-up of a partner, by the commands that people type, against a coordinator's real SuperLink behind its real nginx: what is
wrong, where, and what to do; an exit code that is documented; nothing in the ledger; and green once the input is mended.

What a database does is in `test_wrong_at_a_database.py`.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from client import bundle_guard, enrolling
from client.allowed import AllowList
from client.settings import ClientSettings
from server import certificates
from shared.enrolment import JoinCard
from tests.journeys.coordinated import COMMAND, coordinator, new_home
from tests.journeys.deployment.partner_desk import Desk, another_clock, values_of_rows
from tests.server.nginx import installed, proxy_of

pytestmark = pytest.mark.slow

DAY_S = 86_400
CA, KEYS, NODE, NODE_PUB, LEDGER, ALLOWED = (
    f"home/{name}" for name in ("server-ca.crt", "keys/partner.keys", "keys/node", "keys/node.pub", "ledger.sqlite", "allowed.json")
)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Desk]:
    """The partner 'books', ready, and a coordinator that is up; 'films' is another partner, with a home beside it."""
    installed()
    ours = coordinator(tmp_path_factory.mktemp("wrong"), repository, agreed={"server.longest_retry_s": 3.0})
    try:
        ours.command("up", ours.home.root, "--detach")
        found = Desk(ours, "books", frozenset(values_of_rows(ours.partners["books"])))
        found.right()
        yield found
    finally:
        ours.end()


@contextlib.contextmanager
def shown(desk: Desk, *, begins: float) -> Iterator[None]:
    """The proxy shows another certificate, by the same authority, that began so many days from now; then its own again."""
    home = desk.ours.home
    kept = home.certificate.read_bytes()
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=begins)
    home.certificate.write_bytes(home.new_certificate(now=now))
    try:
        reloaded(desk)
        yield
    finally:
        home.certificate.write_bytes(kept)
        reloaded(desk)


def reloaded(desk: Desk) -> None:
    """nginx reads its certificate anew, as it does for whoever renews one without a stop."""
    home = desk.ours.home
    wanted = certificates.validity(home.certificate)
    os.kill(desk.ours.status()["programs"]["proxy"]["pid"], signal.SIGHUP)

    def shows() -> bool:
        pem = ssl_certificate(home.settings.port)
        (home.root.parent / "shown.pem").write_text(pem)
        return certificates.validity(home.root.parent / "shown.pem") == wanted

    desk.ours.wait(shows, "nginx does not show the other certificate", 60)


def ssl_certificate(port: int) -> str:
    import ssl

    return ssl.get_server_certificate(("localhost", port), timeout=10)


# --- the server is not the one it should be --------------------------------------------------------------------------------------------


def test_the_certificate_of_another_authority(desk: Desk, tmp_path: Path) -> None:
    other = new_home(tmp_path / "other")
    with desk.spoiled(CA) as (ca,):
        ca.write_bytes(other.ca.read_bytes())
        do = desk.wrong({"certificate": "not by the coordinator's authority"}, "--skip-data")
        assert "Do not go on" in do["certificate"]
        with desk.up() as up:
            up.says("CERTIFICATE_VERIFY_FAILED", "isthmus-client check")
            ca.write_bytes(desk.ours.home.ca.read_bytes())
            up.connects()
    desk.right()


def test_half_a_certificate_of_the_authority(desk: Desk) -> None:
    with desk.spoiled(CA) as (ca,):
        ca.write_bytes(ca.read_bytes()[:300])
        desk.wrong({"server": "the authority's certificate server-ca.crt cannot be used"}, "--skip-data")
        assert "server-ca.crt cannot be used: it is damaged" in desk.typed("up", desk.toml, code=3)
        # Damaged while a node is kept up: Flower breaks, and its process ends, so that the supervisor can start it again.
        settings = ClientSettings.read(desk.toml)
        guarded = bundle_guard.command(desk.toml, superlink=settings.server.address, root_certificates=ca, node_key=settings.node_key_path)
        broken = subprocess.run(guarded, env=desk.ours.environment, capture_output=True, text=True, timeout=240, check=False)
        assert broken.returncode == 1
        assert "The guarded SuperNode broke: SSLError" in broken.stdout + broken.stderr
    desk.right()


def test_a_certificate_that_has_ended_and_one_that_has_not_begun(desk: Desk) -> None:
    with shown(desk, begins=-certificates.LEAF_DAYS - 1):
        do = desk.wrong({"certificate": "the server's certificate has ended"}, "--skip-data")
        assert "isthmus-server renew" in do["certificate"]
    with shown(desk, begins=2):
        desk.wrong({"certificate": "the server's certificate is not valid yet"}, "--skip-data")
    desk.right()


def test_a_server_under_a_name_that_it_does_not_have(desk: Desk) -> None:
    address = desk.ours.home.settings.address
    with desk.spoiled("partner.toml"):
        desk.edit(f'"{address}"', f'"127.0.0.2:{desk.ours.home.settings.port}"')
        desk.wrong({"certificate": "the server's certificate is not for 127.0.0.2"}, "--skip-data")
    with desk.spoiled("partner.toml"):
        desk.edit(f'"{address}"', '"nobody.invalid:8443"')
        desk.wrong({"server": "the name nobody.invalid is not known here"}, "--skip-data")
    desk.right()


@pytest.mark.parametrize(("ahead", "said"), [(DAY_S, "ahead of"), (-DAY_S, "behind")])
def test_a_clock_that_is_off_by_a_day(desk: Desk, tmp_path: Path, ahead: int, said: str) -> None:
    """The partner's whole process lives on another day. Behind, the server's certificate, three hours old, is not valid yet either."""
    clock = another_clock(tmp_path)(ahead)
    red = {"clock": f"s {said} the server's"} | ({"certificate": "not valid yet"} if ahead < 0 else {})
    assert "NTP" in desk.wrong(red, "--skip-data", **clock)["clock"]
    with desk.up(**clock) as up:
        up.says(*(("the server refused what this node signed", "clock") if ahead > 0 else ("CERTIFICATE_VERIFY_FAILED", "not yet valid")))
    desk.right()
    with desk.up() as up:
        up.connects()


# --- keys ------------------------------------------------------------------------------------------------------------------------------


def test_keys_that_others_may_read(desk: Desk) -> None:
    for name, code, red in (
        (KEYS, 12, {"permissions": "partner.keys", "keys": "can be read by others", "ledger": "can be read by others"}),
        (NODE, 3, {"permissions": "others may read or change node"}),
        ("partner.toml", None, {"permissions": "others may read or change partner.toml"}),
        ("home", None, {"permissions": "others may read or change home"}),
    ):
        with desk.spoiled(name) as (path,):
            path.chmod(path.stat().st_mode | 0o066)
            do = desk.wrong(red, "--skip-data", "--skip-server")
            if code is not None:
                assert "chmod 600" in desk.typed("up", desk.toml, code=code)
            subprocess.run(do["permissions"], shell=True, check=True, timeout=60)  # as it stands there
            desk.right("--skip-data", "--skip-server")


def test_keys_and_the_ledger_of_another_partner(desk: Desk) -> None:
    films = desk.ours.partners["films"].base
    cases = (
        ((NODE,), {"keys": "'node' and 'node.pub' beside it do not belong together"}, 4),
        ((NODE, NODE_PUB), {"keys": "not the one of PARTNER.json, by which the coordinator knows this node"}, 4),
        ((KEYS,), {"ledger": "signed with another key than this domain's"}, 24),
        ((LEDGER,), {"ledger": "belongs to the domain 'films'"}, 7),
    )
    for names, red, code in cases:
        with desk.spoiled(*names) as paths:
            for name, path in zip(names, paths, strict=True):
                path.write_bytes((films / name).read_bytes())
            desk.wrong(red, "--skip-data", "--skip-server")
            assert next(iter(red.values())) in desk.typed("up", desk.toml, code=code)
        desk.right("--skip-data", "--skip-server")
    theirs = desk.ours.home.join / "films.json"
    assert "written for the domain 'films'" in desk.typed("join", desk.folder, theirs, code=2)
    desk.right("--skip-data")


def test_a_key_that_nobody_enrolled(desk: Desk) -> None:
    """First it is unknown, then the card names another partner's key, then it is enrolled, and the node that waited connects."""
    books, home = desk.ours.partners["books"], desk.ours.home
    folder = desk.folder.with_name("music")
    changes = {
        "data.items": books.data.items,
        "data.interactions": books.data.interactions,
        "data.time": books.data.time,
        "server.longest_retry_s": 3.0,
    }
    begun = enrolling.begin(folder, domain="music", changes=changes, with_ledger=True)
    enrolling.join(folder / "partner.toml", JoinCard.read(home.invitation))
    AllowList(begun.settings.at_home("allowed.json")).decide(desk.ours.bundle.digest, allowed=True, by="A. Officer")
    music = Desk(desk.ours, "music", desk.secret)
    music.right()  # from outside nobody can tell who is enrolled

    with music.up() as up:
        up.says("the coordinator does not know this node's key")
        with music.spoiled(NODE, NODE_PUB, "PARTNER.json") as paths:
            for path in paths[:2]:
                shutil.copy(desk.ours.partners["films"].base / path.relative_to(folder), path)
            music.typed("init", folder, "--domain", "music", code=0)
            said = music.at_the_coordinator("enroll", home.root, folder / "PARTNER.json", code=4)
            assert "the node_key of 'music' is the one of 'films'" in said
        music.at_the_coordinator("enroll", home.root, folder / "PARTNER.json", code=0)
        up.connects()
    music.right()


# --- files that end in the middle ------------------------------------------------------------------------------------------------------


def test_half_written_files(desk: Desk) -> None:
    with desk.spoiled("partner.toml") as (toml,):
        whole = toml.read_bytes()
        for end in (0, whole.index(b"[server]") + 4, whole.index(b"\n[consent]") + 1):
            toml.write_bytes(whole[:end])
            desk.wrong({"settings": "partner.toml is" if end else "'domain' is a name"})
        for command in ("up", "status"):
            assert "partner.toml is cut off" in desk.typed(command, toml, code=3)
    desk.right()
    with desk.spoiled(ALLOWED) as (allowed,):
        allowed.write_bytes(allowed.read_bytes()[:-30])
        desk.wrong({"bundle": "the list of allowed bundles is damaged"}, "--skip-data", "--skip-server")
        assert "is damaged" in desk.typed("up", desk.toml, code=3)
    card = desk.folder / "JOIN.json"
    card.write_bytes((desk.ours.home.join / "books.json").read_bytes()[:-50])
    assert "JOIN.json" in desk.typed("join", desk.folder, card, code=4)
    shutil.copy(desk.ours.home.join / "books.json", card)
    desk.typed("join", desk.folder, card, code=0)
    desk.right()


# --- ports, and programs that are away -------------------------------------------------------------------------------------------------


def test_a_port_of_the_node_that_is_taken(desk: Desk) -> None:
    with desk.spoiled("partner.toml"), socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        desk.edit("at each start (0 to 65535)\nport = 0", f"at each start (0 to 65535)\nport = {port}")
        red = f"port {port} of 127.0.0.1 cannot be used (Address already in use)"
        desk.wrong({"port": red}, "--skip-data")
        with desk.up() as up:
            up.says(red, "choose another server.port")
            other.close()
            up.connects()
        desk.right()


def test_a_port_of_the_coordinator_that_is_taken_and_a_home_that_is_spoiled(desk: Desk, tmp_path: Path) -> None:
    home = new_home(tmp_path / "second")
    for port, key in ((home.settings.port, "'port'"), (home.settings.superlink_port, "'superlink_port'")):
        with socket.create_server(("127.0.0.1", port)):
            said = desk.at_the_coordinator("up", home.root, "--detach", code=2)
        assert f"port {port} of " in said
        assert key in said
    for path, spoil, why in (
        (home.settings_file, lambda data: data[: len(data) // 2 - 7], "server.toml"),
        (home.certificate, lambda _: desk.ours.home.certificate.read_bytes(), "server.pem"),
        (home.ca, lambda data: data[:200], "ca.crt"),
        (home.superexec_secret, lambda data: data[:-1], "superexec"),
    ):
        whole = path.read_bytes()
        path.write_bytes(spoil(whole))
        assert why in desk.at_the_coordinator("up", home.root, "--detach", code=3)
        path.write_bytes(whole)
    home.certificate_key.chmod(0o644)
    assert "chmod 600" in desk.at_the_coordinator("up", home.root, "--detach", code=3)
    home.certificate_key.chmod(0o600)
    try:
        desk.at_the_coordinator("up", home.root, "--detach", code=0)
    finally:
        subprocess.run([*COMMAND, "stop", str(home.root)], env=desk.ours.environment, capture_output=True, timeout=120, check=False)


def test_everything_at_the_coordinator_is_down_and_comes_back(desk: Desk) -> None:
    """Nobody there, the proxy alone, a certificate that ended, and all of it back; the partner's node waits through it."""
    home, ours = desk.ours.home, desk.ours
    desk.at_the_coordinator("stop", home.root, code=0)
    with desk.up() as up:
        desk.wrong({"server": f"port {home.settings.port} cannot be reached: Connection refused"}, "--skip-data")
        with proxy_of(home, installed()):
            desk.wrong({"node interface": "the proxy answers 502"}, "--skip-data")
        ended = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=certificates.LEAF_DAYS + 1)
        home.certificate.write_bytes(home.new_certificate(now=ended))
        assert "isthmus-server renew" in desk.at_the_coordinator("up", home.root, "--detach", code=3)
        desk.at_the_coordinator("renew", home.root, code=0)
        assert not node_connected(desk)
        ours.command("up", home.root, "--detach")
        up.connects()
        desk.right()


def node_connected(desk: Desk) -> bool:
    from client.node import status

    return status(ClientSettings.read(desk.toml)).connected
