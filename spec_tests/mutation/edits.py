# SPDX-License-Identifier: Apache-2.0
"""The edits of one file: mutmut's, each as a source of its own."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import libcst

TEXTS = {"SimpleString", "ConcatenatedString", "FormattedString"}
CLAUSE = re.compile(r"\b[A-Z]{2,4}-\d{3}\b")
SAYING = ("warn(", "logger.", "warning(")


@dataclass(frozen=True)
class Edit:
    """One edit of one function.

    Attributes:
        file: name of the file in `addons`.
        function: the function or method that it changes, by its name in the file.
        before: the lines that it takes away, without their indentation.
        after: those that stand there instead.
        source: the whole file with the edit in it.
        clauses: the ids that stand in the function; tests of these clauses are the first to be asked.
        lines: first and last line of the edited statement, or of what stands before its own statements.
    """

    file: str
    function: str
    before: str
    after: str
    source: str
    clauses: tuple[str, ...] = ()
    lines: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        return f"{self.file}, {self.function}: `{self.before}` -> `{self.after}`"


def edits(path: Path) -> Iterator[Edit]:
    """Every edit of the file that could change what it does, in the file's order.

    Left out is what only changes the words of an error (the whole of a ``raise``, which tests look at by what they have
    to name), what only types are checked by (the first argument of ``cast``), and what is no function's body: defaults,
    decorators and the level of the module.
    """
    # Not in the suite's extras: the row `mutmut` alone needs it.
    from mutmut.mutation.file_mutation import create_mutations

    source = path.read_text(encoding="utf-8")
    module, mutations, *_ = create_mutations(str(path), source)
    seen, raises = set(), _spans(source)
    # What stands alone at the level of the module can be replaced alone, in a tenth of the time of the whole.
    tops = {inner: top for top in module.body for inner in (top, *_methods(top))}
    for mutation in mutations:
        outer = tops.get(mutation.contained_by_top_level_function)
        if outer is None:
            continue
        old = module.code_for_node(outer).strip("\n")
        new = module.code_for_node(outer.deep_replace(mutation.original_node, mutation.mutated_node)).strip("\n")
        edited = source.replace(old, new, 1)
        line, before, after = _difference(old, new, source[: source.index(old)].count("\n"))
        words = type(mutation.original_node).__name__ in TEXTS and any(word in before for word in SAYING)
        if edited in seen or words or any(first <= line <= last for first, last in raises):
            continue
        if "cast(" in before and _without_casts(edited) == _without_casts(source):
            continue
        seen.add(edited)
        for function, first, last in _functions(source):
            if first <= line <= last:
                clauses = CLAUSE.findall("\n".join(source.splitlines()[first - 1 : last]))
                yield Edit(
                    path.name, function, before, after, edited, tuple(sorted(set(clauses))), _statement(source, line)
                )


def lines_of(path: Path, function: str) -> tuple[int, int]:
    """First and last line of the body of a function of that file."""
    found = {name: (first, last) for name, first, last in _functions(path.read_text(encoding="utf-8"))}
    return found[function]


class _Casts(ast.NodeTransformer):
    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        is_cast = isinstance(node.func, ast.Name) and node.func.id == "cast" and len(node.args) == 2
        return node.args[1] if is_cast else node


def _without_casts(source: str) -> str:
    """The source as a tree in which ``cast(kind, value)`` is the value."""
    return ast.dump(_Casts().visit(ast.parse(source)))


def _methods(top: libcst.CSTNode) -> list[libcst.CSTNode]:
    return list(getattr(getattr(top, "body", None), "body", ())) if type(top).__name__ == "ClassDef" else []


def _difference(old: str, new: str, above: int) -> tuple[int, str, str]:
    """The number of the first line that differs, below so many others, and the lines of either."""
    was, now = old.splitlines(), new.splitlines()
    first = next(at for at, (one, other) in enumerate(zip([*was, ""], [*now, ""], strict=False)) if one != other)
    last = 0
    while last < min(len(was), len(now)) - first and was[-1 - last] == now[-1 - last]:
        last += 1
    texts = (" ".join(line.strip() for line in lines[first : len(lines) - last]) for lines in (was, now))
    return above + first + 1, next(texts), next(texts)


@functools.cache
def _functions(source: str) -> list[tuple[str, int, int]]:
    """Name, first line and last line of the body of every function and method."""
    found, pending = [], [("", node) for node in ast.parse(source).body]
    for prefix, node in pending:
        if isinstance(node, ast.ClassDef):
            pending += [(f"{prefix}{node.name}.", inner) for inner in node.body]
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.append((f"{prefix}{node.name}", node.body[0].lineno, node.end_lineno or 0))
    return found


def _statement(source: str, line: int) -> tuple[int, int]:
    """First and last line of the innermost statement there; of one that holds others, those above its first."""
    return max(((first, last) for first, last in _statements(source) if first <= line <= last), default=(line, line))


@functools.cache
def _statements(source: str) -> list[tuple[int, int]]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            found.append((node.lineno, max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or 0))
    return found


def _spans(source: str) -> list[tuple[int, int]]:
    """The lines of every ``raise``, and of every string that is a statement: a docstring."""
    return [
        (node.lineno, node.end_lineno or 0)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]
