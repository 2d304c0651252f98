"""Descriptions of models with grouped expert LoRA, and what their export has to hold, number by number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import transformers
from hypothesis import strategies as st
from torch import nn

from spec_tests.builders.experts import GroupedExperts
from spec_tests.builders.randomness import draw_normal, generator

if TYPE_CHECKING:
    from spec_tests.implementations.base import Implementation

PREFIX = "base_model.model."


@dataclass(frozen=True)
class MoESpec:
    """``layers`` numbers the layers with expert LoRA; sizes as in `GroupedExperts`; hidden may be 2 * inter."""

    layers: tuple[int, ...] = (0, 1)
    experts: int = 3
    hidden: int = 16
    inter: int = 24
    rank: int = 2
    gated: bool = True
    dtype: torch.dtype = torch.float32

    def build(self) -> nn.Module:
        """A model whose only LoRA is expert LoRA; no two tensors have the same numbers."""
        root, source = nn.Module(), generator(self.rank)
        root.model = nn.Module()
        root.model.layers = nn.ModuleDict()
        for layer in self.layers:
            block = nn.Module()
            block.mlp = nn.Module()
            block.mlp.experts = self._experts(source)
            root.model.layers[str(layer)] = block
        root.config = transformers.PretrainedConfig(architectures=["Qwen3MoeForCausalLM"], name_or_path="org/moe")
        return root

    def _experts(self, source: torch.Generator) -> GroupedExperts:
        outputs = self.inter * (2 if self.gated else 1)
        base = torch.zeros(self.experts, self.hidden, outputs), torch.zeros(self.experts, self.inter, self.hidden)
        module = GroupedExperts(base[0].to(self.dtype), base[1].to(self.dtype), self.gated)
        module.requires_grad_(False)
        module.add_lora(self.rank, 2 * self.rank, source)
        for parameter in module.adapter_parameters():
            draw_normal(parameter, source, std=1.0)
        return module

    def paths(self) -> list[str]:
        """The names of the modules that hold the experts."""
        return [f"model.layers.{layer}.mlp.experts" for layer in self.layers]

    def projections(self) -> tuple[str, ...]:
        """What an expert's projections are called in Hugging Face models."""
        return ("gate_proj", "up_proj", "down_proj") if self.gated else ("up_proj", "down_proj")

    def expected_modules(self) -> list[str]:
        """One name per layer, expert and projection, sorted."""
        return sorted(
            f"{path}.{expert}.{projection}"
            for path in self.paths()
            for expert in range(self.experts)
            for projection in self.projections()
        )

    def expected_change(self, experts: GroupedExperts, expert: int, projection: str) -> torch.Tensor:
        """What the trainer adds (before scaling) to one expert's weight [out, in] of one projection."""
        if projection == "down_proj":
            return (experts.lora_down_A[expert] @ experts.lora_down_B[expert]).T
        change = (experts.lora_gate_and_up_A[expert] @ experts.lora_gate_and_up_B[expert]).T
        if not self.gated:
            return change
        return change[: self.inter] if projection == "gate_proj" else change[self.inter :]


def moe_model(impl: Implementation, spec: MoESpec, adapter: str = "qwen3_moe") -> nn.Module:
    """The model, with a state-dict adapter of the implementation: that of Qwen3-MoE, or ``moe``."""
    model = spec.build()
    argument = model.config if adapter == "qwen3_moe" else spec.gated
    model.state_dict_adapter = impl.adapters[adapter](argument)
    return model


def without_lora(experts: nn.Module, *projections: str) -> None:
    """Take the LoRA of these projections, by default of both, from grouped experts."""
    for projection in projections or ("gate_and_up", "down"):
        for matrix in "AB":
            delattr(experts, f"lora_{projection}_{matrix}")


def moes(gated: st.SearchStrategy[bool] | None = None) -> st.SearchStrategy[MoESpec]:
    """Models of one to three layers (not always from zero), where shapes may or may not tell layouts apart."""
    return st.builds(
        MoESpec,
        layers=st.lists(st.integers(0, 12), min_size=1, max_size=3, unique=True).map(tuple),
        experts=st.integers(1, 5),
        hidden=st.sampled_from([8, 16, 24]),
        inter=st.sampled_from([8, 16, 24]),
        rank=st.integers(1, 3),
        gated=st.just(True) if gated is None else gated,
    )


def fused_change(a: torch.Tensor, b: torch.Tensor, experts: int, rank: int, expert: int) -> torch.Tensor:
    """What PEFT >= 0.19.1 adds for one expert [out, in], element by element as EXP-004 says it."""
    change = torch.zeros(b.shape[0], a.shape[1])
    for k in range(rank):
        change += torch.outer(b[:, k * experts + expert].float(), a[expert * rank + k].float())
    return change
