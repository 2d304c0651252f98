# SPDX-License-Identifier: Apache-2.0
"""Models of two servers: rules read in their source, applied to the files of an adapter. Nothing of them is executed.

Each rule names the file and the version it models. A server of another version may have others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

VLLM, SGLANG = "vLLM 0.32.0 (a model of its rules)", "SGLang 0.5.23 (a model of its rules)"
# vllm 0.32.0, `is_3d_moe_weight` of the model classes: they take the experts of a layer in one tensor.
_VLLM_FUSED_EXPERTS = {"qwen3_vl_moe", "qwen3_5_moe", "qwen3_omni_moe_thinker", "gpt_oss", "interns1_pro"}
_LORA = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<matrix>[AB])\.weight")
_HEAD = re.compile(r"base_model\.model\.(score|classifier)\.(weight|bias)")
_EXPERT = re.compile(r".*\.experts\.\d+\.(gate_proj|up_proj|down_proj|w1|w2|w3)")


@dataclass(frozen=True)
class Files:
    """What the rules look at: adapter_config.json, the weights' shapes, ids of added_tokens.json, names of files."""

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    added: Mapping[str, int]
    names: tuple[str, ...]


def read(directory: Path) -> Files:
    """The files of an adapter directory."""
    config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    added = directory / "added_tokens.json"
    with safe_open(directory / "adapter_model.safetensors", framework="pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping
    names = tuple(sorted(path.name for path in directory.iterdir()))
    return Files(config, shapes, json.loads(added.read_text(encoding="utf-8")) if added.exists() else {}, names)


def vllm(files: Files, model_type: str) -> list[str]:
    """Why vLLM 0.32.0 would refuse the adapter for a base of ``model_type``, or compute something else; sorted."""
    return sorted({*_settings(files), *_vllm_settings(files), *_vllm_names(files, model_type)})


def sglang(files: Files, vocab_size: int) -> list[str]:
    """Why SGLang 0.5.23 would refuse the adapter for a base of ``vocab_size``, or compute something else; sorted."""
    return sorted({*_settings(files), *_sglang_settings(files, vocab_size), *_sglang_names(files)})


def _settings(files: Files) -> Iterator[str]:
    # vllm 0.32.0 vllm/lora/peft_helper.py `PEFTHelper.from_dict`; sglang 0.5.23 srt/lora/lora_config.py `LoRAConfig`
    for name in ("r", "lora_alpha", "target_modules"):
        if name not in files.config:
            yield f"{name} is missing"
    if type(files.config.get("r")) is not int or files.config["r"] <= 0:
        yield "r is no whole number above zero"
    # vllm/lora/peft_helper.py `validate_legal`; srt/lora/lora_manager.py `validate_new_adapter`
    if files.config.get("use_dora"):
        yield "use_dora is set"
    # vllm/lora/lora_model.py `from_local_checkpoint`; srt/lora/lora.py `initialize_weights`: what lies there is read
    weights = [name for name in files.names if name.endswith((".safetensors", ".bin", ".pt"))]
    if weights != ["adapter_model.safetensors"]:
        yield "there are other weights files beside adapter_model.safetensors"


def _vllm_settings(files: Files) -> Iterator[str]:
    # vllm 0.32.0 vllm/lora/peft_helper.py `PEFTHelper.validate_legal`
    if files.config.get("bias", "none") != "none":
        yield "bias is not none"
    if not set(files.config.get("modules_to_save") or ()) <= {"score", "classifier"}:
        yield "modules_to_save names other modules than score and classifier"
    for name in ("lora_bias", "layer_replication", "alora_invocation_tokens"):
        if files.config.get(name):
            yield f"{name} is set"


def _vllm_names(files: Files, model_type: str) -> Iterator[str]:
    ranks: dict[str, set[int]] = {}
    for key, shape in files.shapes.items():
        match = _LORA.fullmatch(key)
        # vllm 0.32.0 vllm/lora/utils.py `parse_fine_tuned_lora_name`
        if match is None:
            if not _HEAD.fullmatch(key):
                yield f"{key} is no name of a LoRA weight"
            continue
        # vllm 0.32.0 vllm/lora/lora_model.py: a name with experts and no number is one tensor for all of them
        if ".experts" in match["module"] and not _EXPERT.fullmatch(match["module"]):
            if model_type not in _VLLM_FUSED_EXPERTS:
                yield "experts in one tensor, which the model's class does not take"
        elif _EXPERT.fullmatch(match["module"]) and match["matrix"] == "A":
            ranks.setdefault(re.sub(r"\.\d+\.", ".N.", match["module"]), set()).add(shape[0])
    if any(len(found) > 1 for found in ranks.values()):
        yield "experts of one projection have different ranks"


def _sglang_settings(files: Files, vocab_size: int) -> Iterator[str]:
    # sglang 0.5.23 srt/lora/lora.py: `assert config["peft_type"].lower() == "lora"`
    if str(files.config.get("peft_type")).lower() != "lora":
        yield "peft_type is not LORA"
    # srt/lora/utils.py `get_normalized_target_modules`: a string other than all-linear is an error
    if not isinstance(files.config.get("target_modules"), list):
        yield "target_modules is no list"
    # srt/lora/lora.py: the scale is lora_alpha / r, and nothing else is read
    for name in ("alpha_pattern", "rank_pattern", "use_rslora"):
        if files.config.get(name):
            yield f"{name} is not read: wrong scales without an error"
    # srt/lora/lora_config.py and lora_manager.py: ids that the base model has no embedding for
    if any(index >= vocab_size for index in files.added.values()):
        yield "added_tokens.json adds tokens that the base model does not have"


def _sglang_names(files: Files) -> Iterator[str]:
    targets = {str(name).rpartition(".")[2] for name in files.config.get("target_modules") or ()}
    modules = {match["module"] for key in files.shapes if (match := _LORA.fullmatch(key))}
    for module in modules:
        # srt/lora/lora.py `_process_weight`: what is in no numbered layer is skipped
        if not re.search(r"layers\.\d+\.", module):
            yield f"{module} is in no numbered layer and is skipped without an error"
        # srt/lora/mem_pool.py: weights are found by the target modules' names; fused experts have none
        if module.rpartition(".")[2] not in targets:
            yield f"{module} has weights and is no target module"
    # srt/lora/lora.py `normalize_qkv_proj`: begins with q, and asks for v
    for owner in {module.rpartition(".")[0] for module in modules if module.endswith(("q_proj", "k_proj", "v_proj"))}:
        if f"{owner}.q_proj" not in modules or f"{owner}.v_proj" not in modules:
            yield "one of q_proj, k_proj, v_proj is trained and not both of q_proj and v_proj"
