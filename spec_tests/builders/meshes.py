# SPDX-License-Identifier: Apache-2.0
"""Ways in which trainers lay a model over ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

from spec_tests.builders.training import all_ranks, device_kind, logits, sample_input_ids, shard

# What of a decoder layer is cut into columns, and what into rows.
_COLUMNS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
_ROWS = ("self_attn.o_proj", "mlp.down_proj")


@dataclass(frozen=True)
class Laid:
    """A way to lay a model over ranks.

    Attributes:
        world: how many ranks it takes.
        lay: changes the model of this rank in place, and returns it. Collective.
    """

    world: int
    lay: Callable[[nn.Module], nn.Module]


def copies(model: nn.Module) -> nn.Module:
    """Each rank has all of the model."""
    return model


def rows(model: nn.Module) -> nn.Module:
    """FSDP2 over all ranks."""
    return shard(model)


def offloaded(model: nn.Module) -> nn.Module:
    """FSDP2 whose shards lie on the CPU between the steps."""
    return shard(model, offload_policy=CPUOffloadPolicy())


def computed(model: nn.Module) -> nn.Module:
    """FSDP2 that has just computed in bf16: the root's parameters are still those of the forward."""
    model = shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    logits(model, sample_input_ids().to(device_kind()))
    return model


def hybrid(*shape: int) -> Callable[[nn.Module], nn.Module]:
    """HSDP: copies of a model that is sharded over a part of the ranks."""
    return lambda model: shard(model, init_device_mesh(device_kind(), shape, mesh_dim_names=("replicate", "shard")))


def tensor_parallel(model: nn.Module) -> nn.Module:
    """Tensor parallel over all ranks."""
    return _cut(model, all_ranks())


def sharded_tensor_parallel(*shape: int) -> Callable[[nn.Module], nn.Module]:
    """FSDP2 over tensor parallel: shards of shards."""

    def lay(model: nn.Module) -> nn.Module:
        mesh = init_device_mesh(device_kind(), shape, mesh_dim_names=("fsdp", "tensor"))
        return shard(_cut(model, mesh["tensor"]), mesh["fsdp"])

    return lay


def expert_parallel(model: nn.Module) -> nn.Module:
    """Grouped experts and their LoRA, sharded by expert over all ranks; evenly or not."""
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = all_ranks()
    for name, parameter in list(model.named_parameters()):
        module, _, own = name.rpartition(".")
        if module.endswith(".experts") and parameter.ndim == 3:
            placed = nn.Parameter(distribute_tensor(parameter.data, mesh, [Shard(0)]), parameter.requires_grad)
            setattr(model.get_submodule(module), own, placed)
    return model


def _cut(model: nn.Module, mesh: Any) -> nn.Module:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    for layer in model.get_submodule("model.layers").children():
        there = dict(layer.named_modules())
        plan: dict[str, Any] = {}
        for names, style, factor in ((_COLUMNS, ColwiseParallel, "lora_B"), (_ROWS, RowwiseParallel, "lora_A")):
            for name in names:
                # A layer with LoRA is no plain Linear to torch: its other matrices stay whole.
                target = f"{name}.{factor}" if f"{name}.{factor}" in there else name
                if type(there.get(target)) is nn.Linear:
                    plan[target] = style()
        parallelize_module(layer, mesh, plan)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)  # torch 2.8 makes trainable what it cuts
    return model


DENSE = {
    "copies": Laid(2, copies),
    "FSDP2": Laid(2, rows),
    "FSDP2, unevenly": Laid(3, rows),
    "HSDP": Laid(4, hybrid(2, 2)),
    "tensor parallel": Laid(2, tensor_parallel),
    "FSDP2 over tensor parallel": Laid(4, sharded_tensor_parallel(2, 2)),
    "HSDP of eight": Laid(8, hybrid(2, 4)),
}
EXPERTS = {"expert parallel": Laid(2, expert_parallel), "expert parallel, unevenly": Laid(3, expert_parallel)}
"""Of 4 experts."""
