# SPDX-License-Identifier: Apache-2.0
"""Copied model code keeps working where transformers has removed what it imports (clauses CODE-010, CODE-011)."""

from __future__ import annotations

import ast
import codecs
import tokenize
import warnings
from pathlib import Path

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
# The one module that 5.24 has not, and published code imports; attention_masks has all of it.
MASKS = "transformers.modeling_attn_mask_utils"
_READ = {*REMOVED, "modeling_attn_mask_utils"}
_MISSING = {"AttributeError", "BaseException", "Exception", "ImportError"}


def guarded(source: bytes) -> bytes:
    """A module's text with a guard for all that it uses and transformers has removed, before its first import.

    Without any, with its guard already there, or when it does not parse, the text is returned as it is.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in the model's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return source
    used = _names(tree, _MISSING)
    wanted = [(m, name, other) for name, (modules, other) in REMOVED.items() for m in modules if f"{m}.{name}" in used]
    guards = [
        f'import {m} as _guarded; hasattr(_guarded, "{n}") or setattr(_guarded, "{n}", {o})' for m, n, o in wanted
    ]
    lines = source.removeprefix(codecs.BOM_UTF8).splitlines(keepends=True)
    newline = (lines[0][len(lines[0].rstrip(b"\r\n")) :] if lines else b"") or b"\n"
    if any(f"{one}.".startswith(f"{MASKS}.") for one in _names(tree, _MISSING | {"ModuleNotFoundError"})):
        guards.append(_masks())
    made = [guard.encode().replace(b"\n", newline) for guard in guards]
    if not (new := [guard for guard in made if guard not in source]):
        return source
    # Docstring and __future__ imports are valid at the head alone.
    body = tree.body[ast.get_docstring(tree) is not None :]
    first = next(one for one in body if getattr(one, "module", None) != "__future__")
    # As Python counts: lines, and bytes in UTF-8. A decorator stands before what it decorates.
    line = min(node.lineno for node in (first, *getattr(first, "decorator_list", ())))
    encoding = tokenize.detect_encoding(iter(lines).__next__)[0]
    before = lines[line - 1].decode(encoding).encode()[: first.col_offset].decode().encode(encoding)
    rest = b"".join(lines[line - 1 :]).removeprefix(before)
    return source.removesuffix(rest) + b"".join(guard + newline for guard in new) + rest


def _masks() -> str:
    """A statement that makes the module of masks if it is missing: what has no spec may be a stub of the user's."""
    text = Path(__file__).with_name("attention_masks.py").read_text(encoding="utf-8")
    return f'''import sys as _guarded; \
_guarded.modules.get("{MASKS}") or __import__("importlib.util").util.find_spec("{MASKS}") or exec(\'\'\'
{text}

import importlib.util, sys, transformers

made = importlib.util.module_from_spec(importlib.util.spec_from_loader(__name__, None))
vars(made).update(globals())
transformers.modeling_attn_mask_utils = sys.modules[__name__] = made
\'\'\', {{"__name__": "{MASKS}"}})'''


def _names(tree: ast.Module, missing: set[str]) -> set[str]:
    """Full names of what a module imports, and of the attributes it reads that are called like what was removed.

    What an ``except`` of the module's own answers for is left out: a guard would change which way it goes.
    """
    bound: set[tuple[str, str]] = set()
    read, nodes = set[str](), list[ast.AST]([tree])
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            package = "" if isinstance(node, ast.Import) else f"{'.' * node.level}{node.module}."
            bound |= {(one.asname or one.name, package + one.name) for one in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and node.attr in _READ:
            read.add(ast.unparse(node))
        answered = node.body if isinstance(node, ast.Try) and _answers(node, missing) else []
        nodes += [child for child in ast.iter_child_nodes(node) if child not in answered]
    below = {full + text.removeprefix(name) for text in read for name, full in bound if text.startswith(f"{name}.")}
    return read | below | {full for _, full in bound}


def _answers(block: ast.Try, missing: set[str]) -> bool:
    return any(_catches(handler, missing) for handler in block.handlers)


def _catches(handler: ast.ExceptHandler, missing: set[str]) -> bool:
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return not missing.isdisjoint(map(ast.unparse, kinds))
