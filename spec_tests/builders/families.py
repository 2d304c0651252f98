# SPDX-License-Identifier: Apache-2.0
"""Tiny random Hugging Face models of many families, and the catalogue of them all.

As in `hf`: two layers, 64 words, float32, no two sizes that could be mistaken for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers

from spec_tests.builders import hf
from spec_tests.builders.randomness import generator
from spec_tests.builders.training import sample_input_ids
from spec_tests.consumers.outputs import computed

IMAGE_TOKEN = 5
SMALL_FILES = 20_000
"""Bytes a weights file: even these models then need several."""
_IMAGE, _PATCH = 8, 4
_PATCHES = (_IMAGE // _PATCH) ** 2

_BERT_SIZES: dict[str, Any] = {
    "vocab_size": hf.VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}


def bert_encoder(*, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """A bare BertModel. ``overrides`` go to the config."""
    settings = {**_BERT_SIZES, **overrides}
    return hf.build(transformers.BertModel, transformers.BertConfig, "tiny/bert", settings, seed)


def bert_classifier(num_labels: int = 3, *, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """A BertForSequenceClassification, which has a head of its own and no language model head.

    Two labels are what a config without labels means, so that a lost ``id2label`` would not show.
    """
    settings = {**_BERT_SIZES, "num_labels": num_labels, **overrides}
    model_class, config_class = transformers.BertForSequenceClassification, transformers.BertConfig
    return hf.build(model_class, config_class, "tiny/bert-classifier", settings, seed)


def bert_masked_lm(*, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """A BertForMaskedLM: the decoder's weight is the word embedding's, its bias the head's."""
    settings = {**_BERT_SIZES, "tie_word_embeddings": True, **overrides}
    return hf.build(transformers.BertForMaskedLM, transformers.BertConfig, "tiny/bert-mlm", settings, seed)


