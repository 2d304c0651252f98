# SPDX-License-Identifier: Apache-2.0
"""The catalogue of trained models: what users train, from a Llama with LoRA of one rank on.

A tag says what a kind is in the catalogue for: ``usual`` (most clauses are tried on them all), ``family`` (another
architecture, or another way of training), ``head``, ``ranks`` (ranks or scales that differ), ``injected`` (LoRA that
PEFT put there), ``dense beside experts``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from spec_tests.builders.alterations import train, wrapped
from spec_tests.builders.encoders import Encoder
from spec_tests.builders.injected import Injected
from spec_tests.builders.trained import ATTENTION, RANK, Trained

TRAINED: dict[str, Trained] = {
    "llama": Trained("llama", tags=("usual",)),
    "llama_tied": Trained(
        "llama", dense=("q_proj", "v_proj", "down_proj"), base_settings={"tied": True}, tags=("usual",)
    ),
    "llama_dora": Trained("llama", dense=("q_proj", "down_proj"), use_dora=True, tags=("usual",)),
    "llama_combined": Trained("llama", dense=("qkv_proj", "gate_up_proj"), combined=True, tags=("usual",)),
    "llama_split": Trained("llama", dense=("model.layers.1.mlp.down_proj",), tags=("usual",)),
    "qwen3": Trained("qwen3", dense=("k_proj", "gate_proj"), tags=("usual",)),
    "qwen3_moe_fused": Trained("qwen3_moe", experts=True, adapter="qwen3_moe", tags=("usual",)),
    "qwen3_moe_v4": Trained(
        "qwen3_moe", experts=True, adapter="qwen3_moe", save={"v4_compatible": True}, tags=("usual",)
    ),
    "phi3": Trained("phi3", dense=("qkv_proj", "gate_up_proj"), tags=("family",)),
    "t5": Trained("t5", dense=("q", "v", "wo"), tags=("family",)),
    "vlm": Trained("vlm", dense=("q_proj", "down_proj"), tags=("family",)),
    "encoder": Trained("bert_encoder", dense=("query", "value"), adapter="encoder", alter=Encoder, tags=("family",)),
    "llama_wrapped": Trained("llama", dense=(*ATTENTION, "down_proj"), alter=wrapped, tags=("family",)),
    "qwen3_moe_some_layers": Trained(
        "qwen3_moe", experts=True, expert_layers=(1,), adapter="qwen3_moe", tags=("family",)
    ),
    "nemotron_h": Trained("nemotron_h", experts=True, adapter="nemotron_h", tags=("family",)),
    "bert_classifier": Trained("bert_classifier", dense=("query", "value"), alter=train("classifier"), tags=("head",)),
    "roberta_classifier": Trained(
        "roberta_classifier", dense=("query", "value"), alter=train("classifier"), tags=("head",)
    ),
    # One head's name ends like the other's: PEFT takes both for the one.
    "distilbert_classifier": Trained(
        "distilbert_classifier",
        dense=("q_lin", "v_lin"),
        alter=train("pre_classifier", "classifier"),
        tags=("head",),
    ),
    "distilbert_half": Trained("distilbert_classifier", dense=("q_lin",), alter=train("classifier"), tags=("head",)),
    "llama_classifier": Trained("llama_classifier", alter=train("score"), tags=("head",)),
    # PEFT asks for the head's tensors also when it was not trained.
    "bert_questions": Trained("bert_questions", dense=("query", "value"), tags=("head",)),
    "llama_ranks": Trained(
        "llama",
        dense=("q_proj",),
        more=((("k_proj", "down_proj"), 2, 12), (("model.layers.1.self_attn.v_proj",), 8, 40)),
        tags=("ranks",),
    ),
    "llama_alphas": Trained("llama", dense=("q_proj",), more=((("k_proj",), RANK, 3),), tags=("ranks",)),
    "qwen3_moe_ranks": Trained(
        "qwen3_moe",
        experts=True,
        expert_rank=2,
        expert_alpha=12,
        adapter="qwen3_moe",
        dense=("q_proj",),
        tags=("ranks",),
    ),
    # Dense layers that are called like an expert's are listed as parameters, and so are their ranks.
    "qwen3_moe_dense_ranks": Trained(
        "qwen3_moe",
        more=((("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.down_proj"), 2, 12),),
        adapter="qwen3_moe",
        base_settings={"dense_layers": (0,)},
        tags=("ranks",),
    ),
    "llama_injected": Injected(
        "llama", dense=("q_proj", "down_proj"), settings={"task_type": "CAUSAL_LM"}, tags=("injected",)
    ),
    "llama_injected_rslora": Injected("llama", settings={"use_rslora": True}, tags=("injected",)),
    "llama_injected_patterns": Injected(
        "llama",
        settings={"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 20}, "use_dora": True},
        tags=("injected",),
    ),
    "bert_injected_classifier": Injected(
        "bert_classifier", dense=("query",), settings={"task_type": "SEQ_CLS"}, tags=("injected",)
    ),
    **{
        name: Trained(
            "qwen3_moe",
            dense=(*ATTENTION, "gate_proj", "up_proj", "down_proj"),
            experts=experts,
            adapter="qwen3_moe",
            base_settings={"dense_layers": (0,)},
            save=save,
            tags=("dense beside experts",),
        )
        for name, experts, save in (
            ("qwen3_moe_dense_and_fused", True, {}),
            ("qwen3_moe_dense_and_v4", True, {"v4_compatible": True}),
            ("qwen3_moe_dense_alone", False, {}),
        )
    },
}
"""Every kind by its name."""


def tagged(tag: str) -> list[str]:
    """The names of the kinds with a tag, in the order of the catalogue.

    Raises:
        LookupError: there are none, and a test over them would be none.
    """
    names = [name for name, kind in TRAINED.items() if tag in kind.tags]
    if not names:
        raise LookupError(f"no kind of model has the tag {tag!r}")
    return names


def cases(names: Iterable[str]) -> list[Any]:
    """Parameters for a test: the names of kinds, each with what it needs of the implementation."""
    return [pytest.param(name, marks=pytest.mark.needs(*TRAINED[name].needs), id=name) for name in names]


def loadable(names: Iterable[str]) -> list[Any]:
    """As `cases`, for the kinds that can be loaded with what is installed."""
    return cases(name for name in names if TRAINED[name].loads)
