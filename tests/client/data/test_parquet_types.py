"""Parquet brings its own types: what they become, and which are refused."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from client.data.catalogue import Catalogue
from client.data.sources import ReadResult, read
from shared.errors import DataError

CATALOGUE = Catalogue(item_ids=["7", "12"], texts=["A", "B"])
NOON = datetime(2011, 3, 13, 12, tzinfo=UTC)


def read_columns(folder: Path, time: str = "unix_s", **columns: Any) -> ReadResult:
    path = folder / "interactions.parquet"
    sound = {"user_id": ["ann", "ben"], "item_id": ["7", "12"], "timestamp": [100, 200]}
    pl.DataFrame({**sound, **columns}).write_parquet(path)
    return read(path, catalogue=CATALOGUE, pseudonym_key=bytes(32), time="order" if time == "order" else "unix_s")


@pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt16, pl.Int64, pl.UInt64, pl.Categorical, pl.Enum(["7", "12"])])
def test_ids_of_any_whole_or_text_type_become_text(tmp_path: Path, dtype: Any) -> None:
    values = pl.Series(["7", "12"]).cast(pl.Int64).cast(dtype) if dtype.is_integer() else pl.Series(["7", "12"]).cast(dtype)
    result = read_columns(tmp_path, user_id=values, item_id=values)
    assert sorted(result.external_ids) == ["12", "7"]
    assert sorted(result.interactions.items.tolist()) == [0, 1]


@pytest.mark.parametrize(
    "values",
    [
        pl.Series([1.0, 2.0]),
        pl.Series([b"x", b"y"]),
        pl.Series([[1], [2]]),
        pl.Series([True, False]),
        pl.Series([{"a": 1}, {"a": 2}]),
        pl.Series([date(2011, 1, 1)] * 2),
    ],
)
def test_ids_of_another_type_are_refused_by_column_and_type(tmp_path: Path, values: pl.Series) -> None:
    with pytest.raises(DataError, match="column 'user_id' is of type"):
        read_columns(tmp_path, user_id=values)


@pytest.mark.parametrize("dtype", [pl.Datetime("ms"), pl.Datetime("us"), pl.Datetime("ns"), pl.Datetime("us", "UTC")])
def test_a_timestamp_becomes_seconds(tmp_path: Path, dtype: Any) -> None:
    zone = getattr(dtype, "time_zone", None)
    values = pl.Series([NOON if zone else NOON.replace(tzinfo=None)] * 2, dtype=dtype)
    assert read_columns(tmp_path, timestamp=values).interactions.times.tolist() == [int(NOON.timestamp())] * 2


def test_a_day_becomes_its_first_second(tmp_path: Path) -> None:
    assert read_columns(tmp_path, timestamp=[date(1970, 1, 2)] * 2).interactions.times.tolist() == [86_400] * 2


def test_decimals_without_a_fraction_are_whole_numbers(tmp_path: Path) -> None:
    whole = pl.Series(["7", "12"]).cast(pl.Decimal(10, 0))
    result = read_columns(tmp_path, user_id=whole, item_id=whole, timestamp=pl.Series(["5.00", "6.00"]).cast(pl.Decimal(10, 2)))
    assert sorted(result.external_ids) == ["12", "7"]
    assert sorted(result.interactions.times.tolist()) == [5, 6]
    with pytest.raises(DataError, match="row 2: 'timestamp' is not a whole number of seconds"):
        read_columns(tmp_path, timestamp=pl.Series(["5.00", "6.50"]).cast(pl.Decimal(10, 2)))
    with pytest.raises(DataError, match="column 'user_id' is of type Decimal"):
        read_columns(tmp_path, user_id=pl.Series(["5.00", "6.50"]).cast(pl.Decimal(10, 2)))


def test_a_timestamp_that_only_orders_keeps_its_microseconds(tmp_path: Path) -> None:
    values = pl.Series([1, 2], dtype=pl.Int64).cast(pl.Datetime("us"))
    assert sorted(read_columns(tmp_path, time="order", timestamp=values).interactions.times.tolist()) == [1, 2]


@pytest.mark.parametrize("column", ["timestamp", "rating"])
def test_numbers_of_another_type_are_refused(tmp_path: Path, column: str) -> None:
    with pytest.raises(DataError, match=f"column '{column}' is of type Boolean, not numbers"):
        read_columns(tmp_path, **{column: [True, False]})


def test_a_number_that_is_not_a_number_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 2: 'rating' is missing"):
        read_columns(tmp_path, rating=[1.0, float("nan")])
