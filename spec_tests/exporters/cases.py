# SPDX-License-Identifier: Apache-2.0
"""The catalogue of cases for exporters: what users train, one thing that exporters get wrong in each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import transformers

from spec_tests.builders import families, hf
from spec_tests.builders.randomness import generator

RANK, ALPHA = 4, 12.0
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
DENSE = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class ExportCase:
    """One thing to save.

    Attributes:
        id: its name.
        kind: ``adapter``, ``merged`` (LoRA in the weights) or ``model`` (all weights were trained, there is no LoRA).
        build: makes the base model, the same each time.
        lora: settings by their names in `peft.LoraConfig`; ``target_modules`` are ends of names.
        only: modules are targets whose full names have this in them.
        heads: modules that are trained whole beside LoRA.
        about: clauses beside those of loading that a wrong answer is against.
        control: every exporter of this kind can do it; a refusal is then a failure.
        ranks: processes that save together.
        auto_class: the class of transformers that reads it.
    """

    id: str
    kind: Literal["adapter", "merged", "model"]
    build: Callable[[], transformers.PreTrainedModel]
    lora: Mapping[str, Any] = field(default_factory=dict)
    only: str = ""
    heads: tuple[str, ...] = ()
    about: tuple[str, ...] = ()
    control: bool = False
    ranks: int = 1
    auto_class: str = "AutoModelForCausalLM"

    def modules(self, model: torch.nn.Module) -> dict[str, dict[str, float]]:
        """Full name of each module with LoRA -> its ``r``, ``alpha`` and the ``scale`` of its update."""
        ends = self.lora.get("target_modules", ())
        found = {}
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name.rsplit(".", 1)[-1] in ends and self.only in name:
                found[name] = self._numbers(name)
        return found

    def _numbers(self, name: str) -> dict[str, float]:
        rank, alpha = self.lora.get("r", RANK), self.lora.get("lora_alpha", ALPHA)
        rank = _of(self.lora.get("rank_pattern", {}), name, rank)
        alpha = _of(self.lora.get("alpha_pattern", {}), name, alpha)
        return {"r": rank, "alpha": alpha, "scale": alpha / (rank**0.5 if self.lora.get("use_rslora") else rank)}

    def settings(self, model: torch.nn.Module) -> dict[str, Any]:
        """What `peft.LoraConfig` takes; the targets by their full names, sorted."""
        if self.kind == "model":
            return {}
        task = {"AutoModelForSequenceClassification": "SEQ_CLS"}.get(self.auto_class, "CAUSAL_LM")
        more = {"modules_to_save": list(self.heads)} if self.heads else {}
        known = {"r": RANK, "lora_alpha": ALPHA, **self.lora, "task_type": task, **more}
        return {**known, "target_modules": sorted(self.modules(model))}


def values(case: ExportCase, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The trained values: no two modules have the same, and no matrix is its own transpose."""
    source, found = generator(7), {}
    weights = dict(model.named_parameters())
    for name, numbers in sorted(case.modules(model).items()):
        out, size = weights[f"{name}.weight"].shape
        rank = int(numbers["r"])
        found[f"{name}.lora_A"] = torch.randn(rank, size, generator=source) * size**-0.5
        found[f"{name}.lora_B"] = torch.randn(out, rank, generator=source) * 0.3
        if case.lora.get("use_dora"):
            norms = weights[f"{name}.weight"].detach().norm(dim=1)
            found[f"{name}.lora_magnitude"] = norms * (0.5 + torch.rand(out, generator=source))
    for name, weight in sorted(weights.items()):
        if case.kind == "model" or name.rpartition(".")[0] in case.heads:
            found[name] = weight.detach() + torch.randn(weight.shape, generator=source) * 0.1
    return found


