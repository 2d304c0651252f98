# SPDX-License-Identifier: Apache-2.0
"""Faults in ranks and scales that differ, and in what the file cannot hold (spec/adapter_config.md)."""

from __future__ import annotations

from typing import Any

from spec_tests.mutants.editing_adapter import (
    change_config,
    change_pattern_keys,
    count_as_plain,
    take_configs_for_plain,
    trust_the_config,
    without_check,
)
from spec_tests.mutants.registry import mutant

EVERYWHERE = ("TGT", "EXP", "RANK", "HOOK", "ERR")


@mutant(kills=["ADP-017"], source="`scale` is the trainer's own business")
def believes_that_every_scale_is_alpha_by_rank(addons: Any) -> None:
    """A module that was trained with another scale computes something else in every reader."""
    trust_the_config(addons, lambda _config, _rank: {"scale": None})


@mutant(kills=["ADP-017"], source="peft `LoraConfig.use_rslora`, left out of a config with fixed keys")
def takes_every_config_for_a_plain_one(addons: Any) -> None:
    """LoRA trained with alpha / sqrt(r) is added with alpha / r, a fraction of it."""
    take_configs_for_plain(addons)


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
    change_pattern_keys(addons, lambda key: key.replace("\\.", "."))


@mutant(kills=["ADP-014", "ADP-017"], source="huggingface/peft#2419: a key that is the end of another one")
def writes_patterns_that_match_too_much(addons: Any) -> None:
    """A module's rank is taken for that of another one, whose name ends like its own."""
    without_check(addons, "patterns")


@mutant(kills=["ADP-022"], source="a config with fixed keys")
def forgets_what_the_file_cannot_hold(addons: Any) -> None:
    """Biases and replicated layers are trained and then lost without a word."""
    without_check(addons, "settings")


@mutant(kills=["ADP-022"], source="peft `save_pretrained(path_initial_model_for_weight_conversion=...)`")
def takes_every_initialisation_for_plain(addons: Any) -> None:
    """PiSSA has taken out of the base weights what it put into LoRA: loaded on the base, that is there twice."""
    count_as_plain(addons, "pissa", "pissa_niter_4", "olora")


@mutant(kills=["LOAD-007", "ADP-014"], also=EVERYWHERE, source="peft `rank_pattern` filled in for every module")
def writes_a_pattern_for_every_module(addons: Any) -> None:
    """SGLang, which reads no patterns, cannot tell whether its scales are right."""

    def full(config: dict[str, Any], _model: Any, _found: Any) -> None:
        config["rank_pattern"] = dict.fromkeys(config["target_modules"], config["r"]) | config.get("rank_pattern", {})

    change_config(addons, full)
