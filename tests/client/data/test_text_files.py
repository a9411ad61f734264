"""What only text files can get wrong: encodings, line ends, quotes, headers."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from client.data import row_by_row
from client.data.catalogue import Catalogue
from client.data.sources import ColumnNames, ReadResult, read
from shared.errors import DataError, InvalidInteraction, IsthmusError

KEY = bytes(32)
MARKER = "secret-value-93"
CATALOGUE = Catalogue(item_ids=["a", "b"], texts=["A", "B"])
HEADER = "user_id,item_id,timestamp,note\n"
SOUND = HEADER + "ann,a,100,x\nben,b,200,y\n"


def read_bytes(folder: Path, content: bytes | str, name: str = "interactions.csv") -> ReadResult:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read(path, catalogue=CATALOGUE, pseudonym_key=KEY)


def refused(folder: Path, content: bytes | str, name: str = "interactions.csv", error: type[IsthmusError] = DataError) -> str:
    with pytest.raises(error) as caught:
        read_bytes(folder, content, name)
    assert MARKER not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_every_kind_of_line_end_is_read(tmp_path: Path, ends: str) -> None:
    result = read_bytes(tmp_path, SOUND.replace("\n", ends))
    assert sorted(result.external_ids) == ["ann", "ben"]
    assert sorted(result.interactions.times.tolist()) == [100, 200]


def test_a_bare_carriage_return_among_newlines_ends_a_row_too(tmp_path: Path) -> None:
    assert "row 3: 'item_id' is missing" in refused(tmp_path, SOUND + "cid\rdan,a,300,z\n", error=InvalidInteraction)


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    assert len(read_bytes(tmp_path, mark + SOUND.encode()).interactions) == 2
    assert len(read_bytes(tmp_path, gzip.compress(mark + SOUND.encode()), "packed.csv.gz").interactions) == 2
    line = b'{"user_id": "ann", "item_id": "a", "timestamp": 100}\n'
    assert len(read_bytes(tmp_path, mark + line, "interactions.jsonl").interactions) == 1


def test_text_that_is_not_utf_8_is_named_by_row_and_column(tmp_path: Path) -> None:
    assert "row 3: 'user_id' is not UTF-8" in refused(tmp_path, SOUND.encode() + b"caf\xe9,a,1,\n")
    assert "row 2 is not UTF-8" in refused(
        tmp_path, b'{"user_id": "ann", "item_id": "a", "timestamp": 1}\n{"user_id": "\xe9"}\n', "x.jsonl"
    )
    assert "header is not UTF-8" in refused(tmp_path, b"user_id,item_id,timestamp,caf\xe9\nann,a,1,\n")
    assert "is UTF-16" in refused(tmp_path, SOUND.encode("utf-16"))


def test_a_spreadsheet_or_parquet_under_a_wrong_suffix_is_recognised(tmp_path: Path) -> None:
    assert "not the text file that its suffix says" in refused(tmp_path, b"PK\x03\x04rest")
    assert "not the text file that its suffix says" in refused(tmp_path, b"PAR1rest", "interactions.jsonl")
    assert "not a readable Parquet file" in refused(tmp_path, SOUND, "interactions.parquet")


def test_row_numbers_count_records_not_lines(tmp_path: Path) -> None:
    two_lines = HEADER + f'ann,a,100,"two\nlines"\nben,b,{MARKER},"a ""quote"""\n'
    assert "row 2: 'timestamp' is not" in refused(tmp_path, two_lines, error=InvalidInteraction)


def test_blank_lines_are_skipped_counted_and_keep_their_number(tmp_path: Path) -> None:
    assert read_bytes(tmp_path, SOUND + "\n\n,,,\n").report.n_blank == 3
    assert "row 4: 'item_id' is missing" in refused(tmp_path, SOUND + "\ncid,,300,\n", error=InvalidInteraction)


def test_a_short_row_misses_its_last_fields_and_a_long_row_is_refused(tmp_path: Path) -> None:
    assert "row 3: 'timestamp' is missing" in refused(tmp_path, SOUND + "cid,a\n", error=InvalidInteraction)
    for end in ("\n", ""):  # without a last newline a fast reader may not notice
        for fifth in ("5", ""):
            assert "row 3: 5 fields where the header names 4" in refused(tmp_path, SOUND + f"cid,a,1,{MARKER},{fifth}{end}")


