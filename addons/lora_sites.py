# SPDX-License-Identifier: Apache-2.0
"""The modules that carry LoRA, and the pairs of matrices that they hold.

Both the names in ``adapter_config.json`` and the keys of ``adapter_model.safetensors`` are made from these sites, so
the two files cannot disagree about a module (clauses ADP-010, LOAD-001).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from .experts import EXPERT_BASE, EXPERT_LORA
from .modules import ModelPart
from .ranks import attempt

# A trainer's own `lora_A.weight`, or PEFT's `lora_A.<adapter>.weight` (clause TGT-021).
_LINEAR = re.compile(
    r"(?:(?P<module>.+)\.)?(?:(?P<matrix>lora_[AB])(?:\.(?P<adapter>[^.]+))?\.weight"
    r"|lora_magnitude(?:_vector\.(?P<of_magnitude>[^.]+)\.weight)?)"
)
# What PEFT adds beside: LoRA of embeddings, biases of LoRA.
_OTHER_LORA = re.compile(r"(?:.+\.)?lora_(?:embedding_)?[AB](?:\..+)?")

_FEATURES = (("in_features", "nx"), ("out_features", "nf"))


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
        scale: the factor of the LoRA product, where the module has it as ``scale`` (or as PEFT's ``scaling``): a
            number, or an array of one element.
        kind: what layers have in common that are alike: names, dtypes and shapes.
        parameter: where PEFT put the LoRA on a bare parameter, the parameter's full name; the matrices are 2-D then,
            and hold all experts of a layer where there are any.
        rank: of each of these experts.
        features: inputs and outputs of a dense module, where it says them.
        turned: whether the module holds its weight [in, out], as GPT-2's Conv1D.
    """

    module: str
    grouped: bool
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    scale: float | None = None
    kind: tuple[Any, ...] = ()
    parameter: str = ""
    rank: int = 0
    features: tuple[Any, ...] = (None, None)
    turned: bool = False

    @property
    def projections(self) -> list[str]:
        """Which of ``gate_and_up`` and ``down`` a grouped site has, sorted; empty for a dense one."""
        return [one for one in ("down", "gate_and_up") if not self.tensors.keys().isdisjoint(_pair(one))]


def lora_sites(parts: Sequence[ModelPart]) -> list[LoraSite]:
    """The modules of all model parts that carry LoRA, sorted by name (clause TGT-011).

    Whether a parameter requires a gradient at the moment of saving does not matter: the forward adds what is
    there, a frozen random ``lora_A`` (LoRA-FA) as much as a layer that was frozen late (clause TGT-012).

    Raises:
        ValueError: LoRA on the root module, half of an A/B pair, an A and B of different rank, no matrices, two
            adapters of PEFT or one on a bare parameter, or one name in two parts: nothing that PEFT could load can be
            written for it (clause TGT-016); what PEFT trains is no plain LoRA (clauses TGT-018, TGT-024); a scale that
            is no number (clause ADP-017).
    """
    sites: dict[str, LoraSite] = {}
    adapters: dict[str | None, str] = {}
    for part in parts:
        _check_tuners(part)
        found: dict[str, LoraSite] = {}
        for name, parameter in part.parameters.items():
            if "lora_" in name and (lora := _lora_name(name)) is not None:
                _add(found, *lora, parameter, part)
                adapters.setdefault(lora[2], name)
        if twice := sorted(sites.keys() & found.keys()):
            raise ValueError(
                f"LoRA must be in one part of the model, got {twice[0]!r} in two: one would replace the other"
            )
        sites |= found
    _check_one_adapter(adapters)
    kinds = set()
    for site in sites.values():
        kind = [(name, tensor.dtype, tensor.shape) for name, tensor in site.tensors.items()]
        site.kind = (site.features, *kind)
        if site.kind not in kinds:
            _check_pairs(site)
            kinds.add(site.kind)
    return [sites[module] for module in sorted(sites)]


def plain_experts(parts: Sequence[ModelPart], sites: Sequence[LoraSite]) -> list[str]:
    """The modules of grouped experts without LoRA, which no list names (clause TGT-023); sorted."""
    names = [name for part in parts for name in part.parameters if name.endswith("_projs")]
    bases = {match["experts"] for name in names if (match := EXPERT_BASE.fullmatch(name))}
    return sorted(bases - {site.module for site in sites if site.grouped})


def trained_beside_lora(parts: Sequence[ModelPart], sites: Sequence[LoraSite]) -> list[str]:
    """Parameters that require a gradient and are no LoRA, sorted."""
    lora = {id(tensor) for site in sites for tensor in site.tensors.values()}
    trained = [item for part in parts for item in part.parameters.items() if item[1].requires_grad]
    return sorted([name for name, parameter in trained if id(parameter) not in lora])


def _lora_name(name: str) -> tuple[str, str, str | None] | None:
    """Module, name of the tensor as in `LoraSite.tensors`, and adapter of PEFT, of a parameter that is LoRA.

    Whole segments of the name decide: others that merely contain ``lora_`` are none (clause TGT-005).
    """
    module, _, tensor = name.rpartition(".lora_")
    if module and tensor in {"A.weight", "B.weight"}:
        return module, f"lora_{tensor}", None
    if match := EXPERT_LORA.fullmatch(name):
        return match["experts"] or "", match["tensor"], None
    if match := _LINEAR.fullmatch(name):
        tensor = f"{match['matrix']}.weight" if match["matrix"] else "lora_magnitude"
        return match["module"] or "", tensor, match["adapter"] or match["of_magnitude"]
    if _OTHER_LORA.fullmatch(name):
        raise ValueError(
            f"LoRA must be a pair of matrices lora_A.weight and lora_B.weight, got {name!r}, of an embedding or a "
            "bias: let PEFT save it (save_pretrained)"
        )
    return None


