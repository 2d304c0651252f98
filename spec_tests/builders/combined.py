"""Combined projections: qkv_proj and gate_up_proj in place of five Linears, and the adapter that splits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PARTS: dict[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}

# What stands after the module's name in a key: split by rows, or (lora_A) given to every part as it is.
_BY_ROWS = ("weight", "bias", "lora_B.weight", "lora_magnitude", "lora_magnitude_vector")
_SHARED = ("lora_A.weight",)


class RowView:
    """Stands where a part was: calls the combined module of ``owner`` and returns only this part's columns.

    Not an nn.Module, so the model's modules and parameters hold the combined projection alone. It reads the
    module at every call: LoRA may replace it and a wrapper may enclose it later.
    """

    def __init__(self, owner: nn.Module, combined: str, start: int, length: int) -> None:
        self.owner, self.combined, self.start, self.length = owner, combined, start, length

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [..., in] to [..., length]."""
        return getattr(self.owner, self.combined)(x).narrow(-1, self.start, self.length)


def combine_projections(model: nn.Module) -> list[str]:
    """Replace q/k/v and gate/up Linears by one Linear each, in place, with the same numbers; returns names.

    Rows are concatenated in the order q, k, v and gate, up. For dense models, before LoRA: apply that to the
    combined names.
    """
    made = []
    for name, owner in list(model.named_modules()):
        for combined, parts in PARTS.items():
            children = dict(owner.named_children())
            if all(type(children.get(part)) is nn.Linear for part in parts):
                _combine(owner, combined, parts)
                made.append(f"{name}.{combined}")
    if not made:
        raise ValueError("no q/k/v or gate/up projections to combine")
    return made


def _combine(owner: nn.Module, combined: str, parts: tuple[str, ...]) -> None:
    linears = [getattr(owner, part) for part in parts]
    rows = sum(linear.out_features for linear in linears)
    whole = nn.Linear(linears[0].in_features, rows, bias=linears[0].bias is not None, device="meta")
    whole.weight = nn.Parameter(torch.cat([linear.weight.detach() for linear in linears]))
    if whole.bias is not None:
        whole.bias = nn.Parameter(torch.cat([linear.bias.detach() for linear in linears]))
    start = 0
    for part, linear in zip(parts, linears, strict=True):
        delattr(owner, part)
        setattr(owner, part, RowView(owner, combined, start, linear.out_features))
        start += linear.out_features
    setattr(owner, combined, whole)


class CombinedProjectionSplit:
    """State-dict adapter: native keys and tensors in, Hugging Face ones out; usable alone or as a mixin.

    ``rows`` says how many rows each part has: {"qkv_proj": (q, k, v), "gate_up_proj": (gate, up)}. Tensors
    may be on the meta device.
    """

    rows: Mapping[str, tuple[int, ...]]

    def to_hf(self, state_dict: Mapping[str, torch.Tensor], **kwargs: Any) -> dict[str, torch.Tensor]:
        """Convert every tensor; keys that name no combined projection pass unchanged."""
        return {
            key: value
            for fqn, tensor in state_dict.items()
            for key, value in self.convert_single_tensor_to_hf(fqn, tensor, **kwargs)
        }

    def convert_single_tensor_to_hf(
        self, fqn: str, tensor: torch.Tensor, **_kwargs: Any
    ) -> list[tuple[str, torch.Tensor]]:
        """[(key, tensor)] of one native tensor: one pair, or one a part."""
        for combined, parts in PARTS.items():
            owner, found, kind = f".{fqn}".rpartition(f".{combined}.")
            if not found or kind not in _BY_ROWS + _SHARED:
                continue
            keys = [f"{owner}.{part}.{kind}".removeprefix(".") for part in parts]
            pieces = [tensor] * len(parts) if kind in _SHARED else tensor.split(list(self.rows[combined]))
            # Cloned: safetensors refuses tensors that share memory.
            return [(key, piece.clone()) for key, piece in zip(keys, pieces, strict=True)]
        return [(fqn, tensor)]


class CombinedProjectionAdapter(CombinedProjectionSplit):
    """The adapter of one model, with the rows given."""

    def __init__(self, rows: Mapping[str, tuple[int, ...]]) -> None:
        self.rows = dict(rows)


def combined_projection_adapter(
    config: Any, base: Callable[[Mapping[str, tuple[int, ...]]], Any] = CombinedProjectionAdapter
) -> Any:
    """The adapter for a Hugging Face config; ``base`` (say, an implementation's subclass) gets the rows."""
    return base(projection_rows(config))


def projection_rows(config: Any) -> dict[str, tuple[int, ...]]:
    """Rows of each part of the combined projections, from a Hugging Face config."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    return {"qkv_proj": (queries, keys, keys), "gate_up_proj": (config.intermediate_size,) * 2}
