# SPDX-License-Identifier: Apache-2.0
"""The one walk over a part of the model: its modules, parameters and buffers under clean names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

# Wrappers register the wrapped module under these names; no model calls a module of its own so.
WRAPPER_SEGMENTS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
# DDP and DataParallel call it `module`, which is also an ordinary name: they are told by their type.
PARALLEL_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)
# A module without such a child adds its own name alone.
_SPECIAL = WRAPPER_SEGMENTS | {"base_model", "modules_to_save"}


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside any nesting of DDP, torch.compile, activation checkpointing, FSDP1 and PEFT wrappers.

    DDP does not forward attributes, so ``config`` and ``state_dict_adapter`` are read from here
    (clause HOOK-007; NVIDIA-NeMo/Automodel#3150).
    """
    while True:
        children = module._modules
        inner = next((children[name] for name in sorted(WRAPPER_SEGMENTS) if name in children), None)
        if inner is None and isinstance(module, PARALLEL_WRAPPERS):
            inner = module.module
        if inner is None and _is_peft_model(module):
            inner = module.get_submodule("base_model.model")
        if inner is None:
            return module
        module = inner


@dataclass(frozen=True)
class ModelPart:
    """One part of a model, as `ModelPart.of` finds it in a single traversal.

    Names are fully qualified and free of the segments that wrappers add, at any depth (clause TGT-004). What several
    modules share comes under each of its names (clause TGT-017). Of a module that PEFT holds twice
    (``modules_to_save``) the trained copy is taken, under the module's own name (clause TGT-021).

    Attributes:
        model: the part itself, free of wrappers.
        modules: name -> module; where wrappers share a name, the innermost.
        parameters: name -> parameter.
        buffers: name -> persistent buffer.
    """

    model: nn.Module
    modules: dict[str, nn.Module] = field(default_factory=dict)
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    buffers: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, part: nn.Module) -> ModelPart:
        """Walk ``part`` once."""
        found = cls(unwrapped(part))
        modules, parameters, buffers = found.modules, found.parameters, found.buffers

        def visit(module: nn.Module, prefix: str) -> None:
            modules[prefix[:-1]] = module
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    parameters[prefix + name] = parameter
            if module._buffers:
                for name, buffer in module._buffers.items():
                    if buffer is not None and name not in module._non_persistent_buffers_set:
                        buffers[prefix + name] = buffer
            if children := module._modules:
                special = isinstance(module, PARALLEL_WRAPPERS) or not _SPECIAL.isdisjoint(children)
                for name, child in _clean_children(module) if special else children.items():
                    if child is not None:
                        visit(child, f"{prefix}{name}." if name else prefix)

        visit(part, "")
        return found

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The parameters, then the persistent buffers."""
        yield from self.parameters.items()
        yield from self.buffers.items()


def model_parts(parts: Sequence[nn.Module]) -> list[ModelPart]:
    """Every part, walked once."""
    return [ModelPart.of(part) for part in parts]


def _clean_children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The children by the segment that they add to a name, which is empty where a wrapper added it."""
    children = [(name, child) for name, child in module._modules.items() if child is not None]
    if _is_peft_model(module):
        tuner = module.get_submodule("base_model")
        yield from (("" if name == "model" else name, child) for name, child in _clean_children(tuner))
        children = [(name, child) for name, child in children if child is not tuner]
    kept_twice = {"original_module", "modules_to_save"} <= module._modules.keys()
    for name, child in children:
        if kept_twice and name == "modules_to_save":
            yield from (("", copy) for copy in child.children())
        elif not (kept_twice and name == "original_module"):
            added = name in WRAPPER_SEGMENTS or (name == "module" and isinstance(module, PARALLEL_WRAPPERS))
            yield "" if added else name, child


def _is_peft_model(module: nn.Module) -> bool:
    # PEFT is not imported: who never uses it need not have it.
    return "base_model" in module._modules and isinstance(getattr(module, "peft_config", None), dict)
