# SPDX-License-Identifier: Apache-2.0
"""What of a checkpoint is recorded: every text file, and of each weights file all but the numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spec_tests.golden.compare import files_below

MASKS = {
    "local_files_only": "of a tokenizer, transformers writes whether it was read offline (HF_HUB_OFFLINE)",
    "transformers_version": "the era says which it is",
}
"""Keys of JSON files, at any depth, whose values are not recorded, and why."""
MASKED = "(not recorded)"
OF_PEFT = "peft_version"
"""A JSON file with this key is PEFT's own list of its settings, which grows with PEFT: its content is not recorded."""


def recorded(directory: Path) -> dict[str, bytes]:
    """The recorded form of a checkpoint: relative path -> content.

    JSON is written with sorted keys and two spaces, so that only a change of content is a change. Of
    ``x.safetensors``, ``x.safetensors.json`` has the metadata and each tensor's dtype and shape.
    """
    found = {}
    for name, content in files_below(directory).items():
        if name.endswith(".safetensors"):
            found[f"{name}.json"] = _written(_tensors(content))
        elif name.endswith(".json"):
            found[name] = _written(masked(json.loads(content)))
        else:
            found[name] = content
    return found


def masked(content: Any) -> Any:
    """The content of a JSON file without what `MASKS` lists."""
    if isinstance(content, dict):
        if OF_PEFT in content:
            return {OF_PEFT: MASKED}
        return {key: MASKED if key in MASKS else masked(value) for key, value in content.items()}
    return [masked(value) for value in content] if isinstance(content, list) else content


def _tensors(content: bytes) -> dict[str, Any]:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = header.pop("__metadata__", None)
    tensors = {name: f"{one['dtype']} {one['shape']}" for name, one in header.items()}
    return {"metadata": metadata, "tensors": tensors}


def _written(content: Any) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
