"""MoE blocks as trainers hold them: one module of 3-D parameters for all experts, and expert LoRA."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from spec_tests.builders.lora import freeze_base
from spec_tests.builders.randomness import draw_normal, generator

if TYPE_CHECKING:
    from collections.abc import Iterable


class GroupedExperts(nn.Module):
    """E experts of hidden size H and intermediate size I in the native layout (input dimension first).

    ``gate_and_up_projs`` [E, H, 2I] (gate first, then up; not gated: [E, H, I]), ``down_projs`` [E, I, H].
    Gated experts compute down(silu(gate) * up), the others down(relu(up) ** 2).
    """

    def __init__(self, gate_and_up: torch.Tensor, down: torch.Tensor, gated: bool = True) -> None:
        super().__init__()
        self.gated = gated
        self.gate_and_up_projs = nn.Parameter(gate_and_up)
        self.down_projs = nn.Parameter(down)
        self.lora_dim, self.scale = 0, 0.0

    def add_lora(self, dim: int, alpha: float, source: torch.Generator) -> None:
        """Add expert LoRA of rank r: A [E, in, r], B [E, r, out], for both projections; B starts at zero."""
        self.lora_dim, self.scale = dim, alpha / dim
        for stem, base in (("gate_and_up", self.gate_and_up_projs), ("down", self.down_projs)):
            experts, size_in, size_out = base.shape
            lora_a = nn.Parameter(base.new_empty(experts, size_in, dim))
            draw_normal(lora_a, source, std=size_in**-0.5)
            self.register_parameter(f"lora_{stem}_A", lora_a)
            self.register_parameter(f"lora_{stem}_B", nn.Parameter(base.new_zeros(experts, dim, size_out)))

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The trainable parameters that LoRA added to this module (none before ``add_lora``)."""
        if not self.lora_dim:
            return []
        return [self.lora_gate_and_up_A, self.lora_gate_and_up_B, self.lora_down_A, self.lora_down_B]

    def randomise(self, source: torch.Generator, std: float) -> None:
        """Draw every expert's lora_B from a normal."""
        if self.lora_dim:
            draw_normal(self.lora_gate_and_up_B, source, std=std)
            draw_normal(self.lora_down_B, source, std=std)

    def forward(self, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        """Map hidden [T, H], top_k_index [T, k] (int) and top_k_weights [T, k] to [T, H]."""
        out = torch.zeros_like(hidden)
        # Over all experts, chosen or not: every rank then builds the same graph, as sharded backward needs.
        for expert in range(self.down_projs.shape[0]):
            token, slot = torch.where(top_k_index == expert)
            inner = self._project("gate_and_up", hidden[token], expert)
            if self.gated:
                gate, up = inner.chunk(2, dim=-1)
                inner = functional.silu(gate) * up
            else:
                inner = functional.relu(inner).square()
            result = self._project("down", inner, expert) * top_k_weights[token, slot, None]
            out = out.index_add(0, token, result)
        return out

    def _project(self, stem: str, x: torch.Tensor, expert: int) -> torch.Tensor:
        out = x @ getattr(self, f"{stem}_projs")[expert]
        if self.lora_dim:
            a, b = getattr(self, f"lora_{stem}_A")[expert], getattr(self, f"lora_{stem}_B")[expert]
            out = out + self.scale * ((x @ a) @ b)
        return out


class TopKRouter(nn.Module):
    """Softmax over experts, then the best ``top_k``; ``weight`` [E, H] has the name Hugging Face gives it."""

    def __init__(self, weight: torch.Tensor, top_k: int, normalise: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.top_k, self.normalise = top_k, normalise

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map hidden [T, H] to expert indices [T, k] and their weights [T, k]."""
        weights, index = torch.softmax(functional.linear(hidden, self.weight), dim=-1).topk(self.top_k, dim=-1)
        if self.normalise:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return index, weights.to(hidden.dtype)


class NativeMoEBlock(nn.Module):
    """The whole block (``gate``, ``experts``): the Hugging Face one differs between transformers 4 and 5."""

    def __init__(self, gate: TopKRouter, experts: GroupedExperts) -> None:
        super().__init__()
        self.gate, self.experts = gate, experts

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map hidden [B, S, H] to [B, S, H]."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        index, weights = self.gate(flat)
        return self.experts(flat, index, weights).reshape(hidden.shape)


def to_native_moe(model: nn.Module, gated: bool = True) -> list[str]:
    """Replace, in place, every MoE block (Qwen3-MoE, Nemotron-H) by a native one; returns the experts' names.

    Gated blocks hold the same numbers and compute the same. ``gated=False`` keeps only the up half, for tests
    of names and shapes: no Hugging Face model of this family computes that.
    """
    if model.config.model_type == "nemotron_h":
        return _to_native_experts(model)
    if model.config.model_type != "qwen3_moe":
        raise ValueError(f"only qwen3_moe and nemotron_h blocks are known here, not {model.config.model_type}")
    blocks = {name: m for name, m in model.named_modules() if hasattr(m, "gate") and hasattr(m, "experts")}
    if not blocks:
        raise ValueError("the model has no mixture-of-experts block")
    for name, block in blocks.items():
        gate_up, down = _native_weights(block.experts)
        if not gated:
            gate_up = gate_up.chunk(2, dim=-1)[1].contiguous()
        router = TopKRouter(
            block.gate.weight.detach().clone(), model.config.num_experts_per_tok, model.config.norm_topk_prob
        )
        parent, _, child = name.rpartition(".")
        native = NativeMoEBlock(router, GroupedExperts(gate_up, down, gated))
        setattr(model.get_submodule(parent), child, native)
    return [f"{name}.experts" for name in blocks]


def apply_expert_lora(
    model: nn.Module, dim: int, alpha: float, layers: Iterable[int] | None = None, seed: int = 0
) -> list[str]:
    """Add expert LoRA in place (all layers, or those of ``layers``) and freeze the base; returns names."""
    source, chosen = generator(seed), None if layers is None else {str(layer) for layer in layers}
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, GroupedExperts) and (chosen is None or _layer(name) in chosen)
    }
    missing = (chosen or set()) - {_layer(name) for name in found}
    if missing or not found:
        raise ValueError(f"no grouped experts in the model or in its layers {sorted(missing)}")
    for module in found.values():
        module.add_lora(dim, alpha, source)
    freeze_base(model)
    return list(found)


def _to_native_experts(model: nn.Module) -> list[str]:
    """Only the experts: router and shared experts of Nemotron-H stay Hugging Face's own."""
    found = [name for name, module in model.named_modules() if name.endswith(".experts")]
    for name in found:
        experts, parent = model.get_submodule(name), model.get_submodule(name.rpartition(".")[0])
        parent.experts = GroupedExperts(_transposed(experts.up_proj), _transposed(experts.down_proj), gated=False)
    return found


def _layer(name: str) -> str:
    """The number after ``layers`` in a module's name, as text; empty when there is none."""
    parts = name.split(".")
    return parts[parts.index("layers") + 1] if "layers" in parts else ""


def _native_weights(experts: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies of a Hugging Face block's weights as [E, H, 2I] and [E, I, H]."""
    if isinstance(experts, nn.ModuleList):  # transformers 4: a module an expert
        gate_up = torch.stack([torch.cat([e.gate_proj.weight, e.up_proj.weight]) for e in experts])
        down = torch.stack([e.down_proj.weight for e in experts])
    else:
        gate_up, down = experts.gate_up_proj, experts.down_proj
    return _transposed(gate_up), _transposed(down)


def _transposed(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().transpose(1, 2).clone(memory_format=torch.contiguous_format)
