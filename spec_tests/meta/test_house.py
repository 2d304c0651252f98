# SPDX-License-Identifier: Apache-2.0
"""How long the files are, and how much code the implementation is."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

import addons
from spec_tests.harness.paths import fixtures_dir, package_dir

ADDONS = Path(addons.__file__).parent
LONGEST_FILE = 300
BUDGET = 1700
TODAY = 3519
"""Lines of code in addons/: what it should have, and what it has. Lower it with every cut."""

_NO_CODE = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}


def python_files():
    """Name from the package on -> path, of addons/ and spec_tests/; a wheel has the fixtures inside the latter."""
    return {
        f"{folder.name}/{path.relative_to(folder).as_posix()}": path
        for folder in (ADDONS, package_dir())
        for path in sorted(folder.rglob("*.py"))
        if not path.is_relative_to(fixtures_dir())
    }


def code_lines(source: str) -> int:
    """The lines of a module that hold code: no blank ones, no comments, no texts that only describe."""
    described: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            described |= _lines(node.lineno, node.end_lineno or node.lineno)
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            found |= _lines(token.start[0], token.end[0])
    return len(found - described)


def _lines(first: int, last: int) -> set[int]:
    return set(range(first, last + 1))


def physical_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def code_of_addons() -> int:
    return sum(code_lines(path.read_text(encoding="utf-8")) for path in ADDONS.rglob("*.py"))


def test_no_file_is_too_long():
    assert len(python_files()) > 100
    assert {name: n for name, path in python_files().items() if (n := physical_lines(path)) > LONGEST_FILE} == {}


def rooms_of_the_map():
    """The rooms of addons/ in the order of the map in its docstring."""
    text = ast.get_docstring(ast.parse((ADDONS / "__init__.py").read_text(encoding="utf-8")))
    rows = re.findall(r"^ {4}((?:\w+, )*\w+)  ", text, re.MULTILINE)
    return [room for row in rows for room in row.split(", ")]


def test_map_of_the_rooms_is_whole_and_imports_follow_it():
    rooms = rooms_of_the_map()
    assert sorted(rooms) == sorted(path.stem for path in ADDONS.glob("*.py") if path.stem != "__init__")
    backwards = []
    for room in rooms:
        for node in ast.walk(ast.parse((ADDONS / f"{room}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                named = [node.module] if node.module else [one.name for one in node.names]
                backwards += [(room, other) for other in named if rooms.index(other) <= rooms.index(room)]
    assert backwards == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("", 0),
        ('# one\n\n"""Two,\n\nthree."""\n', 0),
        ('x = 1  # one\n"""What x is."""\n\n\ny = """a\n\nb"""\n', 4),
        ('def f():\n    """What it does."""\n    return [\n        # nothing\n        1,\n    ]\n', 4),
        ('class C:\n    a: int\n    """What it is."""\n\n    @property\n    def b(self): ...\n', 4),
        ('f(f"{1}"\n  "two")\n', 2),
    ],
)
def test_code_is_counted_without_what_describes_it(source, lines):
    assert code_lines(source) == lines


def test_code_of_addons_does_not_grow():
    assert code_of_addons() <= TODAY


@pytest.mark.xfail(strict=True, reason=f"{TODAY} lines of code today, which are being cut")
def test_code_of_addons_is_within_its_budget():
    assert code_of_addons() <= BUDGET


def test_no_test_computes_gradients_in_the_process_that_forks_ranks():
    calls = []
    for path in (package_dir() / "areas").glob("test_*.py"):
        tests = [one for one in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(one, ast.FunctionDef)]
        for test in tests:
            used = {ast.unparse(node.func).rpartition(".")[2] for node in ast.walk(test) if isinstance(node, ast.Call)}
            if test.name.startswith("test_") and used & {"train_steps", "backward"}:
                calls.append((path.name, test.name))
    assert calls == []
