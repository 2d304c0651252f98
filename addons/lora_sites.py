# SPDX-License-Identifier: Apache-2.0
"""The one walk over the model: which modules carry LoRA, and under which names.

Both the names in ``adapter_config.json`` and the keys of ``adapter_model.safetensors`` are made from what
this walk returns, so the two files cannot disagree about a module (clauses ADP-010, LOAD-001).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

# Wrappers register the wrapped module under these names; no model calls a module of its own so.
WRAPPER_SEGMENTS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
# DDP and DataParallel call it `module`, which is also an ordinary name: they are told by their type.
PARALLEL_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)

_LINEAR = re.compile(r"(?:(?P<module>.+)\.)?(?P<tensor>lora_[AB]\.weight|lora_magnitude)")
_EXPERT_BASE = re.compile(r"(?P<module>.+)\.(?:gate_and_up|down)_projs")
_EXPERTS = re.compile(r"(?:(?P<module>.+)\.)?(?P<tensor>lora_(?P<projection>gate_and_up|down)_[AB])")


@dataclass
class LoraSite:
    """One module that carries LoRA.

    Attributes:
        module: fully qualified name of the module, free of wrapper segments, as the trainer spells it.
        grouped: True when the module holds all experts of a layer in 3-D parameters.
        tensors: parameter name within the module -> parameter. Dense: ``lora_A.weight`` [rank, in],
            ``lora_B.weight`` [out, rank], with DoRA ``lora_magnitude`` [out]. Grouped:
            ``lora_gate_and_up_A`` [experts, hidden, rank], ``lora_gate_and_up_B`` [experts, rank, 2 * inter]
            (``inter`` when not gated), ``lora_down_A`` [experts, inter, rank], ``lora_down_B``
            [experts, rank, hidden]. Shapes are global ones where a parameter is a DTensor.
        scale: the factor of the LoRA product, where the module has it as a number ``scale``.
    """

    module: str
    grouped: bool
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    scale: float | None = None

    @property
    def projections(self) -> set[str]:
        """Which of ``gate_and_up`` and ``down`` a grouped site has; empty for a dense one."""
        return {projection for name in self.tensors if (projection := _projection(name))}


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

    A parameter that several modules share comes under each of its names.
    """
    clean = _cleaner(model)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield clean(name), parameter


def clean_named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """`clean_named_parameters`, then the persistent buffers."""
    yield from clean_named_parameters(model)
    clean = _cleaner(model)
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield clean(f"{path}.{name}" if path else name), buffer


def _cleaner(model: nn.Module) -> Callable[[str], str]:
    parallel = {
        f"{name}.module" if name else "module"
        for name, module in model.named_modules()
        if isinstance(module, PARALLEL_WRAPPERS)
    }

    def clean(name: str) -> str:
        segments = name.split(".")
        return ".".join(
            segment
            for depth, segment in enumerate(segments, start=1)
            if segment not in WRAPPER_SEGMENTS and ".".join(segments[:depth]) not in parallel
        )

    return clean


def lora_sites(parts: Sequence[nn.Module]) -> list[LoraSite]:
    """The modules of all model parts that carry LoRA, sorted by name.

    Whether a parameter requires a gradient at the moment of saving does not matter: the forward adds what is
    there, a frozen random ``lora_A`` (LoRA-FA) as much as a layer that was frozen late (clause TGT-012).

    Raises:
        ValueError: LoRA on the root module, half of an A/B pair, an A and B of different rank, no matrices, or one
            name in two parts: nothing that PEFT could load can be written for it.
    """
    sites: dict[str, LoraSite] = {}
    for part in parts:
        found: dict[str, LoraSite] = {}
        clean = _cleaner(part)
        modules = {clean(name): module for name, module in part.named_modules(remove_duplicate=False)}
        for name, parameter in clean_named_parameters(part):
            match = _LINEAR.fullmatch(name) or _EXPERTS.fullmatch(name)
            if match is None:
                continue
            module = match["module"]
            if not module:
                raise ValueError(f"parameter {name!r}: LoRA on the root module has no name that PEFT could match")
            site = found.setdefault(module, LoraSite(module, grouped=match.re is _EXPERTS))
            site.tensors[match["tensor"]] = parameter
            scale = getattr(modules[module], "scale", None)
            site.scale = float(scale) if isinstance(scale, (int, float)) else None
        if twice := sorted(sites.keys() & found.keys()):
            raise ValueError(f"two parts of the model hold LoRA of one name, {twice[0]!r}: one would replace the other")
        sites.update(found)
    for site in sites.values():
        _check_pairs(site)
    return [sites[module] for module in sorted(sites)]


def plain_experts(parts: Sequence[nn.Module]) -> list[str]:
    """The modules of grouped experts without LoRA, sorted by name."""
    names = [name for part in parts for name, _ in clean_named_parameters(part)]
    with_lora = {match["module"] for name in names if (match := _EXPERTS.fullmatch(name))}
    return sorted({match["module"] for name in names if (match := _EXPERT_BASE.fullmatch(name))} - with_lora)


def trained_beside_lora(parts: Sequence[nn.Module]) -> list[str]:
    """Parameters that require a gradient and are no LoRA that an adapter could hold, sorted."""
    return sorted(
        name
        for part in parts
        for name, parameter in clean_named_parameters(part)
        if parameter.requires_grad and not (_LINEAR.fullmatch(name) or _EXPERTS.fullmatch(name))
    )


def _projection(tensor_name: str) -> str:
    match = _EXPERTS.fullmatch(tensor_name)
    return match["projection"] if match else ""


def _check_pairs(site: LoraSite) -> None:
    projections = sorted(_projection(name) for name in site.tensors)
    if site.grouped and "" in projections:
        raise ValueError(f"module {site.module!r} carries both dense and grouped expert LoRA: export one of them")
    for projection in dict.fromkeys(projections):
        name_a, name_b = (
            (f"lora_{projection}_A", f"lora_{projection}_B") if projection else ("lora_A.weight", "lora_B.weight")
        )
        a, b = site.tensors.get(name_a), site.tensors.get(name_b)
        if a is None or b is None:
            missing = name_a if a is None else name_b
            raise ValueError(f"module {site.module!r} has no {missing!r}: a LoRA pair needs both A and B")
        for name, tensor in ((name_a, a), (name_b, b)):
            if tensor.ndim != (3 if site.grouped else 2) or not tensor.is_floating_point():
                raise ValueError(
                    f"{site.module}.{name} is {tensor.dtype} {tuple(tensor.shape)}, which is no LoRA matrix: if FSDP1 "
                    "flattened it, use fully_shard instead"
                )
        rank_a, rank_b = (a.shape[2], b.shape[1]) if site.grouped else (a.shape[0], b.shape[1])
        if rank_a != rank_b:
            raise ValueError(f"module {site.module!r}: {name_a} has rank {rank_a} but {name_b} has rank {rank_b}")
