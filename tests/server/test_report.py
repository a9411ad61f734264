"""The page about a run: from a real run's folder, with whatever went wrong, and with nothing that a partner wrote taken for markup."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from server import app as server_app
from server import nodes
from server.home import Home
from server.journal import Journal
from server.report import build, incidents, write
from server.report_page import chart, render
from server.run_record import RunRecord
from server.runs import prepare
from server.settings import ServerSettings
from server.strategy import Coordinator
from shared.errors import DataError
from simulations.in_process_grid import InProcessGrid
from tests.server.bundles import a_bundle
from tests.server.tiny_clients import TEXT, small_config, tiny_app

RELEASE = {
    "format": "isthmus-release-1",
    "domain": "arts",
    "purpose": "metric",
    "private": True,
    "values": {"hit_rate_at_10": 0.25, "hits": 25, "public_users": 100},
    "mechanism": {"noise_standard_deviation": 10.0},
    "epsilon_of_this_release": 0.5,
}


class Silent(HTMLParser):
    """Refuses whatever would load something, or run."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "img", "iframe", "object", "embed", "form"}
        for name, value in attrs:
            assert not name.startswith("on")
            assert name not in {"src", "href"} or (value or "").startswith(("data:", "#"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    make = Coordinator.__init__
    monkeypatch.setattr(Coordinator, "__init__", lambda self, **how: make(self, **({"text_dimension": TEXT} | how)))
    made = Home.create(tmp_path / "home", ServerSettings(hosts="localhost")).home
    made.partners_file.write_text("[arts]\nceiling_epsilon = 9.0\n[books]\n[music]\n")
    nodes.write(made.nodes_file, {1: "arts", 2: "books"})  # the registrar does, beside a SuperLink
    return made


@pytest.fixture
def run(home: Home, tmp_path: Path) -> Path:
    """A finished run of two domains, of three that are enrolled."""
    folder = prepare(home, small_config(), a_bundle(), expected_clients=2)
    RunRecord.read(folder).submitted(5).write(folder)
    context = Context(run_id=5, node_id=1, node_config={}, state=RecordDict(), run_config={"run": str(folder)})
    server_app.app(grid=InProcessGrid(tiny_app(tmp_path), 2), context=context)
    return folder


def test_a_report_says_what_was_spent_by_each_and_by_a_person_in_several(home: Home, run: Path, tmp_path: Path) -> None:
    document = build(home, run)
    assert [one["domain"] for one in document["domains"]] == ["arts", "books", "music"]
    arts, _, music = document["domains"]
    assert (arts["answered"], arts["ceiling"], arts["delivered"]) == (3, 9.0, "yes")
    assert (music["answered"], music["events"], music["delivered"]) == (0, 0, None)
    assert len(document["for_k_domains"]) == 2
    assert document["for_k_domains_at_least"] == [True, True]  # what the tiny clients say that they spent is made up
    assert document["run"]["state"] == "finished"
    write(document, tmp_path / "page.html", tmp_path / "page.json")
    assert json.loads((tmp_path / "page.json").read_text()) == document
    page = (tmp_path / "page.html").read_text()
    Silent().feed(page)
    assert "isthmus-client release metric" in page  # nobody released a figure
    assert f"{arts['epsilon']:.2f}" in page


def test_a_number_that_receipts_do_not_explain_is_shown_as_a_least_one(home: Home, run: Path) -> None:
    document = build(home, run)
    assert "<td>7.00</td>" in render({**document, "for_k_domains": [6.0, 7.0], "for_k_domains_at_least": [False, False]})
    assert "<td>at least 7.00</td>" in render({**document, "for_k_domains": [6.0, 7.0], "for_k_domains_at_least": [False, True]})


def test_utility_is_what_partners_released_and_nothing_else(home: Home, run: Path, tmp_path: Path) -> None:
    path = tmp_path / "metric.json"
    path.write_text(json.dumps(RELEASE))
    document = build(home, run, [path])
    assert document["utility"][0]["values"]["hit_rate_at_10"] == 0.25
    assert "hit_rate_at_10 0.25" in render(document)
    for changed in ({"domain": "strangers"}, {"format": "other"}, {"purpose": "popularity"}, {"values": 3}):
        path.write_text(json.dumps({**RELEASE, **changed}))
        with pytest.raises(DataError):
            build(home, run, [path])


def test_what_others_wrote_is_text_and_not_markup(home: Home, run: Path) -> None:
    Journal(run).append("note", text="hello: <script>alert(1)</script> is left out (refused-range)")
    page = render(build(home, run))
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_a_run_that_never_began_has_a_report_too(home: Home) -> None:
    folder = prepare(home, small_config(), a_bundle(), expected_clients=None)
    document = build(home, folder)
    assert document["run"]["state"] == "lost"
    assert document["for_k_domains"] == document["for_k_domains_at_least"] == []
    Silent().feed(render(document))


def test_incidents_are_what_was_not_as_it_should_be() -> None:
    lines = [
        {"time": "1", "event": "begun"},
        {"time": "2", "event": "stage"},
        {"time": "3", "event": "begun"},
        {"time": "4", "event": "note", "text": "round 2: reply of films is dropped (norm)"},
        {"time": "5", "event": "failed", "kind": "TooFewClients", "what": "round 2: 1 of at least 2 clients can go on"},
        {"time": "6", "event": "begun"},
        {"time": "7", "event": "finished"},
    ]
    found = incidents(lines, [{"round": 2, "attempts": 3}])
    assert [(one["time"], one["code"]) for one in found] == [("1", "lost"), ("4", "norm"), ("5", "TooFewClients"), ("", "repeated")]


def test_a_chart_needs_two_rounds_and_finite_numbers() -> None:
    one = {"round": 1, "epsilon": {"arts": 1.0}}
    assert chart([one]) == ""
    assert chart([{"round": 1, "epsilon": {"arts": None}}, {"round": 2, "epsilon": {"arts": None}}]) == ""
    drawn = chart([one, {"round": 2, "epsilon": {"arts": 2.0, "books": 0.5}}])
    assert drawn.count("<polyline") == 2
