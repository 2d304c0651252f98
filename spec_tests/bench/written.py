# SPDX-License-Identifier: Apache-2.0
"""What contenders wrote: flushed to the disk, and looked at."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch


def sync(directory: Path) -> None:
    """Flush every file below ``directory``, and the directories themselves, to the disk.

    Timed with both contenders: what already is on the disk costs nothing to flush again.
    """
    for folder, _, names in os.walk(directory):
        for path in (*(Path(folder, name) for name in names), Path(folder)):
            flush(path)


def flush(path: Path) -> None:
    """Flush one file, or the entries of one directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def header(path: Path) -> dict[str, Any]:
    """Name -> dtype and shape of the tensors in a safetensors file."""
    with path.open("rb") as file:
        found = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: (entry["dtype"], entry["shape"]) for name, entry in found.items() if name != "__metadata__"}


def tensors(directory: Path) -> dict[str, Any]:
    """Name -> dtype and shape of the tensors in all weights files of a directory."""
    return {name: entry for path in weights(directory) for name, entry in header(path).items()}


def weights(directory: Path) -> list[Path]:
    """The weights files of a checkpoint, sorted."""
    return sorted(directory.glob("*.safetensors"))


def size(directory: Path) -> int:
    """Bytes of all files below the directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def writable(named: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors as safetensors takes them: contiguous, none sharing memory; copied only where they are not."""
    seen: set[int] = set()
    ready = {}
    for name, tensor in named:
        storage = tensor.untyped_storage()
        own = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        ready[name] = tensor if own else tensor.clone(memory_format=torch.contiguous_format)
        seen.add(storage.data_ptr())
    return ready
