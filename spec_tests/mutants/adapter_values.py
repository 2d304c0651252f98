# SPDX-License-Identifier: Apache-2.0
"""Faults in what an adapter takes from the model or refuses: scales, dtypes, shared LoRA, other trained parameters.

Those of the names alone are in `targets`, those of the config's keys in `adapter_config`.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from spec_tests.mutants.editing import change_config, change_tensors, held, replace
from spec_tests.mutants.registry import mutant

EVERYWHERE = ("TGT", "EXP", "RANK", "HOOK", "ERR")


@mutant(kills=["ADP-017"], source="`scale` is the trainer's own business")
def believes_that_every_scale_is_alpha_by_rank(addons: Any) -> None:
    """A module that was trained with another scale computes something else in every reader."""
    original = held(addons, "adapter_config")
    replace(
        addons, original, lambda config, model, found: original(config, model, dataclasses.replace(found, scales=()))
    )


@mutant(kills=["ADP-017"], source="peft `LoraConfig.use_rslora`, left out of a config with fixed keys")
def takes_every_config_for_a_plain_one(addons: Any) -> None:
    """LoRA trained with alpha / sqrt(r) is added with alpha / r, a fraction of it."""
    replace(addons, held(addons, "_is_plain"), lambda _peft_config: True)


@mutant(kills=["ADP-014"], also=("TGT",), source="NVIDIA-NeMo/Automodel#3834: r alone")
def writes_no_rank_pattern(addons: Any) -> None:
    """PEFT reports shapes that do not fit; vLLM and SGLang scale wrongly and say nothing."""
    change_config(addons, lambda config, _model, _found: config.pop("rank_pattern", None))


@mutant(kills=["ADP-017"], also=("TGT",), source="NVIDIA-NeMo/Automodel#3834: the rank without the scale")
def writes_no_alpha_pattern(addons: Any) -> None:
    """Modules of another rank have the right tensors and the wrong scale."""
    change_config(addons, lambda config, _model, _found: config.pop("alpha_pattern", None))


@mutant(kills=["ADP-014", "ADP-017"], source="peft `get_pattern_key`: patterns are regular expressions")
def writes_patterns_as_plain_names(addons: Any) -> None:
    """The dot of one module's name matches the letter in another's, which gets the first one's rank."""
    targets = held(addons, "Targets")
    original = targets.pattern
    targets.pattern = lambda self, target: original(self, target).replace("\\.", ".")


@mutant(kills=["ADP-014", "ADP-017"], source="huggingface/peft#2419: a key that is the end of another one")
def writes_patterns_that_match_too_much(addons: Any) -> None:
    """A module's rank is taken for that of another one, whose name ends like its own."""
    replace(addons, held(addons, "_check_patterns"), lambda _found, *_patterns: None)


@mutant(kills=["ADP-022"], source="a config with fixed keys")
def forgets_what_the_file_cannot_hold(addons: Any) -> None:
    """Biases and replicated layers are trained and then lost without a word."""
    replace(addons, held(addons, "_check_settings"), lambda _peft_config, _found: None)


@mutant(kills=["ADP-022"], source="peft `save_pretrained(path_initial_model_for_weight_conversion=...)`")
def takes_every_initialisation_for_plain(addons: Any) -> None:
    """PiSSA has taken out of the base weights what it put into LoRA: loaded on the base, that is there twice."""
    addons.adapter_config._PLAIN_INITIALISATIONS = (
        *held(addons, "_PLAIN_INITIALISATIONS"),
        "pissa",
        "pissa_niter_4",
        "olora",
    )


@mutant(kills=["ADP-018"], source="`if alpha <= 0: raise`, which a NaN passes")
def writes_an_alpha_that_is_no_number(addons: Any) -> None:
    """The file says NaN, which is no JSON, and the adapter makes every output NaN."""
    original = held(addons, "_number")

    def broken(peft_config: Any, names: tuple[str, str], kind: type) -> Any:
        value = getattr(peft_config, names[0], None)
        return value if isinstance(value, float) and not value <= 0 else original(peft_config, names, kind)

    replace(addons, original, broken)
    replace(addons, held(addons, "alpha_pattern"), lambda *_facts, **_more: {})


@mutant(kills=["ADP-020"], also=EVERYWHERE, source="a cast to float32 for the sake of numpy")
def saves_dense_tensors_in_float32(addons: Any) -> None:
    """An adapter trained in bfloat16 is twice the size, one trained in float64 loses digits."""
    change_tensors(addons, lambda state, _model_state: {key: tensor.float() for key, tensor in state.items()})


@mutant(kills=["ADP-010", "ADP-011"], source="NVIDIA-NeMo/Automodel 0.3 and 0.4: `is_peft and not quantised`")
def leaves_out_the_prefix_beside_a_quantised_base(addons: Any) -> None:
    """A QLoRA run's keys lack `base_model.model.`: PEFT finds none of its tensors, warns, and computes the base."""

    def bare(state: dict[str, Any], model_state: Any) -> dict[str, Any]:
        quantised = any(hasattr(module, "quant_state") for part in model_state.model for module in part.modules())
        return {key.removeprefix("base_model.model.") if quantised else key: state[key] for key in state}

    change_tensors(addons, bare)


