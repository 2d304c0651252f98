# SPDX-License-Identifier: Apache-2.0
"""Edits of how shards are put together, and of what a rank does there that has no memory."""

from __future__ import annotations

import importlib
from typing import Any

from spec_tests.mutants.editing import around, held


def take_strided_shards_for_plain(package: Any) -> None:
    """Shards of shards are put together as if the one were cut out of the other in order."""

    def plain(original: Any, tensor: Any) -> Any:
        order = original(tensor)
        return None if order is None else sorted(order)

    around(package, "cuts", plain)


def cut_in_even_parts(package: Any) -> None:
    """Where a size is no multiple of the number of ranks, each shard is taken to start a rounded-down part further."""

    def box(original: Any, shape: Any, cut: Any, mesh: Any, place: Any) -> Any:
        found = list(original(shape, cut, mesh, place))
        for dimension, size, at in zip(cut, mesh, place, strict=True):
            if dimension is not None and shape[dimension] % size:
                found[dimension] = (at * (shape[dimension] // size), found[dimension][1])
        return tuple(found)

    around(package, "piece_box", box)


def exchange_without_agreement(package: Any) -> None:
    """A rank that has no room for a whole tensor says so when it meets the others next, and they wait for its part."""
    module = importlib.import_module(f"{package.__name__}.whole")
    module.everywhere = lambda _group, step, *args: step(*args)  # type: ignore[attr-defined]  # the copy under this name


def leave_the_walk_at_once(package: Any) -> None:
    """A rank raises where it fails, and sends and receives nothing more."""

    def raise_it(_walk: Any, failure: BaseException | None) -> None:
        if failure is not None:
            raise failure

    held(package, "_Walk").note = raise_it
