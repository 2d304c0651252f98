# SPDX-License-Identifier: Apache-2.0
"""Faults in guarding copied code against what transformers has removed (spec/custom_code.md)."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Any

from spec_tests.mutants.editing import held, replace
from spec_tests.mutants.registry import mutant


def _change(package: Any, change: Callable[[Callable[[bytes], bytes], bytes], bytes]) -> None:
    """``change(guarded, source)`` takes the place of guarding the text of a file."""
    original = held(package, "guarded")
    replace(package, original, lambda source: change(original, source))


@mutant(kills=["CODE-010"], source="NVIDIA-NeMo/Automodel before #2626: a copy and no more")
def copies_code_unguarded(addons: Any) -> None:
    """The checkpoint fails with ImportError wherever a newer transformers is installed."""
    _change(addons, lambda _guarded, source: source)


@mutant(kills=["CODE-010"], source="NVIDIA-NeMo/Automodel 0.7: `line.startswith('from ')`, line by line")
def guards_imports_on_one_line_alone(addons: Any) -> None:
    """Code that a formatter has gone over fails with ImportError."""
    names = "|".join(held(addons, "REMOVED")).encode()
    line = re.compile(rb"^[ \t]*from [a-z_.]+ import .*\b(" + names + rb")\b", re.MULTILINE)
    _change(addons, lambda guarded, source: guarded(source) if line.search(source) else source)


@mutant(kills=["CODE-010"], source="NVIDIA-NeMo/Automodel 0.7: `from module import` alone looked for")
def overlooks_attributes_of_modules(addons: Any) -> None:
    """`import transformers.utils as z` and `z.is_torch_fx_available()`: AttributeError."""
    original, removed = held(addons, "_names"), held(addons, "REMOVED")

    def broken(tree: Any) -> set[str]:
        imported = {one.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for one in node.names}
        return {name for name in original(tree) if name.rpartition(".")[2] in imported & removed.keys()}

    replace(addons, original, broken)


@mutant(kills=["CODE-010"], source="a symbol replaced for good")
def replaces_what_is_still_there(addons: Any) -> None:
    """An older transformers, which has the symbol, is changed for all models of the process."""
    _change(addons, lambda guarded, source: re.sub(rb'hasattr\(_guarded, "\w+"\) or ', b"", guarded(source)))


@mutant(kills=["CODE-010"], source="`= None` for whatever is missing")
def makes_every_missing_symbol_none(addons: Any) -> None:
    """`'NoneType' object is not callable`, or does not support item assignment."""
    removed = held(addons, "REMOVED")
    replace(addons, removed, {name: (modules, "None") for name, (modules, _) in removed.items()})


@mutant(kills=["CODE-011"], source="`guard + text`")
def guards_before_the_docstring(addons: Any) -> None:
    """A file with `from __future__ import annotations` is a SyntaxError; another one has lost its docstring."""

    def change(guarded: Callable[[bytes], bytes], source: bytes) -> bytes:
        made = guarded(source)
        line = re.search(rb"(import [a-z_.]+ as _guarded; [^\r\n;]+\))(; |\r?\n)", made)
        # A remark about the encoding has to stay in front.
        if made == source or line is None or source.startswith((b"#", b"\xef")):
            return made
        return line[1] + b"\n" + made[: line.start()] + made[line.end() :]

    _change(addons, change)


@mutant(kills=["CODE-011"], source="`if symbol in text`")
def guards_files_that_mention_a_symbol(addons: Any) -> None:
    """A file that does without the symbol, and says so in a comment, is changed."""
    lines = {name.encode(): f"import {of[0]}\n".encode() for name, (of, _) in held(addons, "REMOVED").items()}

    def change(guarded: Callable[[bytes], bytes], source: bytes) -> bytes:
        made = guarded(source)
        named = [name for name in lines if name in source]
        # Behind the file, where it does no harm but to its bytes.
        return made + lines[named[0]] if made == source and named and b"_guarded" not in source else made

    _change(addons, change)


@mutant(kills=["CODE-011"], source="`open(path, 'w').write(text)` of text read with universal newlines")
def makes_all_line_endings_one(addons: Any) -> None:
    """Every line of a file with Windows's line endings is another one."""

    def change(guarded: Callable[[bytes], bytes], source: bytes) -> bytes:
        made = guarded(source)
        return made if made == source else made.replace(b"\r\n", b"\n")

    _change(addons, change)


@mutant(kills=["CODE-011"], source="a guard put in at every save")
def guards_what_is_guarded(addons: Any) -> None:
    """With every checkpoint that training goes on from, the file grows by a line."""

    def change(guarded: Callable[[bytes], bytes], source: bytes) -> bytes:
        hidden = source.replace(b"_guarded", b"_earlier")
        return guarded(hidden).replace(b"_earlier", b"_guarded")

    _change(addons, change)


@mutant(kills=["CODE-011"], source="any import of the symbol, wherever it stands")
def guards_what_has_an_answer_of_its_own(addons: Any) -> None:
    """Code that goes another way without the symbol is sent the way of older releases."""
    replace(addons, held(addons, "_catches"), lambda _handler: False)
