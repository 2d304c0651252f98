# SPDX-License-Identifier: Apache-2.0
"""What `PeftAddon` writes: gathered from every rank, written by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist

from .adapter_config import (
    ADAPTER_CONFIG,
    AUTOMODEL_PEFT_CONFIG,
    _get_automodel_peft_metadata,
    adapter_config,
    json_text,
)
from .custom_code import _maybe_save_custom_model_code
from .files import publish, staging, write_text
from .hook_kwargs import PeftSave
from .lora_sites import unwrapped
from .targets import Targets, targets, united


@dataclass(frozen=True)
class RankView:
    """What one rank knows about the adapter."""

    found: Targets
    pipeline: bool
    v4_compatible: bool


def rank_view(save: PeftSave, group: dist.ProcessGroup | None) -> RankView:
    """This rank's view; raises for everything that is wrong with its arguments or its part of the model."""
    pp_group = getattr(save.model_state, "pp_group", None)
    if pp_group is not None:
        outside = set(dist.get_process_group_ranks(pp_group)) - set(dist.get_process_group_ranks(group))
        if outside:
            raise ValueError(
                f"pp_group reaches rank {min(outside)}, which is not in process_group: its layers would be missing "
                "from the adapter; pass a process_group that holds the whole pipeline"
            )
    _get_automodel_peft_metadata(save.peft_config)
    found = targets(save.model_state.model, save.v4_compatible)
    return RankView(found, pp_group is not None, save.v4_compatible)


def agreed(views: Sequence[RankView]) -> Targets:
    """The targets of the whole model: the union over a pipeline, else what all ranks have alike.

    Raises:
        ValueError: ranks disagree about ``v4_compatible``, or about the targets without a pipeline group, so
            that the adapter would lack what another rank has trained (clause RANK-005).
    """
    first = views[0]
    for rank, view in enumerate(views):
        if view.v4_compatible != first.v4_compatible:
            raise ValueError(f"rank 0 saves with v4_compatible={first.v4_compatible}, rank {rank} with the opposite")
        if not first.pipeline and view.found != first.found:
            differing = sorted(set(first.found.keys) ^ set(view.found.keys))
            raise ValueError(
                f"ranks 0 and {rank} hold different LoRA modules ({differing[:1]}...) and model_state has no pp_group: "
                "the adapter would lack what one of them trained"
            )
    return united(view.found for view in views)


def write(save: PeftSave, views: Sequence[RankView]) -> None:
    """Write the files whole into ``model_path``; earlier ones stay untouched when anything raises."""
    config = adapter_config(save.peft_config, unwrapped(save.model_state.model[0]), agreed(views))
    metadata = _get_automodel_peft_metadata(save.peft_config)
    with staging(save.model_path) as place:
        _maybe_save_custom_model_code(save.original_model_path, place)
        if save.tokenizer is not None:
            save.tokenizer.save_pretrained(str(place))
        write_text(place / AUTOMODEL_PEFT_CONFIG, json_text(metadata))
        write_text(place / ADAPTER_CONFIG, json_text(config))
        publish(place, save.model_path, marker=ADAPTER_CONFIG)
