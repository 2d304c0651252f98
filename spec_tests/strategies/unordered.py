# SPDX-License-Identifier: Apache-2.0
"""A save of names that have no order of their own, made in several processes: their files have to be the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from spec_tests.harness.export import save_metadata
from spec_tests.strategies.trees import Leaf, TreeSpec

if TYPE_CHECKING:
    from spec_tests.implementations.base import Implementation

TREE = TreeSpec((Leaf("model.layers.0.q_proj"), Leaf("model.layers.1.q_proj")))


def save_some_names(impl: Implementation, directory: str | Path, kind: str) -> None:
    """Save with a config that lists many names, as a list or, where ``kind`` says so, as a set."""
    # So many that two orders of a set are never the same by chance.
    names = [f"layer_{number}_proj" for number in range(16)]
    targets = set(names) if kind == "set" else names
    more = {"mixed": {*names, *range(16)}} if kind == "set" else {}
    config = impl.peft_config(dim=4, alpha=8, target_modules=targets, note="gr\u00f6\u00dfe", **more)
    save_metadata(impl, TREE.build(), Path(directory), config)
