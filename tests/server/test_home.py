"""The coordinator's home: made in one call, finished after a crash, never overwritten, and not opened where a key is open to others."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server import certificates
from server.enrolment import enroll
from server.home import Home
from server.renewal import renew
from server.settings import ServerSettings
from shared.config import RunConfig
from shared.enrolment import JoinCard
from shared.errors import ConfigError, StorageError
from tests.shared.cards import partner_card

SETTINGS = ServerSettings(hosts="isthmus.example,192.0.2.7", port=18443)
MADE = {
    "server.toml",
    "run.toml",
    "keys/coordinator.keys",
    "secrets/superexec",
    "ca/ca.key",
    "ca/ca.crt",
    "tls/server.key",
    "tls/server.pem",
}
DERIVED = {"JOIN.json", "proxy/nginx.conf"}


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "home", SETTINGS).home


@pytest.mark.parametrize("mask", [0, 0o077, 0o137])
def test_a_home_is_whole_and_its_owners_alone_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        made = Home.create(tmp_path / "home", SETTINGS)
    finally:
        os.umask(before)
    root = tmp_path / "home"
    assert set(made.new) == MADE
    assert made.kept == ()
    assert set(contents(root)) == MADE | DERIVED
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [root, *root.rglob("*")]}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert Home.open(root) == made.home
    assert made.home.warnings() == ()
    assert len(made.home.superexec_secret.read_bytes()) == 32


def test_settings_and_run_configuration_read_back_and_explain_every_key(home: Home) -> None:
    assert ServerSettings.read(home.settings_file) == SETTINGS
    assert RunConfig.from_toml(home.run_file.read_text()) == RunConfig(name="first")
    for path in (home.settings_file, home.run_file):
        lines = path.read_text().splitlines()
        keys = [at for at, line in enumerate(lines) if " = " in line and not line.startswith("#")]
        assert len(keys) > 10
        assert all(lines[at - 1].startswith("# ") for at in keys)


def test_the_invitation_says_what_a_partner_has_to_know(home: Home) -> None:
    card = JoinCard.read(home.invitation)
    assert (card.server, card.domain, card.partners) == ("isthmus.example:18443", None, ())
    assert card.coordinator_key == home.coordinator_key().verify_key
    assert card.ca_pem.encode() == home.ca.read_bytes()


def test_a_second_call_changes_nothing(home: Home) -> None:
    before = contents(home.root)
    again = Home.create(home.root, SETTINGS)
    assert again.new == ()
    assert set(again.kept) == MADE - {"ca/ca.key"}  # not even looked for: it may lie elsewhere
    assert contents(home.root) == before


@pytest.mark.parametrize("missing", sorted(MADE - {"server.toml", "ca/ca.key"} | DERIVED))
def test_what_is_missing_is_told_and_made_and_the_rest_stays(home: Home, missing: str) -> None:
    before = contents(home.root)
    (home.root / missing).unlink()
    with pytest.raises(ConfigError, match="isthmus-server init"):
        Home.open(home.root)
    if missing in ("tls/server.key",):  # a new key has no certificate: renew makes one
        with pytest.raises(ConfigError, match="isthmus-server renew"):
            Home.create(home.root, SETTINGS)
        renew(home.root)
    else:
        Home.create(home.root, SETTINGS)
    Home.open(home.root)
    after = contents(home.root)
    changed = {name for name in after if after[name] != before.get(name)}
    follows = {"keys/coordinator.keys": {"JOIN.json"}, "ca/ca.crt": {"JOIN.json"}, "tls/server.key": {"tls/server.pem"}}
    assert changed <= {missing} | follows.get(missing, set())
    assert set(after) == set(before)


@pytest.mark.journey
def test_a_home_that_was_killed_at_any_moment_is_finished_by_a_second_call(tmp_path: Path, repository: Path) -> None:
    """Killed at each of its system calls that puts a file in place or takes it away; nothing that is in place changes afterwards."""
    program = (
        "import os, signal, sys; from pathlib import Path; from server.home import Home; from server.settings import ServerSettings\n"
        "left = [int(sys.argv[2])]\n"
        "def hook(event, args):\n"
        "    if event in ('os.link', 'os.rename', 'os.remove', 'os.mkdir', 'os.chmod') and str(args[0]).startswith(sys.argv[1]):\n"
        "        left[0] -= 1\n"
        "        if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(hook)\n"
        "Home.create(Path(sys.argv[1]), ServerSettings(hosts='isthmus.example,192.0.2.7', port=18443))\n"
    )
    killed = 0
    for moment in range(1, 60, 3):
        root = tmp_path / f"home-{moment}"
        died = subprocess.run(
            [sys.executable, "-c", program, str(root), str(moment)], cwd=repository, capture_output=True, check=False
        ).returncode
        if died == 0:
            break
        assert died == -signal.SIGKILL
        killed += 1
        before = contents(root) if root.exists() else {}
        Home.create(root, SETTINGS)
        Home.open(root)
        after = contents(root)
        assert all(after[name] == data for name, data in before.items() if not Path(name).name.startswith("."))
        assert set(after) >= MADE | DERIVED
    assert killed >= 10


def test_of_many_who_make_it_at_once_all_get_the_same(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from server.home import Home; from server.settings import ServerSettings\n"
        "made = Home.create(Path(sys.argv[1]), ServerSettings(hosts='isthmus.example,192.0.2.7', port=18443))\n"
        "print(made.home.coordinator_key().verify_key)\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "home")], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    said = {process.communicate(timeout=60)[0] for process in started}
    assert [process.returncode for process in started] == [0] * 4
    assert len(said) == 1


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty, and no coordinator's home"):
        Home.create(tmp_path, SETTINGS)
    with pytest.raises(ConfigError, match="not a folder"):
        Home.create(tmp_path / "thesis.txt", SETTINGS)
    with pytest.raises(ConfigError, match="no coordinator's home"):
        Home.open(tmp_path)
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


def test_a_folder_that_others_may_enter_is_refused_before_a_key_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        Home.create(tmp_path / "home", SETTINGS)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("name", ["secrets/superexec", "tls/server.key", "ca/ca.key", "keys/coordinator.keys", ""])
def test_a_home_with_loose_permissions_is_not_opened(home: Home, name: str) -> None:
    (home.root / name).chmod(0o750 if not name else 0o640)
    with pytest.raises(ConfigError, match="chmod"):
        Home.open(home.root)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="/dev/null/home"):
        Home.create(Path("/dev/null/home"), SETTINGS)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('hosts = ""', "hosts"),
        ('hosts = "a b"', "hosts"),
        ('hosts = "a;}evil{"', "hosts"),
        ("port = 0", "port"),
        ('port = "443"', "port"),
        ("superlink_port = 8443", "superlink_port"),
        ('listen = "localhost"', "listen"),
        ('listen = "0.0.0.0; include /etc/passwd"', "listen"),
        ("prot = 1", "Did you mean 'port'"),
        ("[proxy]\nburst = -1", "proxy.burst"),
        ("[enrolment]\ndelta = 1.0", "enrolment.delta"),
        ("hosts = [", "not TOML"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, line: str, said: str) -> None:
    """None of them can carry anything into the proxy's configuration."""
    path = tmp_path / "server.toml"
    path.write_text(('hosts = "isthmus.example"\n' if "hosts" not in line else "") + line + "\n")
    with pytest.raises(ConfigError, match=said):
        ServerSettings.read(path)


