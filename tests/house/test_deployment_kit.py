"""The kit for both sides says what the code does: its settings, its commands, its ports; and each barrier that it promises stands in it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.enrolling import begin
from server.proxy import PASSED
from server.settings import ServerSettings
from tests.house.test_readme_commands import all_commands, parse

ROOMS = ("client", "server")
HARDENED = {
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "ProtectControlGroups": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "RestrictNamespaces": "yes",
    "RestrictSUIDSGID": "yes",
    "SystemCallArchitectures": "native",
    "UMask": "0077",
}
BARE_COMMAND = re.compile(r"/usr/local/lib/isthmus/bin/(isthmus-\S+ .*)")


def kit(repository: Path, pattern: str) -> list[Path]:
    found = sorted(path for room in ROOMS for path in (repository / room / "deploy").glob(pattern))
    assert found, f"the kit has no {pattern}"
    return found


def directives(unit: Path) -> dict[str, list[str]]:
    """Key -> values of a unit, in order; remarks are dropped."""
    said: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            said.setdefault(key, []).append(value)
    return said


def shown_commands(repository: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every command of ours that a unit or a container would start."""
    for unit in kit(repository, "*.service"):
        for line in directives(unit)["ExecStart"]:
            found = BARE_COMMAND.fullmatch(line)
            assert found, f"{unit.name}: {line}"
            yield unit, shlex.split(found[1])
    for file in kit(repository, "Containerfile"):
        text = file.read_text()
        entry, words = (yaml.safe_load(re.findall(rf"^{key} (\[.*\])$", text, re.MULTILINE)[-1]) for key in ("ENTRYPOINT", "CMD"))
        yield file, [*entry, *words]
    for file in kit(repository, "compose.yml"):
        for service in yaml.safe_load(file.read_text())["services"].values():
            yield file, [service["image"], *service["command"]]


def test_the_example_of_a_partner_is_what_init_writes(repository: Path, tmp_path: Path) -> None:
    begin(tmp_path / "books", domain="books", changes={}, with_ledger=False)

    made = (tmp_path / "books" / "partner.toml").read_text()
    assert (repository / "client/deploy/partner.example.toml").read_text() == made, "copy what `isthmus-client init` writes for `books`"


def test_whatever_the_kit_starts_is_a_command_that_exists(repository: Path, project: dict[str, Any]) -> None:
    commands = all_commands(project, hidden=True)
    shown = list(shown_commands(repository))

    assert len(shown) >= 7
    for _, words in shown:
        parse(words, commands)


@pytest.mark.parametrize("key", sorted(HARDENED))
def test_every_service_is_hardened(repository: Path, key: str) -> None:
    for unit in kit(repository, "*.service"):
        assert directives(unit).get(key) == [HARDENED[key]], unit.name


def test_a_service_that_stays_up_reaches_this_machine_only_until_somebody_names_addresses(repository: Path) -> None:
    for unit in kit(repository, "*.service"):
        said = directives(unit)
        if said.get("Restart") == ["always"]:
            assert (said["IPAddressDeny"], said["IPAddressAllow"]) == (["any"], ["localhost"]), unit.name
            assert said["User"] == ["isthmus"], unit.name
        else:
            assert said["PrivateNetwork"] == ["yes"], unit.name


def test_no_container_runs_as_root_writes_to_itself_or_can_gain_anything(repository: Path) -> None:
    for file in kit(repository, "Containerfile"):
        assert re.findall(r"^USER (.+)$", file.read_text().rpartition("\nFROM ")[2], re.MULTILINE) == ["10001:10001"], file
    for file in kit(repository, "compose.yml"):
        for name, service in yaml.safe_load(file.read_text())["services"].items():
            assert service["user"] == "10001:10001", name
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name
            assert service["dns"] == ["127.0.0.1"], name
            assert not {"privileged", "network_mode", "cap_add", "pid", "ipc"} & set(service), name


def test_everything_that_an_image_copies_is_part_of_the_checkout(repository: Path) -> None:
    for file in kit(repository, "Containerfile"):
        copied = [words.split()[:-1] for words in re.findall(r"^COPY (?!--)(.+)$", file.read_text(), re.MULTILINE)]
        assert copied
        assert [name for names in copied for name in names if not (repository / name).exists()] == []


def test_network_policies_open_the_ports_of_the_settings_and_nothing_else(repository: Path) -> None:
    public = ServerSettings(hosts="isthmus.example.org").port
    client, server = (yaml.safe_load(path.read_text())["spec"] for path in kit(repository, "network-policy.yml"))

    for policy in (client, server):
        assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert client["ingress"] == []
    assert [[one["port"] for one in rule["ports"]] for rule in client["egress"]] == [[public], [5432]]
    assert all(rule["to"] for rule in client["egress"]), "a rule without `to` opens the port to everybody"
    assert server["egress"] == []
    assert [[one["port"] for one in rule["ports"]] for rule in server["ingress"]] == [[public]]
    assert all(rule["from"] for rule in server["ingress"])


def test_the_packet_filters_name_the_ports_of_the_settings(repository: Path) -> None:
    settings = ServerSettings(hosts="isthmus.example.org")
    client, server = (path.read_text() for path in kit(repository, "isthmus.nft"))

    assert f"192.0.2.7 . {settings.port} " in client
    assert f"tcp dport {settings.port} ip saddr @partners accept" in server
    assert f"tcp dport {{ {settings.port}, {settings.superlink_port} }} counter drop" in server


def test_each_file_of_a_kit_is_on_its_page(repository: Path, tracked: list[Path]) -> None:
    for room in ROOMS:
        page = (repository / room / "deploy/README.md").read_text()
        files = [file.name for file in tracked if file.parent == Path(room, "deploy") and file.name != "README.md"]
        assert [name for name in files if f"({name})" not in page] == [], room


def test_the_pages_count_the_requests_that_the_proxy_passes(repository: Path) -> None:
    assert len(PASSED) == 10
    for page in ("client/deploy/THREAT_MODEL.md", "server/deploy/README.md"):
        assert "ten requests" in (repository / page).read_text(), page


def test_the_runbooks_speak_of_the_same_days(repository: Path) -> None:
    """Both sides have a page for each of them, under a heading that the other side finds too."""
    days = ("Join", "First run", "Look after it", "Rotate a key", "Renew a certificate", "Upgrade flwr", "Restore after disk loss", "Leave")
    for page in kit(repository, "RUNBOOK.md"):
        headings = re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE)
        assert [day for day in days if not any(heading.split(":")[0] == day for heading in headings)] == [], page
