# SPDX-License-Identifier: Apache-2.0
"""The one walk over a part of the model: its modules, parameters and buffers under clean names."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

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


def class_name(model: nn.Module) -> str:
    """The name of a model's own class: FSDP2 puts a word in front of it (clauses ADP-023, CFG-018)."""
    return type(model).__name__.removeprefix("FSDP")


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
        kept: names of the modules that PEFT holds twice.
    """

    model: nn.Module
    modules: dict[str, nn.Module] = field(default_factory=dict)
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    buffers: dict[str, torch.Tensor] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, part: nn.Module) -> ModelPart:
        """Walk ``part`` once.

        Raises:
            ValueError: PEFT trains something else in it than one LoRA (clauses TGT-018, TGT-024).
        """
        found = cls(unwrapped(part))
        modules, parameters = found.modules, found.parameters
        sharded = sharded_kind()

        def visit(module: nn.Module, prefix: str) -> None:
            modules[prefix[:-1]] = module
            if isinstance(module, sharded):
                # After a forward it may show copies in the dtype it computes in. The trained values are in the shards,
                # to which torch's own state-dict functions return as well (clause RANK-013).
                module.reshard()
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    parameters[prefix + name] = parameter
            if module._buffers:
                found.buffers.update(_persistent_buffers(module, prefix))
            if children := module._modules:
                special = isinstance(module, PARALLEL_WRAPPERS) or not _SPECIAL.isdisjoint(children)
                if special and _is_kept_twice(module):
                    found.kept.append(prefix[:-1])
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


def _persistent_buffers(module: nn.Module, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            yield prefix + name, buffer


def _clean_children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The children by the segment that they add to a name, which is empty where a wrapper added it."""
    children = [(name, child) for name, child in module._modules.items() if child is not None]
    if _is_peft_model(module):
        _check_peft_type(module)
        tuner = module.get_submodule("base_model")
        yield from (("" if name == "model" else name, child) for name, child in _clean_children(unwrapped(tuner)))
        children = [(name, child) for name, child in children if child is not tuner]
    kept_twice = _is_kept_twice(module)
    for name, child in children:
        if kept_twice and name == "modules_to_save":
            if len(child._modules) != 1:
                raise ValueError(
                    f"a model must hold one adapter of PEFT, got {sorted(child._modules)}: delete the others "
                    "(delete_adapter), or let PEFT save it (save_pretrained)"
                )
            yield from (("", copy) for copy in child.children())
        elif not (kept_twice and name == "original_module"):
            added = name in WRAPPER_SEGMENTS or (name == "module" and isinstance(module, PARALLEL_WRAPPERS))
            yield "" if added else name, child


def sharded_kind() -> Any:
    """The base that FSDP2 gives the classes of what it shards, as for `issubclass`."""
    # Who uses it has imported it; to import it takes a second.
    return getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())


# PEFT is not imported: who never uses it need not have it.
def _is_peft_model(module: nn.Module) -> bool:
    return "base_model" in module._modules and isinstance(getattr(module, "peft_config", None), dict)


def _is_kept_twice(module: nn.Module) -> bool:
    both = {"original_module", "modules_to_save"} <= module._modules.keys()
    return both and any(base.__name__ == "ModulesToSaveWrapper" for base in type(module).__mro__)


def _check_peft_type(module: Any) -> None:
    types = {name: str(getattr(one.peft_type, "value", one.peft_type)) for name, one in module.peft_config.items()}
    if set(types.values()) != {"LORA"}:
        raise ValueError(f"what PEFT trains must be LoRA, got {types}: let PEFT save it (save_pretrained), or merge it")
