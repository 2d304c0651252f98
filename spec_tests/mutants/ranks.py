# SPDX-License-Identifier: Apache-2.0
"""Faults that only several ranks show (spec/ranks.md)."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch.distributed as dist

from spec_tests.mutants.editing_adapter import change_tensors, skip_metadata_where, without_fused_parameters
from spec_tests.mutants.editing_model import live_tensors
from spec_tests.mutants.editing_saving import (
    attempted,
    change_agreement,
    change_attempt,
    change_description,
    change_group,
    change_rank_zeros_step,
    change_settings,
    change_union,
    change_views,
    change_writing_rank,
    check_against_all_ranks,
    check_view,
    gather_shards_as_wholes,
    is_rank_zero,
    several,
    take_plan_of_rank_zero,
    think_there_is_a_group,
)
from spec_tests.mutants.registry import mutant


@mutant(kills=["RANK-001", "RANK-006"], also=("TOK", "ERR"), source="a save without a question for the rank")
def writes_on_every_rank(addons: Any) -> None:
    """Ranks overwrite each other's files."""
    change_writing_rank(addons, lambda _group: True)


@mutant(kills=["RANK-001"], source="a state dict of shards")
def saves_its_own_shard(addons: Any) -> None:
    """Every tensor has the shape of rank 0's shard."""
    gather_shards_as_wholes(addons)


@mutant(kills=["RANK-002", "RANK-003"], source="instructlab#566")
def waits_before_the_write_instead_of_after(addons: Any) -> None:
    """Other ranks go on to read or move a directory that rank 0 is still writing."""

    def broken(_original: Any, group: Any, step: Any) -> Any:
        if several(addons, group):
            dist.barrier(group)
        return step() if is_rank_zero(addons, group) else None

    change_rank_zeros_step(addons, broken)


@mutant(kills=["RANK-003"], source="NVIDIA-NeMo/Automodel#1574, #3254")
def keeps_rank_zeros_error_to_itself(addons: Any) -> None:
    """Rank 0 fails at once, and all others wait for the group's timeout."""

    def broken(_original: Any, group: Any, step: Any) -> Any:
        value = step() if is_rank_zero(addons, group) else None
        if several(addons, group):
            dist.barrier(group)
        return value

    change_rank_zeros_step(addons, broken)


@mutant(kills=["RANK-003"], source="a broadcast of a flag that nobody reads")
def other_ranks_take_failure_for_success(addons: Any) -> None:
    """Rank 0 stops with an error, the others train on without a checkpoint."""

    def broken(_original: Any, group: Any, step: Any) -> Any:
        value, failure = attempted(addons, step) if is_rank_zero(addons, group) else (None, None)
        if several(addons, group):
            dist.barrier(group)
        if failure is not None:
            raise failure
        return value

    change_rank_zeros_step(addons, broken)


@mutant(kills=["RANK-003"], source="a broadcast of a flag")
def says_only_that_rank_zero_failed(addons: Any) -> None:
    """In the log of any rank but one, nothing says why the save failed."""

    def broken(original: Any, group: Any, step: Any) -> Any:
        try:
            return original(group, step)
        except addons.PeerError:
            raise addons.PeerError("rank 0 of the process group failed") from None

    change_rank_zeros_step(addons, broken)


@mutant(kills=["RANK-003"], source='`f"{type(error).__name__}: {error}"`')
def cannot_tell_of_an_error_without_a_message(addons: Any) -> None:
    """An error that cannot be made text fails on rank 0, and all others wait for the group's timeout."""
    change_description(addons, lambda failure: f"{type(failure).__name__}: {failure}")


@mutant(kills=["RANK-003"], source="`except Exception`")
def tells_of_no_interrupt(addons: Any) -> None:
    """Control-C or sys.exit on rank 0 ends it alone, and all others wait for the group's timeout."""

    def broken(step: Any) -> Any:
        try:
            return step(), None
        except Exception as error:  # noqa: BLE001 - as in the source, but for the class
            return None, error

    change_attempt(addons, broken)


@mutant(kills=["RANK-004"], source="NVIDIA-NeMo/Automodel#3096")
def lists_rank_zeros_stage_only(addons: Any) -> None:
    """With a pipeline the config names the first stage's layers."""
    take_plan_of_rank_zero(addons)


