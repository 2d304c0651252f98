# SPDX-License-Identifier: Apache-2.0
"""End a process in the middle of a save: at its n-th step on the file system, without a word."""

from __future__ import annotations

import os
import sys
from typing import Any

_STEPS = frozenset({"os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"})
EXIT_CODE = 9


def die_at(moment: int) -> None:
    """Let this process end by itself at its ``moment``-th step from now: opening to write, renaming, removing.

    Seen through Python's audit events, so nothing of the implementation is patched; what a library writes from
    compiled code is no step of its own.
    """
    left = [moment]

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _STEPS or (event == "open" and _writes(arguments)):
            left[0] -= 1
            if left[0] == 0:
                os._exit(EXIT_CODE)

    sys.addaudithook(audit)


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    by_mode = isinstance(mode, str) and not set("wxa+").isdisjoint(mode)
    return by_mode or bool(flags & (os.O_WRONLY | os.O_RDWR))
