# SPDX-License-Identifier: Apache-2.0
"""The plan of an adapter: what carries LoRA, as ``adapter_config.json`` and the weights call it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from .experts import Form
from .lora_sites import plain_experts, trained_beside_lora
from .model_state import PEFT_PREFIX, AdapterContent, hf_tensors, state_dict_adapter
from .ranks import attempt
from .target_sites import Shapes, Target, declared_parameters, is_own, module_and_end, site_targets

_LORA = (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector")
_PLAIN = re.compile(r"[\w.-]+")
_EXPERT = re.compile(r"\\\.experts\\\.\d+\\\.")
_LIKE_EXPERTS = frozenset({"down_proj", "gate", "gate_proj", "up_proj"})


@dataclass(frozen=True)
class Adapter:
    """What the two files of an adapter hold.

    Attributes:
        targets: sorted by their first name.
        declared: the fused parameters as the model's state-dict adapter declares them, below a layer; in its order.
        plain_experts: modules of grouped experts without LoRA.
        has_experts: whether the model has experts, with LoRA or without.
        heads: names for ``modules_to_save``.
        modules: of the Hugging Face model, with LoRA or without, sorted; ranks that hold the same LoRA may differ.
        head_shapes: of the tensors of the heads, by their whole keys.
    """

    targets: tuple[Target, ...] = ()
    declared: tuple[str, ...] = ()
    plain_experts: tuple[str, ...] = ()
    has_experts: bool = False
    heads: tuple[str, ...] = ()
    modules: tuple[str, ...] = field(default=(), compare=False)
    head_shapes: Shapes = ()

    @cached_property
    def target_modules(self) -> list[str]:
        """The modules that the config lists as modules, sorted (clauses TGT-001, TGT-006)."""
        dense = [name for one in self.targets if not one.fused for name in one.names]
        return sorted(set(dense).difference(self._misread) if self._misread else dense)

    @cached_property
    def target_parameters(self) -> list[str]:
        """The fused parameters as declared, or in full where not every layer's experts carry all; dense weights.

        PEFT attaches LoRA to all parameters that end in a listed name, with tensors or not (clauses TGT-010, TGT-020).
        """
        fused = sorted(name for one in self.targets if one.fused for name in one.names)
        ends = {name: {full for full in fused if full.endswith(f".{name}")} for name in self.declared}
        used = {name: full for name, full in ends.items() if full}
        owners = {frozenset(one.rpartition(".")[0] for one in full) for full in used.values()}
        everywhere = len(owners) <= 1 and not self.plain_experts
        short = everywhere and sum(map(len, used.values())) == len(fused)
        return [*(used if short else fused), *(f"{name}.weight" for name in sorted(self._misread))]

    @cached_property
    def _misread(self) -> frozenset[str]:
        """Modules that the config lists by their weights.

        In a model with experts PEFT >= 0.20 takes a dense gate_proj for the experts' wherever it stands, and gives the
        dense module no LoRA, without an error. As a parameter it is found, under the same keys (clause TGT-019), but
        its weight is taken for [out, in].
        """
        dense = (one.names for one in self.targets if not (one.fused or one.turned)) if self.has_experts else ()
        outside = (name for names in dense for name in names if ".experts." not in name)
        return frozenset(name for name in outside if name.rpartition(".")[2] in _LIKE_EXPERTS)

    @cached_property
    def excluded(self) -> list[str]:
        """Modules without LoRA that PEFT would take for a target by the end of their names, sorted (clause LOAD-009).

        Raises:
            ValueError: to exclude one would exclude a target.
        """
        known = {name for one in self.targets if not one.fused for name in one.names}
        firsts = {name.partition(".")[0] for name in known}
        found = {
            module
            for module in set(self.modules) - known
            if not (firsts.isdisjoint(module.split(".")[1:]) or known.isdisjoint(_ends(module)))
        }
        if lost := sorted(name for name in known if not found.isdisjoint(_ends(name))):
            raise ValueError(
                f"the modules with LoRA must be told by their names, got {lost[0]!r}, which ends like a module "
                "without: rename one, or put LoRA on both"
            )
        return sorted(found)

    def patterns(self, target: Target) -> list[str]:
        """The keys of a target in ``rank_pattern`` and ``alpha_pattern``, regular expressions; one for all experts."""
        names = {f"{name}.weight" if name in self._misread else name for name in target.names}
        # Only with signs that a regular expression takes otherwise is there more to escape than dots (clause ADP-031).
        escaped = (name.replace(".", r"\.") if _PLAIN.fullmatch(name) else re.escape(name) for name in names)
        return sorted({_EXPERT.sub(r"\\.experts\\.\\d+\\.", name) for name in escaped})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Key -> shape of every tensor of ``adapter_model.safetensors``."""
        lora = {
            f"{PEFT_PREFIX}{owner}.{end}": shape
            for one in self.targets
            for owner in one.owners
            for end, shape in one.shapes
        }
        return lora | dict(self.head_shapes)


