"""Whole trained models as the tests and the demo use them: the base they came from, LoRA on it, an adapter."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from spec_tests.builders import hf
from spec_tests.builders.combined import combine_projections, combined_projection_adapter
from spec_tests.builders.experts import apply_expert_lora, to_native_moe
from spec_tests.builders.lora import apply_dense_lora, randomise_lora

RANK, ALPHA = 4, 12
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Trained:
    """A kind of trained model.

    Attributes:
        family: of the base model (`hf.FAMILIES`), with ``base_settings``.
        dense: Linears that carry LoRA, by name or last component.
        experts: whether the grouped experts carry LoRA too.
        combined: whether q/k/v and gate/up are combined modules, which the model's adapter splits.
        adapter: which of the implementation's state-dict adapters the model carries, if any.
        save: keywords of the save that go with it.
    """

    family: str
    dense: tuple[str, ...] = ATTENTION
    experts: bool = False
    combined: bool = False
    use_dora: bool = False
    adapter: str | None = None
    base_settings: Mapping[str, Any] = field(default_factory=dict)
    save: Mapping[str, Any] = field(default_factory=dict)

    def base(self) -> nn.Module:
        """The untrained Hugging Face model."""
        return hf.causal_lm(self.family, **self.base_settings)

    def build(self, adapters: Mapping[str, Callable[..., Any]]) -> nn.Module:
        """The model as a trainer holds it, with LoRA whose B is still zero."""
        model = self.base()
        if self.experts:
            to_native_moe(model)
        if self.combined:
            combine_projections(model)
            model.state_dict_adapter = combined_projection_adapter(model.config)
        apply_dense_lora(model, self.dense, RANK, ALPHA, use_dora=self.use_dora)
        if self.experts:
            apply_expert_lora(model, RANK, ALPHA)
        if self.adapter:
            model.state_dict_adapter = adapters[self.adapter](model.config)
        return model

    def trained(self, adapters: Mapping[str, Callable[..., Any]]) -> nn.Module:
        """The model with LoRA far from zero."""
        model = self.build(adapters)
        randomise_lora(model)
        return model

    def peft_config(self, make: Callable[..., Any]) -> Any:
        """The PEFT config that belongs to it, made by the implementation's factory."""
        return make(dim=RANK, alpha=ALPHA, use_dora=self.use_dora, target_modules=list(self.dense))


KINDS: dict[str, Trained] = {
    "llama": Trained("llama"),
    "llama_tied": Trained("llama", dense=("q_proj", "v_proj", "down_proj"), base_settings={"tied": True}),
    "llama_dora": Trained("llama", dense=("q_proj", "down_proj"), use_dora=True),
    "llama_combined": Trained("llama", dense=("qkv_proj", "gate_up_proj"), combined=True),
    "llama_split": Trained("llama", dense=("model.layers.1.mlp.down_proj",)),
    "qwen3": Trained("qwen3", dense=("k_proj", "gate_proj")),
    "qwen3_moe_fused": Trained("qwen3_moe", experts=True, adapter="qwen3_moe"),
    "qwen3_moe_v4": Trained("qwen3_moe", experts=True, adapter="qwen3_moe", save={"v4_compatible": True}),
}


class SameNames:
    """A state-dict adapter with a fault: whatever the module, its tensors come out under one name."""

    def to_hf(self, state_dict: Mapping[str, torch.Tensor], **_kwargs: Any) -> dict[str, torch.Tensor]:
        """Name everything after one module."""
        return {re.sub(r"layers\.\d+\.q", "layers.0.q", name): tensor for name, tensor in state_dict.items()}


def same_names_adapter() -> SameNames:
    """An adapter under which two layers' tensors have one name."""
    return SameNames()


def same_numbers(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    """Whether two state dicts have the same keys and the same values, bit by bit."""
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
