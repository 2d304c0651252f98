# SPDX-License-Identifier: Apache-2.0
"""Faults in guarding copied code against what transformers has removed (spec/custom_code.md)."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Any

from spec_tests.mutants.editing_content import change_answered, change_fallbacks, change_guarded, change_masks
from spec_tests.mutants.registry import mutant

_UTILS = "transformers.utils"
# The removed symbols of the specification, each with one of its modules.
REMOVED = {
    "LossKwargs": _UTILS,
    "NEED_SETUP_CACHE_CLASSES_MAPPING": "transformers.generation.utils",
    "is_flax_available": _UTILS,
    "is_safetensors_available": _UTILS,
    "is_tf_available": _UTILS,
    "is_torch_fx_available": _UTILS,
}


@mutant(kills=["CODE-010"], source="NVIDIA-NeMo/Automodel before #2626: a copy and no more")
def copies_code_unguarded(addons: Any) -> None:
    """The checkpoint fails with ImportError wherever a newer transformers is installed."""
    change_guarded(addons, lambda _guarded, source: source)


@mutant(kills=["CODE-010"], source="NVIDIA-NeMo/Automodel 0.7: `line.startswith('from ')`, line by line")
def guards_imports_on_one_line_alone(addons: Any) -> None:
    """Code that a formatter has gone over fails with ImportError."""
    names = "|".join(REMOVED).encode()
    line = re.compile(rb"^[ \t]*from [a-z_.]+ import .*\b(" + names + rb")\b", re.MULTILINE)
    change_guarded(addons, lambda guarded, source: guarded(source) if line.search(source) else source)


@mutant(kills=["CODE-010"], source="NVIDIA-NeMo/Automodel 0.7: `from module import` alone looked for")
def overlooks_attributes_of_modules(addons: Any) -> None:
    """`import transformers.utils as z` and `z.is_torch_fx_available()`: AttributeError."""

    def change(guarded: Callable[[bytes], bytes], source: bytes) -> bytes:
        try:
            nodes = list(ast.walk(ast.parse(source)))
        except (SyntaxError, ValueError):
            return source
        imported = {one.name for node in nodes if isinstance(node, ast.ImportFrom) for one in node.names}
        return source if imported.isdisjoint(REMOVED) else guarded(source)

    change_guarded(addons, change)


@mutant(kills=["CODE-010"], source="a symbol replaced for good")
def replaces_what_is_still_there(addons: Any) -> None:
    """An older transformers, which has the symbol, is changed for all models of the process."""
    change_guarded(addons, lambda guarded, source: re.sub(rb'hasattr\(_guarded, "\w+"\) or ', b"", guarded(source)))


@mutant(kills=["CODE-010"], source="`= None` for whatever is missing")
def makes_every_missing_symbol_none(addons: Any) -> None:
    """`'NoneType' object is not callable`, or does not support item assignment."""
    change_fallbacks(addons, "None")


@mutant(kills=["CODE-010"], source="the guards before transformers 5.24: names of modules that are there")
def overlooks_modules_that_are_gone(addons: Any) -> None:
    """`ModuleNotFoundError: No module named 'transformers.modeling_attn_mask_utils'`."""
    change_masks(addons, lambda _guard: "import sys as _guarded")


@mutant(kills=["CODE-010"], source="a stub in `sys.modules`, as notebooks have it")
def makes_the_missing_module_a_stub(addons: Any) -> None:
    """The import succeeds, and the model answers without a mask."""
    line = "vars(made).update(globals())"
    stub = 'vars(made).update({name: lambda *_, **__: None for name in globals() if name.startswith("_prepare")})'
    change_masks(addons, lambda guard: guard.replace(line, f"{line}\n{stub}"))


@mutant(kills=["CODE-010"], source="`<=` for `<` where the window ends")
def makes_the_window_of_masks_one_shorter(addons: Any) -> None:
    """A model with a sliding window sees a token less than it was trained with."""
    change_masks(addons, lambda guard: guard.replace("keys < queries - ", "keys <= queries - "))


@mutant(kills=["CODE-010"], source="`torch.all(mask == 1)` without `is_tracing`")
def makes_traces_by_the_numbers_of_the_example(addons: Any) -> None:
    """A model that was traced with an unpadded example takes padding for text."""
    change_masks(addons, lambda guard: guard.replace("if _is_traced(inputs_embeds) and", "if False and"))


@mutant(kills=["CODE-010"], source="`sys.modules[name] = made` wherever the code runs")
def replaces_a_module_that_is_there(addons: Any) -> None:
    """An older transformers' own masks, or a stub of the user's, are another's."""
    change_masks(addons, lambda guard: re.sub(r"_guarded; .* or exec", "_guarded; exec", guard, count=1))


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

    change_guarded(addons, change)


@mutant(kills=["CODE-011"], source="`if symbol in text`")
def guards_files_that_mention_a_symbol(addons: Any) -> None:
    """A file that does without the symbol, and says so in a comment, is changed."""
    lines = {name.encode(): f"import {module}\n".encode() for name, module in REMOVED.items()}

    def change(guarded: Callable[[bytes], bytes], source: bytes) -> bytes:
        made = guarded(source)
        named = [name for name in lines if name in source]
        # Behind the file, where it does no harm but to its bytes.
        return made + lines[named[0]] if made == source and named and b"_guarded" not in source else made

    change_guarded(addons, change)


@mutant(kills=["CODE-011"], source="`open(path, 'w').write(text)` of text read with universal newlines")
def makes_all_line_endings_one(addons: Any) -> None:
    """Every line of a file with Windows's line endings is another one."""

    def change(guarded: Callable[[bytes], bytes], source: bytes) -> bytes:
        made = guarded(source)
        return made if made == source else made.replace(b"\r\n", b"\n")

    change_guarded(addons, change)


@mutant(kills=["CODE-011"], source="a guard put in at every save")
def guards_what_is_guarded(addons: Any) -> None:
    """With every checkpoint that training goes on from, the file grows by a line."""

    def change(guarded: Callable[[bytes], bytes], source: bytes) -> bytes:
        hidden = source.replace(b"_guarded", b"_earlier")
        return guarded(hidden).replace(b"_earlier", b"_guarded")

    change_guarded(addons, change)


@mutant(kills=["CODE-011"], source="any import of the symbol, wherever it stands")
def guards_what_has_an_answer_of_its_own(addons: Any) -> None:
    """Code that goes another way without the symbol is sent the way of older releases."""
    change_answered(addons, lambda _handler: False)
