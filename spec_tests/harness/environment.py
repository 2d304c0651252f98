# SPDX-License-Identifier: Apache-2.0
"""Which versions a run met, without importing anything."""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterable
from importlib import metadata


class ReaderError(RuntimeError):
    """A reader could not run for its own reasons, a package of its environment: that says nothing about the files."""


REPORTED = ("python", "torch", "transformers", "peft", "safetensors")


def versions(packages: Iterable[str] = REPORTED) -> dict[str, str | None]:
    """The installed version of each package; None for one that is not installed."""
    return {package: _version(package) for package in packages}


@functools.cache
def _version(package: str) -> str | None:
    if package == "python":
        return platform.python_version()
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
