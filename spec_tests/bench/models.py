# SPDX-License-Identifier: Apache-2.0
"""The models of the rows: large in names or in bytes, quick to make, never run."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

from spec_tests.builders.experts import apply_expert_lora, to_native_moe
from spec_tests.builders.lora import apply_dense_lora

RANK, ALPHA = 8, 16
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
PROJECTIONS = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
_WORDS: dict[str, int] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def experts(layers: int, of_each: int, hidden: int = 64, inter: int = 48) -> nn.Module:
    """Qwen3-MoE on the meta device with a trainer's LoRA on all attention projections and all experts."""
    config = transformers.Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=hidden,
        intermediate_size=inter,
        moe_intermediate_size=inter,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=of_each,
        num_experts_per_tok=2,
        tie_word_embeddings=False,
        **_WORDS,
    )
    model: nn.Module = _on_meta(transformers.Qwen3MoeForCausalLM, config)
    to_native_moe(model)
    apply_dense_lora(model, ATTENTION, RANK, ALPHA)
    apply_expert_lora(model, RANK, ALPHA)
    return model


def llama(layers: int, hidden: int = 64, inter: int = 160, vocab: int = 64) -> Any:
    """A Llama on the meta device."""
    config = transformers.LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inter,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=False,
        **_WORDS,
    )
    return _on_meta(transformers.LlamaForCausalLM, config)


def real_llama(layers: int = 12, hidden: int = 1024, inter: int = 4096, vocab: int = 24_000) -> Any:
    """A Llama in bfloat16 on the CPU, of 0.5 GB by default."""
    model = llama(layers, hidden, inter, vocab)
    make_real(model, list(model.parameters()), torch.bfloat16)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.ones(buffer.shape, dtype=torch.float32), persistent=False)
    return model


def make_real(model: nn.Module, parameters: list[nn.Parameter], dtype: torch.dtype) -> None:
    """Replace ``parameters`` of the model, which are on the meta device, by some on the CPU with different numbers."""
    chosen = {id(parameter): number for number, parameter in enumerate(parameters)}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in chosen:
                values = _values(parameter.shape, chosen[id(parameter)], dtype)
                setattr(module, name, nn.Parameter(values, requires_grad=parameter.requires_grad))


def _values(shape: torch.Size, number: int, dtype: torch.dtype) -> torch.Tensor:
    # Drawing half a gigabyte of normals takes longer than saving it: a short ramp that starts elsewhere each time.
    ramp = torch.arange(number, number + 4096, dtype=torch.float32).remainder_(997).div_(997).to(dtype)
    size = shape.numel()
    return ramp.repeat(-(-size // len(ramp)))[:size].clone().view(shape)


def _on_meta(model_class: Any, config: Any) -> Any:
    config.architectures = [model_class.__name__]
    config.name_or_path = "bench/model"
    with torch.device("meta"):
        model = model_class(config)
    model.name_or_path = config.name_or_path
    return model.eval()
