"""`isthmus-client recommend` and `similar`, as a partner calls them."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import polars as pl
import pytest

from client.live_profiles import INTERACTION, LiveProfiles
from tests.client.partner_world import World
from tests.client.recommender.shops import ITEMS, LINKED, SUBJECTS, subject_of
from tests.client.test_cli import call, command


@pytest.mark.journey
def test_a_night_of_recommendations_for_everybody_in_one_file(open_shops: World, tmp_path: Path) -> None:
    out = tmp_path / "recs.parquet"
    ended = command("recommend", open_shops.toml("films"), "--k", "20", "--explain", "--diversity", "0.2", "--out", str(out))

    assert ended.returncode == 0, ended.stderr
    users = LINKED + 40
    assert ended.stdout.startswith(f"{users * 20:,} recommendations to {users} users ({users} by own history); model run-1/1/")
    frame = pl.read_parquet(out)
    assert frame["user"].n_unique() == users
    assert frame.group_by("user").len()["len"].unique().to_list() == [20]
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["recs.parquet"]


def test_the_same_question_twice_gives_the_same_bytes(open_shops: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = []
    for name in ("a.csv", "b.csv"):
        assert call("recommend", open_shops.toml("films"), "--k", "7", "--out", str(tmp_path / name), capsys=capsys)[0] == 0
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]


def test_users_are_named_one_by_one_or_by_files(open_shops: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "some.txt").write_text("p003\n\nn00\np003\n")
    (tmp_path / "more.csv").write_text("user_id,plan\nn01,gold\n")
    words = ["recommend", open_shops.toml("films"), "--users", str(tmp_path / "some.txt"), "--users", str(tmp_path / "more.csv")]

    code, out, _ = call(*words, "--users", "p005", "--k", "3", "--json", capsys=capsys)
    document = json.loads(out)

    assert code == 0
    assert [(one["user"], one["source"]) for one in document["lists"]] == [
        ("p003", "own history"),
        ("n00", "passport from books"),
        ("n01", "passport from books"),
        ("p005", "own history"),
    ]
    assert document["recommendations"] == 12
    assert document["sources"] == {"own history": 2, "passport from books": 2}
    assert all([item["rank"] for item in one["items"]] == [1, 2, 3] for one in document["lists"])


def test_a_screen_shows_lists_with_reasons(open_shops: World, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call("recommend", open_shops.toml("films"), "--users", "n00", "--k", "3", "--explain", capsys=capsys)
    lines = out.splitlines()

    assert (code, err) == (0, "")
    assert lines[0] == "n00: passport from books, uncertainty 0.25"
    assert lines[1].split()[:2] == ["1", "f00"]
    assert any("your interest in" in line for line in lines[2:4])
    assert lines[4].startswith("3 recommendations to 1 user (1 by passport from books); model run-1/1/")


def test_words_make_a_list_for_somebody_without_an_account(open_shops: World, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call("recommend", open_shops.toml("films"), "--declared", "lava from a volcano", "--k", "4", "--json", capsys=capsys)
    (one,) = json.loads(out)["lists"]

    assert code == 0
    assert (one["user"], one["source"]) == (None, "declared")
    assert {subject_of(each["item"]) for each in one["items"]} <= {"volcano", SUBJECTS[0]}


def test_words_of_another_script_are_answered_by_popularity_and_it_is_said(open_shops: World, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call("recommend", open_shops.toml("films"), "--declared", "火山とマグマ", "--k", "4", "--json", capsys=capsys)

    assert (code, json.loads(out)["sources"]) == (0, {"popularity": 1})
    assert "say nothing to the text model" in err


def test_declared_interests_of_several_users_come_in_a_table(open_shops: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "declared.csv"
    table.write_text("user_id,text\nnew-1,volcano\nnew-2,yachts and sailing\n")

    code, out, _ = call("recommend", open_shops.toml("films"), "--declared", str(table), "--k", "4", "--json", capsys=capsys)
    lists = json.loads(out)["lists"]

    assert code == 0
    assert [(one["user"], one["source"]) for one in lists] == [("new-1", "declared"), ("new-2", "declared")]
    assert lists[0]["items"] != lists[1]["items"]


def test_lists_leave_out_what_the_partner_blocks_and_say_what_is_unknown(
    open_shops: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stock.txt").write_text("\n".join([*(f"f{n:02d}" for n in range(8)), "gone-1", "gone-2"]))
    (tmp_path / "blocked.txt").write_text("f00\n")
    lists = ["--in-stock", str(tmp_path / "stock.txt"), "--blocked", str(tmp_path / "blocked.txt")]

    code, out, err = call("recommend", open_shops.toml("films"), "--users", "n00", "--json", *lists, capsys=capsys)

    assert code == 0
    assert {each["item"] for each in json.loads(out)["lists"][0]["items"]} == {f"f{n:02d}" for n in range(1, 8)}
    assert "2 rows of the lists name items that the catalogue lacks" in err


def test_what_a_service_observed_counts_on_the_command_line(shops: World, capsys: pytest.CaptureFixture[str]) -> None:
    LiveProfiles.of(shops["films"]).observe("n00", "f00", INTERACTION)
    code, out, _ = call("recommend", shops.toml("films"), "--users", "n00", "--k", "64", "--json", capsys=capsys)
    assert code == 0
    assert "f00" not in [each["item"] for each in json.loads(out)["lists"][0]["items"]]


def test_similar_items_are_shown(open_shops: World, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call("similar", open_shops.toml("films"), "f03", "--k", "3", capsys=capsys)
    rows = json.loads(call("similar", open_shops.toml("films"), "f03", "--k", "3", "--json", capsys=capsys)[1])["similar"]

    assert code == 0
    assert [line.split()[1] for line in out.splitlines()] == [row["item"] for row in rows]
    assert all(subject_of(row["item"]) == "chess" for row in rows)


def test_long_words_are_read_as_words(open_shops: World, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(
        "recommend", open_shops.toml("films"), "--declared", "lava from a volcano " * 300, "--k", "4", "--json", capsys=capsys
    )

    assert code == 0
    assert json.loads(out)["sources"] == {"declared": 1}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--users", "secret-name-17"], 2, "user 1 of 1 is not known here"),
        (["--users", "p001", "--users", " "], 2, "user 2 of 2 is empty"),
        (["--users", "nowhere.txt"], 2, "cannot be read"),
        (["--users", "nowhere.parquet"], 2, "cannot be read"),
        (["--users", "p001", "--k", "0"], 2, "lists of 0 items cannot be made"),
        (["--k", str(ITEMS + 1)], 2, "lists of 65 items cannot be made"),
        (["--k", "many"], 2, "Invalid value for '--k'"),
        ([], 2, "too many for a screen"),
        (["--out", "recs.xlsx"], 2, "no format"),
        (["--users", "p001", "--diversity", "2"], 2, "'diversity'"),
        (["--users", "p001", "--engine", "best"], 2, "no engine"),
        (["--users", "p001", "--in-stock", "nowhere.txt"], 2, "there is no file"),
        (["--users", "."], 2, "is a folder"),
        (["--declared", ""], 2, "are empty"),
        (["--declared", "x" * 1_000_000], 2, "more than 20,000 characters"),
        (["--declared", "nowhere.csv"], 2, "there is no file"),
        (["--declared", "secret-name likes volcanoes " * 100 + ".csv"], 2, "there is no file"),
        (["--declared", __file__], 2, "no table of declared interests"),
        (["--users", "secret-name" * 100], 2, "user 1 of 1 is not known here"),
    ],
)
def test_what_cannot_be_meant_ends_with_a_code_and_a_line(
    open_shops: World, words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, out, err = call("recommend", open_shops.toml("films"), *words, capsys=capsys)

    assert (ended, out) == (code, "")
    assert said in err
    assert "secret-name" not in err


def test_an_unknown_user_of_a_file_is_named_by_its_line_and_nothing_is_written(
    open_shops: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "users.txt").write_text("p001\n\nsecret-name-17\nsecret-name-18\n")
    (tmp_path / "users.csv").write_text("user_id\np001\nsecret-name-17\n")
    out = tmp_path / "recs.csv"
    words = ["recommend", open_shops.toml("films"), "--out", str(out), "--users"]

    for name, said in (("users.txt", "the user in line 3 of"), ("users.csv", "the user in row 2 of")):
        code, _, err = call(*words, str(tmp_path / name), capsys=capsys)
        assert code == 2
        assert said in err
        assert "secret" not in err
        assert not out.exists()

    code, shown, _ = call(*words, str(tmp_path / "users.txt"), "--even-unknown", "--k", "2", capsys=capsys)
    assert code == 0
    assert "2 by popularity" in shown
    assert pl.read_csv(out)["user"].n_unique() == 3


@pytest.mark.parametrize(("content", "said"), [(b"", "is empty"), (b"\xff\xfe\x00", "is not text"), (b"\n \n", "is empty")])
def test_a_file_of_users_that_cannot_be_read_is_refused(
    open_shops: World, tmp_path: Path, content: bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "users.txt"
    path.write_bytes(content)
    code, _, err = call("recommend", open_shops.toml("films"), "--users", str(path), capsys=capsys)
    assert code == 2
    assert said in err


def test_an_unknown_item_has_no_similar_ones(open_shops: World, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call("similar", open_shops.toml("films"), "b01", "--json", capsys=capsys)
    assert code == json.loads(out)["error"]["exit_code"] == 2
    assert "UnknownItem: the catalogue lacks this item" in err


def test_before_a_delivery_the_commands_say_what_is_missing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["recommend", world.toml("films")], ["similar", world.toml("films"), "f01"]):
        code, _, err = call(*words, capsys=capsys)
        assert code == 17
        assert "nothing was delivered to this domain yet" in err
