"""README.md, 'Deployment': what it says to type is typed, in three checkouts and three networks, to a finished run, report and audit.

The name `isthmus.example.org` means the coordinator's address in each shell's own /etc/hosts. `pip install` runs as written, but asks no
index: the packages that isthmus needs are lent by the environment that this test runs in; isthmus itself is installed from the checkout.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from client.key_rotation import own_keys
from client.settings import ClientSettings
from server.processes import find_nginx
from shared.privacy.audit import verify
from shared.privacy.findings import Status
from shared.privacy.ledger import read_events
from simulations.deployment_network import PUBLIC, Network, network
from simulations.partners import linked
from simulations.scenario_config import load
from simulations.synthetic_domains import write as write_synthetic
from tests.journeys.deployment import readme_path
from tests.journeys.deployment.readme_path import COORDINATOR, Said, Side
from tests.journeys.tiny_world import TINY

DOMAINS = ("books", "films")
MOST = 10
"""Commands on each side, installation included."""


@pytest.fixture(scope="module")
def said(repository: Path) -> Said:
    return readme_path.read(repository / "README.md")


def test_each_side_types_at_most_ten_commands(said: Said) -> None:
    for lines in (said.coordinator, said.partner):
        typed = readme_path.commands(lines)
        assert len(typed) <= MOST
        assert not any(word in line for line in typed for word in ("&&", ";", "|")), "one command a line"


def test_whatever_a_command_takes_from_the_other_side_is_in_the_table(said: Said) -> None:
    kept = {row.kept for row in said.handed}
    for name in ("books.json", "films.json", "JOIN.json", "isthmus.fab", "receipts.json"):
        assert any(name in line.split() for line in (*said.coordinator, *said.partner))
        assert name in kept | {readme_path.spoken_by(one, "films", "books") for one in kept}


def document(said: str) -> dict[str, Any]:
    """What a command with --json said, after what it may have told on the way."""
    found: dict[str, Any] = json.loads(said[said.index("{") :])
    return found


@pytest.fixture
def places() -> Iterator[Network]:
    if find_nginx() is None:
        pytest.skip("the coordinator's nginx is not installed (Debian: apt-get install nginx-light)")
    with network(DOMAINS) as found:
        if not found.apart:
            pytest.skip(f"names cannot be given a meaning of their own here: {found.why}")
        yield found
        for pid in found.processes():  # of these namespaces, and so of this test
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def sides(tmp_path: Path, repository: Path, said: Said, places: Network) -> Iterator[dict[str, Side]]:
    hosts, lent = tmp_path / "hosts", readme_path.lend(tmp_path / "lent")
    hosts.write_text(f"127.0.0.1 localhost\n{PUBLIC} isthmus.example.org\n")
    scenario = load("demo", seed=0, overrides=TINY)
    data = tmp_path / "data"
    write_synthetic(data, scenario.synthetic, 0)
    links = linked({domain: data / domain / "interactions.csv" for domain in DOMAINS})
    made: dict[str, Side] = {}
    for name, other in ((COORDINATOR, ""), DOMAINS, DOMAINS[::-1]):
        desk = readme_path.checkout(repository, tmp_path / name)
        lines = said.coordinator if name == COORDINATOR else [readme_path.spoken_by(line, name, other) for line in said.partner]
        if name != COORDINATOR:
            (data / name).rename(desk / name)
            links[name].write_csv(desk / name / "links.csv")
        made[name] = Side(
            name=name,
            desk=desk,
            scratch=tmp_path / f"{name}-shell",
            lines=list(lines),
            inside=lambda words, name=name: places.inside(name, words),  # type: ignore[misc]
            hosts=hosts,
            lent=lent,
        )
    yield made
    for side in made.values():
        side.end()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_what_the_readme_says_is_typed_to_an_audited_run(sides: dict[str, Side], said: Said, places: Network) -> None:
    readme_path.walk(sides, said.handed, limit_s=1800)
    coordinator, partners = sides[COORDINATOR], [sides[name] for name in DOMAINS]
    for side in sides.values():
        print(f"\n{side.name}: {sum(side.seconds.values()):.0f} s")
        print("\n".join(f"{seconds:7.1f} s  {line}" for line, seconds in side.seconds.items()))

    home = coordinator.desk / "coordinator"
    (run,) = document(coordinator.type_now("isthmus-server status coordinator --json"))["runs"]
    assert (run["state"], run["round"]) == ("finished", run["rounds"])
    assert run["refused"] == {}
    assert list(home.glob("runs/*/report.html"))
    for side in partners:
        assert "INTACT" in side.done[next(line for line in side.done if line.startswith("isthmus-audit"))]
        settings = ClientSettings.read(side.desk / side.name / "partner.toml")
        found = verify(settings.ledger_path, key=own_keys(settings).verify_key, receipts=home / "receipts.json")
        assert found.status is Status.INTACT, found.findings
        kinds = [event.kind for event in read_events(settings.ledger_path)]
        assert (kinds.count("schedule"), kinds.count("commit"), kinds.count("intent")) == (1, run["rounds"], run["rounds"])
        passports = document(side.type_now(f"isthmus-client passport list {side.name}/partner.toml --json"))["passports"]
        assert {one["direction"] for one in passports if one["passports"] > 0} == {"out", "in"}

    fingerprints = re.compile(r"(?:[0-9a-f]{4} ){7}[0-9a-f]{4}")
    for side in partners:  # what the two would read to one another
        (told,) = fingerprints.findall(side.done[next(line for line in side.done if line.startswith("isthmus-client init"))])
        enrolled = coordinator.done[f"isthmus-server enroll coordinator {side.name}.json"]
        joined = side.done[next(line for line in side.done if line.startswith("isthmus-client join"))]
        assert fingerprints.findall(enrolled) == [told, *fingerprints.findall(joined)]

    for side in partners:
        side.type_now("kill $!; wait $!")
    coordinator.type_now("isthmus-server stop coordinator")
    assert all((side.desk / ".venv/bin/isthmus-client").is_file() for side in sides.values())
    for side in sides.values():
        side.end()
    assert places.processes() == []
