# SPDX-License-Identifier: Apache-2.0
"""Rows about `PeftAddon.pre_save`, beside the hook of NeMo AutoModel on the same model."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

import addons
from spec_tests.bench import models
from spec_tests.bench.pairing import Contender, in_turn
from spec_tests.bench.peer import NEMO
from spec_tests.bench.rows import BenchError, Figures, Places, Row, timed
from spec_tests.builders.lora import apply_dense_lora
from spec_tests.implementations.base import trainer_peft_config

LAYERS, EXPERTS, DENSE_LAYERS = 61, 384, 80
TARGETS = LAYERS * (EXPERTS * 3 + len(models.ATTENTION))  # 70,516


def experts_row(places: Places, v4_compatible: bool, renamed: bool = False) -> Figures:
    """Both hooks on one large mixture of experts, each with its own package's adapter for it."""
    nemo = places.nemo()
    mine, theirs = addons.Qwen3MoeStateDictAdapter(), nemo.adapters["qwen3_moe"]()
    if renamed:
        mine, theirs = renaming(mine), renaming(theirs)
    listed = TARGETS if v4_compatible else LAYERS * len(models.ATTENTION)
    return _measure(places, models.experts(LAYERS, EXPERTS), (mine, theirs), listed, v4_compatible)


def dense_row(places: Places) -> Figures:
    """Both hooks on a dense model of many layers."""
    model = models.llama(DENSE_LAYERS)
    apply_dense_lora(model, models.PROJECTIONS, models.RANK, models.ALPHA)
    return _measure(places, model, (None, None), DENSE_LAYERS * len(models.PROJECTIONS), v4_compatible=False)


def renaming(adapter: Any) -> Any:
    """The adapter, made an instance of a subclass that calls the modules otherwise, as a model's own may do.

    The reference reads names off the converted keys. NeMo AutoModel asks the adapter for each name.
    """

    def renamed(name: str) -> str:
        return name.replace(".mlp.experts.", ".block_sparse_moe.experts.")

    own = type(adapter)

    def to_hf(self: Any, state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        converted = own.to_hf(self, state_dict, *args, **kwargs)
        return {renamed(name): tensor for name, tensor in converted.items()}

    def map_peft_target_module_to_hf(_self: Any, name: str, *, v4_compatible: bool = False) -> str:
        del v4_compatible
        return renamed(name)

    body = {"to_hf": to_hf, "map_peft_target_module_to_hf": map_peft_target_module_to_hf}
    adapter.__class__ = type("Renaming", (own,), body)
    return adapter


def _measure(places: Places, model: nn.Module, adapters: tuple[Any, Any], listed: int, v4_compatible: bool) -> Figures:
    nemo = places.nemo()
    config = trainer_peft_config(dim=models.RANK, alpha=models.ALPHA)

    def look(directory: Path) -> dict[str, Any]:
        """The lists of targets, and how many there have to be."""
        written = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
        if len(written["target_modules"]) != listed:
            raise BenchError(f"there must be {listed} target_modules, got {len(written['target_modules'])}")
        lists = {name: sorted(written.get(name) or []) for name in ("target_modules", "target_parameters")}
        return {**lists, "r": written["r"], "lora_alpha": written["lora_alpha"]}

    def hook(addon: Any, model_state: Any, adapter: Any) -> Contender:
        more = {"peft_config": config, "tokenizer": None, "original_model_path": None, "v4_compatible": v4_compatible}

        def run(directory: Path) -> None:
            model.state_dict_adapter = adapter
            addon.pre_save(model_path=str(directory), model_state=model_state, **more)

        return Contender(run, look=look)

    mine = hook(addons.PeftAddon(), addons.ModelState(model, is_peft=True), adapters[0])
    theirs = hook(nemo.peft_addon(), nemo.model_state(model, is_peft=True), adapters[1])
    # In memory: the reference syncs its files and the peer does not, and the disk is not what these rows are about.
    return timed(in_turn(mine, theirs, places.fast), target_modules=listed)


ROWS = (
    Row(
        "pre_save-experts-v4",
        f"`PeftAddon.pre_save`, {LAYERS} layers x {EXPERTS} experts, a name an expert ({TARGETS:,} targets)",
        NEMO,
        1.0,
        partial(experts_row, v4_compatible=True),
    ),
    Row(
        "pre_save-experts-fused",
        f"`PeftAddon.pre_save`, {LAYERS} layers x {EXPERTS} experts, fused",
        NEMO,
        2.0,
        partial(experts_row, v4_compatible=False),
        enough=0.005,
    ),
    Row(
        "pre_save-foreign",
        f"`PeftAddon.pre_save`, a name an expert ({TARGETS:,} targets), with an adapter that renames modules",
        NEMO,
        5.0,
        partial(experts_row, v4_compatible=True, renamed=True),
    ),
    Row("pre_save-dense", "`PeftAddon.pre_save`, dense Llama of 80 layers (560 targets)", NEMO, 1.5, dense_row),
)
