# SPDX-License-Identifier: Apache-2.0
"""How a mutant changes what is seen of a model: its names, its LoRA, its heads and its experts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

from spec_tests.mutants.editing import around, held, replace


def change_task(package: Any, task: Callable[[Any], Any]) -> None:
    """``task(model)`` is PEFT's task type."""
    replace(package, held(package, "task_type"), task)


def forget_known_architectures(package: Any) -> None:
    """The lists of architectures in transformers are not read."""
    package.heads._REGISTRIES = ()


def live_tensors(package: Any, model: Iterable[Any]) -> dict[str, Any]:
    """What an adapter of these parts holds, by native names: the model's own parameters."""
    found: dict[str, Any] = held(package, "AdapterContent").of(held(package, "model_parts")(list(model))).tensors()
    return found


def change_sites(package: Any, keep: Callable[[Any], bool]) -> None:
    """LoRA is seen only on modules for whose tensors (name -> parameter) ``keep`` is true."""

    def broken(original: Any, parts: Any) -> Any:
        return [site for site in original(parts) if keep(site.tensors)]

    around(package, "lora_sites", broken)


def lora_modules(package: Any, model: Any) -> list[str]:
    """The modules with LoRA, as the trainer calls them."""
    return [site.module for site in held(package, "lora_sites")(held(package, "model_parts")([model]))]


def allow_half_pairs(package: Any) -> None:
    """Of LoRA that has only one of A and B, that one is planned and saved."""

    def half(site: Any) -> bool:
        return not site.grouped and len({"lora_A.weight", "lora_B.weight"} & site.tensors.keys()) == 1

    def owners(original: Any, site: Any, converted: Any) -> Any:
        if not half(site):
            return original(site, converted)
        names = [key.removeprefix("base_model.model.").rpartition(".lora_") for key in converted]
        pairs = zip(names, converted.values(), strict=True)
        return {module: ((f"lora_{end}", tuple(tensor.shape)),) for (module, _, end), tensor in pairs}

    around(package, "_check_pairs", lambda original, site: None if half(site) else original(site))
    around(package, "_owners", owners)


def find_heads_where(package: Any, keep: Callable[[list[str]], Any]) -> None:
    """A head is looked for only in parts where ``keep(trained)`` holds: what is trained there beside LoRA."""
    trained = held(package, "trained_beside_lora")

    def broken(original: Any, parts: Any, sites: Any) -> Any:
        return original([part for part in parts if keep(trained([part], sites))], sites)

    around(package, "heads", broken)


def change_head_match(package: Any, matches: Callable[[str, Any], bool]) -> None:
    """A tensor belongs to the heads of these names where ``matches(tensor, names)``."""
    replace(package, held(package, "ends_like"), matches)


def change_trained(package: Any, keep: Callable[[str], bool]) -> None:
    """Of what is trained beside LoRA only names that ``keep`` are noticed."""

    def broken(original: Any, parts: Any, sites: Any) -> list[str]:
        return [name for name in original(parts, sites) if keep(name)]

    around(package, "trained_beside_lora", broken)


def overlook_other_lora(package: Any) -> None:
    """LoRA of embeddings and biases, trained or not, is no LoRA and nothing else."""
    replace(package, held(package, "_OTHER_LORA"), re.compile("(?!)"))
    change_trained(package, lambda name: "lora_" not in name)


def change_walk(package: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """A part's parameters become ``change(parameters)``: clean name -> parameter."""
    kind = held(package, "ModelPart")
    original = kind.of

    def of(_cls: Any, part: Any) -> Any:
        found = original(part)
        return dataclasses.replace(found, parameters=change(found.parameters))

    kind.of = classmethod(of)


def rename_in_walk(package: Any, rename: Callable[[str, str], str | None]) -> None:
    """Names become ``rename(clean, raw)``, where ``raw`` is torch's; parameters for which that is None are not seen.

    What is renamed are the names of parameters, and the names of modules with a dot behind them.
    """
    kind = held(package, "ModelPart")
    original = kind.of

    def of(_cls: Any, part: Any) -> Any:
        found = original(part)
        raw = _raw_names(part.named_parameters(remove_duplicate=False))
        parameters = {rename(name, _next(raw, one, name)): one for name, one in found.parameters.items()}
        inner = _raw_names((f"{name}.", module) for name, module in part.named_modules(remove_duplicate=False))
        modules = {rename(f"{name}.", _next(inner, one, f"{name}.")): one for name, one in found.modules.items()}
        return dataclasses.replace(
            found,
            parameters={name: one for name, one in parameters.items() if name is not None},
            modules={name.removesuffix("."): one for name, one in modules.items() if name is not None},
        )

    kind.of = classmethod(of)


def _raw_names(items: Iterable[tuple[str, Any]]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for name, one in items:
        found.setdefault(id(one), []).append(name)
    return found


def _next(raw: dict[int, list[str]], one: Any, otherwise: str) -> str:
    names = raw.get(id(one))
    return names.pop(0) if names else otherwise


def take_peft_models_for_any(package: Any) -> None:
    """What PEFT wraps around a model counts as a part of it."""
    replace(package, held(package, "_is_peft_model"), lambda _module: False)


def know_no_adapter_names(package: Any) -> None:
    """PEFT's ``lora_A.default.weight`` is not taken for LoRA."""
    module = package.lora_sites
    module._LINEAR = re.compile(module._LINEAR.pattern.replace(r"(?:\.(?P<adapter>[^.]+))?", "(?P<adapter>(?!))?"))


def change_fused(package: Any, matrix: str, broken: Callable[[Any], Any]) -> None:
    """``broken(tensor)`` makes one matrix, ``A`` or ``B``, of LoRA [experts, rank, size] two-dimensional."""

    def changed(original: Any, tensor: Any, which: str) -> Any:
        return broken(tensor) if which == matrix else original(tensor, which)

    around(package, package.experts._fused, changed)


def change_nesting(package: Any, where: Callable[[str, bool], bool]) -> None:
    """LoRA of a projection is nested where ``where(projection, both)``; ``both``: whether both projections have it."""

    def broken(_original: Any, match: Any, nested: bool) -> str:
        inner = where(match["projection"], nested)
        return str(match["experts"]) + (".base_layer" if inner else "")

    around(package, "_fused_owner", broken)


def change_single_experts(package: Any, broken: Callable[..., dict[str, Any]]) -> None:
    """``broken(make, adapter, match, tensor)`` makes the tensors of single experts; ``make(tensor)`` does it rightly.

    ``match`` has ``projection`` and ``matrix`` of the tensor [experts, in or rank, rank or out].
    """
    mixin = package.MoESplitExpertsStateDictMixin
    original = mixin._per_expert

    def changed(self: Any, match: Any, tensor: Any) -> dict[str, Any]:
        return broken(lambda one: original(self, match, one), self, match, tensor)

    mixin._per_expert = changed
