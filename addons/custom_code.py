# SPDX-License-Identifier: Apache-2.0
"""The Python files that belong to a model, carried along with its checkpoint."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def _maybe_save_custom_model_code(
    original_model_path: str | os.PathLike[str] | None, hf_metadata_dir: str | os.PathLike[str]
) -> None:
    """Copy the original model's own ``.py`` files, keeping their directory structure (clause CODE-001).

    Nothing is copied for None, or for a hub id, which names no local directory or file.
    """
    if original_model_path is None:
        return
    source, destination = Path(original_model_path), Path(hf_metadata_dir)
    if source.is_file() and source.suffix == ".py":
        found, source = [source], source.parent
    else:
        found = sorted(source.rglob("*.py")) if source.is_dir() else []
    for path in found:
        target = destination / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
