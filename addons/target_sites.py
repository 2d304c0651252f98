# SPDX-License-Identifier: Apache-2.0
"""The targets of modules with LoRA, read off their converted tensors.

A name in the config is never computed beside the weights: the shapes of a site's tensors go through the same conversion
as the tensors themselves, and the names are read off the converted keys. Whatever an adapter splits, renames or leaves
alone, the config says the same (clauses TGT-002, TGT-003, TGT-007, TGT-008, TGT-014, TGT-022).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from .experts import Form, MoESplitExpertsStateDictMixin
from .lora_sites import LoraSite
from .model_state import PEFT_PREFIX, AdapterContent, hf_tensors, native_tensors
from .modules import ModelPart

_KINDS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""(key or end of a key, shape) of tensors."""


class Target(NamedTuple):
    """What has LoRA of one shape, rank and scale: one module, or all experts of a layer alike.

    Attributes:
        names: the modules; or full names of fused parameters.
        fused: whether they are fused parameters.
        owners: the modules as the keys of their tensors have them.
        shapes: end of the key -> shape of the tensors of each.
        rank: of the LoRA.
        scale: the factor of the LoRA product, None where the model does not say it.
        dora: whether there is a DoRA magnitude.
        turned: whether the module holds its weight [in, out].
    """

    names: tuple[str, ...]
    fused: bool
    owners: tuple[str, ...]
    shapes: Shapes
    rank: int
    scale: float | None
    dora: bool
    turned: bool = False


def site_targets(content: AdapterContent, adapter: Any, form: Form) -> Iterator[Target]:
    """The targets of every site, in the form that `hf_tensors` gives the weights.

    Raises:
        ValueError: the model's adapter drops a tensor, or names one in a way PEFT cannot read; expert LoRA in a form
            that PEFT cannot hold.
    """
    alike: dict[Any, list[Target]] = {}
    for site in content.sites:
        if not is_own(adapter) or site.parameter:
            yield from [one._replace(turned=site.turned) for one in _converted(site, content.parts, adapter, form)]
            continue
        # Layers are alike: our own conversion, which keeps the module's name in front, is asked once for each shape.
        if site.kind not in alike:
            alike[site.kind] = [_relative(one, site) for one in _converted(site, content.parts, adapter, form)]
        module = site.module
        for one in alike[site.kind]:
            names = tuple([module + name for name in one.names])
            owners = tuple([module + owner for owner in one.owners]) if one.fused else names
            yield Target(names, one.fused, owners, one.shapes, one.rank, site.scale, one.dora, site.turned)


def _relative(target: Target, site: LoraSite) -> Target:
    names, owners = ([name.removeprefix(site.module) for name in several] for several in (target.names, target.owners))
    return target._replace(names=tuple(names), owners=tuple(owners))


def is_own(adapter: Any) -> bool:
    """Whether a model's adapter renames nothing but experts; None does not either."""
    mixin = MoESplitExpertsStateDictMixin
    return adapter is None or (type(adapter).to_hf is mixin.to_hf and type(adapter)._split is mixin._split)


def _converted(site: LoraSite, parts: Sequence[ModelPart], adapter: Any, form: Form) -> list[Target]:
    """The targets of one site, read off its converted tensors; grouped LoRA has to be converted (clause EXP-007)."""
    native = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in native_tensors(site).items()
    }
    converted = hf_tensors(native, parts, form)
    if site.grouped and converted.keys() == native.keys():
        raise ValueError(
            f"grouped expert LoRA must be converted by the model's state_dict_adapter, got it back as it was for "
            f"{site.module!r}: derive the adapter from MoESplitExpertsStateDictMixin"
        )
    owners = _owners(site, converted)
    if site.parameter:
        return [_bare(site, owners, form)]
    fused = site.grouped and form is not Form.PER_EXPERT and bool(declared_parameters(adapter))
    if site.grouped:
        _check_experts(site, getattr(adapter, "_is_gated_moe", True), fused)
    return _fused(site, owners, declared_parameters(adapter)) if fused else _modules(site, owners)


def _owners(site: LoraSite, converted: Mapping[str, torch.Tensor]) -> dict[str, Shapes]:
    """Module -> the ends of its keys and their shapes, sorted by module."""
    found: dict[str, dict[str, tuple[int, ...]]] = {kind: {} for kind in _KINDS}
    for key, tensor in converted.items():
        module, end = module_and_end(key)
        found[end][module] = tensor.shape
    matrices_a, matrices_b, magnitudes = found.values()
    if not matrices_a or matrices_a.keys() != matrices_b.keys() or magnitudes.keys() - matrices_a.keys():
        raise ValueError(
            f"the model's state_dict_adapter must keep all LoRA of {site.module!r}, got {sorted(converted)[:2]}... of "
            "it: the rest would be missing unnoticed"
        )
    return {
        module: tuple([(kind, tuple(of[module])) for kind, of in found.items() if module in of])
        for module in sorted(matrices_a)
    }


