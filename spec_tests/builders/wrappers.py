"""Real wrappers (torch.compile, activation checkpointing) put around any module of a model."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper, checkpoint_wrapper

Kind = Literal["compile", "checkpoint"]


def wrap(model: nn.Module, fqn: str, kind: Kind) -> nn.Module:
    """Wrap the module named ``fqn`` (clean: without wrapper segments) in place; returns the model.

    The empty name wraps the model itself, whose wrapper is then returned. A module wrapped twice has the
    later wrapper outside. Nothing is compiled until the model runs.
    """
    wrapper = {"compile": _compiled, "checkpoint": checkpoint_wrapper}[kind]
    if not fqn:
        return wrapper(model)
    *path, child = fqn.split(".")
    parent = _inside(model)
    for part in path:
        parent = _inside(parent.get_submodule(part))
    setattr(parent, child, wrapper(parent.get_submodule(child)))
    return model


def _compiled(module: nn.Module) -> Any:
    # The eager backend: a test that does run the model pays for tracing only.
    return torch.compile(module, backend="eager")


def _inside(module: nn.Module) -> nn.Module:
    """The module within its wrappers: a child set on a wrapper would stand beside the real one."""
    while True:
        if isinstance(module, torch._dynamo.OptimizedModule):
            module = module._orig_mod
        elif isinstance(module, CheckpointWrapper):
            module = module._checkpoint_wrapped_module
        else:
            return module
