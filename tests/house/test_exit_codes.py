"""Exit codes are documented, stable and the ones the code has."""

from __future__ import annotations

import re
from pathlib import Path

from shared import errors
from shared.errors import IsthmusError

ROW = re.compile(r"^\| (\d+) \| (.+?) \| .+ \|$", re.MULTILINE)


def documented(readme: str) -> dict[str, int]:
    """Error's name -> exit code, from the table under "Exit codes"."""
    section = readme.split("### Exit codes", 1)[1].split("\n## ", 1)[0]
    return {name.strip("` "): int(code) for code, names in ROW.findall(section) for name in names.split(",") if name.strip() != "-"}


def in_the_code(kind: type[IsthmusError] = IsthmusError) -> dict[str, int]:
    found = {kind.__name__: kind.exit_code}
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            found |= in_the_code(below)
    return found


def test_the_readme_lists_each_error_with_its_exit_code(readme: str) -> None:
    assert documented(readme) == in_the_code()


def test_a_code_that_changed_would_turn_this_red(readme: str) -> None:
    changed = readme.replace("| 10 | `BudgetExhausted`", "| 11 | `BudgetExhausted`")

    assert documented(changed) != in_the_code()


def test_the_tree_at_the_head_of_the_errors_is_the_tree_of_the_code() -> None:
    assert errors.__doc__ is not None
    drawn = dict(re.findall(r"^[ |`-]*(\w+) +(\d+) +(?:no|code)\b", errors.__doc__, re.MULTILINE))
    root = re.search(r"^ +IsthmusError", errors.__doc__, re.MULTILINE)

    assert root is not None
    assert {name: int(code) for name, code in drawn.items()} == {n: c for n, c in in_the_code().items() if n != "IsthmusError"}


def test_exit_codes_are_given_in_one_place_only(repository: Path, tracked: list[Path]) -> None:
    given = re.compile(r"^    exit_code\b.*=", re.MULTILINE)
    elsewhere = [str(f) for f in tracked if f.suffix == ".py" and f.parts[0] != "tests" and given.search((repository / f).read_text())]
    assert elsewhere == ["shared/errors.py"]
