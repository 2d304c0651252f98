# SPDX-License-Identifier: Apache-2.0
"""Python: what comes of importing single files of a checkpoint's code, each as if it were the first."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from spec_tests.consumers.clean_process import in_clean_process


def import_files(
    paths: Sequence[Path], symbols: Sequence[str], present: str | None = None, without: Sequence[str] = ()
) -> list[tuple[str, str | None]]:
    """Of each file: `repr` of its constant ``found``, or the error; and its docstring.

    ``symbols`` are dotted names that a file may put into other modules: they are taken out again after each. With
    ``present`` the missing ones are there before, as that text. Nobody has the modules ``without``.
    """
    return in_clean_process(_import_files, [str(path) for path in paths], list(symbols), present, list(without))


def lacking(symbols: Sequence[str]) -> list[str]:
    """Those of the dotted names that are in no installed module."""
    return [symbol for symbol in symbols if not _is_there(symbol)]


def _import_files(
    paths: list[str], symbols: list[str], present: str | None, without: list[str]
) -> list[tuple[str, str | None]]:
    _hide(without)
    missing = lacking(symbols)
    results = []
    for number, path in enumerate(paths):
        for symbol in missing if present is not None else ():
            _put(symbol, present)
        try:
            module = _imported(path, f"code_{number}")
            results.append((repr(module.found), module.__doc__))
        except Exception as error:  # noqa: BLE001 - a model's code may raise anything
            results.append((f"{type(error).__name__}: {error}", None))
        for symbol in missing:
            module, name = symbol.rpartition(".")[::2]
            if module not in without:
                vars(importlib.import_module(module)).pop(name, None)
        _hide(without)
    return results


def _hide(modules: list[str]) -> None:
    """As in a release that has them no more: importing them raises ModuleNotFoundError."""
    for module in modules:
        package, _, last = module.rpartition(".")
        sys.modules[module] = None  # type: ignore[assignment]
        vars(importlib.import_module(package)).pop(last, None)


def _put(symbol: str, value: Any) -> None:
    module, _, name = symbol.rpartition(".")
    if module in sys.modules and sys.modules[module] is None:
        package, _, last = module.rpartition(".")
        sys.modules[module] = ModuleType(module)
        setattr(importlib.import_module(package), last, sys.modules[module])
    setattr(importlib.import_module(module), name, value)


def _is_there(symbol: str) -> bool:
    module, _, name = symbol.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        return False


def _imported(path: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
