# SPDX-License-Identifier: Apache-2.0
"""Copied model code keeps working where transformers has removed what it imports (clauses CODE-010, CODE-011)."""

from __future__ import annotations

import ast
import codecs
import warnings

_UTILS = ("transformers.utils", "transformers.utils.import_utils")
# What published code imports, transformers 4.57 or a release before it has, and 5.23 has not: name -> its modules, and
# an expression (`_guarded` is the module) that does for what such code uses it for.
REMOVED = {
    "LossKwargs": (("transformers.utils",), "_guarded.TransformersKwargs"),
    "NEED_SETUP_CACHE_CLASSES_MAPPING": (("transformers.generation.utils",), "{}"),
    "is_flax_available": (_UTILS, "lambda: False"),
    "is_safetensors_available": (_UTILS, "lambda: True"),
    "is_tf_available": (_UTILS, "lambda: False"),
    "is_torch_fx_available": (_UTILS, "lambda: False"),
}
_MISSING = {"AttributeError", "BaseException", "Exception", "ImportError"}


def guarded(source: bytes) -> bytes:
    """A module's text with a guard for every removed symbol that it uses, before its first import.

    Without such a symbol, with its guard already there, or when it does not parse, the text is returned as it is.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in the model's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return source
    used = _names(tree)
    wanted = [(m, name, other) for name, (modules, other) in REMOVED.items() for m in modules if f"{m}.{name}" in used]
    guards = [
        f'import {m} as _guarded; hasattr(_guarded, "{n}") or setattr(_guarded, "{n}", {o})' for m, n, o in wanted
    ]
    if not (new := [guard.encode() for guard in guards if guard.encode() not in source]):
        return source
    # Docstring and __future__ imports are valid at the head alone.
    body = tree.body[ast.get_docstring(tree) is not None :]
    first = next(one for one in body if getattr(one, "module", None) != "__future__")
    # As Python counts lines. A decorator stands before what it decorates; behind a semicolon all statements are simple.
    line = min(node.lineno for node in (first, *getattr(first, "decorator_list", ())))
    lines = source.removeprefix(codecs.BOM_UTF8).splitlines(keepends=True)
    rest = b"".join(lines[line - 1 :])[first.col_offset :]
    end = b"; " if first.col_offset else lines[0][len(lines[0].rstrip(b"\r\n")) :] or b"\n"
    return source.removesuffix(rest) + b"".join(guard + end for guard in new) + rest


def _names(tree: ast.Module) -> set[str]:
    """Full names of what a module imports, and of the attributes it reads that are called like a removed symbol.

    What an ``except`` of the module's own answers for is left out: a guard would change which way it goes.
    """
    bound: set[tuple[str, str]] = set()
    read, nodes = set[str](), list[ast.AST]([tree])
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            package = "" if isinstance(node, ast.Import) else f"{'.' * node.level}{node.module}."
            bound |= {(one.asname or one.name, package + one.name) for one in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and node.attr in REMOVED:
            read.add(ast.unparse(node))
        answered = node.body if isinstance(node, ast.Try) and any(map(_catches, node.handlers)) else []
        nodes += [child for child in ast.iter_child_nodes(node) if child not in answered]
    below = {full + text.removeprefix(name) for text in read for name, full in bound if text.startswith(f"{name}.")}
    return read | below | {full for _, full in bound}


def _catches(handler: ast.ExceptHandler) -> bool:
    return handler.type is None or not _MISSING.isdisjoint(ast.unparse(handler.type).strip("()").split(", "))