def adapter_of(content: AdapterContent, form: Form) -> Adapter:
    """The plan for this rank's model parts, in the form that `hf_tensors` gives the weights.

    Raises:
        ValueError: parameters other than LoRA and a head are trained (clause TGT-018); the model's adapter drops a
            tensor, gives two one name, or names one in a way PEFT cannot read; expert LoRA in a form that PEFT cannot
            hold.
    """
    parts, head = content.parts, content.heads
    if beside := [name for name in trained_beside_lora(parts, content.sites) if name not in head.tensors]:
        raise ValueError(
            f"every trained parameter must be LoRA or of a head, got {len(beside)} others, first {beside[0]!r}: they "
            "would be lost. Freeze what was not trained (requires_grad=False), or save the whole model"
        )
    adapter = state_dict_adapter(parts)
    targets = list(site_targets(content, adapter, form))
    native = {f"{PEFT_PREFIX}{name}": torch.empty_like(t, device="meta") for name, t in head.tensors.items()}
    plan = Adapter(
        targets=tuple(sorted(targets, key=lambda one: one.names)),
        declared=declared_parameters(adapter) if any(one.fused for one in targets) else (),
        plain_experts=tuple(plain_experts(parts, content.sites)),
        has_experts=any("experts" in name and ".experts." in f".{name}." for part in parts for name in part.modules),
        heads=tuple(sorted(head.names)),
        modules=tuple(sorted(_hf_modules(content, adapter, form))),
        head_shapes=tuple(sorted((key, tuple(t.shape)) for key, t in hf_tensors(native, parts, form).items())),
    )
    _check_unique(plan)
    return plan


def united(several: Iterable[Adapter]) -> Adapter:
    """The union over ranks: the same for any way to cut a model into parts.

    Raises:
        ValueError: two tensors have one name.
    """
    every = list(several)
    whole = Adapter(
        # One target may be in two stages, which hold copies of it.
        targets=tuple(sorted({one for adapter in every for one in adapter.targets}, key=lambda one: one.names)),
        # The declared names keep their order, which is the same on every rank.
        declared=tuple(dict.fromkeys(name for one in every for name in one.declared)),
        plain_experts=tuple(sorted({name for one in every for name in one.plain_experts})),
        has_experts=any(one.has_experts for one in every),
        heads=tuple(sorted({name for one in every for name in one.heads})),
        modules=tuple(sorted({name for one in every for name in one.modules})),
        head_shapes=tuple(sorted({item for one in every for item in one.head_shapes})),
    )
    _check_unique(whole)
    return whole


def check_tensors(plan: Adapter, tensors: Mapping[str, torch.Tensor]) -> None:
    """Compare the weights with what the config was made from, one last time before they are published.

    Raises:
        RuntimeError: a key or shape differs, so that PEFT would drop tensors or make up fresh ones (clause LOAD-001).
    """
    expected, real = plan.shapes(), {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if differing := sorted(key for key in expected.keys() | real.keys() if expected.get(key) != real.get(key)):
        key = differing[0]
        raise RuntimeError(
            f"{len(differing)} tensors must be as the config says, got {real.get(key)} instead of {expected.get(key)} "
            f"for {key!r}: does the model's state_dict_adapter treat real tensors otherwise than meta ones?"
        )


def _hf_modules(content: AdapterContent, adapter: Any, form: Form) -> Iterable[str]:
    """The modules of the Hugging Face model, as far as they can be told from this one's."""
    parts = content.parts
    if is_own(adapter):
        return (name for part in parts for name in part.modules)
    lora = {id(tensor) for site in content.sites for tensor in site.tensors.values()}
    names = {name for part in parts for name, tensor in part.parameters.items() if id(tensor) not in lora}
    # A module without parameters of its own is asked for as if it had a weight, where the adapter takes that.
    more = {f"{name}.weight" for part in parts for name in part.modules if name and ".lora_" not in name}
    for asked in (names | more, names):
        empty = {f"{PEFT_PREFIX}{name}": torch.empty(0, 0, 0, device="meta") for name in asked}
        converted, _ = attempt(hf_tensors, empty, parts, form)
        if converted:
            break
    return {name.removeprefix(PEFT_PREFIX).rpartition(".")[0] for name in converted or empty}


def _ends(name: str) -> list[str]:
    segments = name.split(".")
    return [".".join(segments[at:]) for at in range(1, len(segments))]


def _check_unique(plan: Adapter) -> None:
    owners = [owner for one in plan.targets for owner in one.owners]
    known = set(owners)
    twice = None
    if len(known) < len(owners):
        twice = next(first for first, second in itertools.pairwise(sorted(owners)) if first == second)
    for key, _ in plan.head_shapes:
        if key.endswith(_LORA):
            twice = key if module_and_end(key)[0] in known else twice
    if twice is not None:
        raise ValueError(
            f"every tensor must have a name of its own, got {twice!r} twice: by the model's state_dict_adapter, in two "
            "stages that differ, or as LoRA inside a head"
        )
