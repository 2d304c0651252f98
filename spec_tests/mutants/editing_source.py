# SPDX-License-Identifier: Apache-2.0
"""A mutant whose fault is other text in a file of its copy: what no function's replacement would say as plainly."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from types import ModuleType

BLIND = "a set of faults that somebody made who had read no test"
"""The source of a mutant."""


def edit(package: ModuleType, file: str, before: str, after: str) -> None:
    """Put ``after`` in the place of ``before`` in a file of the package, and import the package again.

    Raises:
        LookupError: the file does not hold ``before``, or more than once.
    """
    path = Path(str(package.__file__)).with_name(file)
    source = path.read_text(encoding="utf-8")
    if (count := source.count(before)) != 1:
        raise LookupError(f"{file} must hold {before!r} once, got {count} times: move the mutant to where it is now")
    path.write_text(source.replace(before, after), encoding="utf-8")
    # What was compiled within the same second, of a text as long, would be taken for the new text's.
    shutil.rmtree(path.with_name("__pycache__"), ignore_errors=True)
    for name in [name for name in sys.modules if name.startswith(f"{package.__name__}.")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    importlib.reload(package)
