# SPDX-License-Identifier: Apache-2.0
"""A vendored copy of ``addons``, imported under a random name.

It shows that the package depends on its own name nowhere: a relative import that is not, a name in a string
or a registration by path fails here. The name is random so that nothing can be written to fit it.
"""

from __future__ import annotations

import atexit
import importlib
import os
import secrets
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType

NAME = "ADDONS_SPEC_COPY"
"""Environment variable: the name under which to import a copy, where processes have to agree on one.

Ranks that were started apart exchange pickles, and those name the package.
"""


def import_copy(source: Path) -> ModuleType:
    """Copy a package to a temporary directory and import the copy, also for child processes.

    The copy is removed when the process that made it ends.
    """
    directory = Path(tempfile.mkdtemp(prefix="addons-copy-"))
    # Forked ranks inherit the handler and must leave the directory to the process that made it.
    atexit.register(_remove, directory, os.getpid())
    name = os.environ.get(NAME) or f"vendored_{secrets.token_hex(6)}"
    shutil.copytree(source, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    sys.path.insert(0, str(directory))
    # Spawned children start from the environment, not from this process's sys.path.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(directory), os.environ.get("PYTHONPATH")]))
    importlib.invalidate_caches()
    return importlib.import_module(name)


def _remove(directory: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(directory, ignore_errors=True)
