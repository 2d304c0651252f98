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
def drops_use_rslora(addons: Any) -> None:
    """LoRA trained with alpha / sqrt(r) is added with alpha / r, a fraction of it."""
    del held(addons, "_NOT_WRITTEN")["use_rslora"]


@mutant(kills=["ADP-018"], source="`if alpha <= 0: raise`, which a NaN passes")
def writes_an_alpha_that_is_no_number(addons: Any) -> None:
    """The file says NaN, which is no JSON, and the adapter makes every output NaN."""
    original, either = held(addons, "lora_alpha"), held(addons, "_either")

    def broken(peft_config: Any) -> Any:
        _, alpha = either(peft_config, "alpha", "lora_alpha")
        return alpha if isinstance(alpha, float) and not alpha <= 0 else original(peft_config)

    replace(addons, original, broken)


@mutant(kills=["ADP-020"], also=EVERYWHERE, source="a cast to float32 for the sake of numpy")
def saves_dense_tensors_in_float32(addons: Any) -> None:
    """An adapter trained in bfloat16 is twice the size, one trained in float64 loses digits."""
    change_tensors(addons, lambda state, _model_state: {key: tensor.float() for key, tensor in state.items()})


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
def saves_dense_modules_that_peft_takes_for_experts(addons: Any) -> None:
    """A dense layer's gate_proj beside fused experts is saved, and PEFT drops its LoRA without an error."""
    replace(addons, held(addons, "_refuse_misread"), lambda _found, _adapter: None)


@mutant(kills=["TGT-020"], source="target_parameters taken from the adapter's declaration")
def targets_the_experts_of_every_layer(addons: Any) -> None:
    """Layers whose experts were not trained get LoRA of their own from PEFT."""

    def short(config: dict[str, Any], _model: Any, found: Any) -> None:
        if "target_parameters" in config:
            used = (one for one in found.declared if any(name.endswith(one) for name in found.fused))
            config["target_parameters"] = list(used)

    change_config(addons, short)
