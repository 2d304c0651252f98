# SPDX-License-Identifier: Apache-2.0
"""Golden files: what was written when somebody last looked at it and found it right.

A missing golden fails, an unused one fails, only an explicit update writes, and a run that wrote is never green:
what an update changed is for a person to review, with the tools for reviewing changes of files.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

_UPDATE = "record it with --update-golden, and review the change"


def compared(folder: Path, produced: Mapping[str, bytes], *, update: bool = False) -> list[str]:
    """What differs between the golden files in ``folder`` and those produced, one text per file.

    Args:
        folder: the case's directory; nothing below it belongs to another case.
        produced: file name -> content.
        update: make the golden files equal to the produced ones. What was changed is reported all the same.
    """
    recorded = {path.name: path.read_bytes() for path in sorted(folder.glob("*")) if path.is_file()}
    problems = [
        problem
        for name in sorted(recorded.keys() | produced.keys())
        if (problem := _difference(f"{folder.name}/{name}", recorded.get(name), produced.get(name)))
    ]
    if update and problems:
        folder.mkdir(parents=True, exist_ok=True)
        for name in recorded.keys() - produced.keys():
            (folder / name).unlink()
        for name, content in produced.items():
            (folder / name).write_bytes(content)
        problems = [f"updated, so this run is not green: {problem}" for problem in problems]
    return problems


def unused(root: Path, cases: set[str]) -> list[str]:
    """Golden cases below ``root`` that no test compares with anything."""
    found = {path.name for path in root.iterdir()} if root.is_dir() else set()
    return [f"{name}: golden of no case: remove it" for name in sorted(found - cases)]


def _difference(name: str, recorded: bytes | None, produced: bytes | None) -> str | None:
    if recorded == produced:
        return None
    if recorded is None:
        return f"{name}: there is no golden: {_UPDATE}"
    if produced is None:
        return f"{name}: golden of a file that is not written any more: {_UPDATE}"
    lines = difflib.unified_diff(_lines(recorded), _lines(produced), f"golden {name}", f"written {name}", n=1)
    return f"{name}: differs from its golden: {_UPDATE}\n" + "".join(lines)


def _lines(content: bytes) -> list[str]:
    return [line + "\n" for line in content.decode("utf-8", errors="backslashreplace").splitlines()]
