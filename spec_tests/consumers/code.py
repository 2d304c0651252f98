# SPDX-License-Identifier: Apache-2.0
"""Python: what comes of importing single files of a checkpoint's code, each as if it were the first."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from spec_tests.consumers.clean_process import in_clean_process


def import_files(
    paths: Sequence[Path], symbols: Sequence[str], present: str | None = None
) -> list[tuple[str, str | None]]:
    """Of each file: `repr` of its constant ``found``, or the error; and its docstring.

    ``symbols`` are dotted names that a file may put into other modules: they are taken out again after each. With
    ``present`` the missing ones are there before, as that text.
    """
    return in_clean_process(_import_files, [str(path) for path in paths], list(symbols), present)


def lacking(symbols: Sequence[str]) -> list[str]:
    """Those of the dotted names that are in no installed module."""
    return [symbol for symbol in symbols if not hasattr(*_owner(symbol))]


def _import_files(paths: list[str], symbols: list[str], present: str | None) -> list[tuple[str, str | None]]:
    missing = lacking(symbols)
    results = []
    for number, path in enumerate(paths):
        for symbol in missing if present is not None else ():
            setattr(*_owner(symbol), present)
        try:
            module = _imported(path, f"code_{number}")
            results.append((repr(module.found), module.__doc__))
        except Exception as error:  # noqa: BLE001 - a model's code may raise anything
            results.append((f"{type(error).__name__}: {error}", None))
        for symbol in missing:
            vars(_owner(symbol)[0]).pop(_owner(symbol)[1], None)
    return results


def _owner(symbol: str) -> tuple[Any, str]:
    module, _, name = symbol.rpartition(".")
    return importlib.import_module(module), name


def _imported(path: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
