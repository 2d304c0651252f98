# SPDX-License-Identifier: Apache-2.0
"""The plan of an adapter: what carries LoRA, as ``adapter_config.json`` and the weights call it.

A name in the config is never computed beside the weights: the shapes of a site's tensors go through the same conversion
as the tensors themselves, and the names are read off the converted keys. Whatever an adapter splits, renames or leaves
alone, the config says the same (clauses TGT-002, TGT-003, TGT-007, TGT-008, TGT-014, TGT-022).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from .experts import Form, MoESplitExpertsStateDictMixin
from .lora_sites import LoraSite, plain_experts, trained_beside_lora
from .model_state import PEFT_PREFIX, AdapterContent, hf_tensors, native_tensors, state_dict_adapter
from .modules import ModelPart

_KINDS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
_ENDS = tuple(f".{kind}" for kind in _KINDS)
_LIKE_EXPERTS = frozenset({"down_proj", "gate", "gate_proj", "up_proj"})

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""(key or end of a key, shape) of tensors."""


@dataclass(frozen=True)
class Target:
    """What has LoRA of one shape, rank and scale: one module, or all experts of a layer alike.

    Attributes:
        names: the modules; or full names of fused parameters.
        fused: whether they are fused parameters.
        owners: the modules as the keys of their tensors have them.
        shapes: end of the key -> shape of the tensors of each.
        rank: of the LoRA.
        scale: the factor of the LoRA product, None where the model does not say it.
        dora: whether there is a DoRA magnitude.
    """

    names: tuple[str, ...]
    fused: bool
    owners: tuple[str, ...]
    shapes: Shapes
    rank: int
    scale: float | None
    dora: bool