def test_an_authority_whose_key_lies_elsewhere_is_enough_until_something_has_to_be_signed(home: Home, tmp_path: Path) -> None:
    shutil.move(home.ca_key, tmp_path / "in-the-safe")
    Home.open(home.root)
    Home.create(home.root, SETTINGS)
    assert not home.ca_key.exists()
    before = contents(home.root)
    with pytest.raises(ConfigError, match="Bring it back"):
        renew(home.root)
    assert contents(home.root) == before
    shutil.move(tmp_path / "in-the-safe", home.ca_key)
    assert renew(home.root).renewed


def test_a_renewal_keeps_authority_and_key_and_only_a_new_key_is_a_new_one(home: Home) -> None:
    before = contents(home.root)
    assert renew(home.root).renewed
    after = contents(home.root)
    assert {name for name in after if after[name] != before[name]} == {"tls/server.pem"}
    renew(home.root, new_key=True)
    last = contents(home.root)
    assert {name for name in last if last[name] != after[name]} == {"tls/server.pem", "tls/server.key"}
    Home.open(home.root)


def test_a_timer_renews_only_what_is_about_to_end(home: Home) -> None:
    now = datetime.now(UTC)
    assert not renew(home.root, within_days=60, now=now).renewed
    assert not renew(home.root, within_days=60, now=now + timedelta(days=764)).renewed
    assert renew(home.root, within_days=60, now=now + timedelta(days=766)).renewed
    assert certificates.validity(home.certificate).days_left(now) in range(766 + 823, 766 + 826)


def test_a_timer_mends_what_does_not_belong_together(home: Home) -> None:
    """As after a crash between the new key and its certificate."""
    home.certificate_key.write_bytes(certificates.new_key())
    with pytest.raises(ConfigError, match="isthmus-server renew"):
        Home.open(home.root)
    assert renew(home.root, within_days=60).renewed
    Home.open(home.root)


def test_new_names_reach_certificate_settings_and_every_card(home: Home) -> None:
    enroll(home, partner_card(domain="books"))
    done = renew(home.root, hosts=("new.example", "192.0.2.9"))
    opened = Home.open(home.root)
    assert (done.renewed, done.told) == (True, ("books",))
    assert opened.settings.host_names == ("new.example", "192.0.2.9")
    assert opened.settings.port == SETTINGS.port
    assert {"new.example", "192.0.2.9"} <= set(certificates.validity(opened.certificate).names)
    assert JoinCard.read(opened.invitation).server == JoinCard.read(opened.join / "books.json").server == "new.example:18443"
    assert opened.warnings() == ()


def test_what_needs_somebody_soon_is_said(home: Home) -> None:
    now = datetime.now(UTC)
    assert [("certificate ends" in line) for line in home.warnings(now + timedelta(days=800))] == [True]
    assert ["ended" in line for line in home.warnings(now + timedelta(days=4000))] == [True, True]
    home.settings_file.write_text(home.settings_file.read_text().replace("192.0.2.7", "192.0.2.8").replace("burst = 400", "burst = 40"))
    said = Home.open(home.root).warnings(now)
    assert len(said) == 2
    assert "is not for 192.0.2.8" in said[0]
    assert "isthmus-server init" in said[1]


@pytest.mark.journey
def test_no_certificate_is_read_while_it_is_being_replaced(home: Home) -> None:
    """Somebody who opens the home all the time never finds it broken while it is renewed."""
    program = "import sys; from pathlib import Path; from server.renewal import renew\nfor _ in range(20): renew(Path(sys.argv[1]))"
    busy = subprocess.Popen([sys.executable, "-c", program, str(home.root)])
    opened = 0
    while busy.poll() is None:
        Home.open(home.root)
        opened += 1
        time.sleep(0.005)
    assert busy.returncode == 0
    assert opened > 5
