"""`isthmus-client forget` and `isthmus-client release` as a person calls them: what is said, what is not, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from client.register import Register
from client.settings import ClientSettings
from shared.privacy.ledger import read_events
from tests.client.partner_world import World, link_id
from tests.client.test_cli import call

GONE = "p003"


@pytest.mark.journey
def test_a_user_is_forgotten_and_the_person_at_the_desk_is_told_what_is_left_to_do(done: World, capsys: pytest.CaptureFixture[str]) -> None:
    before = done["books"].ledger_path.read_bytes()
    code, out, err = call("forget", done.toml("books"), GONE, capsys=capsys)
    assert code == 0, err
    said = " ".join(out.split())
    for words in (
        "forgotten: 1 users, 1 of them new",
        "what recommends was fitted again without them",
        "films, until 20",
        "isthmus-client forget PARTNER_TOML --notice FILE",
        "The source files are yours",
        "epsilon that was spent stays spent",
        "keeps it until it expires",
        "backups",
    ):
        assert words in said
    assert not any(secret in out + err for secret in (GONE, link_id(GONE)))
    assert done["books"].ledger_path.read_bytes() == before

    (notice,) = done["books"].path("outbox").glob("*.erasure")
    code, out, err = call("forget", done.toml("films"), "--notice", str(notice), "--json", capsys=capsys)
    assert code == 0, err
    assert json.loads(out)["serving"] == "refitted"
    with Register.of(done["films"]) as register:
        assert link_id(GONE) not in register.imported("books", space_version=done.space_version, now=0)[0]


def test_users_of_a_file_are_named_by_their_lines(done: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = tmp_path / "leaving.txt"
    names.write_text(f"{GONE}\n\n  somebody-else  \n")
    code, out, err = call("forget", done.toml("books"), "--users", str(names), capsys=capsys)
    assert code == 2
    assert f"{names}: line 3 is not known here: nothing was changed" in " ".join(err.split())
    assert not any(secret in out + err for secret in ("somebody-else", GONE))

    names.write_text(f"\ufeff{GONE}\n")
    code, out, err = call("forget", done.toml("books"), "--users", str(names), "--json", capsys=capsys)
    assert (code, json.loads(out)["new"]) == (0, 1)


def test_unknown_arguments_are_named_by_position(done: World, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call("forget", done.toml("books"), GONE, "stranger-1", "stranger-2", "--json", capsys=capsys)
    assert code == 2
    assert "user 2 of 3 is not known here, and 1 more" in err
    assert "stranger" not in out + err
    code, out, _ = call("forget", done.toml("books"), "stranger-1", "--even-unknown", "--json", capsys=capsys)
    assert (code, json.loads(out)["new"]) == (0, 1)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\x00"])
def test_a_file_without_users_is_wrong_usage(done: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    (tmp_path / "names").write_bytes(content)
    assert call("forget", done.toml("books"), "--users", str(tmp_path / "names"), capsys=capsys)[0] == 2
    assert call("forget", done.toml("books"), "--users", str(tmp_path / "missing"), capsys=capsys)[0] == 2
    assert call("forget", done.toml("books"), GONE, "--users", str(tmp_path / "names"), capsys=capsys)[0] == 2


def test_a_call_that_names_nobody_finishes_what_was_begun(done: World, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call("forget", done.toml("books"), capsys=capsys)
    assert (code, out.splitlines()[0]) == (0, "nothing was left to be done")
    with Register.of(done["books"]) as register:
        register.mark(register.marker.users([GONE]), [link_id(GONE)], at=1)
    code, out, _ = call("forget", done.toml("books"), "--json", capsys=capsys)
    assert (code, json.loads(out)["serving"]) == (0, "refitted")


def test_a_release_is_priced_made_and_asked_for_again(done: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["release", "popularity", done.toml("books"), "--noise", "30", "--max-items", "4"]
    code, out, err = call(*asked, "--dry-run", "--json", capsys=capsys)
    assert code == 0, err
    shown = json.loads(out)
    assert shown["fits"]
    assert shown["standard_deviation"] == 60.0
    code, out, _ = call(*asked, "--dry-run", capsys=capsys)
    assert "it fits" in out
    assert "nothing was read or booked" in out
    made = []
    for name in ("a.json", "b.json"):
        code, out, err = call(*asked, "--out", str(tmp_path / name), "--json", capsys=capsys)
        assert code == 0, err
        made.append(json.loads(out))
    assert [each["new"] for each in made] == [True, False]
    assert made[0]["release_id"] == shown["release_id"]
    assert "values" not in made[0]
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    code, out, _ = call(*asked, "--dry-run", capsys=capsys)
    assert "costs nothing" in out


def test_count_and_metric_write_what_they_say(done: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = done.toml("books")
    code, out, err = call("release", "count", toml, "--noise", "30", "--out", str(tmp_path / "n.json"), capsys=capsys)
    assert code == 0, err
    assert "made and debited" in out
    code, _, err = call(
        "release", "metric", toml, "--noise", "30", "--public-users", "50", "--out", str(tmp_path / "m.json"), capsys=capsys
    )
    assert code == 0, err
    assert set(json.loads((tmp_path / "m.json").read_text())["values"]) == {"hit-rate-at-10", "hits", "public_users"}


def test_a_release_above_the_ceiling_is_refused_with_its_own_code(done: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "n.json"
    code, _, err = call("release", "count", done.toml("books"), "--noise", "0.05", "--out", str(out), capsys=capsys)
    assert code == 10
    assert "remaining" in err
    assert not out.exists()
    code, said, _ = call("release", "count", done.toml("books"), "--noise", "0.05", "--dry-run", capsys=capsys)
    assert (code, "it does not fit below the ceiling" in said) == (0, True)


def test_wrong_calls_of_a_release_end_before_the_ledger(done: World, capsys: pytest.CaptureFixture[str]) -> None:
    settings: ClientSettings = done["books"]
    before = read_events(settings.ledger_path)
    assert call("release", "count", done.toml("books"), "--noise", "30", capsys=capsys)[0] == 2
    assert call("release", "count", done.toml("books"), "--noise", "-1", "--out", "x.json", capsys=capsys)[0] == 2
    assert call("release", "metric", done.toml("books"), "--noise", "3", "--out", "x.json", capsys=capsys)[0] == 2
    assert call("release", "popularity", done.toml("books"), "--noise", "3", "--max-items", "0", "--out", "x", capsys=capsys)[0] == 2
    assert read_events(settings.ledger_path) == before
