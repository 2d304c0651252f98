# SPDX-License-Identifier: Apache-2.0
"""Which test noticed each edit last: killers.txt, a test a line with the edits that it noticed.

It is no proof. A run asks that test first, so that most edits cost one test, and believes what it sees.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from spec_tests.mutation.edits import Edit

FILE = Path(__file__).with_name("killers.txt")


def key(edit: Edit) -> str:
    """The name of an edit; it stays while its statement does, whatever changes around it."""
    words = (edit.file, edit.function, edit.before, edit.after)
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:10]


def read(path: Path = FILE) -> dict[str, str]:
    """Name of an edit -> the test that noticed it; nothing where there is no such file."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        test, _, names = line.rpartition("\t")
        found.update(dict.fromkeys(names.split(), test))
    return found


def write(found: Mapping[str, str], path: Path = FILE) -> None:
    """Replace the file."""
    names: dict[str, list[str]] = {}
    for name, test in sorted(found.items()):
        names.setdefault(test, []).append(name)
    path.write_text("".join(f"{test}\t{' '.join(names[test])}\n" for test in sorted(names)), encoding="utf-8")
