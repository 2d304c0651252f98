# SPDX-License-Identifier: Apache-2.0
"""Which tests noticed a fault the last time, a test a line with the names of the faults that it noticed.

It is no proof. A run asks these tests first, so that most faults cost one test, and believes what it sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

FILE = Path(__file__).with_name("killers.txt")


def read(path: Path) -> dict[str, list[str]]:
    """Name of a fault -> the tests that noticed it; nothing where there is no such file."""
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        test, _, names = line.rpartition("\t")
        for name in names.split():
            found.setdefault(name, []).append(test)
    return found


def write(found: Mapping[str, Iterable[str]], path: Path) -> None:
    """Replace the file; names have no spaces in them."""
    names: dict[str, list[str]] = {}
    for name, tests in sorted(found.items()):
        for test in tests:
            names.setdefault(test, []).append(name)
    path.write_text("".join(f"{test}\t{' '.join(names[test])}\n" for test in sorted(names)), encoding="utf-8")