@mutant(kills=["RANK-004"], also=("ADP",), source="NVIDIA-NeMo/Automodel#3096")
def saves_rank_zeros_stage_only(addons: Any) -> None:
    """With a pipeline the config names all layers, and the weights are those of the first stage."""

    def local(state: dict[str, Any], model_state: Any) -> dict[str, Any]:
        mine = live_tensors(addons, model_state.model)
        return {key: tensor for key, tensor in state.items() if key in mine}

    change_tensors(addons, local)


@mutant(kills=["RANK-004"], source="NVIDIA-NeMo/Automodel#3096: an empty stage is fine")
def refuses_a_stage_without_lora(addons: Any) -> None:
    """A pipeline whose last stage holds only the head cannot be saved."""

    def check(plan: Any) -> None:
        if not plan.targets:
            raise ValueError("no trained LoRA found in the model")

    check_view(addons, check)


@mutant(kills=["RANK-004"], source="NVIDIA-NeMo/Automodel#3096: the names of modules united, those of parameters not")
def targets_the_experts_of_rank_zeros_stage_only(addons: Any) -> None:
    """With a pipeline the experts of later stages are saved, and PEFT leaves them out."""
    change_union(addons, lambda plans: [*plans[:1], *map(without_fused_parameters, plans[1:])])


@mutant(kills=["RANK-005"], source="a keyword that only rank 0's write is asked for")
def takes_rank_zeros_form_for_everybodys(addons: Any) -> None:
    """Ranks that would save v4-compatible weights write them beside a config that is not, or the reverse."""
    change_settings(addons, lambda settings: {name: settings[name] for name in settings if name != "v4_compatible"})


@mutant(kills=["RANK-005"], source="`any(pp_group)`: one rank's word for everybody")
def takes_rank_zeros_pipeline_for_everybodys(addons: Any) -> None:
    """A rank that was given no pipeline group writes its own part of the weights under the whole's config."""

    def heard(views: list[Any]) -> list[Any]:
        pipeline = views[0][1].pipeline
        return [(ranks, dataclasses.replace(view, pipeline=pipeline)) for ranks, view in views]

    change_settings(addons, lambda settings: {name: settings[name] for name in settings if "pp_group" not in name})
    change_views(addons, heard)


@mutant(kills=["RANK-005"], source="rank 0's view taken for everybody's")
def trusts_rank_zeros_modules(addons: Any) -> None:
    """Without a pipeline group only rank 0's part of the adapter is saved, and no error says so."""
    change_views(addons, lambda views: views if views[0][1].pipeline else views[:1])


@mutant(kills=["RANK-006"], source="NVIDIA-NeMo/Automodel#1038, #3108")
def waits_on_the_default_group(addons: Any) -> None:
    """A save on a group of its own waits for ranks that take no part."""
    change_group(addons, lambda _kwargs: None)


@mutant(kills=["RANK-006"], source="`dist.get_rank() == 0`")
def takes_global_rank_zero_for_the_groups(addons: Any) -> None:
    """In a group without global rank 0 nobody writes, and nobody complains."""
    change_writing_rank(addons, lambda _group: not dist.is_initialized() or dist.get_rank() == 0)


@mutant(kills=["RANK-006"], source="`dist.get_world_size()` where the group's is meant")
def saves_over_a_group_that_lacks_a_rank(addons: Any) -> None:
    """Nobody sees that a rank with a part of the model takes no part: the weights are gathered without it, or hang."""
    check_against_all_ranks(addons)


@mutant(kills=["RANK-007"], source="a check before the collective")
def raises_before_the_others_know(addons: Any) -> None:
    """A rank with a wrong argument fails at once, and all others wait for the group's timeout."""

    def broken(original: Any, group: Any, step: Any) -> Any:
        value = step()
        return original(group, lambda: value)

    change_agreement(addons, broken)


@mutant(kills=["RANK-007"], source="a check on the rank that writes")
def checks_settings_on_rank_zero_only(addons: Any) -> None:
    """Ranks whose settings cannot be stored go on as if they were rank 0's."""
    skip_metadata_where(addons, lambda: dist.is_initialized() and dist.get_rank() > 0)


@mutant(kills=["RANK-008"], source="torchrun without init_process_group")
def takes_itself_for_rank_zero_without_a_group(addons: Any) -> None:
    """Two processes write the same files at the same time, and the checkpoint is a mixture."""
    think_there_is_a_group(addons, dist.is_initialized)
