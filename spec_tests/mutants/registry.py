# SPDX-License-Identifier: Apache-2.0
"""What a mutant is, the list of them all, and how one becomes an implementation."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from spec_tests.harness.selection import nearest
from spec_tests.implementations.base import Implementation
from spec_tests.implementations.copies import import_copy
from spec_tests.implementations.package import from_package

PREFIX = "mutant:"
_MACHINERY = {"registry", "runner", "children", "judging"}
_FOUND: dict[str, Mutant] = {}


@dataclass(frozen=True)
class Mutant:
    """An implementation with one fault.

    Attributes:
        name: of the mutant, and of the function that breaks the package.
        kills: the clauses that have to fail.
        also: further areas in which clauses may fail; those of ``kills`` may in any case.
        source: where the fault was seen.
        breaks: takes a private copy of the package and breaks it in place.
        doc: what a user would see.
    """

    name: str
    kills: tuple[str, ...]
    also: tuple[str, ...]
    source: str
    breaks: Callable[[Any], None]
    doc: str

    @property
    def areas(self) -> frozenset[str]:
        """The areas of the clauses that have to fail."""
        return frozenset(clause.partition("-")[0] for clause in self.kills)


def mutant(
    kills: Iterable[str], also: Iterable[str] = (), source: str = ""
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register the decorated function as a mutant; its docstring says what a user would see."""

    def register(breaks: Callable[[Any], None]) -> Callable[[Any], None]:
        name = breaks.__name__
        if name in _FOUND:
            raise ValueError(f"two mutants are called {name}")
        doc = " ".join((inspect.getdoc(breaks) or "").split())
        _FOUND[name] = Mutant(name, tuple(kills), tuple(also), source, breaks, doc)
        return breaks

    return register


@cache
def mutants() -> dict[str, Mutant]:
    """Every mutant by its name, in the order of the files and within them as written."""
    package = importlib.import_module("spec_tests.mutants")
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda one: one.name):
        if module.name not in _MACHINERY and not module.name.startswith("editing"):
            importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(_FOUND)


def broken_copy(one: Mutant) -> ModuleType:
    """A private copy of ``addons``, imported and broken.

    Raises:
        RuntimeError: the mutant has touched the real package, so that every later run would be against a broken one.
    """
    before = _contents("addons")
    spec = importlib.util.find_spec("addons")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("no package named 'addons' beside the suite")
    package = import_copy(Path(spec.submodule_search_locations[0]))
    one.breaks(package)
    after = _contents("addons")
    if touched := [place for place in {**before, **after} if after.get(place) is not before.get(place)]:
        raise RuntimeError(f"{one.name} changes {'.'.join(touched[0])}, which is not its copy")
    return package


def _contents(package: str) -> dict[tuple[str, ...], Any]:
    """What the modules of a package hold, and what their classes hold, by where it stands."""
    found: dict[tuple[str, ...], Any] = {}
    for name, module in list(sys.modules.items()):
        if name == package or name.startswith(f"{package}."):
            for attribute, value in vars(module).items():
                found[name, attribute] = value
                if isinstance(value, type) and value.__module__.startswith(package):
                    found |= {(name, attribute, inner): held for inner, held in vars(value).items()}
    return found


def implementation(one: Mutant) -> Implementation:
    """The mutant as ``--impl mutant:NAME`` finds it; a new private copy at each call."""
    # The name is what a child process loads it by.
    return from_package(broken_copy(one), PREFIX + one.name, f"a copy with one fault: {one.doc}")


def selected(names: Iterable[str], areas: Iterable[str]) -> list[Mutant]:
    """The mutants of these names, or with clauses of these areas; all when nothing is asked for.

    Raises:
        ValueError: there is no such mutant or no mutant of such an area.
    """
    wanted, wanted_areas = list(names), set(areas)
    if unknown := [name for name in wanted if name not in mutants()]:
        raise ValueError(f"no mutant is called {unknown[0]}; {nearest(unknown[0], mutants())}")
    if lacking := wanted_areas - {area for one in mutants().values() for area in one.areas}:
        raise ValueError(f"no mutant breaks area {min(lacking)}")
    if not wanted and not wanted_areas:
        return list(mutants().values())
    return [one for one in mutants().values() if one.name in wanted or one.areas & wanted_areas]
