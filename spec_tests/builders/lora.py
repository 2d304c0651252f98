"""Dense LoRA as trainers hold it: a Linear that keeps its weight and has lora_A and lora_B as children."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from spec_tests.builders.randomness import draw_normal, generator, scale_uniform

if TYPE_CHECKING:
    from collections.abc import Iterable


class LoRALinear(nn.Linear):
    """A Linear [out, in] with LoRA of rank ``dim``: lora_A.weight [dim, in], lora_B.weight [out, dim].

    With DoRA also ``lora_magnitude`` [out], which starts at the row norms of the base weight. ``scale`` is
    alpha / dim. lora_B starts at zero, as in training; see ``randomise_lora``.
    """

    def __init__(
        self,
        linear: nn.Linear,
        dim: int,
        alpha: float,
        use_dora: bool = False,
        source: torch.Generator | None = None,
    ) -> None:
        has_bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, bias=has_bias, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.dim, self.scale, self.use_dora = dim, alpha / dim, use_dora
        place = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        with torch.random.fork_rng(devices=[]):
            self.lora_A = nn.Linear(linear.in_features, dim, bias=False, **place)
            self.lora_B = nn.Linear(dim, linear.out_features, bias=False, **place)
        draw_normal(self.lora_A.weight, source or generator(0), std=linear.in_features**-0.5)
        nn.init.zeros_(self.lora_B.weight)
        if use_dora:
            self.lora_magnitude = nn.Parameter(torch.linalg.norm(linear.weight.detach(), dim=1))

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The trainable parameters that LoRA added to this module."""
        magnitude = [self.lora_magnitude] if self.use_dora else []
        return [self.lora_A.weight, self.lora_B.weight, *magnitude]

    def randomise(self, source: torch.Generator, std: float) -> None:
        """Draw lora_B from a normal; move every DoRA magnitude away from where PEFT would initialise it."""
        draw_normal(self.lora_B.weight, source, std=std)
        if self.use_dora:
            # A reader that finds no magnitude takes the row norms: left there, a lost tensor would not show.
            scale_uniform(self.lora_magnitude, source, 0.5, 1.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [..., in] to [..., out]; with DoRA the numbers (and the detached norm) are PEFT's."""
        if not self.use_dora:
            return super().forward(x) + self.scale * self.lora_B(self.lora_A(x))
        merged = self.weight + self.scale * (self.lora_B.weight @ self.lora_A.weight)
        norm = torch.linalg.norm(merged, dim=1).detach()
        direction = functional.linear(x, self.weight) + self.scale * self.lora_B(self.lora_A(x))
        out = (self.lora_magnitude / norm) * direction
        return out if self.bias is None else out + self.bias


def apply_dense_lora(
    model: nn.Module, targets: Iterable[str], dim: int, alpha: float, use_dora: bool = False, *, seed: int = 0
) -> list[str]:
    """Replace matching Linears in place by LoRALinears and freeze all that is not LoRA; returns their names.

    A target is a module's exact name or its last component. A target that matches no Linear is an error.
    """
    wanted, source = set(targets), generator(seed)
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and not isinstance(module, LoRALinear)
        and {name, name.rpartition(".")[2]} & wanted
    }
    unmatched = {target for target in wanted if not any(target in (n, n.rpartition(".")[2]) for n in found)}
    if unmatched:
        raise ValueError(f"no Linear is named {', '.join(sorted(unmatched))}")
    for name, linear in found.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, LoRALinear(linear, dim, alpha, use_dora, source))
    freeze_base(model)
    return list(found)


def freeze_base(model: nn.Module) -> None:
    """Make exactly the LoRA parameters of this package's modules trainable."""
    # Asked of the modules, not read off names: a base module may well be called lora_something.
    kept = {id(parameter) for module in _adapted(model) for parameter in module.adapter_parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in kept)


def randomise_lora(model: nn.Module, std: float = 0.5, seed: int = 0) -> None:
    """Draw every lora_B (dense and expert) from a normal of ``std``: a lora_B near zero hides a wrong export.

    lora_A keeps its values (never zero). Works on sharded models; the numbers do not depend on the ranks.
    """
    source = generator(seed)
    for module in _adapted(model):
        module.randomise(source, std)


def _adapted(model: nn.Module) -> Iterable[nn.Module]:
    # By type: a compile wrapper answers for the attributes of what it wraps, and each module counts once.
    return (module for module in model.modules() if hasattr(type(module), "adapter_parameters"))
