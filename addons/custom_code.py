# SPDX-License-Identifier: Apache-2.0
"""The Python files that belong to a model, carried along with its checkpoint."""

from __future__ import annotations

import inspect
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn
from transformers.dynamic_module_utils import get_relative_import_files

from .compat_guards import guarded
from .files import write_bytes, write_text
from .json_content import json_text
from .lora_sites import unwrapped

# A directory that holds one of these is a checkpoint or an environment of its own, not a part of the model's code.
_FOREIGN = frozenset({"config.json", "adapter_config.json", "pyvenv.cfg"})


def _maybe_save_custom_model_code(
    original_model_path: str | os.PathLike[str] | None,
    hf_metadata_dir: str | os.PathLike[str],
    model_part: nn.Module | None = None,
) -> None:
    """Copy the original model's own ``.py`` files, keeping their directory structure (clauses CODE-001 to CODE-004).

    Where that gives none (None, a hub id), the code that transformers took from the hub for ``model_part`` is copied
    (clause CODE-008); none at all for one that is exported as a model of transformers' own (clause CODE-009).
    """
    model, destination = None if model_part is None else unwrapped(model_part), Path(hf_metadata_dir)
    if getattr(model, "_export_as_stock_model", False):
        return
    source = Path(original_model_path or os.devnull)
    if source.suffix == ".py" and source.is_file():
        source, found = source.parent, [source]
    else:
        found = sorted(own_code(source, destination))
    if not found and (taken := hub_folder(model)):
        # transformers makes packages of the folders, by empty files; the hub's own it does not fetch.
        source, found = taken, [path for path in sorted(own_code(taken, destination)) if path.stem != "__init__"]
    for path in found:
        copy_guarded(path, destination / path.relative_to(source))


def copy_guarded(source: Path, target: Path) -> None:
    """Copy the content, guarded against what newer transformers lacks, and not the mode.

    A copy of a read-only file that is read-only too could not be replaced by the next save.
    """
    write_bytes(target, guarded(source.read_bytes()))


def hub_folder(model: nn.Module | None) -> Path | None:
    """The folder in transformers' cache of remote code that holds the model's class; None for any other class."""
    # A base: FSDP2 puts a class of its own in front.
    bases = (base for base in type(model).__mro__ if base.__module__.startswith("transformers_modules."))
    return next((Path(inspect.getfile(base)).parent for base in bases), None)


def own_code(folder: Path, destination: Path) -> Iterator[Path]:
    """The ``.py`` files of a model's folder, without hidden ones, caches and earlier checkpoints below it."""
    for directory, inner, files in os.walk(folder):
        here = Path(directory)
        foreign = here != folder and not _FOREIGN.isdisjoint(files)
        if foreign or here.resolve() == destination.resolve():
            inner.clear()
            continue
        inner[:] = [name for name in inner if not name.startswith(".") and name != "__pycache__"]
        for name in files:
            path = here / name
            if name.endswith(".py") and not name.startswith(".") and _belongs(path, folder):
                yield path


def _belongs(path: Path, folder: Path) -> bool:
    # A link may point anywhere on the machine, and a copy would publish what is there. The hub's cache is known:
    # its snapshots/<revision>/ folders are links into blobs/ beside them.
    if not path.is_file():  # also false for a link to nothing, or to itself, which cannot be resolved
        return False
    target, home = path.resolve(), folder.resolve()
    return home in target.parents or target.parent == home.parent.parent / "blobs"


def make_references_local(directory: Path) -> None:
    """Make ``org/repo--module.Class`` in every ``auto_map`` ``module.Class`` where the code is there (clause CODE-006).

    The hub may be out of reach where the checkpoint is read, or hold other code by then.
    """
    for path in sorted(directory.glob("*config*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        local = _local(content.get("auto_map"), directory)
        if local != content.get("auto_map"):
            write_text(path, json_text({**content, "auto_map": local}))


def _local(value: Any, directory: Path) -> Any:
    if isinstance(value, dict):
        return {key: _local(item, directory) for key, item in value.items()}
    if isinstance(value, list):
        return [_local(item, directory) for item in value]
    if not isinstance(value, str):
        return value
    reference = value.rpartition("--")[2]
    try:
        # As transformers will: with all that the module imports from beside it.
        get_relative_import_files(directory / f"{reference.partition('.')[0]}.py")
    except (OSError, UnicodeError) as error:
        if reference == value:
            warnings.warn(f"auto_map names {value}, which this checkpoint does not hold: {error}", stacklevel=2)
        return value
    return reference
