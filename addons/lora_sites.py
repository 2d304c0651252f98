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

# A trainer's own `lora_A.weight`, or PEFT's `lora_A.<adapter>.weight`.
_LINEAR = re.compile(
    r"(?:(?P<module>.+)\.)?(?:(?P<matrix>lora_[AB])(?:\.(?P<adapter>[^.]+))?\.weight"
    r"|lora_magnitude(?:_vector\.[^.]+\.weight)?)"
)
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
        scale: the factor of the LoRA product, where the module has it as a number ``scale`` (or as PEFT's ``scaling``).
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
    """The module inside any nesting of DDP, torch.compile, activation checkpointing, FSDP1 and PEFT wrappers.

    DDP does not forward attributes, so ``config`` and ``state_dict_adapter`` are read from here
    (clause HOOK-007; NVIDIA-NeMo/Automodel#3150).
    """
    while True:
        children = dict(module.named_children())
        inner = next((children[name] for name in sorted(WRAPPER_SEGMENTS) if name in children), None)
        if inner is None and isinstance(module, PARALLEL_WRAPPERS):
            inner = module.module
        if inner is None and _is_peft_model(module):
            inner = children["base_model"].get_submodule("model")
        if inner is None:
            return module
        module = inner


def clean_named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """``model.named_parameters()`` without the segments that wrappers add to the names, at any depth.

    A parameter that several modules share comes under each of its names. Of a module that PEFT holds twice
    (``modules_to_save``) the trained copy comes, under the module's own name.
    """
    clean = _cleaner(model)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if (cleaned := clean(name)) is not None:
            yield cleaned, parameter


def clean_named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """`clean_named_parameters`, then the persistent buffers."""
    yield from clean_named_parameters(model)
    clean = _cleaner(model)
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            cleaned = clean(f"{path}.{name}" if path else name)
            if name not in module._non_persistent_buffers_set and cleaned is not None:
                yield cleaned, buffer


def _is_peft_model(module: nn.Module) -> bool:
    # PEFT is not imported: who never uses it need not have it.
    return "base_model" in module._modules and isinstance(getattr(module, "peft_config", None), dict)


def _cleaner(model: nn.Module) -> Callable[[str], str | None]:
    added, replaced = set(), set()
    for name, module in model.named_modules(remove_duplicate=False):
        place = f"{name}." if name else ""
        if isinstance(module, PARALLEL_WRAPPERS):
            added.add(f"{place}module")
        if _is_peft_model(module):
            added |= {f"{place}base_model", f"{place}base_model.model"}
        if {"original_module", "modules_to_save"} <= module._modules.keys():
            replaced.add(f"{place}original_module")
            kept = f"{place}modules_to_save"
            added |= {
                kept,
                *(f"{kept}.{adapter}" for adapter, _ in module.get_submodule("modules_to_save").named_children()),
            }

    def clean(name: str) -> str | None:
        segments = name.split(".")
        parents = [".".join(segments[:depth]) for depth in range(1, len(segments) + 1)]
        if not replaced.isdisjoint(parents):
            return None
        kept = zip(segments, parents, strict=True)
        return ".".join(own for own, full in kept if own not in WRAPPER_SEGMENTS and full not in added)

    return clean


def lora_sites(parts: Sequence[nn.Module]) -> list[LoraSite]:
    """The modules of all model parts that carry LoRA, sorted by name.

    Whether a parameter requires a gradient at the moment of saving does not matter: the forward adds what is
    there, a frozen random ``lora_A`` (LoRA-FA) as much as a layer that was frozen late (clause TGT-012).

    Raises:
        ValueError: LoRA on the root module, half of an A/B pair, an A and B of different rank, no matrices, two
            adapters of PEFT or one on a bare parameter, or one name in two parts: nothing that PEFT could load can be
            written for it.
    """
    sites: dict[str, LoraSite] = {}
    for part in parts:
        found: dict[str, LoraSite] = {}
        clean = _cleaner(part)
        modules = {clean(name): module for name, module in part.named_modules(remove_duplicate=False)}
        for name, parameter in clean_named_parameters(part):
            if (lora := _lora_name(name)) is None:
                continue
            module, tensor, adapter = lora
            if not module:
                raise ValueError(f"parameter {name!r}: LoRA on the root module has no name that PEFT could match")
            owner = modules[module]
            site = found.setdefault(module, LoraSite(module, grouped=_projection(tensor) != ""))
            if tensor in site.tensors or hasattr(owner, "parameter_name"):
                raise ValueError(
                    f"module {module!r} holds LoRA of PEFT for a bare parameter, or of two adapters: that PEFT itself "
                    "has to save (save_pretrained)"
                )
            site.tensors[tensor] = parameter
            scale = getattr(owner, "scaling", {}).get(adapter) if adapter else getattr(owner, "scale", None)
            if isinstance(scale, (int, float)):
                site.scale = float(scale)
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
    """Parameters that require a gradient and are no LoRA, sorted."""
    names = (item for part in parts for item in clean_named_parameters(part))
    return sorted(name for name, parameter in names if parameter.requires_grad and _lora_name(name) is None)


def _lora_name(name: str) -> tuple[str, str, str | None] | None:
    """Module, name of the tensor as in `LoraSite.tensors`, and adapter of PEFT, of a parameter that is LoRA."""
    if match := _EXPERTS.fullmatch(name):
        return match["module"] or "", match["tensor"], None
    if match := _LINEAR.fullmatch(name):
        return (
            match["module"] or "",
            f"{match['matrix']}.weight" if match["matrix"] else "lora_magnitude",
            match["adapter"],
        )
    return None


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
