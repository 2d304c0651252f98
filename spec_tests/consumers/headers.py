# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint's weights files say of themselves: headers and index, read without any library."""

from __future__ import annotations

import json
import re
from math import prod
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
WEIGHTS = "model*.safetensors"


def header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: tensor name -> dtype, shape, offsets; and ``__metadata__``, if any."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        content: dict[str, Any] = json.loads(file.read(length))
    return content


def tensors_in(path: Path) -> dict[str, dict[str, Any]]:
    """The tensors of the header of a safetensors file."""
    return {name: entry for name, entry in header(path).items() if name != "__metadata__"}


def metadata_of(path: Path) -> Any:
    """``__metadata__`` of a safetensors file; None where there is none."""
    return header(path).get("__metadata__")


def index(directory: Path) -> dict[str, Any]:
    """The whole index of a checkpoint; of one file under its plain name, which needs none, what it would say."""
    if not (directory / INDEX).exists() and (directory / SINGLE).exists():
        entries = tensors_in(directory / SINGLE)
        return {
            "metadata": {"total_size": sum(map(_size, entries.values()))},
            "weight_map": dict.fromkeys(entries, SINGLE),
        }
    content: dict[str, Any] = json.loads((directory / INDEX).read_text(encoding="utf-8"))
    return content


def weights_files(directory: Path) -> list[Path]:
    """Every file that readers take for weights of the whole model, sorted."""
    return sorted(directory.glob(WEIGHTS))


def ghosts(directory: Path) -> list[str]:
    """Entries of the index whose file is missing or does not hold the tensor."""
    held = {path.name: tensors_in(path) for path in weights_files(directory)}
    entries = index(directory)["weight_map"].items()
    return sorted(f"{name} in {file}" for name, file in entries if name not in held.get(file, {}))


def strangers(directory: Path) -> list[str]:
    """Tensors of the weights files that the index does not name in that file."""
    entries = index(directory)["weight_map"]
    files = weights_files(directory)
    return sorted(
        f"{name} in {path.name}" for path in files for name in tensors_in(path) if entries.get(name) != path.name
    )


def unnamed_files(directory: Path) -> list[str]:
    """Weights files that no entry of the index names."""
    named = set(index(directory)["weight_map"].values())
    return [path.name for path in weights_files(directory) if path.name not in named]


def bytes_of_tensors(directory: Path) -> int:
    """The bytes of all tensors of the weights files, from dtypes and shapes."""
    return sum(_size(entry) for path in weights_files(directory) for entry in tensors_in(path).values())


def _size(entry: dict[str, Any]) -> int:
    # The width stands in the dtype's name (F32, BF16, F8_E4M3), but for BOOL.
    width = re.match(r"[A-Z]+(\d+)", entry["dtype"])
    bits: int = prod(entry["shape"]) * (int(width[1]) if width else 8)
    return bits // 8
