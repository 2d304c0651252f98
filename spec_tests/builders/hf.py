"""Tiny random Hugging Face models: two layers, 64 words, float32, numbers large enough to tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn

from spec_tests.builders.randomness import draw_normal, generator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

VOCAB = 64

# Dimensions are multiples of 8 (grouped_mm wants 16-byte strides), and hidden is neither the intermediate
# size nor twice it: where shapes coincide, a transposed or wrongly split tensor loads without an error.
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llama(tied: bool = False, *, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """A LlamaForCausalLM; ``tied`` makes lm_head share the embedding. ``overrides`` go to the config."""
    settings = {**SIZES, "tie_word_embeddings": tied, **overrides}
    return build(transformers.LlamaForCausalLM, transformers.LlamaConfig, "tiny/llama", settings, seed)


def qwen3(tied: bool = False, *, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """A Qwen3ForCausalLM (dense, with q_norm and k_norm). ``overrides`` go to the config."""
    settings = {**SIZES, "tie_word_embeddings": tied, **overrides}
    return build(transformers.Qwen3ForCausalLM, transformers.Qwen3Config, "tiny/qwen3", settings, seed)


def qwen3_moe(
    *,
    num_experts: int = 4,
    top_k: int = 2,
    layers: int = 2,
    hidden: int = 32,
    moe_intermediate: int = 24,
    intermediate: int = 40,
    dense_layers: Sequence[int] = (),
    seed: int = 0,
    **overrides: Any,
) -> transformers.PreTrainedModel:
    """A Qwen3MoeForCausalLM; ``dense_layers`` (mlp_only_layers) have an ordinary MLP of ``intermediate``."""
    settings = {
        **SIZES,
        "num_experts": num_experts,
        "num_experts_per_tok": top_k,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "moe_intermediate_size": moe_intermediate,
        "intermediate_size": intermediate,
        "mlp_only_layers": list(dense_layers),
        "decoder_sparse_step": 1,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
        **overrides,
    }
    model_class, config_class = transformers.Qwen3MoeForCausalLM, transformers.Qwen3MoeConfig
    return build(model_class, config_class, "tiny/qwen3-moe", settings, seed)


def gpt_oss(*, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """A GptOssForCausalLM, whose experts are bare parameters on every supported transformers."""
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["full_attention"] * 2}
    settings = {**SIZES, "intermediate_size": 24, "tie_word_embeddings": False, **experts, **overrides}
    return build(transformers.GptOssForCausalLM, transformers.GptOssConfig, "tiny/gpt-oss", settings, seed)


FAMILIES: dict[str, Callable[..., transformers.PreTrainedModel]] = {
    "llama": llama,
    "qwen3": qwen3,
    "qwen3_moe": qwen3_moe,
}


def causal_lm(family: str, **settings: Any) -> transformers.PreTrainedModel:
    """The model of a family by its transformers ``model_type``; ``settings`` are that builder's arguments."""
    return FAMILIES[family](**settings)


def save_base(model: transformers.PreTrainedModel, directory: str | Path) -> Path:
    """Save a model as built here, for from_pretrained in a clean process; returns the directory."""
    kinds = {type(module) for module in model.modules()}
    foreign = sorted(kind.__name__ for kind in kinds if kind.__module__.startswith(__package__))
    if foreign:
        raise ValueError(f"save the base before its modules are replaced: found {', '.join(foreign)}")
    model.save_pretrained(str(directory))
    return Path(directory)


def build(
    model_class: Any, config_class: Any, name: str, settings: dict[str, Any], seed: int
) -> transformers.PreTrainedModel:
    """A model in eval mode from ``settings`` of its config; its parameters are drawn from ``seed``."""
    config = config_class(**settings, attn_implementation="eager")
    config.architectures = [model_class.__name__]
    config._name_or_path = name
    with torch.random.fork_rng(devices=[]):
        model = model_class(config).to(torch.float32)
    model.name_or_path = name
    randomise(model, seed)
    return model.eval()


def randomise(model: nn.Module, seed: int) -> None:
    """Draw every parameter anew: norms around one, everything else around zero."""
    source = generator(seed)
    for name, parameter in model.named_parameters():
        # 1-D weights here are norms: around one, but not at it, so that a lost norm shows.
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        draw_normal(parameter, source, std=0.1 if is_norm else 0.2, mean=1.0 if is_norm else 0.0)
