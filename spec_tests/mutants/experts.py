# SPDX-License-Identifier: Apache-2.0
"""Faults in the tensors of experts (spec/experts.md): most have the right keys and shapes."""

from __future__ import annotations

from typing import Any

import torch

from spec_tests.mutants.editing_adapter import change_config, skip_unconverted_experts
from spec_tests.mutants.editing_model import change_fused, change_nesting, change_single_experts
from spec_tests.mutants.registry import mutant


@mutant(kills=["EXP-004", "LOAD-002"], also=("RANK",), source="huggingface/peft#3165")
def orders_the_columns_of_b_by_expert(addons: Any) -> None:
    """Every shape is right, and every expert computes with other experts' columns."""

    def broken(tensor: Any) -> Any:
        experts, rank, outputs = tensor.shape
        return tensor.permute(2, 0, 1).reshape(outputs, experts * rank)

    change_fused(addons, "B", broken)


@mutant(kills=["EXP-004"], source="huggingface/peft#3165")
def orders_the_rows_of_a_by_rank(addons: Any) -> None:
    """Every shape is right, and every expert reads through other experts' rows."""

    def broken(tensor: Any) -> Any:
        experts, rank, inputs = tensor.shape
        return tensor.permute(1, 0, 2).reshape(rank * experts, inputs)

    change_fused(addons, "A", broken)


def _layout(package: Any, legacy: bool) -> None:
    """Fused experts come in one layout, whichever was asked for."""
    mixin = package.MoESplitExpertsStateDictMixin
    original = mixin.to_hf

    def broken(self: Any, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, state_dict, *args, **{**kwargs, "legacy_paramwrapper_layout": legacy})

    mixin.to_hf = broken


@mutant(
    kills=["EXP-003", "EXP-004", "EXP-005"],
    also=("META", "RANK"),
    source="peft 0.18 `ParamWrapper`; NVIDIA-NeMo/Automodel#3592",
)
def writes_the_layout_of_older_peft(addons: Any) -> None:
    """A and B have changed roles, as PEFT before 0.19.1 had them; where hidden is twice inter it loads."""
    _layout(addons, legacy=True)


@mutant(kills=["EXP-009"], also=("META",), source="an option that nobody passes on")
def writes_the_layout_of_newer_peft(addons: Any) -> None:
    """Whoever serves with PEFT 0.18 gets experts of the wrong shape, or wrong ones."""
    _layout(addons, legacy=False)


@mutant(kills=["EXP-003", "EXP-004"], also=("RANK",), source="peft `_inject_parameters`: the first is innermost")
def nests_down_instead_of_gate_up(addons: Any) -> None:
    """PEFT puts down's LoRA on gate_up and the reverse."""
    change_nesting(addons, lambda projection, both: both and projection == "down")


@mutant(kills=["EXP-001", "EXP-002", "EXP-006"], also=("ADP", "RANK", "TGT"), source="NVIDIA-NeMo/Automodel#3626")
def leaves_experts_untransposed(addons: Any) -> None:
    """One expert's tensors are [in, rank] and [rank, out], as the trainer multiplies them."""

    def broken(make: Any, _adapter: Any, _match: Any, tensor: Any) -> dict[str, Any]:
        return {key: piece.t().contiguous() for key, piece in make(tensor).items()}

    change_single_experts(addons, broken)


@mutant(kills=["EXP-001", "TGT-007"], also=("ADP", "RANK"), source="an expert-parallel rank's share of the experts")
def leaves_out_the_last_expert(addons: Any) -> None:
    """The last expert of each layer keeps its base weights after loading."""
    change_single_experts(addons, lambda make, _adapter, _match, tensor: make(tensor[: max(1, tensor.shape[0] - 1)]))


@mutant(kills=["EXP-002"], also=("RANK",), source="trainers that keep up before gate")
def swaps_gate_and_up(addons: Any) -> None:
    """Gate and up have the same shape, so the adapter loads and computes something else."""
    other = {".gate_proj.": ".up_proj.", ".up_proj.": ".gate_proj."}

    def broken(make: Any, _adapter: Any, _match: Any, tensor: Any) -> dict[str, Any]:
        made: dict[str, Any] = make(tensor)
        if not any(".gate_proj." in key for key in made):
            return made
        return {key.replace(name, other[name]): made[key] for key in made for name in other if name in key}

    change_single_experts(addons, broken)


@mutant(kills=["EXP-002"], also=("RANK",), source="gpt-oss: gate and up interleaved")
def takes_gate_and_up_for_interleaved(addons: Any) -> None:
    """Every second output goes to gate, the others to up; shapes are right."""

    def broken(make: Any, adapter: Any, match: Any, tensor: Any) -> Any:
        gated = adapter._is_gated_moe and match["projection"] == "gate_and_up" and match["matrix"] == "B"
        halves = [tensor[..., 0::2], tensor[..., 1::2]]
        return make(torch.cat(halves, dim=-1) if gated else tensor)

    change_single_experts(addons, broken)


@mutant(kills=["EXP-005"], source="peft: no nesting with one targeted parameter")
def nests_a_single_projection(addons: Any) -> None:
    """With only gate_up trained, PEFT looks in the module itself and draws new LoRA there."""
    change_nesting(addons, lambda projection, _both: projection == "gate_and_up")


@mutant(kills=["EXP-005"], source="target_parameters taken from the adapter's declaration")
def targets_both_parameters_always(addons: Any) -> None:
    """A projection without trained LoRA gets a fresh one from PEFT."""

    def declared(config: dict[str, Any], model: Any, _found: Any) -> None:
        if "target_parameters" in config:
            config["target_parameters"] = list(model.state_dict_adapter._v5_peft_target_parameters)

    change_config(addons, declared)


@mutant(kills=["EXP-006"], source="NVIDIA-NeMo/Automodel#3284: ReLU2 experts treated as gated ones")
def halves_experts_without_a_gate(addons: Any) -> None:
    """The second half of the outputs of ReLU2 experts is cut off."""

    def broken(make: Any, adapter: Any, match: Any, tensor: Any) -> Any:
        ungated = not adapter._is_gated_moe and match["projection"] == "gate_and_up" and match["matrix"] == "B"
        return make(tensor.chunk(2, dim=-1)[0] if ungated else tensor)

    change_single_experts(addons, broken)


@mutant(kills=["EXP-007"], source="NVIDIA-NeMo/Automodel#1814, #1755")
def leaves_out_experts_that_nobody_converts(addons: Any) -> None:
    """A model whose adapter knows no experts is saved without their LoRA, and no error says so."""
    skip_unconverted_experts(addons)


@mutant(kills=["EXP-008"], source="a cast to float32 for the sake of numpy")
def saves_experts_in_float32(addons: Any) -> None:
    """An adapter trained in bfloat16 comes back in float32, twice the size."""
    mixin = addons.MoESplitExpertsStateDictMixin
    original = mixin.to_hf

    def broken(self: Any, state_dict: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {key: tensor.float() for key, tensor in original(self, state_dict, *args, **kwargs).items()}

    mixin.to_hf = broken