@dataclass(frozen=True)
class Adapter:
    """What the two files of an adapter hold.

    Attributes:
        targets: sorted by their first name.
        declared: the fused parameters as the model's state-dict adapter declares them, below a layer; in its order.
        plain_experts: modules of grouped experts without LoRA.
        has_experts: whether the model has experts, with LoRA or without.
        heads: names for ``modules_to_save``.
        head_shapes: of the tensors of the heads, by their whole keys.
    """

    targets: tuple[Target, ...] = ()
    declared: tuple[str, ...] = ()
    plain_experts: tuple[str, ...] = ()
    has_experts: bool = False
    heads: tuple[str, ...] = ()
    head_shapes: Shapes = ()

    @cached_property
    def target_modules(self) -> list[str]:
        """The modules that the config lists as modules, sorted (clauses TGT-001, TGT-006)."""
        dense = [name for one in self.targets if not one.fused for name in one.names]
        return sorted(set(dense).difference(self._misread) if self._misread else dense)

    @cached_property
    def target_parameters(self) -> list[str]:
        """The fused parameters as declared, or in full where not every layer's experts carry all; dense weights.

        PEFT attaches LoRA to all parameters that end in a listed name, with tensors or not (clauses TGT-010, TGT-020).
        """
        fused = sorted(name for one in self.targets if one.fused for name in one.names)
        ends = {name: {full for full in fused if full.endswith(f".{name}")} for name in self.declared}
        used = {name: full for name, full in ends.items() if full}
        everywhere = len({len(full) for full in used.values()}) <= 1 and not self.plain_experts
        short = everywhere and sum(map(len, used.values())) == len(fused)
        return [*(used if short else fused), *(f"{name}.weight" for name in sorted(self._misread))]

    @cached_property
    def _misread(self) -> frozenset[str]:
        """Modules that the config lists by their weights.

        In a model with experts PEFT >= 0.20 takes a dense gate_proj for the experts' wherever it stands, and gives the
        dense module no LoRA, without an error. As a parameter it is found, under the same keys (clause TGT-019).
        """
        dense = (one.names for one in self.targets if not one.fused) if self.has_experts else ()
        outside = (name for names in dense for name in names if ".experts." not in name)
        return frozenset(name for name in outside if name.rpartition(".")[2] in _LIKE_EXPERTS)

    def patterns(self, target: Target) -> list[str]:
        """The keys of a target in ``rank_pattern`` and ``alpha_pattern``, regular expressions; one for all experts."""
        names = [f"{name}.weight" if name in self._misread else name for name in target.names]
        short = re.sub(r"\.experts\.\d+\.", r".experts.\\d+.", "\n".join(names))
        return [name.replace(".", r"\.") for name in sorted(set(short.split("\n")))]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Key -> shape of every tensor of ``adapter_model.safetensors``."""
        lora = {
            f"{PEFT_PREFIX}{owner}.{end}": shape
            for one in self.targets
            for owner in one.owners
            for end, shape in one.shapes
        }
        return lora | dict(self.head_shapes)


def adapter_of(content: AdapterContent, form: Form) -> Adapter:
    """The plan for this rank's model parts, in the form that `hf_tensors` gives the weights.

    Raises:
        ValueError: parameters other than LoRA and a head are trained (clause TGT-018); the model's adapter drops a
            tensor, gives two one name, or names one in a way PEFT cannot read; expert LoRA in a form that PEFT cannot
            hold.
    """
    parts, head = content.parts, content.heads
    if beside := [name for name in trained_beside_lora(parts, content.sites) if name not in head.tensors]:
        raise ValueError(
            f"every trained parameter must be LoRA or of a head, got {len(beside)} others, first {beside[0]!r}: they "
            "would be lost. Freeze what was not trained (requires_grad=False), or save the whole model"
        )
    adapter = state_dict_adapter(parts)
    targets = list(_targets(content, adapter, form))
    plan = Adapter(
        targets=tuple(sorted(targets, key=lambda one: one.names)),
        declared=_declared(adapter) if any(one.fused for one in targets) else (),
        plain_experts=tuple(plain_experts(parts, content.sites)),
        has_experts=any(".experts." in f".{name}." for part in parts for name in part.modules),
        heads=tuple(sorted(head.names)),
        head_shapes=tuple(sorted((f"{PEFT_PREFIX}{name}", tuple(t.shape)) for name, t in head.tensors.items())),
    )
    _check_unique(plan)
    return plan


def united(several: Iterable[Adapter]) -> Adapter:
    """The union over ranks: the same for any way to cut a model into parts.

    Raises:
        ValueError: two tensors have one name.
    """
    every = list(several)
    whole = Adapter(
        # One target may be in two stages, which hold copies of it.
        targets=tuple(sorted({one for adapter in every for one in adapter.targets}, key=lambda one: one.names)),
        # The declared names keep their order, which is the same on every rank.
        declared=tuple(dict.fromkeys(name for one in every for name in one.declared)),
        plain_experts=tuple(sorted({name for one in every for name in one.plain_experts})),
        has_experts=any(one.has_experts for one in every),
        heads=tuple(sorted({name for one in every for name in one.heads})),
        head_shapes=tuple(sorted({item for one in every for item in one.head_shapes})),
    )
    _check_unique(whole)
    return whole


def check_tensors(plan: Adapter, tensors: Mapping[str, torch.Tensor]) -> None:
    """Compare the weights with what the config was made from, one last time before they are published.

    Raises:
        RuntimeError: a key or shape differs, so that PEFT would drop tensors or make up fresh ones (clause LOAD-001).
    """
    expected, real = plan.shapes(), {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if differing := sorted(key for key in expected.keys() | real.keys() if expected.get(key) != real.get(key)):
        key = differing[0]
        raise RuntimeError(
            f"{len(differing)} tensors must be as the config says, got {real.get(key)} instead of {expected.get(key)} "
            f"for {key!r}: does the model's state_dict_adapter treat real tensors otherwise than meta ones?"
        )


def _targets(content: AdapterContent, adapter: Any, form: Form) -> Iterator[Target]:
    alike: dict[Any, list[Target]] = {}
    for site in content.sites:
        if not _is_own(adapter):
            yield from _converted(site, content.parts, adapter, form)
            continue
        # Layers are alike: our own conversion, which keeps the module's name in front, is asked once for each shape.
        if site.kind not in alike:
            alike[site.kind] = [_relative(one, site) for one in _converted(site, content.parts, adapter, form)]
        module = site.module
        for one in alike[site.kind]:
            names = tuple([module + name for name in one.names])
            owners = tuple([module + owner for owner in one.owners]) if one.fused else names
            yield Target(names, one.fused, owners, one.shapes, one.rank, site.scale, one.dora)


def _relative(target: Target, site: LoraSite) -> Target:
    names, owners = ([name.removeprefix(site.module) for name in several] for several in (target.names, target.owners))
    return replace(target, names=tuple(names), owners=tuple(owners))


def _is_own(adapter: Any) -> bool:
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
    fused = site.grouped and form is not Form.PER_EXPERT and bool(_declared(adapter))
    if site.grouped:
        _check_experts(site, getattr(adapter, "_is_gated_moe", True), fused)
    return _fused(site, owners, _declared(adapter)) if fused else _modules(site, owners)


def _owners(site: LoraSite, converted: Mapping[str, torch.Tensor]) -> dict[str, Shapes]:
    """Module -> the ends of its keys and their shapes, sorted by module."""
    found: dict[str, dict[str, tuple[int, ...]]] = {kind: {} for kind in _KINDS}
    for key, tensor in converted.items():
        module, end = _module_and_end(key)
        found[end][module] = tensor.shape
    matrices_a, matrices_b, magnitudes = found.values()
    if not matrices_a or matrices_a.keys() != matrices_b.keys() or magnitudes.keys() - matrices_a.keys():
        raise ValueError(
            f"the model's state_dict_adapter must keep all LoRA of {site.module!r}, got {sorted(converted)[:2]}... of "
            "it: the rest would be missing unnoticed"
        )
    # Few shapes, many modules: each is made plain once.
    known: dict[Any, Shapes] = {}
    owners = {}
    for module in sorted(matrices_a):
        sizes = (matrices_a[module], matrices_b[module], magnitudes.get(module))
        if (shapes := known.get(sizes)) is None:
            pairs = zip(_KINDS, sizes, strict=True)
            shapes = known[sizes] = tuple((kind, tuple(size)) for kind, size in pairs if size is not None)
        owners[module] = shapes
    return owners


def _modules(site: LoraSite, owners: Mapping[str, Shapes]) -> list[Target]:
    alike: dict[Shapes, list[str]] = {}
    for module, shapes in owners.items():
        alike.setdefault(shapes, []).append(module)
    found = []
    for shapes, modules in alike.items():
        names = tuple(modules)
        found.append(Target(names, False, names, shapes, shapes[0][1][0], site.scale, "lora_magnitude" in site.tensors))
    return found


def _fused(site: LoraSite, owners: Mapping[str, Shapes], declared: tuple[str, ...]) -> list[Target]:
    """The fused parameters that this site's LoRA changes; gate_up is nested in the module of down, where both are."""
    by_projection = {"down" if name.endswith("down_proj") else "gate_and_up": name for name in declared}
    if missing := sorted(set(site.projections) - by_projection.keys()):
        raise ValueError(
            f"the state_dict_adapter must declare every fused parameter with LoRA, got none for {missing} of "
            f"{site.module!r}: list it in _v5_peft_target_parameters"
        )
    if len(owners) != len(site.projections):
        raise ValueError(
            f"fused LoRA must have one module for each of {site.projections}, got {sorted(owners)} for "
            f"{site.module!r}: nest them as PEFT does, by .base_layer"
        )
    experts = min(owners, key=len)
    found = []
    for one, owner in zip(reversed(site.projections), sorted(owners, key=len, reverse=True), strict=True):
        name = f"{experts}.{by_projection[one].rpartition('.')[2]}"
        rank = site.tensors[f"lora_{one}_A"].shape[2]
        found.append(Target((name,), True, (owner,), owners[owner], rank, site.scale, dora=False))
    return found


