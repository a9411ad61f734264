"""What the runbooks of both sides say for the days that are not like the others, as commands, with real homes on both sides."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from client.cli import app as client_app
from server.cli import app as server_app
from shared.errors import IsthmusError

pytestmark = pytest.mark.journey


@dataclass(frozen=True, kw_only=True)
class Both:
    """A coordinator's home and the folders of two partners, `books` and `films`."""

    folder: Path

    def server(self, *words: Any, refused: str = "") -> dict[str, Any]:
        return _typed(server_app, words, refused)

    def client(self, *words: Any, refused: str = "") -> dict[str, Any]:
        return _typed(client_app, words, refused)

    @property
    def home(self) -> Path:
        return self.folder / "coordinator"

    def card(self, domain: str) -> Path:
        return self.folder / domain / "PARTNER.json"

    def enroll(self, domain: str, *, refused: str = "", **options: str) -> dict[str, Any]:
        return self.server(
            "enroll", self.home, self.card(domain), *(f"--{name}={value}" for name, value in options.items()), refused=refused
        )

    def begin(self, domain: str) -> dict[str, Any]:
        return self.client("init", self.folder / domain, "--domain", domain)

    def join(self, domain: str, *, refused: str = "") -> dict[str, Any]:
        return self.client("join", self.folder / domain, self.home / "join" / f"{domain}.json", refused=refused)


def _typed(app: typer.Typer, words: tuple[Any, ...], refused: str) -> dict[str, Any]:
    """One command with --json; its document, or nothing where it had to be refused with these words."""
    result = CliRunner().invoke(app, [*map(str, words), "--json"])
    if refused:
        assert isinstance(result.exception, IsthmusError), result.output
        assert refused in str(result.exception)
        return {}
    assert result.exit_code == 0, f"{words}: {result.output}{result.exception}"
    said: dict[str, Any] = json.loads(result.stdout)
    return said


@pytest.fixture
def both(tmp_path: Path) -> Both:
    ours = Both(folder=tmp_path)
    ours.server("init", ours.home, "--host", "isthmus.example.org")
    for domain in ("books", "films"):
        ours.client("init", tmp_path / domain, "--domain", domain, "--ceiling", 8)
        ours.enroll(domain)
    for domain in ("books", "films"):
        ours.join(domain)
    return ours


def test_a_rotated_key_is_enrolled_with_a_reason_and_reaches_the_others_by_their_cards(both: Both) -> None:
    both.client("ledger", "rotate-key", both.folder / "books/partner.toml", "--out", both.folder / "books.keys.json", "--yes")
    both.begin("books")

    both.enroll("books", refused="enrolled with another key")
    assert sorted(both.enroll("books", replace="keys rotated")["changed"]) == ["box_key", "verify_key"]
    both.join("films", refused="other keys of 'books'")
    (both.folder / "films/passports/partners/books.json").rename(both.folder / "old-keys.json")
    assert both.join("films")["partners"] == ["books"]


def test_a_new_key_of_the_node_needs_no_reason(both: Both) -> None:
    for name in ("node", "node.pub"):
        (both.folder / "books/home/keys" / name).rename(both.folder / name)
    both.begin("books")

    assert both.enroll("books")["changed"] == ["node_key"]


def test_a_new_key_of_the_coordinator_is_joined_once_the_old_one_is_emptied(both: Both) -> None:
    (both.home / "keys/coordinator.keys").rename(both.folder / "old.keys")
    both.server("init", both.home)
    both.join("books", refused="another 'server.coordinator_key'")

    settings = both.folder / "books/partner.toml"
    lines = ['coordinator_key = ""' if line.startswith("coordinator_key = ") else line for line in settings.read_text().splitlines()]
    settings.write_text("\n".join(lines) + "\n")
    both.join("books")


def test_a_renewed_certificate_changes_nothing_for_partners(both: Both) -> None:
    before = (both.home / "tls/server.pem").read_bytes()

    assert both.server("renew", both.home, "--new-key")["told"] == []

    assert (both.home / "tls/server.pem").read_bytes() != before
    assert not any(step["made"] for step in both.join("books")["steps"])


def test_a_lost_ledger_begins_again_above_what_it_may_have_spent(both: Both) -> None:
    settings = both.folder / "books/partner.toml"
    for path in (both.folder / "books/home").glob("ledger.sqlite*"):
        path.unlink()
    words = [
        "ledger",
        "restart",
        settings,
        "--no-receipt",
        "--booked-epsilon",
        8,
        "--epsilon",
        12,
        "--by",
        "A. Officer",
        "--why",
        "disk died",
        "--yes",
    ]

    both.client(*words)
    both.begin("books")

    assert json.loads(both.card("books").read_text())["ceiling_epsilon"] == 12
    both.enroll("books", refused="lower ceiling")
    assert both.enroll("books", replace="disk died")["ceiling_epsilon"] == 12


def test_a_partner_that_leaves_takes_its_ledger_with_it(both: Both) -> None:
    both.client("ledger", "export", both.folder / "books/partner.toml", "--out", both.folder / "books-ledger.sqlite")
    both.server("partners", "remove", both.home, "books", "--reason", "the agreement ended")

    assert [one["domain"] for one in both.server("partners", "list", both.home)["partners"]] == ["films"]
    assert (both.folder / "books-ledger.sqlite").is_file()
