# SPDX-License-Identifier: Apache-2.0
"""What `PeftAddon` writes: gathered from every rank, written by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from .adapter_config import (
    ADAPTER_CONFIG,
    AUTOMODEL_PEFT_CONFIG,
    LAYOUTS,
    PARAMWRAPPER_LAYOUT,
    adapter_config,
    rank_and_alpha,
)
from .adapter_config import _get_automodel_peft_metadata as automodel_peft_metadata
from .custom_code import _maybe_save_custom_model_code, make_references_local
from .files import publish, staging, write_text
from .hook_kwargs import Keywords
from .json_content import json_text
from .lora_sites import lora_sites, unwrapped
from .targets import Targets, targets, united
from .tokenizer import save_tokenizer


@dataclass(frozen=True)
class RankView:
    """What one rank knows about the adapter."""

    found: Targets
    pipeline: bool
    settings: tuple[Any, ...]


def rank_view(save: Keywords, group: dist.ProcessGroup | None) -> RankView:
    """This rank's view; raises for everything that is wrong with its arguments or its part of the model."""
    pp_group = getattr(save.model_state, "pp_group", None)
    meshes = [
        tensor.device_mesh
        for site in lora_sites(save.model_state.model)
        for tensor in site.tensors.values()
        if hasattr(tensor, "device_mesh")
    ]
    reached = set() if pp_group is None else set(dist.get_process_group_ranks(pp_group))
    reached = reached.union(*(mesh.mesh.flatten().tolist() for mesh in meshes))
    if reached and (outside := reached - set(dist.get_process_group_ranks(group))):
        raise ValueError(
            f"rank {min(outside)} holds a part of the model and is not in process_group: pass a group that holds the "
            "whole model"
        )
    automodel_peft_metadata(save.peft_config)
    form = {"v4_compatible": save.v4_compatible, "legacy_paramwrapper_layout": save.legacy_paramwrapper_layout}
    settings = (*map(bool, form.values()), *rank_and_alpha(save.peft_config))
    return RankView(targets(save.model_state.model, **form), pp_group is not None, settings)


def agreed(views: Sequence[RankView]) -> Targets:
    """The targets of the whole model: the union over a pipeline, else what all ranks have alike.

    Raises:
        ValueError: ranks disagree about what they save, so that the file would be right for one of them only
            (clause RANK-005).
    """
    first = views[0]
    for rank, view in enumerate(views):
        if (view.settings, view.pipeline) != (first.settings, first.pipeline):
            raise ValueError(
                "ranks save with different (v4_compatible, legacy_paramwrapper_layout, rank, alpha) or not all with a "
                f"pp_group: rank 0 with {first.settings}, {first.pipeline}; rank {rank} with {view.settings}, "
                f"{view.pipeline}"
            )
        if not first.pipeline and view.found != first.found:
            differing = sorted(set(first.found.shapes) ^ set(view.found.shapes))
            raise ValueError(
                f"ranks 0 and {rank} hold different LoRA modules ({differing[:1]}...) and model_state has no pp_group: "
                "the adapter would lack what one of them trained"
            )
    return united(view.found for view in views)


def write(save: Keywords, views: Sequence[RankView]) -> None:
    """Write the files whole into ``model_path``; earlier ones stay untouched when anything raises."""
    found = agreed(views)
    config = adapter_config(save.peft_config, unwrapped(save.model_state.model[0]), found)
    metadata = automodel_peft_metadata(save.peft_config)
    metadata.pop(PARAMWRAPPER_LAYOUT, None)  # what an earlier save said, where the config was read back from one
    if found.fused:
        metadata[PARAMWRAPPER_LAYOUT] = LAYOUTS[0 if save.legacy_paramwrapper_layout else 1]
    with staging(save.model_path) as place:
        _maybe_save_custom_model_code(save.original_model_path, place, save.model_state.model[0])
        replaces = save_tokenizer(save.tokenizer, place, save.v4_compatible)
        make_references_local(place)
        write_text(place / AUTOMODEL_PEFT_CONFIG, json_text(metadata))
        write_text(place / ADAPTER_CONFIG, json_text(config))
        publish(place, save.model_path, marker=ADAPTER_CONFIG, replaces=replaces)