def bert_questions(*, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """A BertForQuestionAnswering: its head is ``qa_outputs``."""
    settings = {**_BERT_SIZES, **overrides}
    model_class, config_class = transformers.BertForQuestionAnswering, transformers.BertConfig
    return hf.build(model_class, config_class, "tiny/bert-questions", settings, seed)


def roberta_classifier(num_labels: int = 3, *, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """A RobertaForSequenceClassification: its ``classifier`` is a module of two Linears."""
    settings = {**_BERT_SIZES, "num_labels": num_labels, **overrides}
    model_class, config_class = transformers.RobertaForSequenceClassification, transformers.RobertaConfig
    return hf.build(model_class, config_class, "tiny/roberta-classifier", settings, seed)


def distilbert_classifier(num_labels: int = 3, *, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """A DistilBertForSequenceClassification: a ``pre_classifier`` and a ``classifier``, which end alike."""
    settings = {
        "vocab_size": hf.VOCAB,
        "dim": 32,
        "hidden_dim": 40,
        "n_layers": 2,
        "n_heads": 4,
        "max_position_embeddings": 48,
        "num_labels": num_labels,
        **overrides,
    }
    model_class, config_class = transformers.DistilBertForSequenceClassification, transformers.DistilBertConfig
    return hf.build(model_class, config_class, "tiny/distilbert-classifier", settings, seed)


def llama_classifier(num_labels: int = 3, *, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """A LlamaForSequenceClassification: its head is ``score``."""
    settings = {**hf.SIZES, "num_labels": num_labels, **overrides}
    model_class, config_class = transformers.LlamaForSequenceClassification, transformers.LlamaConfig
    return hf.build(model_class, config_class, "tiny/llama-classifier", settings, seed)


def nemotron_h(*, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """A NemotronHForCausalLM of one mixture-of-experts and one attention layer; its experts have no gate."""
    settings = {
        **hf.SIZES,
        "layers_block_type": ["moe", "attention"],
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "moe_shared_expert_intermediate_size": 16,
        "n_group": 1,
        "topk_group": 1,
        "tie_word_embeddings": False,
        **overrides,
    }
    model_class, config_class = transformers.NemotronHForCausalLM, transformers.NemotronHConfig
    return hf.build(model_class, config_class, "tiny/nemotron-h", settings, seed)


def t5(*, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """A T5ForConditionalGeneration: one embedding, which both stacks and the head share."""
    settings = {
        "vocab_size": hf.VOCAB,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 40,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "relative_attention_num_buckets": 16,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 0,
        "tie_word_embeddings": True,
        **overrides,
    }
    model_class, config_class = transformers.T5ForConditionalGeneration, transformers.T5Config
    return hf.build(model_class, config_class, "tiny/t5", settings, seed)


def phi3(*, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """A Phi3ForCausalLM: qkv_proj and gate_up_proj are one Linear each in Hugging Face's own model too."""
    settings = {**hf.SIZES, "tie_word_embeddings": False, **overrides}
    # Its config has no head_dim: the heads share the hidden size.
    del settings["head_dim"]
    return hf.build(transformers.Phi3ForCausalLM, transformers.Phi3Config, "tiny/phi3", settings, seed)


def vision_language(*, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """A LlavaForConditionalGeneration: a CLIP tower and a Llama, with ``vision_config`` and ``text_config``.

    Its names in memory are not those on disk: transformers saves ``model.language_model.x`` as
    ``language_model.model.x``. ``overrides`` go to the outer config.
    """
    settings = {
        "text_config": {"model_type": "llama", **hf.SIZES},
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 24,
            "intermediate_size": 56,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": _IMAGE,
            "patch_size": _PATCH,
            "projection_dim": 16,
        },
        "image_token_index": IMAGE_TOKEN,
        "image_seq_length": _PATCHES,
        # The tower's second last layer is the default; of two layers that is one, and the last would not count.
        "vision_feature_layer": -1,
        "tie_word_embeddings": False,
        **overrides,
    }
    model_class, config_class = transformers.LlavaForConditionalGeneration, transformers.LlavaConfig
    return hf.build(model_class, config_class, "tiny/llava", settings, seed)


class Family(NamedTuple):
    """A kind of model: its builder, the auto class that loads it, and what it is run on.

    ``whole`` says that whole checkpoints are tried on it, and not adapters alone.
    """

    build: Callable[..., transformers.PreTrainedModel]
    auto_class: str
    inputs: Callable[[], dict[str, torch.Tensor]]
    whole: bool = False


def text_inputs() -> dict[str, torch.Tensor]:
    """Token ids [2, 8], nothing padded."""
    ids = sample_input_ids()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def sequence_to_sequence_inputs() -> dict[str, torch.Tensor]:
    """Token ids [2, 8] for the encoder and [2, 6] for the decoder."""
    return {**text_inputs(), "decoder_input_ids": sample_input_ids(seed=1, length=6)}


def image_inputs() -> dict[str, torch.Tensor]:
    """Two prompts [2, 8] with one image each, and the images [2, 3, 8, 8]."""
    inputs = text_inputs()
    ids = inputs["input_ids"]
    ids[ids == IMAGE_TOKEN] += 1
    ids[:, 1 : 1 + _PATCHES] = IMAGE_TOKEN
    return {**inputs, "pixel_values": torch.randn(len(ids), 3, _IMAGE, _IMAGE, generator=generator(2))}


def llama_tied(**settings: Any) -> transformers.PreTrainedModel:
    """A LlamaForCausalLM whose lm_head is its embedding."""
    return hf.llama(tied=True, **settings)


MODELS: dict[str, Family] = {
    "llama": Family(hf.llama, "AutoModelForCausalLM", text_inputs, whole=True),
    "llama_tied": Family(llama_tied, "AutoModelForCausalLM", text_inputs, whole=True),
    "qwen3_moe": Family(hf.qwen3_moe, "AutoModelForCausalLM", text_inputs, whole=True),
    "t5": Family(t5, "AutoModelForSeq2SeqLM", sequence_to_sequence_inputs, whole=True),
    "bert_masked_lm": Family(bert_masked_lm, "AutoModelForMaskedLM", text_inputs, whole=True),
    "bert_classifier": Family(bert_classifier, "AutoModelForSequenceClassification", text_inputs, whole=True),
    "phi3": Family(phi3, "AutoModelForCausalLM", text_inputs, whole=True),
    "vlm": Family(vision_language, "AutoModelForImageTextToText", image_inputs, whole=True),
    "bert_encoder": Family(bert_encoder, "AutoModel", text_inputs),
    "bert_questions": Family(bert_questions, "AutoModelForQuestionAnswering", text_inputs),
    "distilbert_classifier": Family(distilbert_classifier, "AutoModelForSequenceClassification", text_inputs),
    "llama_classifier": Family(llama_classifier, "AutoModelForSequenceClassification", text_inputs),
    "qwen3": Family(hf.qwen3, "AutoModelForCausalLM", text_inputs),
    "roberta_classifier": Family(roberta_classifier, "AutoModelForSequenceClassification", text_inputs),
}
if hasattr(transformers, "NemotronHForCausalLM"):  # which older versions have not
    MODELS["nemotron_h"] = Family(nemotron_h, "AutoModelForCausalLM", text_inputs)
"""Every family that the installed transformers has, by name."""
WHOLE = [name for name, family in MODELS.items() if family.whole]
"""Those that whole checkpoints are tried on."""


@torch.no_grad()
def outputs(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the model computes, float32, in eval mode, which is then undone."""
    was_training = model.training
    model.eval()
    try:
        found = model(**inputs)
    finally:
        model.train(was_training)
    return computed(found).float()
