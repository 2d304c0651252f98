# SPDX-License-Identifier: Apache-2.0
"""Faults in adapter_config.json, and in the keys that go with it (spec/adapter_config.md)."""

from __future__ import annotations

from typing import Any

from torch import nn

from spec_tests.mutants.editing import around
from spec_tests.mutants.editing_adapter import (
    allow_no_targets,
    change_config,
    change_read_numbers,
    change_tensors,
    compute_no_alphas,
    trust_the_config,
)
from spec_tests.mutants.editing_model import change_task
from spec_tests.mutants.registry import mutant

EVERYWHERE = ("TGT", "EXP", "RANK", "HOOK", "ERR")


def _set(package: Any, **values: Any) -> None:
    change_config(package, lambda config, _model, _found: config.update(values))


@mutant(kills=["ADP-001", "ADP-016"], source="`str(PeftType.LORA)`")
def writes_the_type_as_an_enums_name(addons: Any) -> None:
    """PEFT knows no type `PeftType.LORA` and refuses the adapter."""
    _set(addons, peft_type="PeftType.LORA")


@mutant(kills=["ADP-001"], source="trainers whose own `bias` is a flag")
def writes_bias_as_a_flag(addons: Any) -> None:
    """The bias is false, not "none", and vLLM refuses the adapter."""
    _set(addons, bias=False)


@mutant(kills=["ADP-002", "META-003"], also=("ADP",), source="dim and alpha taken for each other")
def swaps_rank_and_alpha(addons: Any) -> None:
    """Readers expect tensors of another rank."""

    def swapped(config: dict[str, Any], _model: Any, _found: Any) -> None:
        config["r"], config["lora_alpha"] = config["lora_alpha"], config["r"]

    change_config(addons, swapped)


@mutant(kills=["ADP-002", "META-003"], also=("ADP",), source="the trainer's own scale is alpha / r")
def writes_the_scale_as_alpha(addons: Any) -> None:
    """The adapter loads, and everything it adds is divided by the rank."""
    change_config(addons, lambda config, _m, _f: config.update(lora_alpha=config["lora_alpha"] / config["r"]))


@mutant(kills=["ADP-002"], source="`int(alpha)`")
def cuts_alpha_to_an_integer(addons: Any) -> None:
    """An alpha of 0.5 becomes 0: the adapter does nothing."""
    change_config(addons, lambda config, _m, _f: config.update(lora_alpha=int(config["lora_alpha"])))


@mutant(kills=["ADP-032"], source="NVIDIA TensorRT-LLM#2132")
def leaves_out_use_dora_when_it_is_false(addons: Any) -> None:
    """Serving stacks that read use_dora by key refuse the adapter."""

    def shortened(config: dict[str, Any], _model: Any, _found: Any) -> None:
        if not config["use_dora"]:
            del config["use_dora"]

    change_config(addons, shortened)


@mutant(kills=["ADP-033"], source="`peft_config.to_dict()` of the installed PEFT")
def writes_settings_of_the_newest_peft(addons: Any) -> None:
    """An older PEFT warns of keys that it does not know."""

    def lengthened(config: dict[str, Any], _model: Any, _found: Any) -> None:
        config["use_bdlora"] = None

    change_config(addons, lengthened)


@mutant(kills=["ADP-003"], source="an exporter older than DoRA")
def never_says_use_dora(addons: Any) -> None:
    """PEFT builds plain LoRA and ignores the trained magnitudes."""
    _set(addons, use_dora=False)


@mutant(kills=["ADP-004"], also=EVERYWHERE, source="sgl-project/sglang#11034")
def joins_the_targets_to_a_pattern(addons: Any) -> None:
    """SGLang takes the string for a keyword and refuses it."""
    change_config(addons, lambda config, _m, _f: config.update(target_modules="|".join(config["target_modules"])))


@mutant(kills=["ADP-005"], also=("TGT",), source="vllm-project/vllm#41384")
def writes_empty_target_parameters(addons: Any) -> None:
    """PEFT before 0.17 warns of a key that it does not know, or fails."""
    change_config(addons, lambda config, _m, _f: config.setdefault("target_parameters", []))


@mutant(kills=["ADP-006"], source="NVIDIA-NeMo/Automodel#1449")
def takes_every_head_for_a_language_model(addons: Any) -> None:
    """A classifier's adapter is loaded with the forward of a language model."""

    def broken(model: Any) -> str:
        names = getattr(getattr(model, "config", None), "architectures", None) or [type(model).__name__]
        return "CAUSAL_LM" if "For" in names[0] else "FEATURE_EXTRACTION"

    change_task(addons, broken)


@mutant(kills=["ADP-007"], source="the name of a directory in a cache")
def drops_the_owner_of_the_base_model(addons: Any) -> None:
    """`org/base` becomes `base`, which is another repository or none."""

    def shortened(config: dict[str, Any], _model: Any, _found: Any) -> None:
        if config["base_model_name_or_path"]:
            config["base_model_name_or_path"] = config["base_model_name_or_path"].rpartition("/")[2]

    change_config(addons, shortened)


