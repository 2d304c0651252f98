# SPDX-License-Identifier: Apache-2.0
"""End a process in the middle of a save, or interrupt it: at its n-th step on the file system."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

_STEPS = frozenset({"os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"})
EXIT_CODE = 9


class Steps:
    """Counts the steps of this process on the file system: opening to write, renaming, removing.

    Seen through Python's audit events, so nothing of the implementation is patched; what a library writes from
    compiled code is no step of its own. An instance counts until the process ends.
    """

    def __init__(self) -> None:
        self._left = 0
        self._error: BaseException | None = None
        sys.addaudithook(self._audit)

    def end_at(self, moment: int, error: BaseException | None = None) -> None:
        """Let the process end by itself at its ``moment``-th step from now; or that step raise ``error``."""
        self._left, self._error = moment, error

    def stop(self) -> bool:
        """Let no moment come any more; whether that of `end_at` had come."""
        had_come, self._left = self._left <= 0, 0
        return had_come

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._left > 0 and (event in _STEPS or (event == "open" and _writes(arguments))):
            self._left -= 1
            if self._left == 0:
                if self._error is None:
                    os._exit(EXIT_CODE)
                raise self._error


def die_at(moment: int) -> None:
    """Let this process end by itself at its ``moment``-th step from now, as `Steps` counts them."""
    Steps().end_at(moment)


def can_exchange(directory: Path) -> bool:
    """Whether the file system below ``directory`` lets two directories change places in one step (Linux)."""
    one, other = directory / "exchange-one", directory / "exchange-other"
    for path in (one, other):
        path.mkdir()
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    try:
        return rename is not None and rename(-100, os.fsencode(one), -100, os.fsencode(other), 2) == 0
    finally:
        one.rmdir()
        other.rmdir()


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    by_mode = isinstance(mode, str) and not set("wxa+").isdisjoint(mode)
    return by_mode or bool(flags & (os.O_WRONLY | os.O_RDWR))
