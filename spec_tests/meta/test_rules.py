"""The models of vLLM's and SGLang's rules refuse what those servers refuse."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from spec_tests.consumers import rules

NAME = "base_model.model.model.layers.0.self_attn.q_proj"
CONFIG = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "bias": "none",
    "use_dora": False,
    "target_modules": ["q_proj", "v_proj"],
}
SHAPES = {
    f"{NAME[:-6]}{name}.lora_{matrix}.weight": (4, 8) if matrix == "A" else (8, 4)
    for name in ("q_proj", "v_proj")
    for matrix in "AB"
}
GOOD = rules.Files(CONFIG, SHAPES, {}, ("adapter_model.safetensors",))


def with_config(**settings):
    return replace(GOOD, config={**CONFIG, **settings})


def without(name):
    return replace(GOOD, config={key: value for key, value in CONFIG.items() if key != name})


def with_tensor(key, shape=(4, 8)):
    return replace(GOOD, shapes={**GOOD.shapes, key: shape})


def experts(*ranks):
    stem = "base_model.model.model.layers.0.mlp.experts"
    return replace(GOOD, shapes={f"{stem}.{n}.up_proj.lora_A.weight": (rank, 8) for n, rank in enumerate(ranks)})


FUSED = with_tensor("base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight")
MORE_FILES = replace(GOOD, names=("adapter_model.safetensors", "model.safetensors"))


def test_a_plain_adapter_is_accepted():
    assert rules.vllm(GOOD, "llama") == []
    assert rules.sglang(GOOD, 64) == []


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (without("r"), "r is missing"),
        (without("lora_alpha"), "lora_alpha is missing"),
        (without("target_modules"), "target_modules is missing"),
        (with_config(r="4"), "r is no whole number"),
        (with_config(r=0), "r is no whole number"),
        (with_config(use_dora=True), "use_dora is set"),
        (with_config(bias="all"), "bias is not none"),
        (with_config(modules_to_save=["lm_head"]), "modules_to_save names other modules"),
        (with_config(lora_bias=True), "lora_bias is set"),
        (with_tensor(f"{NAME}.lora_A.default.weight"), "is no name of a LoRA weight"),
        (with_tensor(f"{NAME}.lora_magnitude_vector"), "is no name of a LoRA weight"),
        (with_tensor("base_model.model.lm_head.weight"), "is no name of a LoRA weight"),
        (FUSED, "experts in one tensor"),
        (experts(4, 4, 2), "experts of one projection have different ranks"),
        (MORE_FILES, "other weights files"),
    ],
)
def test_vllm_refuses(files, said):
    assert [problem for problem in rules.vllm(files, "qwen3_moe") if said in problem]


@pytest.mark.parametrize("files", [FUSED, experts(4, 4), with_tensor("base_model.model.score.weight")])
def test_vllm_accepts(files):
    assert rules.vllm(files, "gpt_oss") == []


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (without("r"), "r is missing"),
        (without("peft_type"), "peft_type is not LORA"),
        (with_config(target_modules="q_proj"), "target_modules is no list"),
        (with_config(use_dora=True), "use_dora is set"),
        (with_config(rank_pattern={"q_proj": 8}), "rank_pattern is not read"),
        (with_config(alpha_pattern={"q_proj": 8}), "alpha_pattern is not read"),
        (with_config(use_rslora=True), "use_rslora is not read"),
        (FUSED, "has weights and is no target module"),
        (with_tensor(f"{NAME[:-6]}k_proj.lora_A.weight"), "has weights and is no target module"),
        (with_tensor("base_model.model.lm_head.lora_A.weight"), "is in no numbered layer"),
        (replace(GOOD, added={"<new>": 64}), "added_tokens.json"),
        (MORE_FILES, "other weights files"),
    ],
)
def test_sglang_refuses(files, said):
    assert [problem for problem in rules.sglang(files, 64) if said in problem]


@pytest.mark.parametrize("alone", ["q_proj", "k_proj", "v_proj"])
def test_sglang_wants_q_and_v(alone):
    shapes = {f"{NAME[:-6]}{alone}.lora_{matrix}.weight": (4, 4) for matrix in "AB"}
    files = replace(with_config(target_modules=[alone]), shapes=shapes)
    assert rules.sglang(files, 64) == ["one of q_proj, k_proj, v_proj is trained and not both of q_proj and v_proj"]


def test_files_are_read(tmp_path):
    save_file({key: torch.zeros(shape) for key, shape in GOOD.shapes.items()}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "added_tokens.json").write_text('{"<new>": 7}')
    read = rules.read(tmp_path)
    assert (read.config, read.shapes, read.added) == (CONFIG, GOOD.shapes, {"<new>": 7})
    assert read.names == ("adapter_config.json", "adapter_model.safetensors", "added_tokens.json")