@mutant(kills=["TGT-004"], also=("HOOK", "ADP"), source="`lora_A.weight` asked for below the module")
def overlooks_wrapped_lora_matrices(addons: Any) -> None:
    """LoRA whose A and B were compiled by themselves is not found."""
    original = held(addons, "clean_named_parameters")
    wrapped = re.compile(r"(.+\.)?lora_[AB]\.(_orig_mod|_checkpoint_wrapped_module)\.weight")

    def broken(model: Any) -> Any:
        raw = (name for name, _ in model.named_parameters(remove_duplicate=False))
        return (found for name, found in zip(raw, original(model), strict=True) if not wrapped.fullmatch(name))

    replace(addons, original, broken)


@mutant(kills=["TGT-017"], also=("ADP",), source="`named_parameters()` leaves out what it has seen")
def saves_shared_lora_once(addons: Any) -> None:
    """Of two modules that share their LoRA, the second keeps its base weights after loading."""
    original = held(addons, "clean_named_parameters")

    def broken(model: Any) -> Any:
        seen = set()
        for name, parameter in original(model):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    replace(addons, original, broken)


@mutant(kills=["TGT-018"], source="NVIDIA-NeMo/Automodel#1814: only what is LoRA is looked at")
def leaves_out_trained_heads(addons: Any) -> None:
    """A classifier's trained head is lost without a word, and the adapter loads with a random one."""
    replace(addons, held(addons, "trained_beside_lora"), lambda _parts: [])


@mutant(kills=["TGT-018"], source='`"lora_" in name` taken for: it will be saved')
def leaves_out_lora_of_other_kinds(addons: Any) -> None:
    """LoRA on an embedding, or with a bias, is trained and then lost without a word."""
    original = held(addons, "trained_beside_lora")
    replace(addons, original, lambda parts: [name for name in original(parts) if "lora_" not in name])


@mutant(kills=["TGT-019"], source="transformers 5 `convert_peft_config_for_transformers`, executed with PEFT 0.20")
def lists_dense_modules_that_peft_takes_for_experts(addons: Any) -> None:
    """A dense layer's gate_proj beside fused experts is listed as a module, and PEFT drops its LoRA."""
    held(addons, "Targets").listed = lambda _self, module: module


@mutant(kills=["TGT-020"], source="target_parameters taken from the adapter's declaration")
def targets_the_experts_of_every_layer(addons: Any) -> None:
    """Layers whose experts were not trained get LoRA of their own from PEFT."""

    def short(config: dict[str, Any], _model: Any, found: Any) -> None:
        if "target_parameters" in config:
            used = (one for one in found.declared if any(name.endswith(one) for name in found.fused))
            config["target_parameters"] = list(used)

    change_config(addons, short)


@mutant(kills=["ADP-021"], also=("TGT",), source='NVIDIA-NeMo/Automodel: `"lora_" in name`; huggingface/peft#577')
def leaves_the_head_behind(addons: Any) -> None:
    """PEFT ends in a KeyError, and the trained head is lost."""
    change_tensors(addons, lambda state, _model_state: {key: t for key, t in state.items() if "lora_" in key})


@mutant(kills=["ADP-021"], source="`if parameter.requires_grad`")
def saves_a_head_only_if_it_was_trained(addons: Any) -> None:
    """PEFT asks for the head of a question answering model whether or not it was trained."""
    original = held(addons, "heads")

    def broken(parts: Any) -> Any:
        trained = [part for part in parts if held(addons, "trained_beside_lora")([part])]
        return original(trained)

    replace(addons, original, broken)


@mutant(kills=["ADP-021"], source="peft `any(key.endswith(target) for target in modules_to_save)`")
def matches_heads_by_their_whole_names(addons: Any) -> None:
    """PEFT looks for the pre_classifier of a model whose classifier was trained, and ends in a KeyError."""
    replace(addons, held(addons, "_ends_like"), lambda tensor, names: tensor.partition(".")[0] in names)


@mutant(kills=["TGT-021"], source="NVIDIA-NeMo/Automodel: what `get_peft_model` returns, saved as any model")
def keeps_the_names_of_a_peft_model(addons: Any) -> None:
    """Every name starts with base_model.model twice, and nothing matches."""
    replace(addons, held(addons, "_is_peft_model"), lambda _module: False)


@mutant(kills=["TGT-021"], also=("ADP",), source="`name.endswith('lora_A.weight')`")
def overlooks_lora_that_peft_injected(addons: Any) -> None:
    """PEFT's lora_A.default.weight is no LoRA to it: the model cannot be saved."""
    pattern = held(addons, "_LINEAR").pattern.replace(r"(?:\.(?P<adapter>[^.]+))?", "(?P<adapter>(?!))?")
    addons.lora_sites._LINEAR = re.compile(pattern)


@mutant(kills=["ADP-023"], also=("LOAD",), source='NVIDIA-NeMo/Automodel: `name.split("For")[-1]`')
def reads_the_task_off_the_end_of_the_name(addons: Any) -> None:
    """A MarianMTModel is taken for a bare encoder, and PEFT gives it another forward."""
    addons.heads._REGISTRIES = ()


@mutant(kills=["LOAD-007", "ADP-014"], also=EVERYWHERE, source="peft `rank_pattern` filled in for every module")
def writes_a_pattern_for_every_module(addons: Any) -> None:
    """SGLang, which reads no patterns, cannot tell whether its scales are right."""

    def full(config: dict[str, Any], _model: Any, _found: Any) -> None:
        config["rank_pattern"] = dict.fromkeys(config["target_modules"], config["r"]) | config.get("rank_pattern", {})

    change_config(addons, full)
