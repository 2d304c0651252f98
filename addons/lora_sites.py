# SPDX-License-Identifier: Apache-2.0
"""The one walk over the model: which modules carry trained LoRA, and under which names.

Both the names in ``adapter_config.json`` and the keys of ``adapter_model.safetensors`` are made from what
this walk returns, so the two files cannot disagree about a module (clauses ADP-010, LOAD-001).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

# Wrappers register the wrapped module under these names; no model calls a module of its own so.
WRAPPER_SEGMENTS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
# DDP and DataParallel call it `module`, which is also an ordinary name: they are told by their type.
PARALLEL_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)

_LINEAR = re.compile(r"(?:(?P<module>.+)\.)?(?P<tensor>lora_[AB]\.weight|lora_magnitude)")
_EXPERTS = re.compile(r"(?:(?P<module>.+)\.)?(?P<tensor>lora_(?P<projection>gate_and_up|down)_[AB])")


@dataclass
class LoraSite:
    """One module that carries trained LoRA.

    Attributes:
        module: fully qualified name of the module, free of wrapper segments, as the trainer spells it.
        grouped: True when the module holds all experts of a layer in 3-D parameters.
        tensors: parameter name within the module -> parameter. Dense: ``lora_A.weight`` [rank, in],
            ``lora_B.weight`` [out, rank], with DoRA ``lora_magnitude`` [out]. Grouped:
            ``lora_gate_and_up_A`` [experts, hidden, rank], ``lora_gate_and_up_B`` [experts, rank, 2 * inter]
            (``inter`` when not gated), ``lora_down_A`` [experts, inter, rank], ``lora_down_B``
            [experts, rank, hidden]. Shapes are global ones where a parameter is a DTensor.
    """

    module: str
    grouped: bool
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def ranks(self) -> set[int]:
        """The LoRA ranks found in the site's tensors: one, unless the expert projections differ."""
        if not self.grouped:
            return {self.tensors["lora_A.weight"].shape[0]}
        return {tensor.shape[2] for name, tensor in self.tensors.items() if name.endswith("_A")}


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside any nesting of DDP, torch.compile, activation checkpointing and FSDP1 wrappers.

    DDP does not forward attributes, so ``config`` and ``state_dict_adapter`` are read from here
    (clause HOOK-007; NVIDIA-NeMo/Automodel#3150).
    """
    while True:
        children = dict(module.named_children())
        inner = next((children[name] for name in sorted(WRAPPER_SEGMENTS) if name in children), None)
        if inner is None and isinstance(module, PARALLEL_WRAPPERS):
            inner = module.module
        if inner is None:
            return module
        module = inner


def clean_named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """``model.named_parameters()`` without the segments that wrappers add to the names, at any depth.

    A parameter shared by several modules comes once, under its first name, as in ``named_parameters``.
    """
    parallel = {
        f"{name}.module" if name else "module"
        for name, module in model.named_modules()
        if isinstance(module, PARALLEL_WRAPPERS)
    }
    for name, parameter in model.named_parameters():
        segments = name.split(".")
        kept = [
            segment
            for depth, segment in enumerate(segments, start=1)
            if segment not in WRAPPER_SEGMENTS and ".".join(segments[:depth]) not in parallel
        ]
        yield ".".join(kept), parameter


def lora_sites(parts: Sequence[nn.Module]) -> list[LoraSite]:
    """The modules of all model parts that carry trained LoRA, sorted by name.

    A projection is trained when one of its LoRA tensors requires a gradient; then all of them belong to
    the adapter (a frozen random ``lora_A``, as in LoRA-FA, is needed as much as the trained ``lora_B``).
    A wholly frozen one is part of the base model and left out.

    Raises:
        ValueError: LoRA on the root module, half of an A/B pair, an A and B of different rank, or no matrices: nothing
            that PEFT could load can be written for it.
    """
    sites: dict[str, LoraSite] = {}
    trained: set[tuple[str, str]] = set()
    for part in parts:
        for name, parameter in clean_named_parameters(part):
            match = _LINEAR.fullmatch(name) or _EXPERTS.fullmatch(name)
            if match is None:
                continue
            module = match["module"]
            if not module:
                raise ValueError(f"parameter {name!r}: LoRA on the root module has no name that PEFT could match")
            projection = match.groupdict().get("projection", "")
            site = sites.setdefault(module, LoraSite(module, grouped=bool(projection)))
            site.tensors[match["tensor"]] = parameter
            if parameter.requires_grad:
                trained.add((module, projection))
    for site in sites.values():
        site.tensors = {
            name: tensor for name, tensor in sorted(site.tensors.items()) if (site.module, _projection(name)) in trained
        }
    found = [sites[module] for module in sorted(sites) if sites[module].tensors]
    for site in found:
        _check_pairs(site)
    return found


def _projection(tensor_name: str) -> str:
    match = _EXPERTS.fullmatch(tensor_name)
    return match["projection"] if match else ""


def _check_pairs(site: LoraSite) -> None:
    projections = sorted({_projection(name) for name in site.tensors})
    if site.grouped and "" in projections:
        raise ValueError(f"module {site.module!r} carries both dense and grouped expert LoRA: export one of them")
    for projection in projections:
        name_a, name_b = (
            (f"lora_{projection}_A", f"lora_{projection}_B") if projection else ("lora_A.weight", "lora_B.weight")
        )
        a, b = site.tensors.get(name_a), site.tensors.get(name_b)
        if a is None or b is None:
            missing = name_a if a is None else name_b
            raise ValueError(f"module {site.module!r} has no {missing!r}: a LoRA pair needs both A and B")
        for name, tensor in ((name_a, a), (name_b, b)):
            if tensor.ndim != (3 if site.grouped else 2):
                raise ValueError(
                    f"{site.module}.{name} has shape {tuple(tensor.shape)}, which is no LoRA matrix: if FSDP1 "
                    "flattened it, use fully_shard instead"
                )
        rank_a, rank_b = (a.shape[2], b.shape[1]) if site.grouped else (a.shape[0], b.shape[1])
        if rank_a != rank_b:
            raise ValueError(f"module {site.module!r}: {name_a} has rank {rank_a} but {name_b} has rank {rank_b}")
