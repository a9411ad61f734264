"""What every source of interactions promises: files of every format, and tables of databases."""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.data.catalogue import Catalogue, read_catalogue
from client.data.links import read_links
from client.data.pseudonyms import pseudonym
from client.data.sources import ColumnNames, ReadResult, read
from client.data.sql import SqlTable
from client.data.tables import Source
from shared.errors import ConfigError, DataError, InvalidInteraction, IsthmusError
from tests.client.data.reading_sql import Table, write_postgresql, write_sqlite

KEY = bytes(range(32))
DAY = 1_300_000_000
MARKER = "secret-value-93"
CATALOGUE = Catalogue(item_ids=["a", "b", "0615391206"], texts=["A", "B", "Zoku"])

Write = Callable[[Path, Table], Any]
"""Gives a source: the path of a file, or a table of a database."""


def write_csv(folder: Path, table: Table) -> Path:
    path = folder / "interactions.csv"
    pl.DataFrame(table, strict=False).write_csv(path)
    return path


def write_csv_gz(folder: Path, table: Table) -> Path:
    path = folder / "interactions.csv.gz"
    path.write_bytes(gzip.compress(write_csv(folder, table).read_bytes()))
    return path


def write_parquet(folder: Path, table: Table) -> Path:
    path = folder / "interactions.parquet"
    pl.DataFrame(table, strict=False).write_parquet(path)
    return path


def write_jsonl(folder: Path, table: Table) -> Path:
    path = folder / "interactions.jsonl"
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


WRITERS = {"csv": write_csv, "csv.gz": write_csv_gz, "parquet": write_parquet, "jsonl": write_jsonl}


def writer(kind: str, request: pytest.FixtureRequest) -> Write:
    """How a table is put where a source of this kind finds it."""
    if kind == "postgresql":
        return functools.partial(write_postgresql, request.getfixturevalue("postgresql"))
    return {**WRITERS, "sqlite": write_sqlite}[kind]


@pytest.fixture(params=[*WRITERS, "sqlite", "postgresql"])
def write(request: pytest.FixtureRequest) -> Write:
    return writer(request.param, request)


@pytest.fixture(params=list(WRITERS))
def write_file(request: pytest.FixtureRequest) -> Write:
    return WRITERS[request.param]


def table(**changes: list[Any] | None) -> Table:
    """Three sound rows of two users; changed columns replace these, None takes a column away."""
    sound: dict[str, list[Any] | None] = {
        "user_id": ["ann", "ben", "ann"],
        "item_id": ["b", "a", "0615391206"],
        "timestamp": [DAY + 60, DAY, DAY],
        "rating": [5.0, 1.0, 3.5],
    }
    return {name: values for name, values in {**sound, **changes}.items() if values is not None}


def read_it(source: Source, **options: Any) -> ReadResult:
    """Reads once; a snapshot of a database ends with it, as it does where a domain is prepared."""
    with contextlib.closing(source.snapshot) if isinstance(source, SqlTable) else contextlib.nullcontext():
        return read(source, catalogue=CATALOGUE, pseudonym_key=KEY, **options)


def by_external_id(result: ReadResult) -> dict[str, list[tuple[int, int]]]:
    """(item, time) of each user, in order, under the partner's own id."""
    held: dict[str, list[tuple[int, int]]] = {name: [] for name in result.external_ids}
    rows = result.interactions
    for user, item, time in zip(rows.users.tolist(), rows.items.tolist(), rows.times.tolist(), strict=True):
        held[result.external_ids[user]].append((item, time))
    return held


def refused(source: Any, error: type[IsthmusError] = InvalidInteraction, **options: Any) -> str:
    """The text of the refusal, after looking that it quotes nothing from the file."""
    with pytest.raises(error) as caught:
        read_it(source, **options)
    text = str(caught.value)
    assert MARKER not in text
    assert source.name in text
    assert caught.value.__cause__ is None
    return text


def test_rows_become_pseudonyms_catalogue_positions_and_times_in_order(write: Write, tmp_path: Path) -> None:
    result = read_it(write(tmp_path, table()))
    assert by_external_id(result) == {"ann": [(2, DAY), (1, DAY + 60)], "ben": [(0, DAY)]}
    assert result.interactions.pseudonyms.tolist() == pseudonym(KEY, result.external_ids.to_list()).tolist()
    assert result.interactions.ratings is not None
    assert sorted(result.interactions.ratings.tolist()) == [1.0, 3.5, 5.0]
    assert result.report.lines() == ["3 interactions of 2 users, 1 of them with a single one"]


def test_no_user_id_is_in_the_interactions(write: Write, tmp_path: Path) -> None:
    rows = read_it(write(tmp_path, table(user_id=[MARKER, "ben", MARKER]))).interactions
    kept = b"".join(np.asarray(array).tobytes() for array in (rows.users, rows.items, rows.times, rows.ratings, rows.pseudonyms))
    assert MARKER.encode() not in kept


