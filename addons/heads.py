# SPDX-License-Identifier: Apache-2.0
"""The task of a model, and the head that travels with an adapter for it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn

from .lora_sites import LoraSite, trained_beside_lora
from .modules import ModelPart, class_name
from .ranks import attempt

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
USUAL_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


# What PEFT's classes for a task pass to the model's forward besides what all of them do (likewise).
_ALL_PASS = ("input_ids", "attention_mask", "inputs_embeds")
# What they pass as well, and a forward may take as one of any further keywords.
_ALL_PASS_ON = ("output_attentions", "output_hidden_states", "return_dict")
_WITHOUT_LABELS = ("FEATURE_EXTRACTION", "QUESTION_ANS")
_PASSED = {
    "QUESTION_ANS": ("start_positions", "end_positions"),
    "SEQ_2_SEQ_LM": ("decoder_input_ids", "decoder_attention_mask", "decoder_inputs_embeds"),
}
# PEFT's classes for these take methods of generation from the model when they are made.
_GENERATING = ("CAUSAL_LM", "SEQ_2_SEQ_LM")


@dataclass
class Heads:
    """What travels along with the LoRA of the model parts.

    Attributes:
        names: for ``modules_to_save``, sorted.
        tensors: clean native name -> parameter or persistent buffer of each module that PEFT matches with a name, and
            of embeddings of another size than the base model's.
    """

    names: list[str] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


def task_type(model: nn.Module) -> str | None:
    """PEFT's task type for the model's first architecture; None when the architecture tells none.

    It is one only where PEFT's class for it can call the model (clause ADP-025). transformers sets
    ``config.architectures`` only on saving and loading: a model that was just built has none yet, and then its class
    name is the architecture.
    """
    task = _task_of_architecture(model)
    if task is None or not isinstance(model, transformers.PreTrainedModel):
        return task
    # What a forward takes as one of any further keywords it hands on to where nobody knows it.
    known, passed = inspect.signature(model.forward).parameters.keys(), {*_ALL_PASS, *_PASSED.get(task, ())}
    # A decorator of transformers takes some of them itself, and says that it takes any.
    outermost = inspect.signature(model.forward, follow_wrapped=False).parameters.values()
    if not any(one.kind is one.VAR_KEYWORD for one in outermost):
        passed |= {*_ALL_PASS_ON, *(() if task in _WITHOUT_LABELS else ("labels",))}
    able = task not in _GENERATING or isinstance(model, transformers.GenerationMixin)
    return task if able and known >= passed else None


def _task_of_architecture(model: nn.Module) -> str | None:
    model_config = getattr(model, "config", None)
    names = getattr(model_config, "architectures", None) or [class_name(model)]
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
    """What travels along with the LoRA.

    - What PEFT was told to train beside it (``modules_to_save``; clause TGT-021).
    - The head of a classification or question answering model (clause ADP-021): PEFT asks for the tensors of the usual
      heads whether or not they were trained, and of every module whose name ends like one of them. Other modules
      beside the backbone belong to the head when they were trained. A head with LoRA is a target instead.
    - Embeddings of another size than the base model's (clause ADP-026).
    """
    found = Heads()
    for part in parts:
        tensors = dict(part.tensors())
        names = {*part.kept, *_own_heads(part, tensors, sites)}
        found.names += sorted(names)
        found.tensors |= {name: t for name, t in tensors.items() if names and ends_like(name, tuple(names))}
        found.tensors |= _resized_embeddings(part)
    return found


def check_kept(named: Sequence[str], parts: Sequence[ModelPart], found: Heads) -> None:
    """Compare the ``modules_to_save`` of a PEFT config with what is saved (clause ADP-022).

    A name that fits no module of the model is none of it: PEFT itself adds ``classifier`` and ``score`` together
    (clause ADP-029).

    Raises:
        ValueError: a module of the model is named, and PEFT does not hold it as one that it trains.
    """
    for name in named:
        present = any(module.endswith(name) for part in parts for module in part.modules)
        if present and not any(head.endswith(name) for head in found.names):
            raise ValueError(
                f"peft_config.modules_to_save must name modules that PEFT trains beside the LoRA, got {name!r}, which "
                "is none: its tensors would not be in the file. Wrap the model with that config (get_peft_model)"
            )


def _own_heads(part: ModelPart, tensors: Iterable[str], sites: Sequence[LoraSite]) -> set[str]:
    usual = USUAL_HEADS.get(_task_of_architecture(part.model) or "")
    if usual is None:
        return set()
    base = getattr(part.model, "base_model_prefix", "")
    owners = {name.partition(".")[0] for name in tensors if "." in name} - {base}
    trained = {name.partition(".")[0] for name in trained_beside_lora([part], sites)}
    with_lora = {name for name in usual if any(ends_like(f"{site.module}.weight", (name,)) for site in sites)}
    return {owner for owner in owners if (owner in usual and owner not in with_lora) or owner in trained}


def _resized_embeddings(part: ModelPart) -> dict[str, torch.Tensor]:
    """Embedding and head, where the base model that the config names has another number of rows."""
    config: Any = getattr(part.model, "config", None)
    base = getattr(config, "name_or_path", None)
    if not base or not isinstance(part.model, transformers.PreTrainedModel):
        return {}
    size = _words_of(config)
    # As PEFT does (peft 0.21, get_peft_model_state_dict); of a base on the hub what transformers has kept.
    original, _ = attempt(type(config).from_pretrained, base, local_files_only=True)
    if size is None or original is None or _words_of(original) in (None, size):
        return {}
    modules = [attempt(get)[0] for get in (part.model.get_input_embeddings, part.model.get_output_embeddings)]
    kept = {id(tensor) for module in modules if module is not None for tensor in module.parameters()}
    return {name: tensor for name, tensor in part.tensors() if id(tensor) in kept and "lora_" not in name}


def _words_of(config: Any) -> int | None:
    text, _ = attempt(config.get_text_config)  # which models of two texts refuse to tell
    return getattr(text, "vocab_size", None)


def ends_like(tensor: str, names: tuple[str, ...]) -> bool:
    """Whether a module that holds the tensor is called like one of ``names``, or ends so: as PEFT matches them."""
    segments = tensor.split(".")
    return any(".".join(segments[:depth]).endswith(names) for depth in range(len(segments)))
