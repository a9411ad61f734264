"""The chain of the egress manifest: whatever is edited, removed, put in or moved is found, at the first line that does not fit."""

from __future__ import annotations

import hashlib
import json
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.egress_manifest import Manifest
from shared.errors import AuditError, StorageError
from shared.privacy.manifest import ManifestLine, ManifestReading, chained, encoded, read_line, read_manifest

DIGEST = "0123456789abcdef" * 4
N = 6


def filled(path: Path, lines: int = N) -> Path:
    manifest = Manifest(path)
    for number in range(1, lines + 1):
        if number % 3 == 0:
            manifest.blocked(kind="train", why="no-commit", round=number)
        else:
            manifest.left(kind="train", why="fixed", schema="TransferUpdate", size=10 * number, sha256=DIGEST, round=number)
    return path


def read(tmp_path: Path, lines: list[bytes]) -> ManifestReading:
    path = tmp_path / "changed.jsonl"
    path.write_bytes(b"".join(lines))
    return read_manifest(path)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return filled(tmp_path_factory.mktemp("manifest") / "egress.jsonl").read_bytes().splitlines(keepends=True)


def test_lines_are_chained_from_the_first_and_read_back(tmp_path: Path) -> None:
    reading = read_manifest(filled(tmp_path / "egress.jsonl"))
    assert (reading.intact, reading.torn, reading.unchained, reading.numbers) == (True, False, 0, (1, 2, 3, 4, 5, 6))
    assert [line.prev for line in reading.lines] == ["0" * 64, *(line.hash for line in reading.lines[:-1])]
    assert [line.round for line in reading.lines] == [1, 2, 3, 4, 5, 6]
    assert reading.head == reading.lines[-1].hash
    assert (reading.lines[2].event, reading.lines[2].bytes, reading.lines[2].sha256) == ("blocked", None, None)


def test_a_stranger_checks_a_line_with_json_and_sha256(lines: list[bytes]) -> None:
    for line in lines:
        record = json.loads(line)
        said = record.pop("hash")
        text = json.dumps(["isthmus-manifest-1", record], sort_keys=True, separators=(",", ":"))
        assert hashlib.sha256(text.encode()).hexdigest() == said


@pytest.mark.parametrize("at", range(N))
def test_an_edited_line_is_found(tmp_path: Path, lines: list[bytes], at: int) -> None:
    changed = list(lines)
    changed[at] = changed[at].replace(b'"kind":"train"', b'"kind":"hello"')
    assert read(tmp_path, changed).broken_at == at + 1


@pytest.mark.parametrize("at", range(N))
def test_a_line_that_was_edited_and_hashed_anew_is_found_at_the_next_one(tmp_path: Path, lines: list[bytes], at: int) -> None:
    line = read_line(lines[at][:-1])
    assert line is not None
    changed = list(lines)
    changed[at] = encoded(chained(ManifestLine(event="left", time_utc=line.time_utc, kind="query.hello", why="fixed"), line.prev))
    assert read(tmp_path, changed).broken_at == (at + 2 if at + 1 < N else None)  # the end is for the ledger's commits to anchor


@pytest.mark.parametrize("at", range(N))
def test_a_removed_line_is_found_unless_it_was_the_last(tmp_path: Path, lines: list[bytes], at: int) -> None:
    assert read(tmp_path, lines[:at] + lines[at + 1 :]).broken_at == (at + 1 if at + 1 < N else None)


@pytest.mark.parametrize("at", range(N - 1))
def test_two_lines_that_changed_places_are_found_at_the_first(tmp_path: Path, lines: list[bytes], at: int) -> None:
    changed = list(lines)
    changed[at], changed[at + 1] = changed[at + 1], changed[at]
    assert read(tmp_path, changed).broken_at == at + 1


