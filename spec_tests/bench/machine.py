# SPDX-License-Identifier: Apache-2.0
"""On what a bench was measured."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from spec_tests.harness.environment import versions

MEMORY = Path("/dev/shm")


def machine(places: dict[str, Path | None]) -> dict[str, Any]:
    """Cores, memory, system, versions, and the kind of filesystem at each of the places."""
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "filesystems": {name: filesystem(path) for name, path in places.items() if path is not None},
        "gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def filesystem(path: Path) -> str:
    """The kind of the filesystem that holds the path, as the system calls it."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    best = (-1, "unknown")
    for line in lines:
        before, _, after = line.partition(" - ")
        # A space in a mount point is written \040. The last of several mounts at one place is the one on top.
        mounted = Path(before.split()[4].replace("\\040", " "))
        if path.resolve().is_relative_to(mounted):
            best = max(best, (len(mounted.parts), after.split()[0]), key=lambda one: one[0])
    return best[1]


def tmpfs() -> Path | None:
    """A directory on tmpfs that can be written, or None."""
    usable = MEMORY.is_dir() and os.access(MEMORY, os.W_OK | os.X_OK) and filesystem(MEMORY) == "tmpfs"
    return MEMORY if usable else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")
