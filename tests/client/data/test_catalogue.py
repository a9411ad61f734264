"""The catalogue: every item once, its public text, and what is said where something is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from client.data.catalogue import Catalogue, CatalogueColumns, read_catalogue
from shared.errors import ConfigError, DataError, InvalidItem

MARKER = "secret-value-93"


def catalogue_file(folder: Path, rows: list[tuple[str | None, str | None, str | None]], suffix: str = ".csv") -> Path:
    path = folder / f"items{suffix}"
    frame = pl.DataFrame(rows, schema=dict.fromkeys(("item_id", "title", "categories"), pl.String), orient="row")
    {".csv": frame.write_csv, ".parquet": frame.write_parquet, ".jsonl": frame.write_ndjson}[suffix](path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_texts_are_joined_in_order_and_empty_ones_skipped(tmp_path: Path, suffix: str) -> None:
    path = catalogue_file(
        tmp_path, [("0615391206", "Zoku", "Books"), ("b", None, "Tea"), ("c", " Mug ", ""), ("d", 'A "two"\nline', None)], suffix
    )
    catalogue = read_catalogue(path)
    assert catalogue.item_ids == ["0615391206", "b", "c", "d"]
    assert catalogue.texts == ["Zoku. Books", "Tea", "Mug", 'A "two"\nline']


def test_only_configured_columns_make_the_text(tmp_path: Path) -> None:
    path = catalogue_file(tmp_path, [("a", "Zoku", MARKER)])
    assert read_catalogue(path, columns=CatalogueColumns(texts=("title",))).texts == ["Zoku"]
    assert read_catalogue(path, columns=CatalogueColumns(texts=("categories", "title"))).texts == [f"{MARKER}. Zoku"]
    with pytest.raises(ConfigError, match="no text column"):
        read_catalogue(path, columns=CatalogueColumns(texts=()))


def test_an_item_without_text_keeps_its_place_and_is_counted(tmp_path: Path) -> None:
    catalogue = read_catalogue(catalogue_file(tmp_path, [("a", "", "  "), ("b", "Tea", None), ("c", None, None)]))
    assert catalogue.item_ids == ["a", "b", "c"]
    assert catalogue.n_without_text == 2
    assert catalogue.has_text.tolist() == [False, True, False]


def test_a_catalogue_in_which_no_item_has_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidItem, match="no item has any text in 'title', 'categories'"):
        read_catalogue(catalogue_file(tmp_path, [("a", None, None), ("b", None, None)]))


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_two_items_with_one_id_are_refused_by_their_rows(tmp_path: Path, suffix: str) -> None:
    path = catalogue_file(tmp_path, [("a", "A", None), (MARKER, "B", None), ("c", "C", None), (f" {MARKER}", "D", None)], suffix)
    with pytest.raises(InvalidItem, match=r"row 4: 'item_id' names an item .*\(the first of them: row 2\)") as caught:
        read_catalogue(path)
    assert MARKER not in str(caught.value)


def test_a_missing_id_is_named_by_its_row_and_a_blank_line_is_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidItem, match="row 2: 'item_id' is missing"):
        read_catalogue(catalogue_file(tmp_path, [("a", "A", None), (None, MARKER, None)]))
    assert len(read_catalogue(catalogue_file(tmp_path, [("a", "A", None), (None, None, None)]))) == 1


def test_a_misspelt_column_is_named_with_its_nearest(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item_id,titel,categories\na,b,c\n")
    with pytest.raises(DataError, match=r"(?s)no column 'title'.*'titel'"):
        read_catalogue(path)


@pytest.mark.parametrize("content", ["", "item_id,title,categories\n"])
def test_an_empty_catalogue_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "items.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=r"is empty|holds no item"):
        read_catalogue(path)


def test_ten_items_are_a_catalogue(tmp_path: Path) -> None:
    assert len(read_catalogue(catalogue_file(tmp_path, [(str(n), f"item {n}", None) for n in range(10)]))) == 10


def test_items_are_found_by_id_and_strangers_are_minus_one() -> None:
    catalogue = Catalogue(item_ids=["a", "07", "é"], texts=["A", "", "E"])
    positions = catalogue.index(["é", "7", "07", "a", "é"])
    assert positions.tolist() == [2, -1, 1, 0, 2]
    assert positions.dtype == np.int32
    assert catalogue.index([]).tolist() == []


def test_the_hash_knows_ids_texts_order_and_boundaries() -> None:
    def made(ids: list[str], texts: list[str]) -> str:
        return Catalogue(item_ids=ids, texts=texts).content_hash

    assert made(["a", "b"], ["x", "y"]) == made(["a", "b"], ["x", "y"])
    others = [(["b", "a"], ["x", "y"]), (["a", "b"], ["xy", ""]), (["ab", "x"], ["", "y"]), (["a", "b"], ["x", "z"]), (["a"], ["x"])]
    assert len({made(*other) for other in [(["a", "b"], ["x", "y"]), *others]}) == 6


@pytest.mark.parametrize(("ids", "texts"), [(["a"], []), (["a", "a"], ["x", "y"]), (["a", ""], ["x", "y"])])
def test_a_catalogue_that_contradicts_itself_cannot_be_made(ids: list[str], texts: list[str]) -> None:
    with pytest.raises(InvalidItem):
        Catalogue(item_ids=ids, texts=texts)
