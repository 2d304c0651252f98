# SPDX-License-Identifier: Apache-2.0
"""How a mutant changes its private copy of the package: as if a function in the source were another.

Mutants say which behaviour they change, and hold on to no name inside the package: those stand here, and in the other
files `editing_*`, alone. A move in the package is a change of these files.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def held(package: ModuleType, name: str) -> Any:
    """What the package calls by that name, in whatever module it stands.

    Raises:
        LookupError: nothing is called so.
    """
    for module in _modules(package):
        found = vars(module).get(name)
        if found is not None and not isinstance(found, ModuleType):
            return found
    raise LookupError(f"nothing in {package.__name__} is called {name}")


def replace(package: ModuleType, original: Any, broken: Any) -> None:
    """Put ``broken`` wherever a module of the package holds ``original``, under whatever name it imported it.

    Raises:
        LookupError: no module holds it, so that the mutant would be no mutant.
    """
    found = False
    for module in _modules(package):
        for attribute, value in list(vars(module).items()):
            if value is original:
                setattr(module, attribute, broken)
                found = True
    if not found:
        raise LookupError(f"{original!r} is nowhere in {package.__name__}")


def around(package: ModuleType, what: Any, broken: Callable[..., Any]) -> None:
    """``broken(original, *args, **kwargs)`` takes the place of a function; ``what`` is it, or its name."""
    original = held(package, what) if isinstance(what, str) else what
    replace(package, original, functools.wraps(original)(functools.partial(broken, original)))


def _modules(package: ModuleType) -> list[ModuleType]:
    prefix = f"{package.__name__}."
    return [package, *(module for name, module in sorted(sys.modules.items()) if name.startswith(prefix))]
