# SPDX-License-Identifier: Apache-2.0
"""Grouped experts <-> Hugging Face names and layouts.

A trainer keeps the experts of a layer in 3-D parameters of one module. Readers want either one pair of
2-D LoRA tensors per expert and projection (transformers 4; vLLM, SGLang: clauses LOAD-006, LOAD-007), or the fused form
that PEFT's ParamWrapper uses for the 3-D parameters of transformers 5 (PEFT >= 0.19.1; huggingface/peft#3165).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .modules import unwrapped

EXPERT_BASE = re.compile(r"(?P<experts>.+)\.(?P<projection>gate_and_up|down)_projs")
EXPERT_LORA = re.compile(r"(?:(?P<experts>.+)\.)?(?P<tensor>lora_(?P<projection>gate_and_up|down)_(?P<matrix>[AB]))")


class Form(enum.Enum):
    """How the LoRA of grouped experts is laid out; the value is what ``to_hf`` is asked with."""

    FUSED = ()
    FUSED_LEGACY = ("legacy_paramwrapper_layout",)
    PER_EXPERT = ("v4_compatible",)

    @classmethod
    def of(cls, v4_compatible: bool, legacy_paramwrapper_layout: bool = False) -> Form:
        """The form that these options of the hooks ask for."""
        if v4_compatible:
            return cls.PER_EXPERT
        return cls.FUSED_LEGACY if legacy_paramwrapper_layout else cls.FUSED

    @property
    def keywords(self) -> dict[str, bool]:
        """Those of ``to_hf``: an adapter that has one form only need not know the others'."""
        return dict.fromkeys(self.value, True)


