# SPDX-License-Identifier: Apache-2.0
"""Merge trained LoRA into the weights of a whole model, the live model unchanged.

W + scale * B @ A, computed in float32 and rounded once to the dtype of W (clauses MRG-002, MRG-003).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from .gathering import raise_first
from .lora_sites import LoraSite, lora_sites
from .modules import ModelPart
from .ranks import attempt
from .whole import wholes

_MERGED = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def check_mergeable(part: ModelPart) -> None:
    """Look for what cannot be merged. Not collective: ranks agree on the outcome before any of them begins.

    Raises:
        ValueError: as `lora_sites`; a scale is not known; a weight is quantised, or another module has it as well; PEFT
            has merged the LoRA already (clause MRG-004).
    """
    sites = lora_sites([part])
    weights, targets = _weights(part, sites), _targets(sites)
    for name, site in sorted(targets.items()):
        if site.parameter:
            raise ValueError(
                f"LoRA must stand on a module to be merged, got that of the bare parameter {site.parameter!r}: merge "
                "it by PEFT (merge_and_unload)"
            )
        if name in weights:
            _check_site(weights[name], site, name, part.modules[site.module])
        if name not in weights or tuple(weights[name].shape) != _shape_of_update(site, name):
            raise ValueError(
                f"LoRA must stand on the matrix of a linear layer to be merged, got it on {site.module!r}: merge it by "
                "PEFT (merge_and_unload)"
            )
        if others := [other for other, tensor in weights.items() if tensor is weights[name] and other != name]:
            raise ValueError(
                f"a weight with LoRA must be one module's own, got {name!r}, which is {others[0]!r} as well: untie "
                "them, or save an adapter"
            )


def merged_parts(parts: Sequence[ModelPart]) -> list[ModelPart]:
    """The parts with their LoRA in their weights, and no LoRA besides; sharded as they were, under the base's names.

    Collective for sharded parameters, each of which is whole on every rank for a moment. The parts have passed
    `check_mergeable`, on every rank.

    Raises:
        PeerError: as `wholes`; whatever fails is raised behind the last collective (clause RANK-017).
    """
    failures: list[BaseException] = []
    merged = [_merged_part(part, failures) for part in parts]
    raise_first(failures)
    return merged


def _merged_part(part: ModelPart, failures: list[BaseException]) -> ModelPart:
    sites = lora_sites([part])
    new: dict[str, Any] = _weights(part, sites)
    for name, site in sorted(_targets(sites).items()):
        new[name], failure = attempt(_merged, new[name], site, name)
        failures += [] if failure is None else [failure]
    plain = {site.module for site in sites}
    return replace(part, parameters=new, buffers={_base_name(name, plain): t for name, t in part.buffers.items()})


def _weights(part: ModelPart, sites: Sequence[LoraSite]) -> dict[str, Any]:
    lora = {id(tensor) for site in sites for tensor in site.tensors.values()}
    plain = {site.module for site in sites}
    return {_base_name(name, plain): tensor for name, tensor in part.parameters.items() if id(tensor) not in lora}


def _targets(sites: Sequence[LoraSite]) -> dict[str, LoraSite]:
    return {name: site for site in sites for name in _weights_of(site)}


def _base_name(name: str, plain: set[str]) -> str:
    # PEFT holds the layer itself as a child of its own.
    module, _, end = name.rpartition(".")
    inner = module.removesuffix(".base_layer")
    return f"{inner}.{end}" if inner != module and inner in plain else name


def _weights_of(site: LoraSite) -> list[str]:
    return [f"{site.module}.{projection}_projs" for projection in site.projections] or [f"{site.module}.weight"]


def _kind(site: LoraSite, name: str) -> str:
    return name.rpartition(".")[2].removesuffix("_projs") if site.grouped else ""


def _ends(kind: str) -> tuple[str, str]:
    return (f"lora_{kind}_A", f"lora_{kind}_B") if kind else ("lora_A.weight", "lora_B.weight")


def _shape_of_update(site: LoraSite, name: str) -> tuple[int, ...]:
    a, b = (site.tensors[end].shape for end in _ends(_kind(site, name)))
    if site.grouped:
        return a[0], a[1], b[2]
    return (a[1], b[0]) if site.turned else (b[0], a[1])


def _merged(weight: Any, site: LoraSite, name: str) -> torch.Tensor:
    with torch.no_grad():
        whole = wholes({**site.tensors, "": weight})
        result = _sum(whole.pop(""), float(site.scale or 0), whole, _kind(site, name), site.turned)
        return _sharded_as(weight, result.to(weight.dtype))


def _check_site(weight: Any, site: LoraSite, name: str, owner: Any) -> None:
    if site.scale is None:
        raise ValueError(
            f"the scale of {site.module!r} must be known to merge its LoRA, got none: give its module the number as "
            "the attribute 'scale'"
        )
    if weight.dtype not in _MERGED or hasattr(weight, "quant_state"):
        raise ValueError(
            f"a weight must be in floating point to merge LoRA into it, got {name!r} in {weight.dtype}: dequantise the "
            "model first, or save an adapter"
        )
    if getattr(owner, "merged_adapters", None):
        raise ValueError(
            f"LoRA must be apart from the weights, got that of {site.module!r} merged into them already: unmerge it "
            "first (unmerge_adapter)"
        )


def _sum(
    weight: torch.Tensor, scale: float, factors: Mapping[str, torch.Tensor], kind: str, turned: bool
) -> torch.Tensor:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    a, b = (factors[end].to(device=weight.device, dtype=dtype) for end in _ends(kind))
    # Grouped experts hold A [experts, in, rank] and B [experts, rank, out], as their weight; others the reverse.
    update = scale * (a @ b if kind else b @ a)
    result = weight + (update.T if turned else update)
    magnitude = factors.get("lora_magnitude")
    if magnitude is not None:
        across = 0 if turned else 1
        norm = torch.linalg.vector_norm(result, dim=across, keepdim=True)
        result = result * (magnitude.to(device=weight.device, dtype=dtype).reshape(norm.shape) / norm)
    return result


def _sharded_as(weight: Any, whole: torch.Tensor) -> torch.Tensor:
    if not hasattr(weight, "full_tensor"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    # Every rank has the whole: each keeps its own piece, and nothing travels.
    return distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None)
