"""Links: one token for one person at one partner, or a refusal that names the row."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from client.data.links import LinkColumns, PartnerLinks, read_links
from client.data.pseudonyms import pseudonym, sort_order
from shared.errors import DataError, InvalidInteraction

KEY = bytes(range(32))
MARKER = "secret-value-93"
Rows = list[tuple[str | None, str | None, str | None]]
SOUND: Rows = [("ann", "books", "t1"), ("ben", "books", "t2"), ("ann", "films", "t9")]


def links_file(folder: Path, rows: Rows, suffix: str = ".csv") -> Path:
    path = folder / f"links{suffix}"
    frame = pl.DataFrame(rows, schema=dict.fromkeys(("user_id", "partner", "link_id"), pl.String), orient="row")
    {".csv": frame.write_csv, ".parquet": frame.write_parquet, ".jsonl": frame.write_ndjson}[suffix](path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_links_are_read_by_partner(tmp_path: Path, suffix: str) -> None:
    links = read_links(links_file(tmp_path, SOUND, suffix), pseudonym_key=KEY)
    assert links.partners == ("books", "films")
    books = links.with_partner("books")
    assert books.link_of(pseudonym(KEY, ["ben", "stranger", "ann"])) == ["t2", None, "t1"]
    assert links.with_partner("films").link_ids == ["t9"]


def test_link_ids_lead_to_users_of_the_domain(tmp_path: Path) -> None:
    books = read_links(links_file(tmp_path, SOUND), pseudonym_key=KEY).with_partner("books")
    users = pseudonym(KEY, ["cid", "ann"])  # ben is linked, but has no history here
    users = users[sort_order(users)]
    rows = books.users(["t2", "t1", "t7"], users)
    assert rows.tolist()[0] == rows.tolist()[2] == -1
    assert users[rows[1]].tolist() == pseudonym(KEY, ["ann"])[0].tolist()


def test_a_row_given_twice_counts_once(tmp_path: Path) -> None:
    links = read_links(links_file(tmp_path, [*SOUND, SOUND[0]]), pseudonym_key=KEY)
    assert links.n_duplicates == 1
    assert len(links.with_partner("books")) == 2


def test_nobody_need_be_linked(tmp_path: Path) -> None:
    links = read_links(links_file(tmp_path, []), pseudonym_key=KEY)
    assert links.partners == ()
    assert len(links.with_partner("books")) == 0
    assert links.with_partner("books").users(["t1"], pseudonym(KEY, ["ann"])).tolist() == [-1]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ((None, "books", "t3"), "row 4: 'user_id' is missing"),
        (("cid", None, "t3"), "row 4: 'partner' is missing"),
        (("cid", f"{MARKER} & Co", "t3"), "row 4: 'partner' is no name of a domain"),
        (("cid", "books", None), "row 4: 'link_id' is missing"),
        (("cid", "books", f"{MARKER}@example.org"), "row 4: 'link_id' is no token"),
        (("cid", "books", "x" * 65), "row 4: 'link_id' is no token"),
        (("cid", "books", "two\nlines"), "row 4: 'link_id' is no token"),
        (("ann", "books", MARKER), "row 4: 'user_id' has another 'link_id' with the same partner"),
        ((MARKER, "books", "t1"), "row 4: 'link_id' belongs to another user"),
    ],
)
def test_a_malformed_or_contradicting_link_is_named_by_its_row(
    tmp_path: Path, row: tuple[str | None, str | None, str | None], said: str
) -> None:
    with pytest.raises(InvalidInteraction) as caught:
        read_links(links_file(tmp_path, [*SOUND, row]), pseudonym_key=KEY)
    assert said in str(caught.value)
    assert MARKER not in str(caught.value)


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    path = links_file(tmp_path, SOUND)
    with pytest.raises(DataError, match=r"(?s)no column 'userid'.*'user_id'"):
        read_links(path, pseudonym_key=KEY, columns=LinkColumns(user="userid"))


def test_links_that_contradict_themselves_cannot_be_made() -> None:
    users = pseudonym(KEY, ["ann", "ben"])
    users = users[sort_order(users)]
    for link_ids in (["t1"], ["t1", "t1"], ["t1", "not a token"]):
        with pytest.raises(DataError):
            PartnerLinks(pseudonyms=users, link_ids=link_ids)
    with pytest.raises(DataError):
        PartnerLinks(pseudonyms=users[::-1], link_ids=["t1", "t2"])