def _declared(adapter: Any) -> tuple[str, ...]:
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


def _module_and_end(key: str) -> tuple[str, str]:
    # Any other key PEFT would ignore without a word (clause ADP-011).
    head, dot, end = key.rpartition(".lora_")
    if f"lora_{end}" in _KINDS and dot and head.startswith(PEFT_PREFIX) and head != PEFT_PREFIX:
        return head[len(PEFT_PREFIX) :], f"lora_{end}"
    raise ValueError(
        "every key must be one that PEFT reads (base_model.model.<module>.lora_A.weight, lora_B.weight or "
        f"lora_magnitude_vector), got {key!r}: let the model's state_dict_adapter produce such names"
    )


def _check_unique(plan: Adapter) -> None:
    owners = [owner for one in plan.targets for owner in one.owners]
    known = set(owners)
    twice = None
    if len(known) < len(owners):
        twice = next(first for first, second in itertools.pairwise(sorted(owners)) if first == second)
    for key, _ in plan.head_shapes:
        if key.endswith(_ENDS):
            twice = key if _module_and_end(key)[0] in known else twice
    if twice is not None:
        raise ValueError(
            f"every tensor must have a name of its own, got {twice!r} twice: by the model's state_dict_adapter, in two "
            "stages that differ, or as LoRA inside a head"
        )