@pytest.mark.parametrize("at", range(N))
def test_a_line_that_stands_there_twice_is_found(tmp_path: Path, lines: list[bytes], at: int) -> None:
    assert read(tmp_path, [*lines[: at + 1], lines[at], *lines[at + 1 :]]).broken_at == at + 2


def test_of_several_breaks_the_first_is_named(tmp_path: Path, lines: list[bytes]) -> None:
    reading = read(tmp_path, [lines[0], b"{}\n", lines[3], lines[2]])
    assert reading.broken_at == 2
    assert "edited" in reading.why
    assert len(reading.lines) == 3  # what can be read is still shown


@given(st.data())
def test_any_changed_byte_is_found_in_its_line(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], data: st.DataObject) -> None:
    whole = bytearray(b"".join(lines))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("flipped") / "egress.jsonl"
    path.write_bytes(whole)
    reading = read_manifest(path)
    if at == len(whole) - 1:
        assert reading.torn
    else:
        assert reading.broken_at == b"".join(lines)[:at].count(b"\n") + 1


def test_every_flipped_byte_of_a_short_manifest_is_found(tmp_path: Path) -> None:
    whole = filled(tmp_path / "egress.jsonl", 2).read_bytes()
    path = tmp_path / "flipped.jsonl"
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        reading = read_manifest(path)
        assert (reading.broken_at == whole[:at].count(b"\n") + 1) or (reading.torn and at == len(whole) - 1), at


@given(st.lists(st.binary(max_size=40) | st.just(b"\n") | st.sampled_from([b"[" * 9000, b'{"event":NaN}', b"1" * 5000]), max_size=6))
def test_whatever_a_file_holds_it_is_read(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]) -> None:
    content = b"\n".join(parts)
    path = tmp_path_factory.mktemp("any") / "egress.jsonl"
    path.write_bytes(content)
    reading = read_manifest(path)
    assert (reading.lines, reading.torn) == ((), bool(content) and not content.endswith(b"\n"))
    assert (reading.broken_at is None) == (content.count(b"\n") == 0)


@given(st.lists(st.tuples(st.sampled_from(["train", "query.hello"]), st.integers(0, 2**53), st.booleans()), max_size=8))
def test_whatever_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, messages: list[tuple[str, int, bool]]) -> None:
    path = tmp_path_factory.mktemp("written") / "egress.jsonl"
    path.touch()
    for kind, size, stopped in messages:
        if stopped:
            Manifest(path).blocked(kind=kind, why="exception")
        else:
            Manifest(path).left(kind=kind, why="fixed", schema="Ok", size=size, sha256=DIGEST)
    reading = read_manifest(path)
    assert reading.intact
    assert [(line.kind, line.bytes, line.event == "blocked") for line in reading.lines] == [
        (kind, None if stopped else size, stopped) for kind, size, stopped in messages
    ]


def test_a_manifest_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="cannot be read"):
        read_manifest(tmp_path / "egress.jsonl")


# --- a crash, and the time before there was a chain ---


def test_a_torn_last_line_is_told_from_a_broken_chain_and_the_next_line_replaces_it(tmp_path: Path) -> None:
    path = filled(tmp_path / "egress.jsonl")
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for length in range(1, len(last)):
        path.write_bytes(whole + last[:length])
        reading = read_manifest(path)
        assert (reading.broken_at, reading.torn, len(reading.lines)) == (None, True, N)
    Manifest(path).blocked(kind="train", why="exception")
    after = read_manifest(path)
    assert (after.intact, after.torn, len(after.lines)) == (True, False, N + 1)
    assert path.read_bytes().startswith(whole)


def test_a_first_line_that_a_crash_cut_short_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "egress.jsonl"
    path.write_bytes(b'{"bytes":10')
    filled(path, 1)
    assert (read_manifest(path).intact, len(read_manifest(path).lines)) == (True, 1)


