# SPDX-License-Identifier: Apache-2.0
"""Directories for what the tests write, named after the test so that they can be kept and looked at."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path


class FreshDirs:
    """Makes a new empty directory at each call: for properties, which run many times a test.

    Attributes:
        last: the directory made last.
    """

    last: Path

    def __init__(self, base: Path) -> None:
        self._base = base
        self._count: dict[str, int] = {}

    def __call__(self) -> Path:
        """A new empty directory, in one named after the test that is running."""
        # pytest keeps "<test id> (<phase>)" there.
        test = file_name(os.environ.get("PYTEST_CURRENT_TEST", "no test").rpartition(" ")[0])
        self._count[test] = self._count.get(test, 0) + 1
        self.last = emptied(self._base / test / f"{self._count[test]:04}")
        return self.last


def emptied(directory: Path) -> Path:
    """The directory, made anew: what an earlier run has kept there is gone."""
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    return directory


def file_name(nodeid: str) -> str:
    """A test id as the name of a directory: no brackets, which are a pattern to whoever looks for files by `glob`."""
    return re.sub(r"[^\w.=-]+", "-", nodeid).strip("-")[:150]