@torch.no_grad()
def expected(case: ExportCase, model: torch.nn.Module, delta: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """The model that a reader must end up with: W + scale * B A in each weight, by the definitions of LoRA and DoRA."""
    weights = dict(model.named_parameters())
    for name, numbers in case.modules(model).items():
        weight = weights[f"{name}.weight"]
        changed = weight + numbers["scale"] * delta[f"{name}.lora_B"] @ delta[f"{name}.lora_A"]
        if f"{name}.lora_magnitude" in delta:
            changed = changed * (delta[f"{name}.lora_magnitude"] / changed.norm(dim=1))[:, None]
        weight.copy_(changed)
    for name in delta.keys() & weights.keys():
        weights[name].copy_(delta[name])
    return model.eval()


def _of(pattern: Mapping[str, float], name: str, default: float) -> float:
    return next((value for end, value in pattern.items() if name.endswith(end)), default)


def qwen2(**overrides: Any) -> transformers.PreTrainedModel:
    """A Qwen2ForCausalLM: attention as Llama's, with biases."""
    settings = {name: value for name, value in hf.SIZES.items() if name != "head_dim"} | overrides
    return hf.build(transformers.Qwen2ForCausalLM, transformers.Qwen2Config, "tiny/qwen2", settings, 0)


def tied() -> transformers.PreTrainedModel:
    """A Llama whose head is its embedding."""
    return hf.llama(tied=True)


def half() -> transformers.PreTrainedModel:
    """A Llama in bfloat16."""
    return hf.llama().to(torch.bfloat16)


def mixed() -> transformers.PreTrainedModel:
    """A Qwen3-MoE whose first layer has an ordinary MLP."""
    return hf.qwen3_moe(dense_layers=(0,))


QV = {"target_modules": ("q_proj", "v_proj")}
ALL = {"target_modules": DENSE}
CATALOGUE = [
    ExportCase("adapter-llama", "adapter", hf.llama, QV, control=True, about=("ADP-010", "ADP-011")),
    ExportCase("adapter-llama-all", "adapter", hf.llama, ALL, control=True),
    ExportCase("adapter-qwen2", "adapter", qwen2, ALL),
    ExportCase("adapter-qwen3", "adapter", hf.qwen3, ALL),
    ExportCase("adapter-tied", "adapter", tied, ALL),
    ExportCase("adapter-dora", "adapter", hf.llama, {**ALL, "use_dora": True}, about=("ADP-003", "ADP-015")),
    ExportCase("adapter-rslora", "adapter", hf.llama, {**QV, "use_rslora": True}, about=("ADP-017",)),
    ExportCase("adapter-fraction", "adapter", hf.llama, {**QV, "r": 8, "lora_alpha": 3}, about=("ADP-002", "ADP-017")),
    ExportCase(
        "adapter-ranks", "adapter", hf.llama, {**QV, "rank_pattern": {"v_proj": 2}}, about=("ADP-014", "ADP-017")
    ),
    ExportCase("adapter-alphas", "adapter", hf.llama, {**QV, "alpha_pattern": {"v_proj": 40}}, about=("ADP-017",)),
    ExportCase("adapter-one-layer", "adapter", hf.llama, QV, only="layers.1.", about=("ADP-010",)),
    ExportCase("adapter-head", "adapter", hf.llama, QV, heads=("lm_head",), about=("TGT-018", "ADP-021")),
    ExportCase(
        "adapter-classifier",
        "adapter",
        families.bert_classifier,
        {"target_modules": ("query", "value")},
        heads=("classifier",),
        about=("ADP-006", "ADP-021"),
        auto_class="AutoModelForSequenceClassification",
    ),
    ExportCase(
        "adapter-combined",
        "adapter",
        families.phi3,
        {"target_modules": ("qkv_proj", "gate_up_proj")},
        about=("TGT-008",),
    ),
    ExportCase("adapter-beside-experts", "adapter", hf.qwen3_moe, {"target_modules": ATTENTION}, about=("LOAD-005",)),
    ExportCase("adapter-dense-beside-experts", "adapter", mixed, ALL, about=("TGT-019",)),
    ExportCase("adapter-two-ranks", "adapter", hf.llama, QV, ranks=2, about=("RANK-001",)),
    ExportCase("merged-llama", "merged", hf.llama, ALL, control=True),
    ExportCase("merged-qwen2", "merged", qwen2, ALL),
    ExportCase("merged-tied", "merged", tied, ALL, about=("IDX-004", "CFG-022")),
    ExportCase("merged-dora", "merged", hf.llama, {**ALL, "use_dora": True}),
    ExportCase("model-llama", "model", hf.llama, control=True),
    ExportCase("model-qwen2", "model", qwen2),
    ExportCase("model-tied", "model", tied, about=("IDX-004", "CFG-022")),
    ExportCase("model-half", "model", half, about=("CFG-007",)),
    ExportCase("model-experts", "model", hf.qwen3_moe),
    ExportCase("model-two-ranks", "model", hf.llama, ranks=2, about=("RANK-001",)),
]
BY_ID = {case.id: case for case in CATALOGUE}