def test_a_disk_that_fills_up_in_the_middle_of_a_line_stops_the_message_and_leaves_the_chain_whole(tmp_path: Path) -> None:
    path = filled(tmp_path / "egress.jsonl")
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, hard))
    try:
        with pytest.raises(StorageError):
            Manifest(path).blocked(kind="train", why="exception")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (read_manifest(path).torn, len(read_manifest(path).lines)) == (True, N)
    filled(path, 1)
    assert (read_manifest(path).intact, len(read_manifest(path).lines), path.read_bytes().startswith(before)) == (True, N + 1, True)


def old_line(number: int) -> bytes:
    line = asdict(ManifestLine(event="left", time_utc="2026-01-02T03:04:05Z", kind="train", why="fixed", round=number))
    return json.dumps({name: value for name, value in line.items() if name not in ("prev", "hash")}).encode() + b"\n"


OLD: dict[str, list[bytes]] = {
    "whole lines": [old_line(1), old_line(2), old_line(3)],
    "a line that a crash cut short in between": [old_line(1), old_line(2)[:20] + b"\n", old_line(3)],
}


@pytest.mark.parametrize("old", OLD.values(), ids=OLD.keys())
def test_old_lines_are_kept_and_fixed_by_the_first_chained_one(tmp_path: Path, old: list[bytes]) -> None:
    path = tmp_path / "egress.jsonl"
    path.write_bytes(b"".join(old))
    filled(path, 2)
    reading = read_manifest(path)
    assert (reading.broken_at, reading.unchained, reading.intact) == (None, 3, False)
    assert reading.lines[-1].prev == reading.lines[-2].hash
    after = path.read_bytes().splitlines(keepends=True)
    assert after[:3] == old
    for changed in ([old_line(4), *after[1:]], after[1:], [after[0], after[2], after[1], *after[3:]]):
        assert read(tmp_path, changed).broken_at is not None


def test_an_old_manifest_alone_is_not_proved_by_anything(tmp_path: Path) -> None:
    reading = read(tmp_path, [old_line(1), old_line(2)])
    assert (reading.broken_at, reading.unchained, reading.intact, len(reading.lines)) == (None, 2, False, 2)


def test_a_chain_whose_last_line_was_spoilt_goes_on_and_shows_the_spoilt_one(tmp_path: Path) -> None:
    path = filled(tmp_path / "egress.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"round":6', b'"round":7'))
    filled(path, 2)
    assert read_manifest(path).broken_at == N


@pytest.mark.parametrize("length", [4000, 4095, 4096, 4097, 9000])
def test_the_end_is_found_however_long_the_lines_are(tmp_path: Path, length: int) -> None:
    path = tmp_path / "egress.jsonl"
    path.write_bytes(b"x" * length + b"\n" + b"y" * length + b"\n" + b"z" * length)
    filled(path, 2)
    reading = read_manifest(path)
    assert (reading.unchained, len(reading.lines), reading.broken_at) == (2, 2, None)


def test_a_line_costs_the_same_in_a_long_manifest(tmp_path: Path) -> None:
    path = filled(tmp_path / "egress.jsonl", 3)
    block = path.read_bytes().splitlines(keepends=True)[-1]
    with path.open("ab") as file:
        file.write(old_line(1) * (2**24 // len(old_line(1))) + block)  # 16 MB; the last line is one of the chain
    read_bytes: list[int] = []
    plain = os.pread

    def counting(handle: int, size: int, at: int) -> bytes:
        data = plain(handle, size, at)
        read_bytes.append(len(data))
        return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", counting)
        Manifest(path).blocked(kind="train", why="exception")
    assert sum(read_bytes) <= 4096


def test_two_writers_do_not_break_the_chain(tmp_path: Path) -> None:
    path = tmp_path / "egress.jsonl"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: Manifest(path).blocked(kind="train", why="exception", round=number), range(40)))
    reading = read_manifest(path)
    assert reading.intact
    assert sorted(line.round or 0 for line in reading.lines) == list(range(40))
