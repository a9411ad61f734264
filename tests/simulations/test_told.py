"""What a person at the desk is told about the partners' files before anything is trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from client.preparation import Linked, PreparedDomain, prepare
from simulations.cli import main
from simulations.told import told
from tests.client.partner_world import CONFIG, settings
from tests.journeys.tiny_world import TINY


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreparedDomain]:
    root = tmp_path_factory.mktemp("told")
    return {name: prepare(settings(root, name, root / "texts"), CONFIG) for name in ("books", "films")}


def test_every_domain_says_what_its_files_held(domains: dict[str, PreparedDomain]) -> None:
    lines = told(domains)

    assert lines == [f"{name}: {line}" for name, domain in domains.items() for line in domain.said()]
    assert [line for line in lines if line.startswith("books: ") and line.endswith(" items")]


def test_a_pair_without_a_person_in_both_is_said(domains: dict[str, PreparedDomain]) -> None:
    games = dataclasses.replace(domains["films"], links={})

    assert told({**domains, "games": games})[-2:] == [
        "no linked people between books and games: no direction",
        "no linked people between films and games: no direction",
    ]


def test_links_that_only_one_side_knows_are_no_direction(domains: dict[str, PreparedDomain]) -> None:
    linked = domains["films"].links["books"]
    others = Linked(rows=linked.rows, link_ids=linked.link_ids[::-1].astype("U40") + "x")
    films = dataclasses.replace(domains["films"], links={"books": others})

    assert told({"books": domains["books"], "films": films})[-1] == "no linked people between books and films: no direction"


@pytest.mark.journey
def test_a_run_prints_it_and_a_quiet_one_does_not(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    overrides = [part for key, value in {**TINY, "privacy.rounds": 1}.items() for part in ("--set", f"{key}={value}")]
    printed = []
    for quiet in ([], ["--quiet"]):
        with pytest.raises(SystemExit) as left:
            main(["run", "demo", "--out", str(tmp_path / f"runs{len(quiet)}"), *overrides, *quiet])
        assert left.value.code == 0
        printed.append(capfd.readouterr())

    assert printed[0].err.count(" interactions of ") == len(list((tmp_path / "runs0").glob("*/ledgers/*.sqlite"))) > 1
    assert " interactions of " not in printed[0].out + printed[1].err + printed[1].out
