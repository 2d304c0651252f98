"""A trained model as the tests and the demo use it: the base it came from, LoRA on it, an adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from spec_tests.builders.combined import combine_projections, combined_projection_adapter
from spec_tests.builders.experts import apply_expert_lora, to_native_moe
from spec_tests.builders.families import MODELS
from spec_tests.builders.lora import apply_dense_lora, randomise_lora
from spec_tests.consumers.forms import FUSED_LORA, LORA_ONE_BY_ONE, SEQ_TO_SEQ_LORA, is_read
from spec_tests.implementations.base import adapter_claim

RANK, ALPHA = 4, 12
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Trained:
    """A kind of trained model.

    Attributes:
        family: of the base model (`families.MODELS`), with ``base_settings``.
        dense: Linears that carry LoRA, by name or last component.
        more: further ones, with LoRA of another rank and alpha: (names, rank, alpha).
        experts: whether the grouped experts carry LoRA too, of ``expert_rank`` and ``expert_alpha``; of all layers,
            or of ``expert_layers``.
        combined: whether q/k/v and gate/up are combined modules, which the model's adapter splits.
        adapter: which of the implementation's state-dict adapters the model carries, if any.
        alter: what else a trainer did to the model, last; returns the model.
        save: keywords of the save that go with it.
        tags: what it is in the catalogue for.
    """

    family: str
    dense: tuple[str, ...] = ATTENTION
    more: tuple[tuple[tuple[str, ...], int, float], ...] = ()
    experts: bool = False
    expert_rank: int = RANK
    expert_alpha: float = ALPHA
    expert_layers: tuple[int, ...] | None = None
    combined: bool = False
    use_dora: bool = False
    adapter: str | None = None
    alter: Callable[[nn.Module], nn.Module] | None = None
    base_settings: Mapping[str, Any] = field(default_factory=dict)
    save: Mapping[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()

    @property
    def form(self) -> str | None:
        """The form of the adapter (`consumers.forms`); None where every reader takes it."""
        if self.auto_class == "AutoModelForSeq2SeqLM":
            return SEQ_TO_SEQ_LORA
        if not self.experts:
            return None
        return LORA_ONE_BY_ONE if self.save.get("v4_compatible") else FUSED_LORA

    @property
    def needs(self) -> tuple[str, ...]:
        """What of the implementation it takes to build one: the claim of its state-dict adapter."""
        return (adapter_claim(_BOUND_AS.get(self.adapter, self.adapter)),) if self.adapter else ()

    @property
    def loads(self) -> bool:
        """Whether the installed transformers has the base and the installed PEFT reads the adapter."""
        return self.family in MODELS and (self.form is None or is_read(self.form))

    def base(self) -> nn.Module:
        """The untrained Hugging Face model."""
        return MODELS[self.family].build(**self.base_settings)

    @property
    def auto_class(self) -> str:
        """The class of transformers that loads the base."""
        return MODELS[self.family].auto_class

    def inputs(self) -> dict[str, torch.Tensor]:
        """What the model is run on."""
        return MODELS[self.family].inputs()

    def build(self, adapters: Mapping[str, Callable[..., Any]]) -> nn.Module:
        """The model as a trainer holds it, with LoRA whose B is still zero."""
        model = self.base()
        if self.experts:
            to_native_moe(model)
        if self.combined:
            combine_projections(model)
            model.state_dict_adapter = combined_projection_adapter(model.config)
        for names, rank, alpha in ((self.dense, RANK, ALPHA), *self.more):
            apply_dense_lora(model, names, rank, alpha, use_dora=self.use_dora)
        if self.experts:
            apply_expert_lora(model, self.expert_rank, self.expert_alpha, self.expert_layers)
        if self.adapter:
            model.state_dict_adapter = _ADAPTERS[self.adapter](adapters, model)
        return model if self.alter is None else self.alter(model)

    def trained(self, adapters: Mapping[str, Callable[..., Any]]) -> nn.Module:
        """The model with LoRA far from zero."""
        model = self.build(adapters)
        randomise_lora(model)
        return model

    def peft_config(self, make: Callable[..., Any]) -> Any:
        """The PEFT config that belongs to it, made by the implementation's factory."""
        return make(dim=RANK, alpha=ALPHA, use_dora=self.use_dora, target_modules=list(self.dense))


_BOUND_AS = {"nemotron_h": "moe"}
_ADAPTERS: Mapping[str, Callable[[Mapping[str, Any], nn.Module], Any]] = {
    "qwen3_moe": lambda adapters, model: adapters["qwen3_moe"](model.config),
    "encoder": lambda adapters, _model: adapters["encoder"](),
    "nemotron_h": lambda adapters, _model: adapters["moe"](
        gated=False, parameters=("mixer.experts.up_proj", "mixer.experts.down_proj")
    ),
}
