"""Seeded numbers for parameters: the same for any number of ranks, the global generator untouched."""

from __future__ import annotations

import torch
from torch.distributed.tensor import DTensor, distribute_tensor


def generator(seed: int) -> torch.Generator:
    """A CPU generator of its own, started at ``seed``."""
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def draw_normal(parameter: torch.Tensor, source: torch.Generator, std: float, mean: float = 0.0) -> None:
    """Fill ``parameter`` (any shape, also sharded or on the meta device) from a normal, in place."""
    # The whole tensor is drawn on every rank: a draw per shard would depend on the number of ranks.
    whole = torch.randn(parameter.shape, generator=source) * std + mean
    assign(parameter, whole)


@torch.no_grad()
def scale_uniform(parameter: torch.Tensor, source: torch.Generator, low: float, high: float) -> None:
    """Multiply every element of ``parameter`` (any shape, also sharded) by its own factor in [low, high]."""
    factors = torch.rand(parameter.shape, generator=source) * (high - low) + low
    parameter.mul_(_like(parameter, factors))


@torch.no_grad()
def assign(parameter: torch.Tensor, whole: torch.Tensor) -> None:
    """Copy the unsharded ``whole`` (same shape, on every rank) into ``parameter``, which may be sharded."""
    parameter.copy_(_like(parameter, whole))


def _like(parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """``whole`` with the device, dtype and sharding of ``parameter``."""
    whole = whole.to(device=parameter.device, dtype=parameter.dtype)
    if not isinstance(parameter, DTensor):
        return whole
    # src_data_rank=None: all ranks hold the same numbers already, so each cuts its piece, without traffic.
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
