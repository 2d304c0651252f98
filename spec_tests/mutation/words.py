# SPDX-License-Identifier: Apache-2.0
"""Which tests speak of what an edit changes: a line that every save runs is judged by few of the tests that run it."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from spec_tests.mutation.edits import Edit

_WORD = re.compile(r"[A-Za-z]\w{3,}")
_FUNCTIONS, _WHOLE, _CASES = 16, 4, 8
"""Of so many tests one case each, and of the first few up to so many."""


class Words:
    """The words of tests, each read once."""

    def __init__(self) -> None:
        self._known: dict[Any, set[str]] = {}

    def namesakes(self, edit: Edit, items: Sequence[pytest.Item]) -> list[pytest.Item]:
        """Of the tests that share most words with the edited lines some cases each; a rare word counts more."""
        cases: dict[Any, list[pytest.Item]] = {}
        for item in items:
            cases.setdefault(_function(item), []).append(item)
        words = {function: self._of(function) & {*_WORD.findall(edit.before)} for function in cases}
        often = Counter(word for found in words.values() for word in found)
        worth = {function: sum(1 / often[word] for word in found) for function, found in words.items() if found}
        best = sorted(worth, key=lambda function: (-worth[function], cases[function][0].nodeid))
        first = [cases[function][0] for function in best[:_FUNCTIONS]]
        return first + [item for function in best[:_WHOLE] for item in cases[function][1:_CASES]]

    def _of(self, function: Any) -> set[str]:
        if function not in self._known:
            self._known[function] = {*_WORD.findall(inspect.getsource(function))}
        return self._known[function]


def _function(item: pytest.Item) -> Any:
    return inspect.unwrap(getattr(item, "function", type(item)))
