# SPDX-License-Identifier: Apache-2.0
"""Encoders as trainers hold them: inside a module of their own, so that every name has a prefix."""

from __future__ import annotations

from typing import Any, Literal

import torch
import transformers
from torch import nn

from spec_tests.builders import families, hf


class Encoder(nn.Module):
    """Holds a bare Hugging Face model as ``model``; ``config`` is the held model's, and so is its state-dict adapter.

    Every key of its state starts with ``model.``, which none on disk does.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        if hasattr(model, "state_dict_adapter"):
            self.state_dict_adapter = model.state_dict_adapter

    def forward(self, **inputs: torch.Tensor) -> Any:
        """The held model's output."""
        return self.model(**inputs)


def encoder_model(kind: Literal["bert", "llama"] = "bert", *, seed: int = 0) -> Encoder:
    """An `Encoder` around a BertModel, or around a LlamaModel (a decoder used as an encoder)."""
    if kind == "bert":
        return Encoder(families.bert_encoder(seed=seed))
    settings = {**hf.SIZES, "tie_word_embeddings": False}
    return Encoder(hf.build(transformers.LlamaModel, transformers.LlamaConfig, "tiny/llama", settings, seed))
