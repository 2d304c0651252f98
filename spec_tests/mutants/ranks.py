# SPDX-License-Identifier: Apache-2.0
"""Faults that only several ranks show (spec/ranks.md)."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch.distributed as dist

from spec_tests.mutants.editing import change_tensors, held, replace
from spec_tests.mutants.registry import mutant


@mutant(kills=["RANK-001", "RANK-006"], also=("TOK", "ERR"), source="a save without a question for the rank")
def writes_on_every_rank(addons: Any) -> None:
    """Ranks overwrite each other's files."""
    original = held(addons, "is_rank_zero")
    replace(addons, original, lambda group: True)  # noqa: ARG005


@mutant(kills=["RANK-001"], source="a state dict of shards")
def saves_its_own_shard(addons: Any) -> None:
    """Every tensor has the shape of rank 0's shard."""
    original = held(addons, "_full")

    def broken(tensor: Any) -> Any:
        return tensor.detach().to_local() if hasattr(tensor, "to_local") else original(tensor)

    replace(addons, original, broken)


def _steps(package: Any, broken: Any) -> None:
    """``broken(step, group)`` takes the place of the step on rank 0."""
    replace(package, held(package, "on_rank_zero"), broken)


@mutant(kills=["RANK-002", "RANK-003"], source="instructlab#566")
def waits_before_the_write_instead_of_after(addons: Any) -> None:
    """Other ranks go on to read or move a directory that rank 0 is still writing."""

    def broken(step: Any, group: Any) -> None:
        if held(addons, "group_size")(group) > 1:
            dist.barrier(group)
        if held(addons, "is_rank_zero")(group):
            step()

    _steps(addons, broken)


@mutant(kills=["RANK-003"], source="NVIDIA-NeMo/Automodel#1574, #3254")
def keeps_rank_zeros_error_to_itself(addons: Any) -> None:
    """Rank 0 fails at once, and all others wait for the group's timeout."""

    def broken(step: Any, group: Any) -> None:
        if held(addons, "is_rank_zero")(group):
            step()
        if held(addons, "group_size")(group) > 1:
            dist.barrier(group)

    _steps(addons, broken)


@mutant(kills=["RANK-003"], source="a broadcast of a flag that nobody reads")
def other_ranks_take_failure_for_success(addons: Any) -> None:
    """Rank 0 stops with an error, the others train on without a checkpoint."""

    def broken(step: Any, group: Any) -> None:
        failure = None
        if held(addons, "is_rank_zero")(group):
            _, failure = held(addons, "_attempt")(step)
        if held(addons, "group_size")(group) > 1:
            dist.barrier(group)
        if failure is not None:
            raise failure

    _steps(addons, broken)


@mutant(kills=["RANK-003"], source="a broadcast of a flag")
def says_only_that_rank_zero_failed(addons: Any) -> None:
    """In the log of any rank but one, nothing says why the save failed."""
    original = held(addons, "on_rank_zero")

    def broken(step: Any, group: Any) -> None:
        try:
            original(step, group)
        except addons.PeerError:
            raise addons.PeerError("rank 0 of the process group failed") from None

    _steps(addons, broken)


@mutant(kills=["RANK-003"], source='`f"{type(error).__name__}: {error}"`')
def cannot_tell_of_an_error_without_a_message(addons: Any) -> None:
    """An error that cannot be made text fails on rank 0, and all others wait for the group's timeout."""

    def broken(failure: Any) -> Any:
        return None if failure is None else f"{type(failure).__name__}: {failure}"

    replace(addons, held(addons, "_described"), broken)


@mutant(kills=["RANK-003"], source="`except Exception`")
def tells_of_no_interrupt(addons: Any) -> None:
    """Control-C or sys.exit on rank 0 ends it alone, and all others wait for the group's timeout."""

    def broken(step: Any) -> Any:
        try:
            return step(), None
        except Exception as error:  # noqa: BLE001 - as in the source, but for the class
            return None, error

    replace(addons, held(addons, "_attempt"), broken)


@mutant(kills=["RANK-004"], source="NVIDIA-NeMo/Automodel#3096")
def lists_rank_zeros_stage_only(addons: Any) -> None:
    """With a pipeline the config names the first stage's layers."""
    replace(addons, addons.adapter_metadata.agreed, lambda views: views[0].found)


@mutant(kills=["RANK-004"], also=("ADP",), source="NVIDIA-NeMo/Automodel#3096")
def saves_rank_zeros_stage_only(addons: Any) -> None:
    """With a pipeline the config names all layers, and the weights are those of the first stage."""

    def local(state: dict[str, Any], model_state: Any) -> dict[str, Any]:
        mine = {
            key
            for site in held(addons, "lora_sites")(model_state.model)
            for key in held(addons, "native_tensors")(site)
        }
        return {key: tensor for key, tensor in state.items() if key in mine}

    change_tensors(addons, local)


