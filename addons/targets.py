# SPDX-License-Identifier: Apache-2.0
"""Sites -> ``target_modules`` and ``target_parameters``.

A name in the config is never computed beside the weights: the shapes of a site's tensors go through the
same conversion as the tensors themselves, and the names are read off the converted keys. Whatever an adapter
splits, renames or leaves alone, the config says the same (clauses TGT-002, TGT-007, TGT-008).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from .lora_sites import LoraSite, lora_sites, plain_experts, trained_beside_lora
from .model_state import PEFT_PREFIX, hf_tensors, native_tensors, state_dict_adapter
from .ranks import gather

_PEFT_KEY = re.compile(re.escape(PEFT_PREFIX) + r"(?P<module>.+)\.(?:lora_[AB]\.weight|lora_magnitude_vector)")


@dataclass(frozen=True)
class Targets:
    """What the adapter changes in the HF model.

    Attributes:
        modules: names for ``target_modules``, sorted and unique.
        fused: full names of the fused expert parameters that carry LoRA, sorted.
        declared: the fused parameters as the model's adapter declares them, below a layer.
        plain_experts: modules of grouped experts without LoRA.
        shapes: (key, shape) of every tensor of ``adapter_model.safetensors``, sorted.
        ranks: the LoRA ranks that occur.
        magnitudes: whether sites have DoRA magnitudes: both values where some have and some have not.
        scales: (module, scale) of the sites that know their scale.
    """

    modules: tuple[str, ...] = ()
    fused: tuple[str, ...] = ()
    declared: tuple[str, ...] = ()
    plain_experts: tuple[str, ...] = ()
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    ranks: tuple[int, ...] = ()
    magnitudes: tuple[bool, ...] = ()
    scales: tuple[tuple[str, float], ...] = ()

    @property
    def parameters(self) -> list[str]:
        """Names for ``target_parameters``: as declared, or in full where not every layer's experts carry all.

        PEFT attaches LoRA to every parameter that ends in a listed name, and warns of those without tensors.
        """
        ends = {name: {full for full in self.fused if full.endswith(f".{name}")} for name in self.declared}
        used = {name: full for name, full in ends.items() if full}
        everywhere = len({len(full) for full in used.values()}) <= 1 and not self.plain_experts
        if everywhere and sum(map(len, used.values())) == len(self.fused):
            return list(used)
        return list(self.fused)


def targets(parts: Sequence[nn.Module], v4_compatible: bool = False) -> Targets:
    """The targets of this rank's model parts.

    Raises:
        ValueError: as `lora_sites`; parameters other than LoRA are trained; the model's adapter drops a tensor, gives
            two one name, or names one in a way PEFT cannot read; expert LoRA in a form that PEFT cannot hold.
    """
    if beside := trained_beside_lora(parts):
        raise ValueError(
            f"{len(beside)} trained parameters are no LoRA that an adapter could hold, first {beside[0]!r}: they would "
            "be lost. Freeze what was not trained (requires_grad=False), or save the whole model"
        )
    sites = [_site_targets(site, parts, v4_compatible) for site in lora_sites(parts)]
    keys = [key for site in sites for key, _ in site.shapes]
    if len(keys) != len(set(keys)):
        twice = min(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the model's state_dict_adapter gives two modules' tensors the one name {twice!r}")
    found = united([*sites, Targets(plain_experts=tuple(plain_experts(parts)))])
    _refuse_misread(found, state_dict_adapter(parts))
    return found


def united(several: Iterable[Targets]) -> Targets:
    """The union over sites, model parts or ranks: the same for any way to cut a model into parts."""
    every = list(several)

    def union(name: str) -> tuple[Any, ...]:
        return tuple(sorted({item for one in every for item in getattr(one, name)}))

    # The declared names keep their order, which is the same on every rank.
    declared = tuple(dict.fromkeys(name for one in every for name in one.declared))
    names = (field.name for field in fields(Targets) if field.name != "declared")
    return Targets(declared=declared, **{name: union(name) for name in names})


def modules_of_keys(keys: Iterable[str]) -> list[str]:
    """The modules that have tensors under these keys of ``adapter_model.safetensors``, sorted.

    Raises:
        ValueError: a key that PEFT would ignore without a word (clause ADP-011).
    """
    modules = set()
    for key in keys:
        match = _PEFT_KEY.fullmatch(key)
        if match is None:
            raise ValueError(
                f"key {key!r} is none that PEFT reads (base_model.model.<module>.lora_A.weight, lora_B.weight or "
                "lora_magnitude_vector): the model's state_dict_adapter has to produce such names"
            )
        modules.add(match["module"])
    return sorted(modules)


def check_tensors(found: Targets, tensors: Mapping[str, torch.Tensor]) -> None:
    """Compare the weights with what the config was made from, one last time before they are published.

    Raises:
        RuntimeError: a key or shape differs, so that PEFT would drop tensors or make up fresh ones (clause LOAD-001).
    """
    expected = dict(found.shapes)
    real = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if differing := sorted(key for key in expected.keys() | real.keys() if expected.get(key) != real.get(key)):
        key = differing[0]
        raise RuntimeError(
            f"{len(differing)} tensors are not what the config says, first {key!r}: {real.get(key)} instead of "
            f"{expected.get(key)}. Does the model's state_dict_adapter treat real tensors otherwise than meta ones?"
        )


def _site_targets(site: LoraSite, parts: Sequence[nn.Module], v4_compatible: bool) -> Targets:
    native = {name: torch.empty(t.shape, dtype=t.dtype, device="meta") for name, t in native_tensors(site).items()}
    converted = hf_tensors(native, parts, v4_compatible)
    modules = modules_of_keys(converted)
    lacking = [m for m in modules for end in ("A", "B") if f"{PEFT_PREFIX}{m}.lora_{end}.weight" not in converted]
    if lacking or not modules:
        raise ValueError(f"the model's state_dict_adapter drops LoRA of {site.module!r}: it would be missing unnoticed")
    if site.grouped and converted.keys() == native.keys():
        raise ValueError(_unconverted(site))
    fused = _fused(site, parts, modules, v4_compatible)
    if fused:  # rows are experts times rank
        ranks = {tensor.shape[2] for name, tensor in site.tensors.items() if name.endswith("_A")}
    else:
        ranks = {tensor.shape[0] for key, tensor in converted.items() if key.endswith(".lora_A.weight")}
    return Targets(
        modules=() if fused else tuple(modules),
        fused=fused,
        declared=_declared(parts) if fused else (),
        shapes=tuple(sorted((key, tuple(tensor.shape)) for key, tensor in converted.items())),
        ranks=tuple(sorted(ranks)),
        magnitudes=("lora_magnitude" in site.tensors,),
        scales=() if site.scale is None else ((site.module, site.scale),),
    )


def _declared(parts: Sequence[nn.Module]) -> tuple[str, ...]:
    return tuple(getattr(state_dict_adapter(parts), "_v5_peft_target_parameters", ()))


def _fused(site: LoraSite, parts: Sequence[nn.Module], modules: list[str], v4_compatible: bool) -> tuple[str, ...]:
    """Full names of the fused parameters that this site's LoRA changes; empty when it is not fused."""
    if not site.grouped:
        return ()
    adapter = state_dict_adapter(parts)
    if site.projections == {"gate_and_up", "down"}:
        outputs, inter = site.tensors["lora_gate_and_up_B"].shape[2], site.tensors["lora_down_A"].shape[1]
        if outputs != inter * (2 if getattr(adapter, "_is_gated_moe", True) else 1):
            raise ValueError(f"module {site.module!r}: {outputs} outputs for {inter}: are its experts gated or not?")
    if v4_compatible or not _declared(parts):
        if len(site.projections) < 2:
            raise ValueError(f"module {site.module!r} has LoRA on {site.projections} only: PEFT converts both or none")
        return ()
    owner = min(modules, key=len)
    by_projection = {"down" if name.endswith("down_proj") else "gate_and_up": name for name in _declared(parts)}
    if missing := site.projections - by_projection.keys():
        raise ValueError(f"module {site.module!r} has LoRA on {missing}, which its state_dict_adapter does not declare")
    return tuple(sorted(f"{owner}.{by_projection[one].rpartition('.')[2]}" for one in site.projections))


