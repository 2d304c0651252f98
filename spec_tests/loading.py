# SPDX-License-Identifier: Apache-2.0
"""From the value of ``--impl`` to an implementation.

``reference``; ``vendored``; a module of `spec_tests.implementations`, such as ``nemo_automodel``; the directory of
somebody's copy of ``addons`` (``./name`` where that package has the name too); ``path/file.py[:attribute]``; any dotted
module, ``package.module[:attribute]``; ``mutant:NAME``, a deliberately broken implementation, to look at one by hand.

It stands beside the plugin and the commands, above the packages whose parts it puts together.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from spec_tests.implementations.base import Implementation
from spec_tests.implementations.copies import import_copy
from spec_tests.implementations.package import from_package

ATTRIBUTE = "IMPLEMENTATION"
_OWN = "spec_tests.implementations"
_MUTANT = "mutant:"


def load(name: str) -> Implementation:
    """The implementation of that name.

    Raises:
        pytest.UsageError: nothing of that name can be imported, or what was imported is no implementation.
    """
    try:
        return _load(name)
    except pytest.UsageError:
        raise
    # Whatever goes wrong in foreign code on import, the user of --impl needs to hear which module it was.
    except (Exception, SystemExit) as error:
        raise pytest.UsageError(f"--impl {name}: cannot be imported: {type(error).__name__}: {error}") from error


def _load(name: str) -> Implementation:
    if name == "reference":
        return from_package(importlib.import_module("addons"), name, "the implementation bundled with the suite")
    if name == "vendored":
        return from_package(import_copy(_bundled()), name, "a copy of the bundled implementation, renamed")
    if name.startswith(_MUTANT):
        return _mutant(name.removeprefix(_MUTANT))
    # A binding of the suite before a directory: who works on a trainer stands beside the trainer's own package.
    if not _is_own(name) and (Path(name) / "__init__.py").is_file():
        return from_package(import_copy(Path(name)), Path(name).resolve().name, "a copy of the bundled implementation")
    target, _, attribute = name.partition(":")
    module = _from_file(Path(target)) if target.endswith(".py") else _module(target)
    return _bound(module, name, attribute)


def _mutant(name: str) -> Implementation:
    # Only now: the list of mutants imports torch, and this module is imported by every run.
    from spec_tests.mutants import registry

    if name not in registry.mutants():
        raise LookupError(f"no mutant is called {name!r}")
    return registry.implementation(registry.mutants()[name])


def _bundled() -> Path:
    spec = importlib.util.find_spec("addons")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("no package named 'addons' beside the suite")
    return Path(spec.submodule_search_locations[0])


def _is_own(target: str) -> bool:
    return target.isidentifier() and importlib.util.find_spec(f"{_OWN}.{target}") is not None


def _module(target: str) -> ModuleType:
    return importlib.import_module(f"{_OWN}.{target}" if _is_own(target) else target)


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    # Imported by its name from its own directory, so that it finds its neighbours and children find it.
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _bound(module: ModuleType, name: str, attribute: str) -> Implementation:
    bound: Any = getattr(module, attribute or ATTRIBUTE, None)
    if isinstance(bound, Implementation):
        return bound
    if bound is None and not attribute and hasattr(module, "PeftAddon"):
        return from_package(module, name)
    what = (
        f"{attribute or ATTRIBUTE} is {type(bound).__name__}" if bound is not None else f"no {attribute or ATTRIBUTE}"
    )
    raise pytest.UsageError(f"--impl {name}: {what} in {module.__name__}; expected an Implementation")
