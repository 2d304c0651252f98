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

from .heads import heads
from .lora_sites import LoraSite, clean_named_parameters, lora_sites, plain_experts, trained_beside_lora
from .model_state import PEFT_PREFIX, hf_tensors, native_tensors, state_dict_adapter
from .ranks import gather

_PEFT_KEY = re.compile(re.escape(PEFT_PREFIX) + r"(?P<module>.+)\.(?:lora_[AB]\.weight|lora_magnitude_vector)")
_OF_EXPERTS = re.compile(r".*\.experts\..*")
_LIKE_EXPERTS = ("down_proj", "gate", "gate_proj", "up_proj")


@dataclass(frozen=True)
class Targets:
    """What the adapter changes in the HF model.

    Attributes:
        modules: the modules that carry LoRA, sorted and unique, fused experts apart.
        fused: full names of the fused expert parameters that carry LoRA, sorted.
        declared: the fused parameters as the model's adapter declares them, below a layer.
        plain_experts: modules of grouped experts without LoRA.
        experts: whether the model has experts, with LoRA or without: True where a part has.
        heads: names for ``modules_to_save``.
        shapes: (key, shape) of every tensor of ``adapter_model.safetensors``, sorted.
        ranks: (module or fused parameter, rank of its LoRA).
        scales: (module or fused parameter, scale), of those that know their scale.
        magnitudes: whether sites have DoRA magnitudes: both values where some have and some have not.
    """

    modules: tuple[str, ...] = ()
    fused: tuple[str, ...] = ()
    declared: tuple[str, ...] = ()
    plain_experts: tuple[str, ...] = ()
    experts: tuple[bool, ...] = ()
    heads: tuple[str, ...] = ()
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    ranks: tuple[tuple[str, int], ...] = ()
    scales: tuple[tuple[str, float], ...] = ()
    magnitudes: tuple[bool, ...] = ()

    @property
    def target_modules(self) -> list[str]:
        """The modules that the config lists as modules."""
        return [name for name in self.modules if self.listed(name) == name]

    @property
    def target_parameters(self) -> list[str]:
        """The fused parameters as declared, or in full where not every layer's experts carry all; dense weights.

        PEFT attaches LoRA to every parameter that ends in a listed name, and warns of those without tensors.
        """
        ends = {name: {full for full in self.fused if full.endswith(f".{name}")} for name in self.declared}
        used = {name: full for name, full in ends.items() if full}
        everywhere = len({len(full) for full in used.values()}) <= 1 and not self.plain_experts
        short = everywhere and sum(map(len, used.values())) == len(self.fused)
        weights = [self.listed(name) for name in self.modules if self.listed(name) != name]
        return [*(used if short else self.fused), *weights]

    def listed(self, module: str) -> str:
        """What the config calls a module: its name, or its weight's.

        In a model with experts PEFT >= 0.20 takes a dense gate_proj for the experts' wherever it stands, and gives the
        dense module no LoRA, without an error. As a parameter it is found, under the same keys (clause TGT-019).
        """
        misread = self.experts and module.rpartition(".")[2] in _LIKE_EXPERTS and not _OF_EXPERTS.fullmatch(module)
        return f"{module}.weight" if misread else module

    def pattern(self, target: str) -> str:
        """The key of a target in ``rank_pattern`` and ``alpha_pattern``, a regular expression; one for all experts."""
        return re.sub(r"\.experts\.\d+\.", r".experts.\\d+.", self.listed(target)).replace(".", r"\.")


def targets(parts: Sequence[nn.Module], **form: bool) -> Targets:
    """The targets of this rank's model parts, in the form that `hf_tensors` gives the weights.

    Raises:
        ValueError: as `lora_sites`; parameters other than LoRA and a head are trained; the model's adapter drops a
            tensor, gives two one name, or names one in a way PEFT cannot read; expert LoRA in a form that PEFT cannot
            hold.
    """
    head = heads(parts)
    if beside := [name for name in trained_beside_lora(parts) if name not in head.tensors]:
        raise ValueError(
            f"{len(beside)} trained parameters are no LoRA that an adapter could hold, first {beside[0]!r}: they would "
            "be lost. Freeze what was not trained (requires_grad=False), or save the whole model"
        )
    sites = [_site_targets(site, parts, form) for site in lora_sites(parts)]
    names = [name for part in parts for name, _ in clean_named_parameters(part)]
    whole = Targets(
        plain_experts=tuple(plain_experts(parts)),
        experts=(True,) if any("experts" in name.split(".") for name in names) else (),
        heads=tuple(head.names),
        shapes=tuple((f"{PEFT_PREFIX}{name}", tuple(tensor.shape)) for name, tensor in head.tensors.items()),
    )
    keys = [key for one in (*sites, whole) for key, _ in one.shapes]
    if len(keys) != len(set(keys)):
        twice = min(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"two tensors have the one name {twice!r}, by state_dict_adapter or as LoRA inside a head")
    return united([*sites, whole])


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