def test_an_id_of_digits_keeps_its_leading_zero(write: Write, tmp_path: Path) -> None:
    result = read_it(write(tmp_path, table(user_id=["007", "7", "007"])))
    assert sorted(result.external_ids) == ["007", "7"]


def test_blanks_around_ids_do_not_count(write: Write, tmp_path: Path) -> None:
    result = read_it(write(tmp_path, table(user_id=[" ann", "ben\t", "ann "], item_id=["b ", " a", "0615391206"])))
    assert by_external_id(result) == {"ann": [(2, DAY), (1, DAY + 60)], "ben": [(0, DAY)]}


def test_columns_nobody_asked_for_are_ignored(write: Write, tmp_path: Path) -> None:
    result = read_it(write(tmp_path, {"note": [MARKER, 'a "quote", a comma', "two\nlines"], **table()}))
    assert len(result.interactions) == 3


def test_columns_may_have_other_names_and_another_order(write: Write, tmp_path: Path) -> None:
    columns = ColumnNames(user="customer", item="sku", time="bought", rating=None)
    renamed = {"bought": [DAY], "sku": ["a"], "customer": ["ann"]}
    assert by_external_id(read_it(write(tmp_path, renamed), columns=columns)) == {"ann": [(0, DAY)]}


def test_ratings_may_be_absent(write: Write, tmp_path: Path) -> None:
    result = read_it(write(tmp_path, table(rating=None)))
    assert result.interactions.ratings is None
    assert not result.report.has_ratings


def test_a_rating_column_that_looks_misspelt_is_not_passed_over(write: Write, tmp_path: Path) -> None:
    path = write(tmp_path, {**table(rating=None), "raiting": [1.0, 2.0, 3.0]})
    assert "'raiting'" in refused(path, DataError)
    assert read_it(path, columns=ColumnNames(rating=None)).interactions.ratings is None


@pytest.mark.parametrize(("column", "misspelt"), [("user_id", "userid"), ("item_id", "Item_ID"), ("timestamp", "time_stamp")])
def test_a_misspelt_column_is_named_with_its_nearest(write: Write, tmp_path: Path, column: str, misspelt: str) -> None:
    sound = table()
    path = write(tmp_path, {misspelt if name == column else name: values for name, values in sound.items()})
    text = refused(path, DataError)
    assert f"no column '{column}'" in text
    assert f"'{misspelt}'" in text


def test_one_column_cannot_serve_two_purposes(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two purposes"):
        read_it(write(tmp_path, table()), columns=ColumnNames(user="item_id"))


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("user_id", ["ann", None, "ann"], "row 2: 'user_id' is missing"),
        ("user_id", ["ann", "  ", "ann"], "row 2: 'user_id' is missing"),
        ("item_id", ["b", "a", None], "row 3: 'item_id' is missing"),
        ("item_id", ["b", MARKER, "a"], "row 2: 'item_id' is not in the catalogue"),
        ("timestamp", [DAY, None, DAY], "row 2: 'timestamp' is missing"),
        ("timestamp", [DAY, DAY, -1], "row 3: 'timestamp' is outside the years 1970 to 2100"),
        ("timestamp", [DAY, DAY, 4_102_444_801], "row 3: 'timestamp' is outside the years 1970 to 2100"),
        ("timestamp", [DAY, DAY * 1000, DAY * 1000], "rows 2 and 3: 'timestamp' looks like milliseconds, not seconds"),
        ("timestamp", [DAY, DAY * 10**6, DAY], "row 2: 'timestamp' looks like microseconds, not seconds"),
        ("timestamp", [DAY, DAY, DAY * 10**9], "row 3: 'timestamp' looks like nanoseconds, not seconds"),
        ("timestamp", [1.0e9, 1.5e9 + 0.5, 1.0e9], "row 2: 'timestamp' is not a whole number of seconds"),
        ("timestamp", [str(DAY), MARKER, str(DAY)], "row 2: 'timestamp' is not a whole number of seconds"),
        ("rating", [1.0, 5.5, 0.0], "rows 2 and 3: 'rating' is outside the agreed range 1 to 5"),
        ("rating", [1.0, None, 2.0], "row 2: 'rating' is missing"),
        ("rating", ["1", MARKER, "2"], "row 2: 'rating' is not a number"),
        ("rating", ["1", "inf", "2"], "row 2: 'rating' is not a number"),
    ],
)
def test_a_bad_row_is_named_by_number_and_column_never_by_value(
    write: Write, tmp_path: Path, column: str, values: list[Any], said: str
) -> None:
    assert said in refused(write(tmp_path, table(**{column: values})), rating_range=(1.0, 5.0))