def _unconverted(site: LoraSite) -> str:
    return (
        f"module {site.module!r} has grouped expert LoRA, but the model's state_dict_adapter does not convert it: "
        "derive the adapter from MoESplitExpertsStateDictMixin"
    )


def _refuse_misread(found: Targets, adapter: Any) -> None:
    # Executed with PEFT 0.20 and 0.21.2 on transformers 5: it takes these names for experts wherever they stand, and
    # the dense modules get no LoRA, without an error.
    experts = re.compile(r".*\.experts\.\d+\..*")
    dense = [name for name in found.modules if name.endswith(("gate_proj", "up_proj", "down_proj"))]
    misread = [name for name in dense if not experts.fullmatch(name)]
    declared: tuple[str, ...] = getattr(adapter, "_v5_peft_target_parameters", ())
    if misread and declared:
        raise ValueError(
            f"module {misread[0]!r} carries dense LoRA in a model whose experts are fused: PEFT >= 0.20 takes the name "
            "for the experts' and drops it. Train other modules of the dense layers"
        )


def _extract_target_modules(
    model: nn.Module | Sequence[nn.Module],
    v4_compatible: bool = False,
    pp_group: dist.ProcessGroup | None = None,
) -> list[str]:
    """Sorted names of the modules that carry LoRA, over all parts and the ranks of ``pp_group``."""
    return list(_over(model, v4_compatible, pp_group).modules)


def _extract_target_parameters(
    model: nn.Module | Sequence[nn.Module],
    v4_compatible: bool = False,
    pp_group: dist.ProcessGroup | None = None,
) -> list[str]:
    """Fused expert parameters that carry LoRA; empty when experts are exported one by one."""
    return list(_over(model, v4_compatible, pp_group).parameters)


def _over(model: nn.Module | Sequence[nn.Module], v4_compatible: bool, pp_group: dist.ProcessGroup | None) -> Targets:
    parts = [model] if isinstance(model, nn.Module) else list(model)
    if pp_group is None:
        return targets(parts, v4_compatible)
    return united(gather(lambda: targets(parts, v4_compatible), pp_group))
