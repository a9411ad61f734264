"""Which node is whose: kept as a whole, and nobody is believed where it cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from server import nodes


def test_what_was_written_is_read_and_the_same_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "nodes.json"
    assert nodes.read(path) is None  # a simulation, or a run folder from before
    nodes.write(path, {2**63 + 5: "films", 7: "books"})
    assert nodes.read(path) == {7: "books", 2**63 + 5: "films"}
    before = path.stat().st_ino
    nodes.write(path, {7: "books", 2**63 + 5: "films"})
    assert path.stat().st_ino == before
    nodes.write(path, {})
    assert nodes.read(path) == {}


def test_a_run_folders_link_to_a_file_that_is_gone_vouches_for_nobody(tmp_path: Path) -> None:
    link = tmp_path / "run" / "nodes.json"
    link.parent.mkdir()
    link.symlink_to(Path("..") / "superlink" / "nodes.json")
    assert nodes.read(link) == {}  # and not "anybody speaks for anybody"
    (tmp_path / "superlink").mkdir()
    nodes.write(tmp_path / "superlink" / "nodes.json", {7: "books"})
    assert nodes.read(link) == {7: "books"}


@pytest.mark.parametrize(
    "damaged", ["", "{", "[]", '{"format": "isthmus-nodes-2", "nodes": {"7": "books"}}', '{"format": "isthmus-nodes-1"}']
)
def test_a_damaged_file_vouches_for_nobody(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "nodes.json").write_text(damaged)
    assert nodes.read(tmp_path / "nodes.json") == {}
