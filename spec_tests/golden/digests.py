# SPDX-License-Identifier: Apache-2.0
"""Digests of all golden files: also those of versions that are not installed cannot change unseen."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

DIGESTS = "digests.json"
# The one is written by hand, when a release was seen to belong to an era; the other is made from the goldens.
_OTHERS = (DIGESTS, "eras.json", "DRIFT.md")


def changed_files(root: Path) -> list[str]:
    """Golden files below ``root`` that are not as they were recorded, a sentence each."""
    path = root / DIGESTS
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    there = _digests(root)
    return [
        f"{name}: {'was removed' if name not in there else 'was added' if name not in kept else 'was edited'} by hand: "
        "undo that, or record it with --update-golden"
        for name in sorted(kept.keys() | there.keys())
        if kept.get(name) != there.get(name)
    ]


def write_digests(root: Path) -> None:
    """Take the golden files as they are."""
    (root / DIGESTS).write_text(json.dumps(_digests(root), indent=0, sort_keys=True) + "\n", encoding="utf-8")


def _digests(root: Path) -> dict[str, str]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name not in _OTHERS]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:32] for path in files}
