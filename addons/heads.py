# SPDX-License-Identifier: Apache-2.0
"""The task of a model, and the head that travels with an adapter for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import nn

from .lora_sites import LoraSite, trained_beside_lora
from .modules import ModelPart

# transformers' own lists of architectures; the first that has the name decides (clause ADP-023). Task types as in
# peft.TaskType.
_REGISTRIES = (
    ("SEQUENCE_CLASSIFICATION", "SEQ_CLS"),
    ("TOKEN_CLASSIFICATION", "TOKEN_CLS"),
    ("QUESTION_ANSWERING", "QUESTION_ANS"),
    ("SEQ_TO_SEQ_CAUSAL_LM", "SEQ_2_SEQ_LM"),
    ("CAUSAL_LM", "CAUSAL_LM"),
    ("MASKED_LM", None),
)
# For names in none of them (a model with code of its own) the end decides, the first that fits.
_TASK_TYPES = (
    ("ForSequenceClassification", "SEQ_CLS"),
    ("ForTokenClassification", "TOKEN_CLS"),
    ("ForQuestionAnswering", "QUESTION_ANS"),
    ("ForSeq2SeqLM", "SEQ_2_SEQ_LM"),
    ("ForFeatureExtraction", "FEATURE_EXTRACTION"),
    ("ForCausalLM", "CAUSAL_LM"),
    ("LMHeadModel", "CAUSAL_LM"),
    ("Model", "FEATURE_EXTRACTION"),
)
# What PEFT trains, saves and asks for under these tasks without being told (peft 0.18 to 0.21, peft_model.py).
_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


@dataclass
class Heads:
    """The heads of the model parts.

    Attributes:
        names: for ``modules_to_save``, sorted.
        tensors: clean native name -> parameter or persistent buffer of each module that PEFT matches with a name.
    """

    names: list[str] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


def task_type(model: nn.Module) -> str | None:
    """PEFT's task type for the model's first architecture; None when the architecture tells none.

    transformers sets ``config.architectures`` only on saving and loading: a model that was just built has
    none yet, and then its class name is the architecture.
    """
    model_config = getattr(model, "config", None)
    names = getattr(model_config, "architectures", None) or [type(model).__name__]
    name = names if isinstance(names, str) else names[0]
    encodes = getattr(model_config, "is_encoder_decoder", False)
    for known, task in _architectures():
        if name in known and (encodes or task != "SEQ_2_SEQ_LM"):  # some names are in two lists
            return task
    if name.endswith("ForConditionalGeneration"):
        return "SEQ_2_SEQ_LM" if encodes else "CAUSAL_LM"
    return next((task for ending, task in _TASK_TYPES if name.endswith(ending)), None)


@cache
def _architectures() -> list[tuple[frozenset[str], str | None]]:
    # Read on first use: the import costs as much as all of this package.
    from transformers.models.auto import modeling_auto

    found = []
    for registry, task in _REGISTRIES:
        known = getattr(modeling_auto, f"MODEL_FOR_{registry}_MAPPING_NAMES").values()
        names = (one if isinstance(one, (list, tuple)) else [one] for one in known)
        found.append((frozenset(name for several in names for name in several), task))
    return found


def heads(parts: Sequence[ModelPart], sites: Sequence[LoraSite]) -> Heads:
    """What stands beside the backbone of a classification or question answering model (clause ADP-021).

    PEFT asks for the tensors of the usual heads whether or not they were trained, and of every module whose name
    ends like one of them. Other modules beside the backbone belong to the head when they were trained.
    """
    found = Heads()
    for part in parts:
        usual = _HEADS.get(task_type(part.model) or "")
        if usual is None:
            continue
        tensors = dict(part.tensors())
        base = getattr(part.model, "base_model_prefix", "")
        owners = {name.partition(".")[0] for name in tensors if "." in name} - {base}
        trained = {name.partition(".")[0] for name in trained_beside_lora([part], sites)}
        names = sorted(owner for owner in owners if owner in usual or owner in trained)
        found.names += names
        found.tensors |= {name: t for name, t in tensors.items() if names and _ends_like(name, tuple(names))}
    return found


def _ends_like(tensor: str, names: tuple[str, ...]) -> bool:
    segments = tensor.split(".")
    return any(".".join(segments[:depth]).endswith(names) for depth in range(1, len(segments)))
