# SPDX-License-Identifier: Apache-2.0
"""Rows about what `save_consolidated` takes besides time: bytes written, and memory."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch.distributed as dist

import addons
from spec_tests.bench import models
from spec_tests.bench.pairing import ratio
from spec_tests.bench.rows import Figures, Places, Row
from spec_tests.bench.sharded import on_ranks, sharded
from spec_tests.bench.watching import Peak, Written
from spec_tests.bench.written import size, weights

WORLDS = (1, 2)
SAVES = 3


def written_row(places: Places, world: int) -> Figures:
    """Bytes that all ranks write, over the size of what is there in the end."""
    ranks = on_ranks(world, _watched, models.real_llama(), places.disk, Written)
    totals = [sum(amounts) for amounts in zip(*(rank["amounts"] for rank in ranks), strict=True)]
    return _figures(totals, ranks[0]["size"], world)


def memory_row(places: Places, world: int) -> Figures:
    """The peak of the rank that takes most, over the largest weights file."""
    ranks = on_ranks(world, _watched, models.real_llama(), places.disk, Peak)
    peaks = [max(amounts) for amounts in zip(*(rank["amounts"] for rank in ranks), strict=True)]
    return _figures(peaks, ranks[0]["largest"], world)


def _figures(amounts: list[int], allowed: int, world: int) -> Figures:
    ratios = tuple(ratio(amount, allowed) for amount in amounts)
    return Figures(median(amounts), allowed, ratios, median(ratios), "bytes", {"ranks": world})


def _watched(rank: int, world: int, model: Any, place: Path, watch: type[Written | Peak]) -> dict[str, Any]:
    """The amounts of several saves on this rank, and on the first one the sizes of what was written."""
    model, directory = sharded(model, world) if world > 1 else model, place / "run"
    found: dict[str, Any] = {"amounts": []}
    for number in range(SAVES + 1):
        dist.barrier()
        with watch() as watched:
            # Entered on every rank before any saves: a rank's own barrier is no part of what is counted elsewhere.
            dist.barrier()
            addons.save_consolidated(model, directory)
            dist.barrier()
        if number:  # the first save is the warm-up: what it imports stays
            found["amounts"].append(watched.amount)
        if rank == 0:
            found |= {"size": size(directory), "largest": max(path.stat().st_size for path in weights(directory))}
            shutil.rmtree(directory)
    return found


ROWS = (
    *(
        Row(
            f"save_consolidated-bytes-{world}rank{'s' * (world > 1)}",
            f"bytes written in `save_consolidated`, 0.5 GB, {world} rank{'s' * (world > 1)} together",
            "size of the checkpoint",
            1.05,
            partial(written_row, world=world),
        )
        for world in WORLDS
    ),
    *(
        Row(
            f"save_consolidated-memory-{world}rank{'s' * (world > 1)}",
            f"peak memory of a rank in `save_consolidated`, over what it held before, {world} rank{'s' * (world > 1)}",
            "largest weights file",
            1.1,
            partial(memory_row, world=world),
        )
        for world in WORLDS
    ),
)