def _add(
    found: dict[str, LoraSite], module: str, tensor: str, adapter: str | None, parameter: nn.Parameter, part: ModelPart
) -> None:
    if not module:
        raise ValueError(f"LoRA must be on a module with a name that PEFT can match, got {tensor!r} on the root module")
    owner: Any = part.modules[module]
    site = found.get(module)
    if site is None:
        # GPT-2's Conv1D says nx and nf. Of a wrapped layer, base_layer is the wrapper; ``modules`` has the innermost.
        features = tuple(getattr(owner, one, getattr(owner, own, None)) for one, own in _FEATURES)
        turned = isinstance(part.modules.get(f"{module}.base_layer", owner), Conv1D)
        grouped = tensor.endswith(("_A", "_B"))
        site = found[module] = LoraSite(module, grouped, features=features, turned=turned)
    if tensor in site.tensors:
        raise ValueError(
            f"module {module!r} must hold one LoRA of its own, got two adapters: let PEFT save them (save_pretrained)"
        )
    if adapter and hasattr(owner, "parameter_name"):
        bare = re.sub(r"(\.base_layer)+$", "", module)  # PEFT wraps a module once for each of its parameters
        site.parameter, site.rank = f"{bare}.{owner.parameter_name}", owner.r[adapter]
    if adapter:
        _check_variant(getattr(owner, "lora_variant", {}).get(adapter), module)
    site.tensors[tensor] = parameter
    if site.scale is None:
        scale = getattr(owner, "scaling", {}).get(adapter) if adapter else getattr(owner, "scale", None)
        site.scale = _number(scale, module)


def _number(scale: Any, module: str) -> float | None:
    # A number, or whatever holds one: a tensor, a buffer, a value of NumPy (clause ADP-027).
    if scale is None:
        return None
    value, _ = attempt(getattr(scale, "item", lambda: scale))
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(
            f"the scale of the LoRA of {module!r} must be one finite number, got {scale!r}: set it, or delete the "
            "attribute"
        )
    return float(value)


def _check_one_adapter(adapters: Mapping[str | None, str]) -> None:
    if len(adapters) > 1:
        raise ValueError(
            f"a model must hold the LoRA of one adapter, got {' and '.join(sorted(adapters.values()))}: delete the "
            "others (delete_adapter), or let PEFT save them (save_pretrained)"
        )


def _check_variant(variant: Any, module: str) -> None:
    if variant is not None and not type(variant).__name__.startswith("Dora"):
        raise ValueError(
            f"the LoRA of {module!r} must be plain or DoRA, got {type(variant).__name__}: another would be loaded as "
            "plain LoRA. Let PEFT save it (save_pretrained)"
        )


def _check_tuners(part: ModelPart) -> None:
    # PEFT is not imported: its layers are known by where their classes stand.
    for kind in sorted({type(module) for module in part.modules.values()}, key=lambda one: one.__name__):
        tuner = re.match(r"peft\.tuners\.(\w+)\.", kind.__module__)
        if tuner and tuner[1] != "lora":
            raise ValueError(
                f"what PEFT trains must be LoRA, got a layer of {tuner[1]} ({kind.__name__}): let PEFT save it "
                "(save_pretrained), or merge it into the model"
            )


def _pair(projection: str) -> tuple[str, str]:
    return f"lora_{projection}_A", f"lora_{projection}_B"


def _check_pairs(site: LoraSite) -> None:
    grouped = [_pair(one) for one in site.projections]
    if grouped and site.tensors.keys() - {name for pair in grouped for name in pair}:
        raise ValueError(f"LoRA of {site.module!r} must be dense or of grouped experts, got both: export one of them")
    for name_a, name_b in grouped or [("lora_A.weight", "lora_B.weight")]:
        a, b = site.tensors.get(name_a), site.tensors.get(name_b)
        if a is None or b is None:
            missing = name_a if a is None else name_b
            raise ValueError(f"LoRA of {site.module!r} must have both A and B, got no {missing!r}")
        # LoRA of a convolution has the kernel's dimensions in A, and as many of size 1 in B.
        convolves = not site.grouped and a.ndim == b.ndim and set(b.shape[2:]) == {1}
        for name, tensor in ((name_a, a), (name_b, b)):
            if not (convolves or tensor.ndim == (3 if site.grouped else 2)) or not tensor.is_floating_point():
                raise ValueError(
                    f"{site.module}.{name} must be a floating-point LoRA matrix, got {tensor.dtype} "
                    f"{tuple(tensor.shape)}: if FSDP1 flattened it, use fully_shard instead"
                )
        rank_a, rank_b = (a.shape[2], b.shape[1]) if site.grouped else (a.shape[0], b.shape[1])
        # A convolution in groups has fewer inputs a group.
        if rank_a % rank_b if convolves else rank_a != rank_b:
            raise ValueError(
                f"A and B of {site.module!r} must have one rank, got {rank_a} in {name_a} and {rank_b} in {name_b}"
            )
    if not site.grouped:
        _check_whole(site)


def _check_whole(site: LoraSite) -> None:
    # One rank's shard has fewer (clause TGT-026).
    held = (site.tensors["lora_A.weight"].shape[1], site.tensors["lora_B.weight"].shape[0])
    if any(type(whole) is int and whole != part for whole, part in zip(site.features, held, strict=True)):
        raise ValueError(
            f"LoRA of {site.module!r} must be whole, got matrices for {held} of its {site.features} inputs and "
            "outputs: gather the shards first, or hold them as DTensors"
        )
