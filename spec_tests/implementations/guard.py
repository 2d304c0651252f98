# SPDX-License-Identifier: Apache-2.0
"""What tests need of an implementation besides its PEFT add-on, its model state and its PEFT config.

Nobody has to have everything: a trainer without experts binds no adapter for them. A test that needs such a part says
so, by its clause (``needs NAME`` in ``spec/``) or by its mark (``needs``), and is left out where the part is not
claimed. So that no test forgets to, the parts of the implementation are closed to tests that have not said so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from spec_tests.implementations.base import ADDONS, Implementation, adapter_claim


class Guard:
    """The parts of an implementation, each open to the tests that say they need it."""

    def __init__(self) -> None:
        self._said: Collection[str] | None = None

    def expect(self, needs: Collection[str] | None) -> None:
        """Take it that the test to come needs those parts; None for a test that is not about an implementation."""
        self._said = needs

    def around(self, implementation: Implementation) -> Implementation:
        """The same implementation, behind the guard."""
        parts: dict[str, Any] = {
            field: self._checked(name, getattr(implementation, field)) for name, field in ADDONS.items()
        }
        parts["adapters"] = _Parts(implementation.adapters, lambda name: self._check(adapter_claim(name)))
        parts["helpers"] = _Parts(implementation.helpers, self._check)
        return replace(implementation, **parts)

    def _check(self, part: str) -> None:
        if self._said is not None and part not in self._said:
            pytest.fail(f"the test uses {part!r} without saying so: @pytest.mark.needs({part!r})")

    def _checked(self, part: str, call: Callable[..., Any] | None) -> Callable[..., Any] | None:
        if call is None:
            return None

        @functools.wraps(call)
        def checked(*args: Any, **kwargs: Any) -> Any:
            self._check(part)
            return call(*args, **kwargs)

        return checked


class _Parts(Mapping[str, Callable[..., Any]]):
    def __init__(self, parts: Mapping[str, Callable[..., Any]], check: Callable[[str], None]) -> None:
        self._parts, self._check = parts, check

    def __getitem__(self, name: str) -> Callable[..., Any]:
        self._check(name)
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)
