# SPDX-License-Identifier: Apache-2.0
"""What has changed between two JSON contents, key by key and in plain words."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["added", "removed", "renamed", "moved", "changed"]
KINDS: tuple[Kind, ...] = ("removed", "added", "renamed", "moved", "changed")
Path = tuple[str, ...]
_NOTHING: Any = object()


@dataclass(frozen=True)
class Change:
    """One key that is another than before.

    Attributes:
        kind: ``moved`` is under another parent with the same last name and value; ``renamed`` has another name under
            the same parent, with a value that no other key there has.
        path: where it was; where it is, when it is new.
        old: its value before.
        new: its value now.
        to: where it is now, when it was moved or renamed.
    """

    kind: Kind
    path: Path
    old: Any = _NOTHING
    new: Any = _NOTHING
    to: Path = ()

    @property
    def is_of_tensors(self) -> bool:
        """Whether the keys are names of tensors, which have dots of their own."""
        return "." in self.path[-1]

    def __str__(self) -> str:
        """One sentence."""
        name, to = ".".join(self.path), ".".join(self.to)
        if self.kind == "renamed" and self.is_of_tensors:
            before, now = _without_common_end(self.path[-1], self.to[-1])
            if before and now:
                return f"names that began with `{before}` begin with `{now}`"
            return f"names have no `{before}` before them any more" if before else f"names have `{now}` before them"
        if self.kind == "added":
            return f"`{name}` is new: {_text(self.new)}"
        if self.kind == "removed":
            return f"`{name}` is gone, was {_text(self.old)}"
        if self.kind == "changed":
            return f"`{name}` was {_text(self.old)}, is {_text(self.new)}"
        return f"`{name}` {'is called' if self.kind == 'renamed' else 'has moved to'} `{to}`"


def changes(old: Any, new: Any) -> list[Change]:
    """The changes from one content to the other, sorted by kind and path."""
    before, now = _leaves(old), _leaves(new)
    found = [Change("changed", path, before[path], now[path]) for path in before.keys() & now.keys()]
    found = [one for one in found if not _same(one.old, one.new)]
    gone, come = before.keys() - now.keys(), now.keys() - before.keys()
    pairs = _pairs(gone, come, before, now, moved=True)
    pairs |= _pairs(gone - pairs.keys(), come - set(pairs.values()), before, now, moved=False)
    pairs |= _alike(gone - pairs.keys(), come - set(pairs.values()))
    for path, to in pairs.items():
        found.append(Change("moved" if path[-1] == to[-1] else "renamed", path, before[path], now[to], to))
    for path in _tops(gone - pairs.keys(), before, now):
        found.append(Change("removed", path, old=_at(old, path)))
    for path in _tops(come - set(pairs.values()), now, before):
        found.append(Change("added", path, new=_at(new, path)))
    return sorted(found, key=lambda one: (KINDS.index(one.kind), one.path, one.to))


def _leaves(content: Any, at: Path = ()) -> dict[Path, Any]:
    """Path -> value, of what is no object with keys; a list is one value."""
    if not isinstance(content, dict) or not (content or at):
        return {at: content} if at or not isinstance(content, dict) else {}
    if not content:
        return {at: content}
    return {path: value for key, inner in content.items() for path, value in _leaves(inner, (*at, key)).items()}


def _tops(paths: set[Path], here: dict[Path, Any], there: dict[Path, Any]) -> set[Path]:
    """The paths; in place of all that is below a key which the other content has not, that key."""
    known = {path[:length] for path in there for length in range(1, len(path) + 1)}
    found = set()
    for path in paths:
        tops = (path[:length] for length in range(1, len(path)) if path[:length] not in known)
        whole = (top for top in tops if all(one in paths for one in here if one[: len(top)] == top))
        found.add(next(whole, path))
    return found


def _at(content: Any, path: Path) -> Any:
    for key in path:
        content = content[key]
    return content


def _pairs(
    gone: set[Path], come: set[Path], before: dict[Path, Any], now: dict[Path, Any], *, moved: bool
) -> dict[Path, Path]:
    """Keys that are the same key in another place, or with another name, where no other key could be meant."""

    def mark(path: Path, value: Any) -> tuple[Any, str]:
        return path[-1:] if moved else path[:-1], _text(value, None)

    there = Counter(mark(path, before[path]) for path in gone)
    here = Counter(mark(path, now[path]) for path in come)
    by_mark = {mark(path, now[path]): path for path in come}
    marks = {path: mark(path, before[path]) for path in gone}
    return {path: by_mark[one] for path, one in marks.items() if there[one] == here[one] == 1}


def _alike(gone: set[Path], come: set[Path]) -> dict[Path, Path]:
    """Names of tensors that end alike, and as no other does, the longest end first."""
    found: dict[Path, Path] = {}
    for length in range(12, 1, -1):
        ends: dict[tuple[Path, tuple[str, ...]], list[set[Path]]] = {}
        for side, paths in enumerate((gone - found.keys(), come - set(found.values()))):
            for path in paths:
                if len(parts := path[-1].split(".")) >= length:
                    ends.setdefault((path[:-1], tuple(parts[-length:])), [set(), set()])[side].add(path)
        found |= {min(was): min(now) for was, now in ends.values() if len(was) == len(now) == 1}
    return found


def _without_common_end(old: str, new: str) -> tuple[str, str]:
    before, now = old.split("."), new.split(".")
    while before and now and before[-1] == now[-1]:
        del before[-1], now[-1]
    return ".".join(before), ".".join(now)


def _same(old: Any, new: Any) -> bool:
    # 1, 1.0 and True are equal in Python, and are different texts to a reader.
    return _text(old, None) == _text(new, None)


def _text(value: Any, most: int | None = 80) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return text if most is None or len(text) <= most else f"{text[:most]}..."