def _modules(site: LoraSite, owners: Mapping[str, Shapes]) -> list[Target]:
    alike: dict[Shapes, list[str]] = {}
    for module, shapes in owners.items():
        alike.setdefault(shapes, []).append(module)
    found = []
    for shapes, modules in alike.items():
        names = tuple(modules)
        found.append(Target(names, False, names, shapes, shapes[0][1][0], site.scale, "lora_magnitude" in site.tensors))
    return found


def _bare(site: LoraSite, owners: Mapping[str, Shapes], form: Form) -> Target:
    """LoRA that PEFT put on a bare parameter: it is listed by its full name (clause TGT-025)."""
    (owner, shapes), *more = owners.items()
    of_experts = shapes[0][1][0] != site.rank
    if more or (of_experts and form is not Form.FUSED):
        raise ValueError(
            f"LoRA that PEFT put on {site.parameter!r} must be saved as PEFT holds it, got other names or another form "
            "asked for: save without v4_compatible, legacy_paramwrapper_layout and a state_dict_adapter"
        )
    return Target((site.parameter,), True, (owner,), shapes, site.rank, site.scale, dora=False)


def _fused(site: LoraSite, owners: Mapping[str, Shapes], declared: tuple[str, ...]) -> list[Target]:
    """The fused parameters that this site's LoRA changes; gate_up is nested in the module of down, where both are."""
    by_projection = {"down" if name.endswith("down_proj") else "gate_and_up": name for name in declared}
    if missing := sorted(set(site.projections) - by_projection.keys()):
        raise ValueError(
            f"the state_dict_adapter must declare every fused parameter with LoRA, got none for {missing} of "
            f"{site.module!r}: list it in _v5_peft_target_parameters"
        )
    experts = min(owners)
    if list(owners) != [experts, f"{experts}.base_layer"][: len(site.projections)]:
        raise ValueError(
            f"fused LoRA must have one module for each of {site.projections}, got {sorted(owners)} for "
            f"{site.module!r}: nest them as PEFT does, by .base_layer"
        )
    found = []
    for one, owner in zip(site.projections, owners, strict=True):
        name = f"{experts}.{by_projection[one].rpartition('.')[2]}"
        rank = site.tensors[f"lora_{one}_A"].shape[2]
        found.append(Target((name,), True, (owner,), owners[owner], rank, site.scale, dora=False))
    return found


def declared_parameters(adapter: Any) -> tuple[str, ...]:
    """The fused parameters that a state-dict adapter declares, below a layer."""
    return tuple(getattr(adapter, "_v5_peft_target_parameters", ()))


def _check_experts(site: LoraSite, gated: bool, fused: bool) -> None:
    if len(site.projections) < 2:
        if not fused:
            raise ValueError(
                f"experts exported one by one must have LoRA on all projections, got {site.projections} of "
                f"{site.module!r}: PEFT converts both or none"
            )
        return
    outputs, inter = site.tensors["lora_gate_and_up_B"].shape[2], site.tensors["lora_down_A"].shape[1]
    if outputs != inter * (2 if gated else 1):
        raise ValueError(
            f"lora_gate_and_up_B of {site.module!r} must have {inter * (2 if gated else 1)} outputs for experts "
            f"{'with' if gated else 'without'} a gate, got {outputs}: say in _is_gated_moe of the state_dict_adapter "
            "which they are"
        )


def module_and_end(key: str) -> tuple[str, str]:
    """The module of a key of ``adapter_model.safetensors``, and what follows it; raises ValueError for other keys."""
    # Any other key PEFT would ignore without a word (clause ADP-011).
    head, dot, end = key.rpartition(".lora_")
    if f"lora_{end}" in _KINDS and dot and head.startswith(PEFT_PREFIX) and head != PEFT_PREFIX:
        return head[len(PEFT_PREFIX) :], f"lora_{end}"
    raise ValueError(
        "every key must be one that PEFT reads (base_model.model.<module>.lora_A.weight, lora_B.weight or "
        f"lora_magnitude_vector), got {key!r}: let the model's state_dict_adapter produce such names"
    )
