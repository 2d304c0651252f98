# SPDX-License-Identifier: Apache-2.0
"""Edits that change nothing that anybody could see, each with the reason: equivalent.toml."""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_name("equivalent.toml")


def entries() -> list[dict[str, str]]:
    """Every entry, in the file's order.

    Raises:
        ValueError: one has no reason.
    """
    found: list[dict[str, str]] = tomllib.loads(FILE.read_text(encoding="utf-8")).get("edit", [])
    for entry in found:
        if not entry.get("reason"):
            raise ValueError(f"{FILE.name}: {entry} must have a reason: say why nobody can see the edit")
    return found


def equivalent() -> set[tuple[str, str, str, str]]:
    """(file, function, lines before, lines after) of every edit that is listed."""
    return {(entry["file"], entry["function"], entry["before"], entry["after"]) for entry in entries()}
