# SPDX-License-Identifier: Apache-2.0
"""Sites -> ``target_modules`` and ``target_parameters``.

A name in the config is never computed beside the weights: the shapes of a site's tensors go through the
same conversion as the tensors themselves, and the names are read off the converted keys. Whatever an adapter
splits, renames or leaves alone, the config says the same (clauses TGT-002, TGT-007, TGT-008).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from .lora_sites import LoraSite, lora_sites
from .model_state import PEFT_PREFIX, hf_tensors, native_tensors, state_dict_adapter
from .ranks import gather

_PEFT_KEY = re.compile(re.escape(PEFT_PREFIX) + r"(?P<module>.+)\.(?:lora_[AB]\.weight|lora_magnitude_vector)")


@dataclass(frozen=True)
class Targets:
    """What the adapter changes in the HF model.

    Attributes:
        modules: names for ``target_modules``, sorted and unique.
        parameters: names for ``target_parameters``, in the order the model's adapter declares them.
        keys: every key of ``adapter_model.safetensors``, sorted.
        ranks: the LoRA ranks that occur.
        magnitudes: whether DoRA magnitudes are among the tensors.
    """

    modules: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    magnitudes: bool = False


def targets(parts: Sequence[nn.Module], v4_compatible: bool = False) -> Targets:
    """The targets of this rank's model parts.

    Raises:
        ValueError: as `lora_sites`; the model's adapter drops a trained tensor or names it in a way PEFT cannot
            read; grouped expert LoRA on a model whose adapter does not convert it.
    """
    return united([_site_targets(site, parts, v4_compatible) for site in lora_sites(parts)])


def united(several: Iterable[Targets]) -> Targets:
    """The union over sites, model parts or ranks: the same for any way to cut a model into parts."""
    every = list(several)
    return Targets(
        modules=tuple(sorted({name for one in every for name in one.modules})),
        # dict keys: unique in the declared order, which is the same on every rank.
        parameters=tuple(dict.fromkeys(name for one in every for name in one.parameters)),
        keys=tuple(sorted({key for one in every for key in one.keys})),
        ranks=tuple(sorted({rank for one in every for rank in one.ranks})),
        magnitudes=any(one.magnitudes for one in every),
    )


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


def check_keys(config: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Compare the written config with the keys of the weights, one last time before they are published.

    Raises:
        RuntimeError: they disagree, so that PEFT would drop tensors or make up fresh ones (clause LOAD-001).
    """
    parents = tuple(name.rpartition(".")[0] for name in config.get("target_parameters", []))
    modules = {
        module
        for module in modules_of_keys(keys)
        if not any(f".{module.removesuffix('.base_layer')}".endswith(f".{parent}") for parent in parents)
    }
    if differing := sorted(modules ^ set(config["target_modules"])):
        raise RuntimeError(
            f"adapter_config.json and the weights disagree about {len(differing)} modules, first {differing[0]!r}: the "
            "model's state_dict_adapter names real tensors otherwise than meta tensors of the same shape"
        )


def _site_targets(site: LoraSite, parts: Sequence[nn.Module], v4_compatible: bool) -> Targets:
    native = {name: torch.empty(t.shape, dtype=t.dtype, device="meta") for name, t in native_tensors(site).items()}
    keys = sorted(hf_tensors(native, parts, v4_compatible))
    if not keys:
        raise ValueError(
            f"the model's state_dict_adapter drops the trained LoRA of {site.module!r}: it would be missing from "
            "the checkpoint without a sign"
        )
    if site.grouped and keys == sorted(native):
        raise ValueError(
            f"module {site.module!r} has grouped expert LoRA, but the model's state_dict_adapter does not convert "
            "it: derive the adapter from MoESplitExpertsStateDictMixin"
        )
    modules = modules_of_keys(keys)
    fused = _fused_parameters(site, parts, v4_compatible)
    return Targets(
        modules=() if fused else tuple(modules),
        parameters=fused,
        keys=tuple(keys),
        ranks=tuple(sorted(site.ranks)),
        magnitudes="lora_magnitude" in site.tensors,
    )


def _fused_parameters(site: LoraSite, parts: Sequence[nn.Module], v4_compatible: bool) -> tuple[str, ...]:
    """The declared fused parameters whose LoRA this site really trains; empty when it is not fused."""
    if not site.grouped or v4_compatible:
        return ()
    declared = getattr(state_dict_adapter(parts), "_v5_peft_target_parameters", ())
    return tuple(
        name
        for name in declared
        if ("lora_down_A" if name.endswith("down_proj") else "lora_gate_and_up_A") in site.tensors
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
