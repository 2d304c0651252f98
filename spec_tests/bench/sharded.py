# SPDX-License-Identifier: Apache-2.0
"""Rows about the time of `save_consolidated` over FSDP2 ranks, beside `save_pretrained` in one process."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from spec_tests.bench import models
from spec_tests.bench.pairing import Alone, Paired, Pairs, in_turn, nothing
from spec_tests.bench.rows import BenchError, Figures, NotHereError, Places, Row, timed
from spec_tests.bench.whole import KINDS, consolidated, pretrained
from spec_tests.builders.training import shard
from spec_tests.harness.ranks import run_ranks

WORLDS = (2, 4)
PAIRS = Pairs(most=5)
PATIENCE = 300.0
"""Seconds in which the ranks of a row have to be done: far more than they take."""


class Together(Alone):
    """The ranks of the default group: they start at a barrier, and the slowest counts."""

    def start(self) -> None:
        """Wait until every rank is here."""
        dist.barrier()

    def slowest(self, seconds: float) -> float:
        """The longest time of any rank; returns after the last of them has finished."""
        longest = torch.tensor(seconds, dtype=torch.float64)
        dist.all_reduce(longest, dist.ReduceOp.MAX)
        return longest.item()


def ranks_row(places: Places, world: int, kind: str) -> Figures:
    """The reference's save on all ranks, in turn with that of transformers on the first, of the same model."""
    paired: Paired = on_ranks(world, _measure, models.real_llama(), places.on(kind))[0]
    return timed(paired, ranks=world)


def on_ranks(world: int, body: Any, *args: Any) -> list[Any]:
    """What ``body(rank, world, *args)`` returned on every rank.

    Raises:
        BenchError: a rank failed, or is not done in time.
        NotHereError: a rank raised it.
    """
    results = run_ranks(world, body, *args, timeout=PATIENCE)
    for result in results:
        if result.error_type == NotHereError.__name__:
            raise NotHereError(result.error)
        if result.error_type:
            raise BenchError(f"rank {result.rank} of {world}: {result.error_type}: {result.error}\n{result.traceback}")
    return [result.value for result in results]


def sharded(model: Any, world: int) -> Any:
    """A copy of the model, sharded over all ranks; the rest of the copy is freed."""
    return shard(copy.deepcopy(model), init_device_mesh("cpu", (world,)))


def _measure(rank: int, world: int, model: Any, place: Path) -> Paired:
    mine, theirs = consolidated(sharded(model, world), first=rank == 0), pretrained(model)
    if rank:
        theirs = replace(theirs, run=nothing)
    return in_turn(mine, theirs, place, PAIRS, Together(first=rank == 0))


ROWS = tuple(
    Row(
        f"save_consolidated-{world}ranks-{kind}",
        f"`save_consolidated`, 0.5 GB in bfloat16, FSDP2 over {world} ranks, {words}",
        "`save_pretrained` in one process",
        1.5,
        partial(ranks_row, world=world, kind=kind),
    )
    for world in WORLDS
    for kind, words in KINDS.items()
)
