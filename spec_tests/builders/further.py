# SPDX-License-Identifier: Apache-2.0
"""Further kinds of trained models: what users train beside a Llama with one rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from spec_tests.builders.randomness import draw_normal, generator
from spec_tests.builders.trained import ALPHA, ATTENTION, RANK, Trained
from spec_tests.builders.wrappers import wrap

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def train(*modules: str) -> Callable[[nn.Module], nn.Module]:
    """An alteration: these modules were trained in full."""

    def trained(model: nn.Module) -> nn.Module:
        source = generator(3)
        for name in modules:
            for parameter in model.get_submodule(name).parameters():
                draw_normal(parameter.requires_grad_(), source, std=0.5)
        return model

    return trained


def wrapped(model: nn.Module) -> nn.Module:
    """An alteration: activation checkpointing and compilation inside the model."""
    return wrap(wrap(model, "model.layers.0.self_attn", "checkpoint"), "model.layers.1.mlp", "compile")


class Encoder(nn.Module):
    """A trainer's wrapper of an encoder, which holds it as ``model``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.config, self.state_dict_adapter = model, model.config, model.state_dict_adapter

    def forward(self, **inputs: torch.Tensor) -> Any:
        """The encoder's output."""
        return self.model(**inputs)


@dataclass(frozen=True)
class Injected(Trained):
    """A model whose LoRA PEFT injected; ``settings`` of `peft.LoraConfig` beside rank and alpha."""

    settings: Mapping[str, Any] = field(default_factory=dict)

    def build(self, adapters: Mapping[str, Callable[..., Any]]) -> nn.Module:
        """The model as `peft.get_peft_model` returns it."""
        import peft

        del adapters
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return peft.get_peft_model(self.base(), self.peft_config(None))

    def trained(self, adapters: Mapping[str, Callable[..., Any]]) -> nn.Module:
        """The model with everything that PEFT trains far from where it began."""
        model, source = self.build(adapters), generator(0)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                draw_normal(parameter, source, std=0.5)
        return model

    def peft_config(self, make: Any) -> Any:
        """The `peft.LoraConfig` itself."""
        import peft

        del make
        return peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(self.dense), **self.settings)


HEADS: dict[str, Trained] = {
    "bert_classifier": Trained("bert_classifier", dense=("query", "value"), alter=train("classifier")),
    "roberta_classifier": Trained("roberta_classifier", dense=("query", "value"), alter=train("classifier")),
    # One head's name ends like the other's: PEFT takes both for the one.
    "distilbert_classifier": Trained(
        "distilbert_classifier", dense=("q_lin", "v_lin"), alter=train("pre_classifier", "classifier")
    ),
    "distilbert_half": Trained("distilbert_classifier", dense=("q_lin",), alter=train("classifier")),
    "llama_classifier": Trained("llama_classifier", alter=train("score")),
    # PEFT asks for the head's tensors also when it was not trained.
    "bert_questions": Trained("bert_questions", dense=("query", "value")),
}
PATTERNS: dict[str, Trained] = {
    "llama_ranks": Trained(
        "llama",
        dense=("q_proj",),
        more=((("k_proj", "down_proj"), 2, 12), (("model.layers.1.self_attn.v_proj",), 8, 40)),
    ),
    "llama_alphas": Trained("llama", dense=("q_proj",), more=((("k_proj",), RANK, 3),)),
    "qwen3_moe_ranks": Trained(
        "qwen3_moe", experts=True, expert_rank=2, expert_alpha=12, adapter="qwen3_moe", dense=("q_proj",)
    ),
}
INJECTED: dict[str, Trained] = {
    "llama_injected": Injected("llama", dense=("q_proj", "down_proj"), settings={"task_type": "CAUSAL_LM"}),
    "llama_injected_rslora": Injected("llama", settings={"use_rslora": True}),
    "llama_injected_patterns": Injected(
        "llama", settings={"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 20}, "use_dora": True}
    ),
    "bert_injected_classifier": Injected("bert_classifier", dense=("query",), settings={"task_type": "SEQ_CLS"}),
}
DENSE_BESIDE_EXPERTS: dict[str, Trained] = {
    name: Trained(
        "qwen3_moe",
        dense=(*ATTENTION, "gate_proj", "up_proj", "down_proj"),
        experts=experts,
        adapter="qwen3_moe",
        base_settings={"dense_layers": (0,)},
        save=save,
    )
    for name, experts, save in (
        ("qwen3_moe_dense_and_fused", True, {}),
        ("qwen3_moe_dense_and_v4", True, {"v4_compatible": True}),
        ("qwen3_moe_dense_alone", False, {}),
    )
}
FAMILIES: dict[str, Trained] = {
    "phi3": Trained("phi3", dense=("qkv_proj", "gate_up_proj")),
    "t5": Trained("t5", dense=("q", "v", "wo")),
    "vlm": Trained("vlm", dense=("q_proj", "down_proj")),
    "encoder": Trained("bert_encoder", dense=("query", "value"), adapter="encoder", alter=Encoder),
    "llama_wrapped": Trained("llama", dense=(*ATTENTION, "down_proj"), alter=wrapped),
    "qwen3_moe_some_layers": Trained("qwen3_moe", experts=True, expert_layers=(1,), adapter="qwen3_moe"),
    "nemotron_h": Trained("nemotron_h", experts=True, adapter="nemotron_h"),
}