class MoESplitExpertsStateDictMixin:
    """State-dict conversion for models whose experts are grouped; base class of a model's adapter.

    A subclass may override `_is_gated_moe` (False: experts have no gate projection, e.g. ReLU2; clauses EXP-006,
    TGT-013) and `_v5_peft_target_parameters` (the fused parameters below a layer; empty: always one name per expert).
    """

    @property
    def _is_gated_moe(self) -> bool:
        return True

    @property
    def _v5_peft_target_parameters(self) -> tuple[str, ...]:
        return ()

    def to_hf(
        self,
        state_dict: dict[str, torch.Tensor],
        exclude_key_regex: str | None = None,
        v4_compatible: bool = False,
        legacy_paramwrapper_layout: bool = False,
        **_kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        """Convert native tensors to Hugging Face ones, in their dtypes; others pass unchanged (clause EXP-008).

        Args:
            state_dict: native fully qualified name -> tensor, with or without ``base_model.model.`` in
                front. Expert LoRA as in `LoraSite.tensors`; base weights ``gate_and_up_projs``
                [experts, hidden, 2 * inter] (``inter`` when not gated) and ``down_projs`` [experts, inter, hidden].
            exclude_key_regex: converted keys that this matches at their start are dropped.
            v4_compatible: one pair per expert instead of the fused form.
            legacy_paramwrapper_layout: the fused LoRA of PEFT up to 0.19.0, which takes the parameter for [E, in, out]:
                A [E * rank, out] and B [in, rank * E] (clause EXP-009).
            **_kwargs: ignored; checkpointers pass more than this conversion needs.

        Returns:
            Per expert ``<experts>.<e>.<projection>`` with ``lora_A.weight`` [rank, in], ``lora_B.weight``
            [out, rank] and ``weight`` [out, in] (clause EXP-001); gate is the first half of the outputs of
            gate_and_up, and up the second (clause EXP-002). Fused, with E experts: ``lora_A.weight`` [E * rank, in],
            expert-major rows, ``lora_B.weight`` [out, rank * E], rank-major columns (clauses EXP-003, EXP-004),
            and base weights ``gate_up_proj`` and ``down_proj`` [E, out, in].
        """
        fused = not v4_compatible and bool(self._v5_peft_target_parameters)
        both = _modules_with_both_projections(state_dict) if fused else set()
        converted: dict[str, torch.Tensor] = {}
        for name, tensor in state_dict.items():
            base, match = EXPERT_BASE.fullmatch(name), EXPERT_LORA.fullmatch(name)
            if base is not None:
                converted.update(self._base_weights(base, tensor, fused))
            elif match is None or not match["experts"]:
                converted[name] = tensor
            elif fused:
                matrix = {"A": "B", "B": "A"}[match["matrix"]] if legacy_paramwrapper_layout else match["matrix"]
                owner = _fused_owner(match, nested=match["experts"] in both)
                converted[f"{owner}.lora_{matrix}.weight"] = _fused(
                    tensor.transpose(1, 2) if match["matrix"] == "A" else tensor, matrix
                )
            else:
                converted.update(self._per_expert(match, tensor))
        if exclude_key_regex:
            converted = {name: t for name, t in converted.items() if not re.match(exclude_key_regex, name)}
        return converted

    def splits(self, name: str, form: Form) -> bool:
        """Whether `to_hf` splits this base weight in this form, which takes the whole of it."""
        per_expert = form is Form.PER_EXPERT or not self._v5_peft_target_parameters
        return per_expert and EXPERT_BASE.fullmatch(name) is not None

    def _base_weights(self, match: re.Match[str], tensor: torch.Tensor, fused: bool) -> dict[str, torch.Tensor]:
        if fused:
            up = "gate_up_proj" if self._is_gated_moe else "up_proj"
            name = "down_proj" if match["projection"] == "down" else up
            return {f"{match['experts']}.{name}": tensor.transpose(1, 2)}
        return self._split(match["experts"], match["projection"], tensor, "weight")

    def _per_expert(self, match: re.Match[str], tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        return self._split(match["experts"], match["projection"], tensor, f"lora_{match['matrix']}.weight")

    def _split(self, experts: str, projection: str, tensor: torch.Tensor, kind: str) -> dict[str, torch.Tensor]:
        if hasattr(tensor, "full_tensor"):  # experts one by one do not fit shards over the experts
            tensor = tensor.full_tensor()
        gated = ["gate_proj", "up_proj"] if self._is_gated_moe else ["up_proj"]
        names = ["down_proj"] if projection == "down" else gated
        shared = len(names) == 1 or kind == "lora_A.weight"
        pieces = [tensor] * len(names) if shared else tensor.chunk(2, dim=2)
        converted: dict[str, torch.Tensor] = {}
        for name, piece in zip(names, pieces, strict=True):
            turned = piece.transpose(1, 2)
            # Copied: gate and up would share one lora_A, and at rank 1 a transpose is contiguous as it is.
            copy = turned.clone(memory_format=torch.contiguous_format)
            for expert, matrix in enumerate(copy.unbind(0)):
                converted[f"{experts}.{expert}.{name}.{kind}"] = matrix
        return converted


class Qwen3MoeStateDictAdapter(MoESplitExpertsStateDictMixin):
    """The conversion of Qwen3-MoE: gated experts, fused under transformers 5."""

    def __init__(self, config: Any = None) -> None:
        self.config = config

    @property
    def _v5_peft_target_parameters(self) -> tuple[str, ...]:
        return ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def _is_qwen3_moe(model: nn.Module) -> bool:
    """Whether the model's ``state_dict_adapter`` is the Qwen3-MoE one (clause TGT-009)."""
    return isinstance(getattr(unwrapped(model), "state_dict_adapter", None), Qwen3MoeStateDictAdapter)


def _modules_with_both_projections(names: Mapping[str, Any]) -> set[str]:
    found: dict[str, set[str]] = {}
    for name in names:
        if match := EXPERT_LORA.fullmatch(name):
            found.setdefault(match["experts"], set()).add(match["projection"])
    return {experts for experts, projections in found.items() if len(projections) == 2}


def _fused_owner(match: re.Match[str], nested: bool) -> str:
    # PEFT wraps the owning module once per parameter, the first registered innermost: with two targeted parameters
    # gate_up is reached through the outer wrapper's base_layer, with one there is no nesting (clause EXP-005).
    return match["experts"] + (".base_layer" if nested and match["projection"] == "gate_and_up" else "")


def _fused(tensor: torch.Tensor, matrix: str) -> torch.Tensor:
    experts, rank, size = tensor.shape
    if matrix == "A":  # row e * rank + k
        return tensor.reshape(experts * rank, size)
    return tensor.permute(2, 1, 0).reshape(size, rank * experts)  # column k * experts + e