@mutant(kills=["ADP-013"], source="NVIDIA-NeMo/Automodel: `N/A`")
def calls_an_unknown_base_model_not_available(addons: Any) -> None:
    """Readers look for a repository called N/A."""

    def named(config: dict[str, Any], _model: Any, _found: Any) -> None:
        config["base_model_name_or_path"] = config["base_model_name_or_path"] or "N/A"

    change_config(addons, named)


@mutant(kills=["ADP-008"], source="NVIDIA-NeMo/Automodel#1532")
def forgets_v4_compatibility_in_the_helper(addons: Any) -> None:
    """A caller of the helper gets another config than the one on disk."""
    around(addons, addons._get_hf_peft_config, lambda original, *arguments, **_more: original(*arguments[:2]))


@mutant(kills=["ADP-009"], source="exporters that know their own config only")
def reads_only_the_trainers_names(addons: Any) -> None:
    """A trainer that holds a peft.LoraConfig cannot save."""
    change_read_numbers(addons, lambda original, config, names, kind: original(config, names[:1], kind))


@mutant(kills=["ADP-010", "LOAD-001"], also=("TGT", "EXP", "RANK", "HOOK"), source="huggingface/peft#2118")
def lists_linears_without_lora(addons: Any) -> None:
    """PEFT makes up fresh LoRA for modules whose tensors are not in the file."""

    def all_linear(config: dict[str, Any], model: Any, _found: Any) -> None:
        linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".lora_" not in f".{n}"}
        clean = {name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "") for name in linear}
        config["target_modules"] = sorted(clean - {"", "_orig_mod"} | set(config["target_modules"]))

    change_config(addons, all_linear)


@mutant(kills=["ADP-011", "LOAD-006"], also=EVERYWHERE, source="the state dict of a PeftModel, saved as it is")
def keeps_the_adapters_name_in_the_keys(addons: Any) -> None:
    """Keys end with `lora_A.default.weight`, which no reader takes."""

    def renamed(state: dict[str, Any], _model_state: Any) -> dict[str, Any]:
        return {
            key.replace("lora_A.weight", "lora_A.default.weight").replace("lora_B.weight", "lora_B.default.weight"): t
            for key, t in state.items()
        }

    change_tensors(addons, renamed)


@mutant(kills=["ADP-011"], also=EVERYWHERE, source="NVIDIA-NeMo/Automodel#3431")
def writes_keys_without_peft_s_prefix(addons: Any) -> None:
    """Keys start with the model's own names; PEFT ignores them all."""

    def bare(state: dict[str, Any], _model_state: Any) -> dict[str, Any]:
        return {key.removeprefix("base_model.model."): tensor for key, tensor in state.items()}

    change_tensors(addons, bare)


@mutant(kills=["ADP-012"], also=("ERR",), source="NVIDIA-NeMo/Automodel: target_modules is []")
def writes_an_adapter_without_targets(addons: Any) -> None:
    """The run ends well, and PEFT refuses the adapter."""
    allow_no_targets(addons)


@mutant(kills=["ADP-014"], also=("TGT",), source="NVIDIA-NeMo/Automodel#3834")
def writes_the_configs_rank_whatever_was_trained(addons: Any) -> None:
    """Experts with a smaller rank are scaled wrongly by vLLM, and PEFT reports shapes that do not fit."""
    trust_the_config(addons, lambda _config, rank: {"rank": rank})


@mutant(kills=["ADP-015"], source="a flag that nobody compares with the model")
def believes_the_configs_use_dora(addons: Any) -> None:
    """Trained magnitudes are lost, or missing ones are made up from the base weights."""
    trust_the_config(addons, lambda config, _rank: {"dora": bool(getattr(config, "use_dora", False))})


@mutant(kills=["ADP-015"], also=("RANK",), source="a filter for lora_A and lora_B")
def drops_the_magnitudes(addons: Any) -> None:
    """The config says DoRA, the file holds plain LoRA: PEFT takes the magnitudes of the base."""

    def without(state: dict[str, Any], _model_state: Any) -> dict[str, Any]:
        return {key: tensor for key, tensor in state.items() if "magnitude" not in key}

    change_tensors(addons, without)


@mutant(kills=["ADP-016"], also=("ADP", "HOOK"), source="a config that is dumped whole")
def writes_the_trainers_settings_too(addons: Any) -> None:
    """PEFT warns of settings that it does not know."""
    _set(addons, lora_A_init="xavier", moe_rank_scaling=False)


@mutant(kills=["ADP-018"], source="`if alpha <= 0: raise`, which a NaN passes")
def writes_an_alpha_that_is_no_number(addons: Any) -> None:
    """The file says NaN, which is no JSON, and the adapter makes every output NaN."""

    def broken(original: Any, peft_config: Any, names: tuple[str, str], kind: type) -> Any:
        value = getattr(peft_config, names[0], None)
        return value if isinstance(value, float) and not value <= 0 else original(peft_config, names, kind)

    change_read_numbers(addons, broken)
    compute_no_alphas(addons)


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