def _site_targets(site: LoraSite, parts: Sequence[nn.Module], form: Mapping[str, bool]) -> Targets:
    native = {name: torch.empty(t.shape, dtype=t.dtype, device="meta") for name, t in native_tensors(site).items()}
    converted = hf_tensors(native, parts, **form)
    modules = modules_of_keys(converted)
    lacking = [m for m in modules for end in ("A", "B") if f"{PEFT_PREFIX}{m}.lora_{end}.weight" not in converted]
    if lacking or not modules:
        raise ValueError(f"the model's state_dict_adapter drops LoRA of {site.module!r}: it would be missing unnoticed")
    if site.grouped and converted.keys() == native.keys():
        raise ValueError(
            f"module {site.module!r} has grouped expert LoRA, but the model's state_dict_adapter does not convert it: "
            "derive the adapter from MoESplitExpertsStateDictMixin"
        )
    declared = _declared(parts)
    fused = _fused(site, declared, modules) if site.grouped and declared and not form.get("v4_compatible") else {}
    ranks = fused or {name: converted[f"{PEFT_PREFIX}{name}.lora_A.weight"].shape[0] for name in modules}
    if site.grouped:
        _check_experts(site, getattr(state_dict_adapter(parts), "_is_gated_moe", True), bool(fused))
    return Targets(
        modules=() if fused else tuple(modules),
        fused=tuple(fused),
        declared=declared if fused else (),
        shapes=tuple((key, tuple(tensor.shape)) for key, tensor in converted.items()),
        ranks=tuple(ranks.items()),
        scales=() if site.scale is None else tuple((name, site.scale) for name in ranks),
        magnitudes=("lora_magnitude" in site.tensors,),
    )


def _declared(parts: Sequence[nn.Module]) -> tuple[str, ...]:
    return tuple(getattr(state_dict_adapter(parts), "_v5_peft_target_parameters", ()))


def _fused(site: LoraSite, declared: tuple[str, ...], modules: list[str]) -> dict[str, int]:
    """Full name -> rank of the fused parameters that this site's LoRA changes."""
    owner = min(modules, key=len)
    by_projection = {"down" if name.endswith("down_proj") else "gate_and_up": name for name in declared}
    if missing := site.projections - by_projection.keys():
        raise ValueError(f"module {site.module!r} has LoRA on {missing}, which its state_dict_adapter does not declare")
    return {
        f"{owner}.{by_projection[one].rpartition('.')[2]}": site.tensors[f"lora_{one}_A"].shape[2]
        for one in sorted(site.projections)
    }


def _check_experts(site: LoraSite, gated: bool, fused: bool) -> None:
    if len(site.projections) < 2:
        if not fused:
            raise ValueError(f"module {site.module!r} has LoRA on {site.projections} only: PEFT converts both or none")
        return
    outputs, inter = site.tensors["lora_gate_and_up_B"].shape[2], site.tensors["lora_down_A"].shape[1]
    if outputs != inter * (2 if gated else 1):
        raise ValueError(f"module {site.module!r}: {outputs} outputs for {inter}: are its experts gated or not?")


def _extract_target_modules(
    model: nn.Module | Sequence[nn.Module],
    v4_compatible: bool = False,
    pp_group: dist.ProcessGroup | None = None,
) -> list[str]:
    """Sorted names of the modules that carry LoRA, over all parts and the ranks of ``pp_group``."""
    return _over(model, v4_compatible, pp_group).target_modules


def _extract_target_parameters(
    model: nn.Module | Sequence[nn.Module],
    v4_compatible: bool = False,
    pp_group: dist.ProcessGroup | None = None,
) -> list[str]:
    """Parameters that the config lists: fused experts' unless they are exported one by one, and misread dense ones."""
    return _over(model, v4_compatible, pp_group).target_parameters


def _over(model: nn.Module | Sequence[nn.Module], v4_compatible: bool, pp_group: dist.ProcessGroup | None) -> Targets:
    parts = [model] if isinstance(model, nn.Module) else list(model)
    if pp_group is None:
        return targets(parts, v4_compatible=v4_compatible)
    return united(gather(lambda: targets(parts, v4_compatible=v4_compatible), pp_group))