@pytest.mark.parametrize("end", ["\n", ""])
def test_a_quote_left_open_swallows_no_rows(tmp_path: Path, end: str) -> None:
    rows = "".join(f"user{k},a,{k},\n" for k in range(100))
    assert "row 1: a quoted field is not closed" in refused(tmp_path, HEADER + f'ann,a,100,"{MARKER}\n' + rows.removesuffix("\n") + end)
    twice = HEADER + f'ann,a,100,"{MARKER}\n' + rows + f'ben,a,100,"{MARKER}\n' + rows
    assert "row 1: a quoted field is not closed" in refused(tmp_path, twice.removesuffix("\n") + end)
    assert "row 3: a quoted field is not closed" in refused(tmp_path, SOUND + f'cid,a,300,"""{end}')
    beside_quotes = HEADER + f'ann,a,100,"{MARKER}\n' + rows + f'ben,"a",100,{MARKER}"' + end
    assert "row 1: a quoted field is not closed" in refused(tmp_path, beside_quotes)


def test_a_quote_in_the_middle_of_a_field_is_part_of_it(tmp_path: Path) -> None:
    result = read_bytes(tmp_path, HEADER + 'a"b,a,100,6" ruler\nann,b,200,\n')
    assert sorted(result.external_ids) == ['a"b', "ann"]


def test_a_file_without_a_header_is_recognised_and_not_quoted(tmp_path: Path) -> None:
    text = refused(tmp_path, f"user_{MARKER},a,1300000000\nben,b,1300000000\n")
    assert "begin the file with a line of column names" in text


def test_a_file_with_another_separator_is_recognised(tmp_path: Path) -> None:
    assert "something else than a comma" in refused(tmp_path, SOUND.replace(",", ";"))


def test_a_doubled_column_is_refused(tmp_path: Path) -> None:
    assert "'item_id' occurs 2 times" in refused(tmp_path, "user_id,item_id,item_id,timestamp\nann,a,b,1\n")


def test_a_header_alone_is_refused(tmp_path: Path) -> None:
    assert "holds no usable row" in refused(tmp_path, HEADER)
    assert "holds no usable row" in refused(tmp_path, HEADER.rstrip())
    assert "holds no header" in refused(tmp_path, "\n\n")


def test_a_packed_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress(SOUND.encode())
    assert "cut off or damaged" in refused(tmp_path, packed[:-9], "interactions.csv.gz")


@pytest.mark.parametrize("name", ["a*b.csv", "a[1].csv", "a?.jsonl", "sp ace.csv"])
def test_a_file_name_is_a_name_and_no_pattern(tmp_path: Path, name: str) -> None:
    content = SOUND if name.endswith("csv") else '{"user_id": "ann", "item_id": "a", "timestamp": 100}\n'
    (tmp_path / "axb.csv").write_text(HEADER)
    assert len(read_bytes(tmp_path, content, name).interactions) > 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1, 2]", "row 2 is not a JSON object"),
        ("17", "row 2 is not a JSON object"),
        ('{"user_id": ', "row 2 is not valid JSON"),
        ("[" * 100_000, "row 2 is not valid JSON"),
        (f'{{"user_id": {{"{MARKER}": 1}}, "item_id": "a", "timestamp": 1}}', "row 2: 'user_id' is neither text nor a number"),
        ('{"user_id": true, "item_id": "a", "timestamp": 1}', "row 2: 'user_id' is neither text nor a number"),
        ('{"user_id": "\\ud800", "item_id": "a", "timestamp": 1}', "row 2: 'user_id' is not valid Unicode"),
    ],
)
def test_a_bad_line_of_json_is_named_by_its_row(tmp_path: Path, line: str, said: str) -> None:
    sound = '{"user_id": "ann", "item_id": "a", "timestamp": 100}\n'
    assert said in refused(tmp_path, sound + "\n" + line + "\n", "interactions.jsonl")


def test_numbers_as_ids_are_text_in_json_too(tmp_path: Path) -> None:
    line = '{"user_id": 12345678901234567890123, "item_id": "a", "timestamp": 100.0}\n'
    assert list(read_bytes(tmp_path, line, "x.jsonl").external_ids) == ["12345678901234567890123"]
    assert list(read_bytes(tmp_path, line + '{"user_id": "[", "item_id": "a", "timestamp": 1}', "x.jsonl").external_ids.sort()) == [
        "12345678901234567890123",
        "[",
    ]


def test_the_exact_reader_accepts_what_the_fast_one_accepts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = read_bytes(tmp_path, SOUND)
    monkeypatch.setattr(row_by_row.Bytes, "is_plain", property(lambda self: False))
    exact = read_bytes(tmp_path, SOUND)
    assert exact.report == fast.report
    assert exact.external_ids.to_list() == fast.external_ids.to_list()
    assert exact.interactions.pseudonyms.tolist() == fast.interactions.pseudonyms.tolist()


def test_a_column_may_be_found_by_a_name_that_looks_like_a_pattern(tmp_path: Path) -> None:
    path = tmp_path / "interactions.csv"
    path.write_text("^user.*$,item_id,timestamp\nann,a,1\n")
    result = read(path, catalogue=CATALOGUE, pseudonym_key=KEY, columns=ColumnNames(user="^user.*$"))
    assert list(result.external_ids) == ["ann"]
