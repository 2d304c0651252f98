"""Run a tiny model: logits, a few training steps, FSDP2 sharding."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional

from spec_tests.builders.randomness import generator


def sample_input_ids(vocab: int = 64, seed: int = 0, batch: int = 2, length: int = 8) -> torch.Tensor:
    """Random token ids [batch, length] in [0, vocab)."""
    return torch.randint(vocab, (batch, length), generator=generator(seed))


@torch.no_grad()
def logits(model: nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    """Float32 logits [batch, length, vocab] in eval mode, which is then undone. Collective when sharded."""
    was_training = model.training
    model.eval()
    try:
        return model(input_ids=input_ids, use_cache=False).logits.float()
    finally:
        model.train(was_training)


def train_steps(
    model: nn.Module,
    steps: int = 3,
    seed: int = 0,
    *,
    lr: float = 1e-2,
    vocab: int = 64,
    batch: int = 2,
    length: int = 8,
) -> list[float]:
    """AdamW over the trainable parameters, next-token loss on one random batch; returns the loss of every step.

    All ranks and steps see the same batch: a sharded model learns what the unsharded one does, and the loss falls.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("the model has no trainable parameter")
    optimizer = torch.optim.AdamW(trainable, lr=lr)
    was_training, losses = model.training, []
    model.train()
    ids = sample_input_ids(vocab, seed, batch, length).to(trainable[0].device)
    for _ in range(steps):
        predicted = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        loss = functional.cross_entropy(predicted.flatten(0, 1), ids[:, 1:].flatten().to(predicted.device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    model.train(was_training)
    return losses


def shard(model: nn.Module, mesh: Any = None, **settings: Any) -> nn.Module:
    """FSDP2 over ``mesh``, or over all ranks: every decoder layer, then the root; returns the model.

    ``settings`` are those of `fully_shard`.
    """
    mesh = all_ranks() if mesh is None else mesh
    for layer in model.get_submodule("model.layers").children():
        fully_shard(layer, mesh=mesh, **settings)
    fully_shard(model, mesh=mesh, **settings)
    return model


def shard_whole(model: nn.Module) -> nn.Module:
    """FSDP2 of the root alone, for models of any form, over all ranks; one rank alone gets the model as it is."""
    if dist.get_world_size() > 1:
        fully_shard(model, mesh=all_ranks())
    return model


def all_ranks() -> DeviceMesh:
    """The mesh of all ranks, in one dimension."""
    return init_device_mesh(device_kind(), (dist.get_world_size(),))


def device_kind() -> str:
    """Where the ranks of this process group compute."""
    return "cuda" if "nccl" in dist.get_backend_config() else "cpu"
