# SPDX-License-Identifier: Apache-2.0
"""The fixed sample of the zoo that every run of the suite walks: the kinds of models, in a few seconds."""

from __future__ import annotations

ADAPTERS = (
    ("llama", "default"),
    ("llama", "resized"),
    ("llama", "head kept"),
    ("llama", "classifier"),
    ("bert", "all-linear"),
    ("bert", "classifier as target"),
    ("distilbert", "classifier as target"),
    ("roberta", "classifier"),
    ("gpt2", "all-linear"),
    ("gpt2", "dora"),
    ("t5", "resized"),
    ("t5", "patterns"),
    ("whisper", "all-linear"),
    ("clip", "all-linear"),
    ("pi0", "all-linear"),
    ("siglip", "rslora"),
    ("vit", "head kept"),
    ("mixtral", "all-linear"),
    ("mixtral", "patterns"),
    ("qwen3_moe", "head as target"),
    ("deepseek_v3", "rslora"),
    ("llava", "all-linear"),
    ("qwen2_vl", "dora"),
)
"""(family, way to put LoRA on it)."""

WHOLES = (
    ("llama", "bfloat16"),
    ("llama", "tied"),
    ("bert", "float32"),
    ("camembert", "tied"),
    ("clip", "float32"),
    ("resnet", "float32"),
    ("gpt_neox", "untied"),
    ("vit", "bfloat16"),
    ("t5", "tied"),
    ("whisper", "float32"),
    ("mixtral", "float32"),
    ("qwen3_moe", "bfloat16"),
    ("deepseek_v3", "float32"),
    ("llava", "float32"),
    ("qwen2_vl", "tied"),
    ("marian", "float32"),
)
"""(family, how it is built)."""