@mutant(kills=["RANK-004"], source="NVIDIA-NeMo/Automodel#3096: an empty stage is fine")
def refuses_a_stage_without_lora(addons: Any) -> None:
    """A pipeline whose last stage holds only the head cannot be saved."""
    original = addons.adapter_metadata.rank_view

    def broken(save: Any, group: Any) -> Any:
        view = original(save, group)
        if not view.found.shapes:
            raise ValueError("no trained LoRA found in the model")
        return view

    replace(addons, original, broken)


@mutant(kills=["RANK-004"], source="NVIDIA-NeMo/Automodel#3096: the names of modules united, those of parameters not")
def targets_the_experts_of_rank_zeros_stage_only(addons: Any) -> None:
    """With a pipeline the experts of later stages are saved, and PEFT leaves them out."""
    original = held(addons, "united")

    def broken(several: Any) -> Any:
        every = list(several)
        return dataclasses.replace(original(every), fused=every[0].fused)

    # Over ranks only: the union over the sites of one model is right.
    addons.adapter_metadata.united = broken


@mutant(kills=["RANK-005"], source="a keyword that only rank 0's write is asked for")
def takes_rank_zeros_form_for_everybodys(addons: Any) -> None:
    """Ranks that would save v4-compatible weights write them beside a config that is not, or the reverse."""
    original = addons.adapter_metadata.rank_view

    def broken(save: Any, group: Any) -> Any:
        view = original(save, group)
        return dataclasses.replace(view, settings=view.settings[1:])

    replace(addons, original, broken)


@mutant(kills=["RANK-005"], source="`any(pp_group)`: one rank's word for everybody")
def takes_rank_zeros_pipeline_for_everybodys(addons: Any) -> None:
    """A rank that was given no pipeline group writes its own part of the weights under the whole's config."""
    original = addons.adapter_metadata.agreed

    def broken(views: Any) -> Any:
        return original([dataclasses.replace(view, pipeline=views[0].pipeline) for view in views])

    replace(addons, original, broken)


@mutant(kills=["RANK-005"], source="rank 0's view taken for everybody's")
def trusts_rank_zeros_modules(addons: Any) -> None:
    """Without a pipeline group only rank 0's part of the adapter is saved, and no error says so."""
    original = addons.adapter_metadata.agreed
    replace(addons, original, lambda views: original(views if views[0].pipeline else views[:1]))


@mutant(kills=["RANK-006"], source="NVIDIA-NeMo/Automodel#1038, #3108")
def waits_on_the_default_group(addons: Any) -> None:
    """A save on a group of its own waits for ranks that take no part."""
    replace(addons, held(addons, "process_group"), lambda kwargs: None)  # noqa: ARG005


@mutant(kills=["RANK-006"], source="`dist.get_rank() == 0`")
def takes_global_rank_zero_for_the_groups(addons: Any) -> None:
    """In a group without global rank 0 nobody writes, and nobody complains."""
    replace(addons, held(addons, "is_rank_zero"), lambda group: not dist.is_initialized() or dist.get_rank() == 0)  # noqa: ARG005


@mutant(kills=["RANK-006"], source="`dist.get_world_size()` where the group's is meant")
def saves_over_a_group_that_lacks_a_rank(addons: Any) -> None:
    """Nobody sees that a rank with a part of the model takes no part: the weights are gathered without it, or hang."""
    original = addons.adapter_metadata.rank_view
    replace(addons, original, lambda save, _group: original(save, None))


@mutant(kills=["RANK-007"], source="a check before the collective")
def raises_before_the_others_know(addons: Any) -> None:
    """A rank with a wrong argument fails at once, and all others wait for the group's timeout."""
    original = held(addons, "gather")

    def broken(prepare: Any, group: Any) -> Any:
        value = prepare()
        return original(lambda: value, group)

    replace(addons, original, broken)


@mutant(kills=["RANK-007"], source="a check on the rank that writes")
def checks_settings_on_rank_zero_only(addons: Any) -> None:
    """Ranks whose settings cannot be stored go on as if they were rank 0's."""
    original = held(addons, "_get_automodel_peft_metadata")

    def broken(peft_config: Any) -> dict[str, Any]:
        return {} if dist.is_initialized() and dist.get_rank() else original(peft_config)

    replace(addons, original, broken)


@mutant(kills=["RANK-008"], source="torchrun without init_process_group")
def takes_itself_for_rank_zero_without_a_group(addons: Any) -> None:
    """Two processes write the same files at the same time, and the checkpoint is a mixture."""
    replace(addons, held(addons, "_initialised"), dist.is_initialized)
