# SPDX-License-Identifier: Apache-2.0
"""Put an edit into the live package of this process, which is a fork and ends with it."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from pathlib import Path
from types import CodeType, FunctionType

import addons
from spec_tests.mutation.edits import Edit

COPIED = {"attention_masks.py": ("compat_guards.py", "_masks")}
"""Files whose text is written beside a model's code, and the function that does so: nothing here runs them."""

Functions = dict[tuple[str, str], list[FunctionType]]
"""File and name in it -> the live functions that were compiled from there."""


class NotSwappedError(RuntimeError):
    """The edited function is not there to be changed: it was made anew, or closes over something else."""


def functions() -> Functions:
    """Every live function of `addons`. Whoever forks asks for them once: to look touches every object there is."""
    folder, found = str(Path(addons.__file__).parent) + os.sep, Functions()
    gc.unfreeze()  # the plugin has frozen what was imported, and frozen objects are not listed
    for one in gc.get_objects():
        if type(one) is FunctionType and one.__code__.co_filename.startswith(folder):
            found.setdefault((Path(one.__code__.co_filename).name, one.__qualname__), []).append(one)
    gc.freeze()
    return found


def swap(edit: Edit, path: Path, copy: Path, live: Functions) -> None:
    """Give every live function that was compiled from the edited one's code the edited code.

    Programs that this process starts find the edit, too: in a copy of the package, made below ``copy``.

    Raises:
        NotSwappedError: there is no such function, or it has other free variables.
    """
    package = copy / path.parent.name
    shutil.copytree(path.parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / path.name).write_text(edit.source, encoding="utf-8")
    sys.path.insert(0, str(copy))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(copy), os.environ.get("PYTHONPATH"))))
    if path.name in COPIED:
        addons.compat_guards.__file__ = str(package / "compat_guards.py")
        return
    old = live.get((edit.file, edit.function))
    if not old:
        raise NotSwappedError(f"{edit.file}: no live function {edit.function}")
    new = _code_of(compile(edit.source, str(path), "exec"), edit.function)
    if any(function.__code__.co_freevars != new.co_freevars for function in old):
        raise NotSwappedError(f"{edit.file}, {edit.function}: it closes over other names than before")
    for function in old:
        function.__code__ = new


def _code_of(code: CodeType, name: str) -> CodeType:
    for part in name.split("."):
        inner = [one for one in code.co_consts if isinstance(one, CodeType) and one.co_name == part]
        code = inner[-1]
    return code
