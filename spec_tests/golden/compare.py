# SPDX-License-Identifier: Apache-2.0
"""Golden files: what was written when somebody last looked at it and found it right.

A missing golden fails, an unused one fails, only an explicit update writes, and a run that wrote is never green:
what an update changed is for a person to review, with the tools for reviewing changes of files.
"""

from __future__ import annotations

import difflib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from spec_tests.golden.changes import changes

UPDATE = "record it with --update-golden, and review the change"
UPDATED = "updated, so this run is not green: "


def compared(folder: Path, produced: Mapping[str, bytes], *, update: bool = False) -> list[str]:
    """What differs between the golden files in ``folder`` and those produced, one text per file.

    Args:
        folder: the case's directory; nothing below it belongs to another case.
        produced: relative path -> content, as `recorded` gives it.
        update: make the golden files equal to the produced ones. What was changed is reported all the same.
    """
    there = files_below(folder)
    problems = differences(folder.name, there, produced)
    if update and problems:
        write_files(folder, produced)
        problems = [f"{UPDATED}{problem}" for problem in problems]
    return problems


def differences(
    case: str, there: Mapping[str, bytes], produced: Mapping[str, bytes], advice: str = UPDATE
) -> list[str]:
    """What differs, one text a file; ``advice`` is what to do about it."""
    return [
        f"{case}/{name}: {problem}"
        for name in sorted(there.keys() | produced.keys())
        if (problem := _difference(name, there.get(name), produced.get(name), advice))
    ]


def files_below(folder: Path) -> dict[str, bytes]:
    """Relative path -> content of every file."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make ``folder`` hold these files and no others; no directory is left without files."""
    for name in files_below(folder).keys() - files.keys():
        (folder / name).unlink()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    if not files and folder.is_dir():
        shutil.rmtree(folder)


def unused(root: Path, cases: set[str]) -> list[str]:
    """Golden cases below ``root`` that nothing is compared with."""
    found = {path.name for path in root.iterdir()} if root.is_dir() else set()
    return [f"{name}: golden of no case: remove it" for name in sorted(found - cases)]


def difference(name: str, old: bytes, new: bytes) -> list[str]:
    """What has changed in one file, in plain words where it is JSON, else as the changed lines."""
    if name.endswith(".json"):
        try:
            found = dict.fromkeys(str(change) for change in changes(json.loads(old), json.loads(new)))
            return list(found) or ["written in another way"]
        except ValueError:
            pass
    lines = difflib.unified_diff(_lines(old), _lines(new), "golden", "written", n=0, lineterm="")
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


def _difference(name: str, there: bytes | None, produced: bytes | None, advice: str) -> str | None:
    if there == produced:
        return None
    if there is None:
        return f"there is no golden of this file: {advice}"
    if produced is None:
        return f"golden of a file that is not written any more: {advice}"
    return "\n  ".join([f"differs from its golden: {advice}", *difference(name, there, produced)])


def _lines(content: bytes) -> list[str]:
    return content.decode("utf-8", errors="backslashreplace").splitlines()
