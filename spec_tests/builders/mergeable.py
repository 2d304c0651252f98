# SPDX-License-Identifier: Apache-2.0
"""Models with trained LoRA of PEFT, which can be merged."""

from __future__ import annotations

from typing import Any

import peft
import torch
import transformers

from spec_tests.builders import hf
from spec_tests.builders.randomness import draw_normal, generator
from spec_tests.builders.trained import ALPHA, RANK


def gpt2() -> Any:
    """A tiny GPT-2, whose linear layers are Conv1D."""
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 64}
    sizes |= {"bos_token_id": 0, "eos_token_id": 1}
    return hf.build(transformers.GPT2LMHeadModel, transformers.GPT2Config, "tiny/gpt2", sizes, 0)


BASES = {"llama": (hf.llama, ["q_proj", "down_proj"]), "gpt2": (gpt2, ["c_attn", "c_proj"])}


def injected(base: Any, targets: list[str], dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """``base()`` of that dtype, with LoRA far from where it began."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, **settings)
    model, source = peft.get_peft_model(base().to(dtype), config), generator(0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            draw_normal(parameter, source, std=0.2)
    return model.eval()
