# SPDX-License-Identifier: Apache-2.0
"""How a mutant changes what an adapter holds: its two JSON files, its tensors, and what is seen of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from spec_tests.mutants.editing import around, held, replace


def change_config(package: Any, change: Callable[..., None]) -> None:
    """``change(config, model, plan)`` edits the dict of adapter_config.json before anybody sees it."""

    def broken(original: Any, peft_config: Any, model: Any, plan: Any) -> dict[str, Any]:
        config: dict[str, Any] = original(peft_config, model, plan)
        change(config, model, plan)
        return config

    around(package, "adapter_config", broken)


def change_names(package: Any, change: Callable[[str], Any]) -> None:
    """Every name in ``target_modules`` becomes ``change(name)``: another name, or a list of names."""

    def changed(config: dict[str, Any], _model: Any, _plan: Any) -> None:
        names: set[str] = set()
        for name in config["target_modules"]:
            made = change(name)
            names |= {made} if isinstance(made, str) else set(made)
        config["target_modules"] = sorted(names)

    change_config(package, changed)


def change_metadata(package: Any, change: Callable[..., Any]) -> None:
    """``change(content, peft_config)`` edits the dict of automodel_peft_config.json, or returns another."""

    def broken(original: Any, peft_config: Any) -> dict[str, Any]:
        content: dict[str, Any] = original(peft_config)
        made = change(content, peft_config)
        return content if made is None else made

    around(package, "automodel_peft_metadata", broken)


def change_stored_values(package: Any, broken: Callable[..., Any]) -> None:
    """``broken(original, value, where, ...)`` makes values of settings fit for JSON."""
    around(package, "json_safe", broken)


def json_form(package: Any) -> Callable[..., Any]:
    """How values of settings are made fit for JSON: ``json_form(package)(value, where)``."""
    found: Callable[..., Any] = held(package, "json_safe")
    return found


def skip_metadata_where(package: Any, where: Callable[[], bool]) -> None:
    """The settings are not looked at where ``where()``."""
    around(package, "automodel_peft_metadata", lambda original, config: {} if where() else original(config))


def swap_layout_stamps(package: Any) -> None:
    """The metadata says of fused experts that they are in the other layout."""
    package.peft_addon.LAYOUTS = package.peft_addon.LAYOUTS[::-1]


def change_read_numbers(package: Any, broken: Callable[..., Any]) -> None:
    """``broken(original, peft_config, names, kind)`` reads rank or alpha; ``names`` are the trainer's and PEFT's."""
    around(package, "_number", broken)


def count_as_plain(package: Any, *initialisations: str) -> None:
    """Of a `peft.LoraConfig` these further values of ``init_lora_weights`` are taken for harmless."""
    module = package.adapter_config
    module._PLAIN_INITIALISATIONS = (*module._PLAIN_INITIALISATIONS, *initialisations)


def take_configs_for_plain(package: Any) -> None:
    """Whatever a `peft.LoraConfig` says of scales, alpha / r is taken for the scale."""
    replace(package, held(package, "_is_plain"), lambda _peft_config: True)


def change_pattern_keys(package: Any, change: Callable[[str], str]) -> None:
    """Every key of ``rank_pattern`` and ``alpha_pattern`` becomes ``change(key)``."""
    kind = held(package, "Adapter")
    original = kind.patterns
    kind.patterns = lambda self, target: [change(key) for key in original(self, target)]


def compute_no_alphas(package: Any) -> None:
    """No module's own alpha is computed, whatever its scale."""
    replace(package, held(package, "alpha_pattern"), lambda *_facts, **_more: {})


def without_check(package: Any, what: str) -> None:
    """One check is gone: of ``patterns``, or of the ``settings`` of the PEFT config."""
    replace(package, held(package, f"_check_{what}"), lambda *_facts: None)


def trust_the_config(package: Any, fact: Callable[[Any, int], dict[str, Any]]) -> None:
    """The config is made as if every target had ``fact(peft_config, rank)``, whatever was trained.

    ``rank`` is the config's; the facts are ``rank``, ``scale`` and ``dora``.
    """
    read = held(package, "rank_and_alpha")

    def broken(original: Any, peft_config: Any, model: Any, plan: Any) -> Any:
        told = fact(peft_config, read(peft_config)[0])
        targets = tuple(one._replace(**told) for one in plan.targets)
        return original(peft_config, model, dataclasses.replace(plan, targets=targets))

    around(package, "adapter_config", broken)


def allow_no_targets(package: Any) -> None:
    """A config without targets is made where there is no LoRA."""
    target, read = held(package, "Target"), held(package, "rank_and_alpha")

    def broken(original: Any, peft_config: Any, model: Any, plan: Any) -> Any:
        if plan.targets:
            return original(peft_config, model, plan)
        made_up = target(("none",), False, ("none",), (), read(peft_config)[0], None, False)
        config = original(peft_config, model, dataclasses.replace(plan, targets=(made_up,)))
        return {**config, "target_modules": []}

    around(package, "adapter_config", broken)


def change_plan(package: Any, broken: Callable[..., Any]) -> None:
    """``broken(make, parts)`` plans the adapter of this rank's parts; ``make(parts)`` is how it is done."""
    content_of = held(package, "AdapterContent").of

    def changed(original: Any, content: Any, form: Any) -> Any:
        return broken(lambda parts: original(content_of(parts), form), content.parts)

    around(package, "adapter_of", changed)


def without_fused_parameters(plan: Any) -> Any:
    """The plan without LoRA on parameters."""
    return dataclasses.replace(plan, targets=tuple(one for one in plan.targets if not one.fused))


def fused_parameters(plan: Any) -> list[str]:
    """The full names of the parameters with LoRA."""
    return [name for one in plan.targets if one.fused for name in one.names]


def list_dense_as_modules(package: Any) -> None:
    """Dense modules that PEFT takes for experts' are listed as modules all the same."""
    held(package, "Adapter")._misread = frozenset()


def skip_unconverted_experts(package: Any) -> None:
    """Grouped experts that cannot be converted are left out, without an error."""

    def broken(original: Any, site: Any, *more: Any) -> Any:
        try:
            return original(site, *more)
        except ValueError:
            if not site.grouped:
                raise
            return []

    around(package, "_converted", broken)


def change_tensors(package: Any, change: Callable[[dict[str, Any], Any], dict[str, Any]]) -> None:
    """The adapter's tensors, whole and of all ranks, become ``change(tensors, model_state)``; names are native."""
    model_state = package.ModelState
    original = model_state.state_dict
    model_state.state_dict = lambda self: change(original(self), self)

    def written(write: Any, staged: Any, save: Any, content: Any, plan: Any, native: Any) -> None:
        write(staged, save, content, plan, change(native, save.model_state))

    around(package, "_write_adapter", written)


def change_conversion(package: Any, broken: Callable[..., dict[str, Any]]) -> None:
    """``broken(original, tensors, parts, form)`` converts the tensors to Hugging Face's names, in `save_adapter`."""
    original = package.save.hf_tensors
    package.save.hf_tensors = lambda native, parts, form: broken(original, native, parts, form)


def write_weights_with(package: Any, write: Callable[[Any, dict[str, Any]], None]) -> None:
    """``write(path, tensors)`` writes the weights file of an adapter."""
    replace(package, held(package, "write_safetensors"), write)


def fused_form(package: Any) -> Any:
    """The form of experts that is the default."""
    return held(package, "Form").FUSED
