"""Nothing is skipped in silence, and nothing that CI runs can change under its name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest


def silent_skips(source: str) -> list[int]:
    """Lines that skip without a reason, or that expect a failure or a missing library."""
    never = {"pytest.mark.skip", "pytest.mark.xfail", "pytest.xfail", "pytest.importorskip"}
    lines = []
    for node in ast.walk(ast.parse(source)):
        name = ast.unparse(node.func) if isinstance(node, ast.Call) else ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        bare = isinstance(node, ast.Call) and not any(word.arg == "reason" for word in node.keywords)
        without_reason = name == "pytest.mark.skipif" or (name == "pytest.skip" and isinstance(node, ast.Call) and not node.args)
        if name in never or (bare and without_reason):
            lines.append(node.lineno)
    return sorted(set(lines))


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("pytest.skip()", True),
        ("pytest.skip('ISTHMUS_DATA is not set')", False),
        ("pytest.importorskip('ray')", True),
        ("@pytest.mark.xfail\ndef test_x(): ...", True),
        ("@pytest.mark.skip(reason='later')\ndef test_x(): ...", True),
        ("@pytest.mark.skipif(True)\ndef test_x(): ...", True),
        ("@pytest.mark.skipif(True, reason='root may write everywhere')\ndef test_x(): ...", False),
    ],
)
def test_a_silent_skip_is_seen(source: str, caught: bool) -> None:
    assert bool(silent_skips(source)) == caught


def test_no_test_skips_in_silence(repository: Path, tracked: list[Path]) -> None:
    found = {
        str(f): lines
        for f in tracked
        if f.parts[0] == "tests" and f.suffix == ".py" and (lines := silent_skips((repository / f).read_text()))
    }
    assert found == {}


def test_every_test_file_holds_tests_that_pytest_collects(repository: Path, tracked: list[Path]) -> None:
    files = [f for f in tracked if f.parts[0] == "tests" and f.name.startswith("test_") and f.suffix == ".py"]
    collected = re.compile(r"^(?:    )?def test_\w+|^Test\w+ = \w+\.TestCase$", re.MULTILINE)  # or a state machine of hypothesis
    without = [str(f) for f in files if not collected.search((repository / f).read_text())]
    misnamed = [
        str(f)
        for f in tracked
        if f.parts[0] == "tests"
        and f.suffix == ".py"
        and not f.name.startswith("test_")
        and re.search(r"^def test_", (repository / f).read_text(), re.MULTILINE)
    ]
    # A contract suite is a class or a set of functions that test files import; it lies in contracts/ and says so by its place.
    assert without == []
    assert [name for name in misnamed if not name.startswith("tests/contracts/")] == []


def test_every_action_of_the_workflow_is_pinned_to_a_commit(repository: Path) -> None:
    used = [line for page in (repository / ".github/workflows").glob("*.yml") for line in re.findall(r"uses: *(.+)", page.read_text())]
    assert used
    assert [line for line in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v[\d.]+", line)] == []
