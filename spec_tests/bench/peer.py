# SPDX-License-Identifier: Apache-2.0
"""The release of NeMo AutoModel that hooks are compared with: installed into a directory, and bound."""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from spec_tests.bench.rows import BenchError

if TYPE_CHECKING:
    from spec_tests.implementations.base import Implementation

RELEASE = "0.7.0"
NEMO = f"nemo-automodel {RELEASE}"


def install(version: str, target: Path) -> bool:
    """Put a release into ``target``, unless one is there already; whether it is there now."""
    if (target / "nemo_automodel").is_dir():
        return True
    # Without its dependencies: the hooks import with torch and transformers alone.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    return subprocess.run([*command, f"nemo-automodel=={version}"], check=False).returncode == 0


@functools.cache
def bound(target: Path) -> Implementation:
    """The binding of the release in ``target``, which is installed there if it is not.

    Raises:
        BenchError: it cannot be installed, does not import, or is another release.
    """
    if not install(RELEASE, target):
        raise BenchError(f"{NEMO} cannot be installed: unpack it in a directory and name that with --nemo")
    sys.path.insert(0, str(target.resolve()))
    try:
        found: Implementation = importlib.import_module("spec_tests.implementations.nemo_automodel").IMPLEMENTATION
    except ImportError as error:
        raise BenchError(f"{NEMO} does not import here: {error}") from error
    finally:
        sys.path.remove(str(target.resolve()))
    if found.version != RELEASE:
        raise BenchError(f"the release must be {RELEASE}, got {found.version}")
    return found