def test_of_many_bad_rows_the_first_are_named_and_the_others_counted(write: Write, tmp_path: Path) -> None:
    path = write(tmp_path, {"user_id": ["ann"] * 9, "item_id": ["a", *[MARKER] * 8], "timestamp": [DAY] * 9})
    assert "rows 2, 3, 4, 5, 6 and 3 more: 'item_id'" in refused(path)


def test_whole_seconds_may_be_written_as_a_decimal(write: Write, tmp_path: Path) -> None:
    result = read_it(write(tmp_path, table(timestamp=[f"{DAY + 60}.0", str(DAY), str(DAY)])))
    assert by_external_id(result)["ann"] == [(2, DAY), (1, DAY + 60)]


def test_time_that_only_orders_is_not_checked_for_years(write: Write, tmp_path: Path) -> None:
    result = read_it(write(tmp_path, table(timestamp=[10**15, -5, -(10**15)])), time="order")
    assert by_external_id(result) == {"ann": [(2, -(10**15)), (1, 10**15)], "ben": [(0, -5)]}
    assert "row 2: 'timestamp' is not a whole number" in refused(write(tmp_path, table(timestamp=["1", MARKER, "3"])), time="order")


def test_unknown_items_are_dropped_and_counted_where_the_partner_says_so(write: Write, tmp_path: Path) -> None:
    path = write(tmp_path, table(user_id=["ann", "cid", "ann"], item_id=["b", MARKER, "a"]))
    result = read_it(path, unknown_items="drop")
    assert list(result.external_ids) == ["ann"]  # cid has no row left, and is nobody
    assert "1 rows dropped: the catalogue lacks their item" in result.report.lines()
    assert "catalogue lacks every item" in refused(write(tmp_path, table(item_id=[MARKER] * 3)), DataError, unknown_items="drop")


def test_duplicates_are_kept_once_and_counted(write: Write, tmp_path: Path) -> None:
    rows: Table = {
        "user_id": ["ann", "ann", "ann", "ann", "ben"],
        "item_id": ["a", "b", "a", "a", "a"],
        "timestamp": [DAY, DAY, DAY, DAY + 1, DAY],  # the fourth row is a second purchase, the fifth another person's
        "rating": [4.0, 1.0, 2.0, 1.0, 1.0],
    }
    result = read_it(write(tmp_path, rows))
    assert by_external_id(result) == {"ann": [(0, DAY), (1, DAY), (0, DAY + 1)], "ben": [(0, DAY)]}
    assert result.report.n_duplicates == 1
    assert result.interactions.ratings is not None
    assert 4.0 in result.interactions.ratings.tolist()  # of two ratings the earlier row's stays
    assert 2.0 not in result.interactions.ratings.tolist()


def test_a_user_with_too_many_interactions_keeps_the_latest_and_it_is_said(write: Write, tmp_path: Path) -> None:
    n = 1000
    rows: Table = {"user_id": ["bot"] * n + ["ann"], "item_id": ["a"] * (n + 1), "timestamp": [*range(n), DAY]}
    result = read_it(write(tmp_path, rows), max_items_per_user=3)
    assert by_external_id(result) == {"bot": [(0, n - 3), (0, n - 2), (0, n - 1)], "ann": [(0, DAY)]}
    assert (result.report.n_truncated, result.report.n_truncated_users) == (n - 3, 1)
    assert "997 rows dropped: of 1 users only the latest are kept" in result.report.lines()


def test_one_user_with_one_interaction_is_enough(write: Write, tmp_path: Path) -> None:
    result = read_it(write(tmp_path, {"user_id": ["ann"], "item_id": ["a"], "timestamp": [DAY]}))
    assert (result.report.n_users, result.report.n_single, result.report.n_kept) == (1, 1, 1)


def test_a_file_without_rows_is_refused(write_file: Write, tmp_path: Path) -> None:
    path = write_file(tmp_path, {"user_id": ["ann"], "item_id": ["a"], "timestamp": [DAY]})
    if path.suffix == ".parquet":
        pl.read_parquet(path).clear().write_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("\n")
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(b"user_id,item_id,timestamp\n"))
    else:
        path.write_text("user_id,item_id,timestamp\n")
    refused(path, DataError)


def test_an_empty_file_is_refused(write_file: Write, tmp_path: Path) -> None:
    path = write_file(tmp_path, table())
    path.write_bytes(b"")
    assert "is empty" in refused(path, DataError)


def test_a_missing_file_a_folder_and_an_unknown_suffix_are_refused(write_file: Write, tmp_path: Path) -> None:
    path = write_file(tmp_path, table())
    assert "interactions.txt has no known format" in refused(path.rename(tmp_path / "interactions.txt"), DataError)
    assert "does not exist" in refused(path, DataError)
    path.mkdir()
    assert "is a folder" in refused(path, DataError)


