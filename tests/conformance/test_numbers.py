"""The numbers of docs/wire.md and those of the tests are the same."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"R-\d{3}")
ROW = re.compile(r"^\| (R-\d{3}) \|.*\| ([^|]*) \|$", re.MULTILINE)


def carried():
    """Of every numbered test its name and numbers."""
    found = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                numbers = set(NUMBER.findall((ast.get_docstring(node) or "").partition(":")[0]))
                if numbers:
                    found[node.name] = found.get(node.name, set()) | numbers
    return found


def listed():
    """Of every row of the table its number and tests."""
    return {
        number: set(re.findall(r"`(\w+)`", tests))
        for number, tests in ROW.findall((ROOT / "docs/wire.md").read_text())
    }


def test_the_table_names_the_tests_of_each_number():
    """A number of the table without its tests, or a numbered test that is not in the table, fails here."""
    by_number = {}
    for name, numbers in carried().items():
        for number in numbers:
            by_number.setdefault(number, set()).add(name)

    assert by_number == listed()


def test_numbers_have_no_gap():
    """R-numbers are given once, in order, for ever: one that is dropped stays in the table as dropped."""
    numbers = [number for number, _ in ROW.findall((ROOT / "docs/wire.md").read_text())]

    assert numbers == [f"R-{n:03}" for n in range(1, len(numbers) + 1)]
    assert len(numbers) >= 30
