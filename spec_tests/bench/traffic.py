# SPDX-License-Identifier: Apache-2.0
"""The row about what ranks receive from each other in `PeftAddon.pre_save`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import addons
from spec_tests.bench import models
from spec_tests.bench.counted import Received
from spec_tests.bench.pairing import ratio
from spec_tests.bench.rows import BenchError, Figures, Places, Row
from spec_tests.bench.sharded import on_ranks
from spec_tests.implementations.base import trainer_peft_config

WORLDS = (1, 2, 4, 8)
BASIS = 2
"""The number of ranks with which the others are compared."""
LAYERS, EXPERTS = 16, 128
TARGETS = LAYERS * (EXPERTS * 3 + len(models.ATTENTION))


def traffic_row(places: Places) -> Figures:
    """The ranks that receive most, rank 0 apart, beside rank 1 of two; every rank holds the whole model."""
    model: Any = models.experts(LAYERS, EXPERTS)
    model.state_dict_adapter = addons.Qwen3MoeStateDictAdapter()
    counted = {world: on_ranks(world, _received, model, places.fast) for world in WORLDS}
    if len({tuple(sorted(names)) for ranks in counted.values() for names in [ranks[0]["names"]]}) != 1:
        raise BenchError("the names in the config depend on the number of ranks")
    amounts = {world: [rank["bytes"] for rank in ranks] for world, ranks in counted.items()}
    most = {world: max(ranks[1:]) for world, ranks in amounts.items() if world > 1}
    ratios = tuple(ratio(most[world], most[BASIS]) for world in most if world != BASIS)
    details = {"received": {str(world): ranks for world, ranks in amounts.items()}, "targets": TARGETS}
    return Figures(max(most.values()), most[BASIS], ratios, max(ratios), "bytes", details)


def _received(rank: int, world: int, model: Any, place: Path) -> dict[str, Any]:
    del world
    config = trainer_peft_config(dim=models.RANK, alpha=models.ALPHA)
    state = addons.ModelState(model, is_peft=True)
    more = {"tokenizer": None, "original_model_path": None, "v4_compatible": True}
    with Received() as counter:
        addons.PeftAddon().pre_save(model_path=str(place), model_state=state, peft_config=config, **more)
    if rank:
        return {"bytes": counter.bytes}
    names = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))["target_modules"]
    if len(names) != TARGETS:
        raise BenchError(f"there must be {TARGETS} target_modules, got {len(names)}")
    return {"bytes": counter.bytes, "names": names}


ROWS = (
    Row(
        "traffic",
        f"bytes that a rank other than 0 receives in `PeftAddon.pre_save` ({TARGETS:,} targets), the most at "
        f"{', '.join(map(str, WORLDS))} ranks",
        f"the same at {BASIS} ranks",
        1.1,
        traffic_row,
    ),
)