def test_a_file_cut_anywhere_is_read_in_part_or_refused_but_never_breaks_the_reader(write_file: Write, tmp_path: Path) -> None:
    path = write_file(tmp_path, table())
    whole = path.read_bytes()
    for cut in range(1, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:cut])
        try:
            read_it(path)
        except IsthmusError:
            continue
        assert path.suffix in (".csv", ".jsonl")  # text that ends early is shorter text; the others must notice


def test_choices_that_mean_nothing_are_refused(write: Write, tmp_path: Path) -> None:
    path = write(tmp_path, table())
    wrong: list[dict[str, Any]] = [{"time": "days"}, {"unknown_items": "keep"}, {"max_items_per_user": 0}, {"rating_range": (5.0, 1.0)}]
    for options in wrong:
        with pytest.raises(ConfigError):
            read_it(path, **options)


# Ids as people make them: any Unicode, quotes, commas, newlines; not blank, because blanks around an id are taken away.
ids = (
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
    .map(str.strip)
    .filter(lambda text: text == text.strip() != "")
)
awkward = st.text('a",\n\r\\é\u2028[{', min_size=1, max_size=6).map(str.strip).filter(bool)


@settings(max_examples=40)
@given(rows=st.lists(st.tuples(ids | awkward, ids | awkward, st.integers(0, DAY)), min_size=1, max_size=8, unique=True))
@pytest.mark.parametrize("kind", [*WRITERS, "sqlite", "postgresql"])
def test_arbitrary_ids_survive_every_format(kind: str, request: pytest.FixtureRequest, rows: list[tuple[str, str, int]]) -> None:
    if kind == "postgresql":
        rows = [(user.replace("\0", "0"), item.replace("\0", "0"), time) for user, item, time in rows]  # it holds no such text
    stripped = [(blank_free(user), blank_free(item), time) for user, item, time in rows]
    users, items, times = (list(column) for column in zip(*stripped, strict=True))
    if not all(users) or not all(items):
        return
    catalogue = Catalogue(item_ids=sorted(set(items)), texts=["text"] * len(set(items)))
    with tempfile.TemporaryDirectory() as folder:
        source = writer(kind, request)(Path(folder), {"user_id": users, "item_id": items, "timestamp": times})
        with contextlib.closing(source.snapshot) if isinstance(source, SqlTable) else contextlib.nullcontext():
            result = read(source, catalogue=catalogue, pseudonym_key=KEY)
    expected: dict[str, set[tuple[str, int]]] = {}
    for user, item, time in stripped:
        expected.setdefault(user, set()).add((item, time))
    held = by_external_id(result)
    assert {user: {(catalogue.item_ids[item], time) for item, time in had} for user, had in held.items()} == expected


def blank_free(text: str) -> str:
    """Without what the readers count as blank around a text (Unicode's white space, which differs a little from Python's)."""
    return str(pl.Series([text]).str.strip_chars()[0])


@settings(max_examples=60)
@given(noise=st.binary(max_size=200), at=st.integers(0, 200), whole=st.booleans())
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "csv.gz"])
def test_arbitrary_bytes_never_raise_anything_but_our_errors(kind: str, noise: bytes, at: int, whole: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = WRITERS[kind](folder, table(user_id=[MARKER, "ben", "ann"]))
        sound = path.read_bytes()
        # Parquet and gzip are only cut and continued with noise: a changed byte inside may decode to something valid.
        path.write_bytes(noise if whole else sound[:at] + noise + (sound[at:] if kind in ("csv", "jsonl") else b""))
        readers: list[Callable[[], object]] = [
            lambda: read_it(path),
            lambda: read_catalogue(path),
            lambda: read_links(path, pseudonym_key=KEY),
        ]
        assert all(MARKER not in text_of_refusal(reader) for reader in readers)


def text_of_refusal(reader: Callable[[], object]) -> str:
    try:
        reader()
    except IsthmusError as error:
        return str(error)
    return ""


def test_a_large_file_with_awkward_ids_reads_the_same_in_every_format(tmp_path: Path) -> None:
    awkward_ids = ["plain", 'a"b', "x\ny", 'q,"\n",r', '"', '"""', '",\n"', "é"]
    n = 30_000
    rows = {"user_id": [awkward_ids[k % 8] * (1 + k % 50) for k in range(n)], "item_id": ["a"] * n, "timestamp": list(range(n))}
    held = [by_external_id(read_it(writer(tmp_path, rows), max_items_per_user=n)) for writer in (write_csv, write_jsonl, write_parquet)]
    assert held[0] == held[1] == held[2]
    assert sum(map(len, held[0].values())) == n
